"""A cache's key holds all that determines the value, and nothing else."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sft_rl.config import ResolvedConfig, Section
from sft_rl.config.files import load_config
from sft_rl.metrics.evaluation import Evaluator
from sft_rl.pretrained.training import pretrain, pretrained_key
from sft_rl.runs.resolve import resolve
from sft_rl.seeding import num_threads
from sft_rl.storage.cache import Key, arithmetic
from sft_rl.storage.checkpoint import state_sha256

CPU = torch.device("cpu")


# Every setting has another value here, by its type or by name.
BY_NAME: dict[str, str] = {
    "algorithm": "ppo",
    "data.channels": "1",
    "description": "another",
    "preset": "another",
    "ray.address": "127.0.0.1:6379",
    "rollout.shards_per_batch": "2",
    "value.widths": "[8,8]",
    "data.crop": "[0,0,8,8]",
    "data.name": "two_moons",
    "device": "cpu",
    "grpo.window_eta": "0.7",
    "critic.objective": "hinge",
    "learner.launcher": "ray_train",
    "metrics.distance": "sliced_wasserstein",
    "model.embedding_dim": "32",
    "data.characters": "ABC",
    "noise.num_train_timesteps": "500",
    "noise.path": "flow",
    "pretrained.variant": "ema",
    "pretraining.ema_decay": "0.3",
    "pretraining.max_grad_norm": "0.01",
    "rollout.group_size": "4",
    "rollout.latent_dtype": "float16",
    "sampler.start_time": "500",
    "sampler.timesteps": "[900,500,100,0]",
    "training.micro_batch_size": "16",
    "training.max_offpolicy_steps": "1",
    "ppo.target_kl": "0.1",
    "model.unet": '{"layers_per_block": 2}',
}
ELSEWHERE = {
    "data.columns": "of a file, whose points are compared themselves",
    "data.condition_columns": "of a file, whose vectors are compared themselves",
    "data.separator": "of a file",
    "data.header": "of a file",
    "data.path": "another source of the data, which are compared themselves",
    "model.kind": "tested kind by kind",
    "data.captions": "of a user's own pictures",
    "prompts.path": "of a pipeline that is there",
    "prompts.column": "of such a file",
    "policy.lora.alpha": "goes with a rank",
    "policy.lora.targets": "goes with a rank",
    "data.factory": "a user's own data, which are compared themselves",
    "critic.factory": "a user's own",
    "value.factory": "a user's own",
    "model.null_class": "of a model of classes: test_guidance.py",
    "pretraining.label_dropout": "of a model of classes: test_guidance.py",
    "sampler.guidance_scale": "of a model of classes: test_guidance.py",
    "model.factory": "a user's own: test_own_networks.py",
    "model.weights": "of a user's own",
    "model.classes": "of a user's own",
    "noise.betas": "as many as there are steps",
    "pretrained.lora": "goes with pretrained.path",
    "pretrained.path": "nothing is trained",
    "pretrained.preconditioning": "goes with pretrained.path",
    "rollout.labels": "of nodes of a cluster",
    "learner.callbacks": "they are told, and change nothing",
    "learner.labels": "of nodes of a cluster",
    "pretrained.sha256": "nothing is trained",
    "metrics.clip_path": "a folder that is never downloaded",
    "metrics.dinov2_path": "a folder that is never downloaded",
    "metrics.inception_path": "a file that is never downloaded",
    "metrics.reference": "others are for images, and tested there",
    "metrics.reference_stats": "a file that is never downloaded",
    "reward.terms": "functions of the user's",
    "reward.weights": "of terms beside the critic",
    "learner.num_workers": "goes with a launcher",
    "learner.strategy": "of several learners",
    "critic.kind": "others are for images",
    "critic.space": "of a pipeline that is there",
    "pretrained.vae_tiling": "of a pipeline that is there",
    "rollout.branch_step": "goes with groups",
    "sampler.schedule": "goes with a spacing; sampler.timesteps sets it, too",
    "options": "of a user's own classes",
    "rollout.cuda_graphs": "needs a GPU",
}


def other_values(section: Section, prefix: str = "") -> dict[str, str]:
    """Every setting with a value that it does not have."""
    changed: dict[str, str] = {}
    for name in type(section).model_fields:
        key, value = prefix + name, getattr(section, name)
        if key in ELSEWHERE or key == "samples":
            continue
        if isinstance(value, Section):
            changed |= other_values(value, f"{key}.")
        elif key in BY_NAME:
            changed[key] = BY_NAME[key]
        else:
            changed[key] = _another(type(section).model_fields[name].annotation, value)
    return changed


def _another(annotation: Any, value: Any) -> str:
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, int):
        return str(value + 2)
    if isinstance(value, float):
        return str(value / 2 if value else 0.5)
    if isinstance(value, tuple):
        return json.dumps([v / 2 for v in value])
    choices = [c for c in getattr(annotation, "__args__", ()) if isinstance(c, str) and c != value]
    return choices[0] if choices else "2"


Trained = tuple[Key, str]


@functools.cache
def trained(preset: str, settings: tuple[str, ...]) -> Trained:
    """The key of a full-step model, and the hash of what is trained under it."""
    config, data = resolve(load_config(preset, settings), trains=False)
    parts = {"model": config.model, "noise": config.noise}
    key = pretrained_key(
        **parts, pretraining=config.pretraining, pretrained=config.pretrained, data=data
    )
    quiet = lambda *_: None  # noqa: E731
    network = pretrain(**parts, options=config.pretraining, data=data, device=CPU, progress=quiet)
    return key, state_sha256(network)


def lies(preset: str, settings: tuple[str, ...], changes: dict[str, str]) -> dict[str, str]:
    """Settings by which the weights change and the key does not, or the other way round."""
    key, weights = trained(preset, settings)
    wrong = {}
    for name, value in changes.items():
        other_key, other_weights = trained(preset, (*settings, f"{name}={value}"))
        if (key != other_key) != (weights != other_weights):
            wrong[name] = "key" if key != other_key else "weights"
    return wrong


@pytest.fixture(scope="module")
def quick(tiny_settings: tuple[str, ...]) -> tuple[str, ...]:
    return (*tiny_settings, "data.num_points=500", "pretraining.num_iterations=8")


def test_what_changes_the_weights_changes_the_key_and_nothing_else(quick: tuple[str, ...]):
    """Of all settings there are; one at a time, from the swiss roll's."""
    config = load_config("swiss_roll", quick)
    changes = other_values(config)
    assert len(changes) > 100
    assert lies("swiss_roll", quick, changes) == {}
    changed = {
        n
        for n, v in changes.items()
        if trained("swiss_roll", (*quick, f"{n}={v}"))[0] != trained("swiss_roll", quick)[0]
    }
    assert changed >= {"data.standardise", "data.noise", "model.width", "noise.beta_end"}
    assert not changed & {"seed", "model.compile", "model.channels_last", "metrics.num_samples"}


