"""Latents that travel in two bytes: what was scored is what arrives."""

from collections.abc import Callable

import pytest
import torch

from sft_rl.config import ResolvedConfig
from sft_rl.data import load_dataset
from sft_rl.errors import UserError
from sft_rl.jobs.build import build_runner
from sft_rl.policy import to_arrays
from sft_rl.rollout.runner import LocalCollector, Request
from sft_rl.runs.parts import learner_of, network_of, networks_of
from sft_rl.types import Trajectories

TinyConfig = Callable[..., ResolvedConfig]
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_they_take_half_the_bytes_and_are_scored_as_they_arrive(
    tiny_config: TinyConfig, dtype: str
):
    config = tiny_config(f"rollout.latent_dtype={dtype}", "rollout.shards_per_batch=2")
    data = load_dataset(config.data)
    networks = networks_of(config, network_of(config))
    learner = learner_of(config, networks, data)
    worker, wide = build_runner(config), build_runner(tiny_config())
    for runner in (worker, wide):
        runner.load(0, learner.weights())
    arrays = [worker.collect(0, shard).to_numpy() for shard in range(2)]
    usual = wide.collect(0, 0).to_numpy()
    assert sum(a["latents"].nbytes for a in arrays) == usual["latents"].nbytes / 2
    batch = Trajectories.concatenate([Trajectories.from_numpy(a) for a in arrays]).to(CPU)
    assert batch.latents.dtype == torch.float32
    assert torch.equal(batch.latents, batch.latents.to(getattr(torch, dtype)).float())
    policy = networks.policy
    shard = slice(0, len(batch) // 2)  # of the size in which it was drawn
    for k in range(batch.num_steps):
        x, action = batch.latents[k, shard], batch.latents[k + 1, shard]
        ratio = (policy.log_prob(x, action, torch.tensor(k)) - batch.log_probs[k, shard]).exp()
        assert torch.equal(ratio, torch.ones_like(ratio))
    assert learner.update_policy(batch, 0)["first_ratio_deviation"] < 1e-4


def test_the_learners_process_gives_the_bits_of_a_worker(tiny_config: TinyConfig):
    config = tiny_config("rollout.latent_dtype=bfloat16")
    worker, here = build_runner(config), build_runner(config)
    weights = to_arrays(networks_of(config, network_of(config)).policy)
    collector = LocalCollector(here, num_threads=1)
    collector.submit(Request(3, 7, weights, num_shards=2))
    worker.load(7, weights)
    for shard, local in enumerate(collector.results()):
        travelled = Trajectories.from_numpy(worker.collect(3, shard).to_numpy())
        for name in ("latents", "log_probs"):
            assert torch.equal(getattr(travelled.to(CPU), name), getattr(local.to(CPU), name))


def test_rounding_that_drowns_the_noise_of_a_step_is_refused(tiny_config: TinyConfig):
    narrow = ("rollout.latent_dtype=bfloat16", "sampler.final_std=0.003")
    with pytest.raises(UserError, match=r"latent_dtype: bfloat16 rounds .* 0\.0039, .* 0\.003"):
        tiny_config(*narrow)
    tiny_config(*narrow, "rollout.latent_dtype=float16")
    tiny_config(*narrow, "algorithm=pathwise")  # it has no log-probs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_they_arrive_on_a_gpu_as_they_left(tiny_config: TinyConfig):
    worker = build_runner(tiny_config("rollout.latent_dtype=bfloat16"))
    left = Trajectories.from_numpy(worker.collect(0, 0).to_numpy())
    arrived = left.to(torch.device("cuda"))
    assert arrived.latents.is_cuda
    assert torch.equal(arrived.latents.cpu(), left.to(CPU).latents)
    assert torch.equal(arrived.log_probs.cpu(), left.log_probs)
