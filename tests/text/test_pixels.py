"""A critic of pixels on latents: it sees what the autoencoder decodes, with the gradient."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import AutoencoderKL

from sft_rl.cli import main
from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.critics.pixels import InPixels
from sft_rl.data.autoencoder import BATCH
from sft_rl.distributed.team import TorchTeam
from sft_rl.errors import UserError
from sft_rl.jobs.build import build_runner
from sft_rl.jobs.dry_run import requirements_of
from sft_rl.learning.team import Team
from sft_rl.networks.lora import base_of
from sft_rl.policy import to_arrays
from sft_rl.runs.parts import data_of, full_step_network, learner_of, networks_of
from sft_rl.runs.resolve import resolve
from sft_rl.types import Trajectories

LABELS = torch.arange(10) % 3


def test_it_is_a_critic_of_decoded_pictures(settings: list[str], pipeline_folder: Path):
    own = [*settings, "critic.space=pixels", "algorithm=pathwise", "training.micro_batch_size=3"]
    own += ["data.num_points=15"]
    config, data = resolve(load_config("images", own))
    network, _ = full_step_network(config, data)
    networks = networks_of(config, network)
    critic = networks.critic
    assert isinstance(critic, InPixels)
    vae = AutoencoderKL.from_pretrained(pipeline_folder / "vae")
    x = data.latents[:10].clone().requires_grad_()
    assert len(x) > BATCH
    expected = critic.critic(vae.decode(x / 0.5).sample, LABELS)
    scores = critic(x, LABELS)
    torch.testing.assert_close(scores, expected)
    grads = [torch.autograd.grad(s.sum(), x)[0] for s in (scores, expected)]
    torch.testing.assert_close(*grads)
    assert grads[0].abs().sum() > 0
    learner, runner = learner_of(config, networks, data), build_runner(config)
    runner.load(0, learner.weights())
    batch = Trajectories.concatenate([runner.collect(0, 0)])
    trained = {f"critic.{k}": p for k, p in critic.named_parameters()}
    trained |= {k: p for k, p in networks.policy.named_parameters() if ".lora_B." in k}
    before = {name: parameter.clone() for name, parameter in trained.items()}
    _, metrics = learner.judge(batch, 0, 0)
    assert metrics["critic_input_grad_norm"] > 0
    learner.update_policy(batch, 0)
    still = [name for name, parameter in trained.items() if torch.equal(parameter, before[name])]
    assert len(trained) > 20
    assert still == []
    assert {"critic.num_steps", "critic.network.embeddings"} <= set(critic.state_dict())
    of_latents = config.critic.model_copy(update={"space": "latents"})
    less = requirements_of(config.model_copy(update={"critic": of_latents}), 3).num_bytes
    assert requirements_of(config, 3).num_bytes > less


def of_one(config: ResolvedConfig, team: Team) -> list[torch.Tensor]:
    """Gradients of a team's critic step and its policy step."""
    data = data_of(config)
    network, _ = full_step_network(config, data)
    networks = networks_of(config, network)
    runner = build_runner(config, base=to_arrays(base_of(networks.policy.network)))
    learner = learner_of(config, networks, data, team=team)
    runner.load(0, learner.weights())
    batch = Trajectories.concatenate([runner.collect(0, 0)])
    with team.divide(networks.policy.network, *networks.critic.called, networks.value):
        learner.judge(batch, 0, 0)
        learner.update_policy(batch, 0)
    every = (*networks.critic.parameters(), *networks.policy.parameters())
    return [p.grad for p in every if p.grad is not None]


def member(rank: int, folder: Path, config: ResolvedConfig) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    torch.save(of_one(config, TorchTeam()), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow  # two processes that import diffusers and transformers
def test_two_learners_give_the_numbers_of_one(settings: list[str], tmp_path: Path):
    own = [*settings, "critic.space=pixels", "algorithm=pathwise", "data.num_points=15"]
    config, _ = resolve(load_config("images", own))
    alone = of_one(config, Team())
    mp.start_processes(member, (tmp_path, config), nprocs=2, start_method="spawn")
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(together) > 20
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


def test_tiles_are_those_of_diffusers(settings: list[str], pipeline_folder: Path):
    own = [*settings, "data.image_size=32", "data.num_points=12", "pretrained.vae_tiling=true"]
    config, data = resolve(load_config("images", own))
    assert config.samples.latents.tiling
    vae = AutoencoderKL.from_pretrained(pipeline_folder / "vae")
    x = data.latents[:2].clone().requires_grad_()
    whole = vae.decode(x / 0.5).sample
    vae.enable_tiling()
    pictures = data.units.in_units(x) / 127.5 - 1
    torch.testing.assert_close(pictures, vae.decode(x / 0.5).sample)
    assert (pictures - whole).abs().max() > 1e-3
    pictures.sum().backward()
    assert (x.grad != 0).all()


def test_without_an_autoencoder_they_are_refused(capsys: pytest.CaptureFixture[str]):
    for field, given in (("critic.space", "pixels"), ("pretrained.vae_tiling", "true")):
        assert main(["train", "digits", f"{field}={given}"]) == 2
        said = capsys.readouterr().err
        assert f"{field}: " in said
        assert "needs a pipeline of latents in pretrained.path" in said
        assert "Traceback" not in said
    with pytest.raises(UserError, match="pixel"):
        load_config("digits", ["critic.space=pixel"])