@pytest.mark.parametrize("kind", ["paper_mlp"])
def test_so_it_is_for_the_papers_network(quick: tuple[str, ...], kind: str):
    settings = (*quick, f"model.kind={kind}", "pretraining.continuous_time=false")
    changes = other_values(load_config("swiss_roll", settings))
    ours = {n: v for n, v in changes.items() if n.startswith(("model.", "noise."))}
    del ours["noise.path"]  # it has but one
    assert lies("swiss_roll", settings, ours) == {}


def test_so_it_is_for_the_cosine_schedule(quick: tuple[str, ...]):
    settings = (*quick, "noise.schedule=cosine")
    changes = {"noise.beta_start": "0.01", "noise.beta_end": "0.3", "noise.schedule": "sigmoid"}
    assert lies("swiss_roll", settings, changes) == {}


def test_so_it_is_for_a_flow(quick: tuple[str, ...]):
    """Which is what it was before it could be shifted."""
    settings = (*quick, "noise.path=flow", "model.prediction=flow")
    assert lies("swiss_roll", settings, {"noise.shift": "3", "noise.variance": "none"}) == {}
    assert "shift" not in trained("swiss_roll", settings)[0]["noise"]


def test_so_it_is_for_edm(quick: tuple[str, ...]):
    settings = (*quick, "noise.path=ve", "model.prediction=edm")
    changes = {"noise.sigma_min": "0.1", "noise.beta_end": "0.3", "noise.schedule": "sigmoid"}
    assert lies("swiss_roll", settings, {**changes, "model.sigma_data": "1"}) == {}


