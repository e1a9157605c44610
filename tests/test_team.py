"""Several learners give the numbers of one."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import PROCESSES

from sft_rl.config import ResolvedConfig
from sft_rl.config.files import load_config
from sft_rl.data import load_dataset
from sft_rl.distributed.team import TorchTeam
from sft_rl.jobs.clock import Clock
from sft_rl.jobs.fine_tuning import fine_tune
from sft_rl.learning.team import Team
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.runs.folder import RunFolder
from sft_rl.runs.parts import full_step_network, measured_full_step, network_of
from sft_rl.runs.resolve import resolve
from sft_rl.storage.dtensors import own_part, whole

pytestmark = PROCESSES

SIZE = 2
NAMES = ("sft_pg", "ppo", "pathwise", "hybrid", "grpo", "nft", "vectors")
SPLIT = ("sft_pg", "nft", "vectors", "unet", "ended", "begun")
TIMES = ["seconds", "seconds_waiting", "trajectories_per_second"]


class Quiet:
    def phase(self, name: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def progress(self, done: int, total: int, metrics: dict[str, float]) -> None: ...


def learn(config: ResolvedConfig, out: Path, team: Team) -> None:
    """Run, or go on where a run that is there was interrupted."""
    checkpoint = None
    if team.leads:
        store = RunFolder.open(out) if out.exists() else RunFolder.create(out, config)
        checkpoint = store.resume(config)
    else:
        store = RunFolder(out, config)
    data = load_dataset(config.data)
    evaluator = Evaluator(data, config.metrics)
    network, _ = full_step_network(config, data)
    measured = measured_full_step(config, network, evaluator)
    fine_tune(
        network,
        lambda: measured,
        store=store,
        evaluator=evaluator,
        clock=Clock(time.perf_counter(), Quiet()),
        checkpoint=team.leaders(checkpoint),
        team=team,
    )


def member(
    rank: int, folder: Path, configs: dict[str, ResolvedConfig], split: dict[str, ResolvedConfig]
) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=SIZE)
    for name, config in configs.items():
        learn(config, folder / name, TorchTeam())
    for name, config in split.items():
        learn(config, folder / f"split {name}", TorchTeam(splits=True))
    torch.manual_seed(0)
    network = network_of(split["unet"])
    before = network.state_dict()
    TorchTeam(splits=True).split(network)
    now = {name: whole(p) for name, p in network.named_parameters()}
    assert all(torch.equal(now[name], p) for name, p in before.items())
    size = sum(own_part(p).numel() for p in network.parameters())
    (folder / f"size {rank}").write_text(str(size))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_config: Callable[..., ResolvedConfig],
    tiny_digits: tuple[str, ...],
) -> dict[str, tuple[Path, Path]]:
    """Each algorithm's run by one learner, and by two; 33 rows cannot be halved."""
    alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    source = np.random.default_rng(0)
    points = pd.DataFrame(source.normal(size=(900, 4)), columns=[*"xyab"])
    points.to_csv(alone / "points.csv", index=False)
    odd, std = "training.batch_size=33", "sampler.learn_std=true"
    configs = {
        "sft_pg": tiny_config(odd, std),
        "ppo": tiny_config(odd, "algorithm=ppo", "ppo.kl_weight=0.1"),
        "pathwise": tiny_config(
            odd,
            "algorithm=pathwise",
            "pathwise.checkpoint_activations=true",
            "policy.ema_decay=0",
        ),
        "hybrid": tiny_config(
            odd, "algorithm=hybrid", "critic.objective=hinge", "critic.num_networks=2"
        ),
        "grpo": tiny_config(
            odd, "algorithm=grpo", "rollout.group_size=3", "grpo.trust_region=1e-4"
        ),
        "nft": tiny_config(
            odd, "algorithm=nft", "training.n_generator=2", "rollout.latent_dtype=bfloat16"
        ),
        "vectors": tiny_config(
            odd,
            f"data.path={alone / 'points.csv'}",
            "data.condition_columns=[a,b]",
            "sft_pg.baseline=value",
        ),
    }
    for name, config in configs.items():
        learn(config, alone / name, Team())
    through = ("algorithm=pathwise", "pathwise.checkpoint_activations=true")
    more = {
        "unet": resolve(load_config("digits", [*tiny_digits, *through]))[0],
        "whole": tiny_config("critic.regulariser=spectral_norm", "training.lr_decay=none"),
    }
    for name, config in more.items():
        learn(config, alone / name, Team())
    whole = more.pop("whole")
    begun = whole.model_copy(
        update={"training": whole.training.model_copy(update={"num_iterations": 2})}
    )
    # One that a single learner begins and two end, and the other way round.
    split = {name: configs[name] for name in SPLIT if name in configs} | more
    split |= {"ended": whole, "begun": begun}
    learn(begun, together / "split ended", Team())
    arguments = (together, configs, split)
    mp.start_processes(member, arguments, nprocs=SIZE, start_method="forkserver")
    learn(whole, together / "split begun", Team())
    by_one = {name: alone / name if name in configs | more else alone / "whole" for name in split}
    return {
        **{name: (alone / name, together / name) for name in configs},
        **{f"split {name}": (by_one[name], together / f"split {name}") for name in split},
    }


@pytest.mark.parametrize("name", [*NAMES, *(f"split {name}" for name in SPLIT)])
def test_two_learners_give_the_numbers_of_one(runs: dict[str, tuple[Path, Path]], name: str):
    alone, together = (pd.read_csv(out / "metrics.csv").drop(columns=TIMES) for out in runs[name])
    assert together["iteration"].tolist() == [1, 2, 3]
    pd.testing.assert_frame_equal(together, alone, rtol=1e-3, atol=1e-4)
    ours, theirs = (RunFolder.open(out).result()[0] for out in runs[name])
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_each_keeps_its_part(runs: dict[str, tuple[Path, Path]]):
    out = runs["split unet"][1]
    sizes = [int((out.parent / f"size {rank}").read_text()) for rank in range(SIZE)]
    assert sum(sizes) == sum(
        p.numel() for p in RunFolder.open(out).result()[0].network.parameters()
    )
    assert max(sizes) < 0.55 * sum(sizes)  # an odd row of a tensor goes to the first


def test_deterministic_kernels_are_chosen_and_change_nothing_here(
    tmp_path: Path, tiny_config: Callable[..., ResolvedConfig]
):
    for name in ("false", "true"):
        learn(tiny_config(f"training.deterministic={name}"), tmp_path / name, Team())
        assert torch.are_deterministic_algorithms_enabled() == (name == "true")
    torch.use_deterministic_algorithms(False)
    usual, chosen = (RunFolder.open(tmp_path / n).read_summary() for n in ("false", "true"))
    assert usual["policy_sha256"] == chosen["policy_sha256"]