def test_so_it_is_for_a_unet(tiny_digits: tuple[str, ...], tiny_unet: dict[str, object]):
    """Precision changes the weights; how images lie in memory does not, nor an MLP's settings."""
    settings = (*tiny_digits, "pretraining.num_iterations=2")
    changes = other_values(load_config("digits", settings))
    ours = {n: v for n, v in changes.items() if n.startswith("model.")}
    ours |= {"data.flip": "true", "data.seed": "1", "data.standardise": "false"}
    ours["model.unet"] = json.dumps({**tiny_unet, "dropout": 0.5})
    assert lies("digits", settings, ours) == {}
    with_classes = ("model.unet=" + json.dumps({**tiny_unet, "num_class_embeds": 10}),)
    assert trained("digits", settings)[0] != trained("digits", (*settings, *with_classes))[0]


def test_pretraining_with_dropout_repeats(
    tiny_digits: tuple[str, ...], tiny_unet: dict[str, object]
):
    dropout = "model.unet=" + json.dumps({**tiny_unet, "dropout": 0.5})
    config, data = resolve(load_config("digits", [*tiny_digits, dropout]))
    hashes = set()
    for _ in range(2):
        torch.rand(3)  # whatever torch's own generator has given
        network = pretrain(
            config.model,
            config.noise,
            config.pretraining,
            data,
            device=CPU,
            progress=lambda *_: None,
        )
        assert not any(module.training for module in network.modules())
        hashes.add(state_sha256(network))
    assert len(hashes) == 1


def test_arithmetic_tells_machines_apart_by_what_their_last_bits_depend_on():
    with num_threads(1):
        one = arithmetic(CPU)
    with num_threads(2):
        two = arithmetic(CPU)
    assert one != two
    assert {**one, "threads": 2} == two
    assert one["torch"] == torch.__version__


def test_what_the_measured_numbers_depend_on_is_in_their_key(
    tiny_config: Callable[..., ResolvedConfig], cache: Path
):
    def key(*settings: str) -> Key:
        config, data = resolve(tiny_config(*settings))
        return Evaluator(data, config.metrics).key

    usual = key()
    for one in ("num_samples=300", "num_projections=7", "num_exact=50", "seed=1"):
        assert key(f"metrics.{one}") != usual
    assert key("data.noise=0.1") != usual
    assert key("data.standardise=false") != usual  # samples come back by another map
    for none in ("metrics.distance=sliced_wasserstein", "training.batch_size=64", "seed=4"):
        assert key(none) == usual


def test_other_held_out_rows_are_another_key(tmp_path: Path, tiny_settings: tuple[str, ...]):
    """Though the training rows, and so the network, are the same."""
    points = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    order = np.random.default_rng(0).permutation(200)  # the split's
    others = points.copy()
    others[order[39]] += 1.0  # beyond the numbers asked for, which not all metrics heed
    keys, fingerprints = [], set()
    for name, values in (("a", points), ("b", others)):
        np.save(tmp_path / f"{name}.npy", values)
        settings = [*tiny_settings, "metrics.num_samples=10", f"data.path={tmp_path / name}.npy"]
        config, data = resolve(load_config("swiss_roll", settings))
        keys.append(Evaluator(data, config.metrics).key)
        fingerprints.add(data.fingerprint)
    assert len(fingerprints) == 1
    assert keys[0] != keys[1]
