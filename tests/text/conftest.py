"""A tiny pipeline, prompts, and settings of a run of both."""

from pathlib import Path

import pytest
from tiny_pipelines import PROMPTS, write_pipeline, write_sd3


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    write_pipeline(folder / "sd", folder / "tokenizer")
    return folder / "sd"


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "sd3"
    write_sd3(folder)
    return folder


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join([*PROMPTS, "", PROMPTS[1]]) + "\n")
    return file


@pytest.fixture(scope="session")
def settings(pipeline_folder: Path, prompts: Path) -> list[str]:
    return [
        f"pretrained.path={pipeline_folder}",
        f"prompts.path={prompts}",
        "data.name=pipeline",
        "data.image_size=16",
        "data.num_points=30",
        "data.pipeline_steps=2",
        "sampler.num_steps=3",
        "sampler.start_time=15",
        "sampler.schedule=subsampled",
        "critic.kind=conv",
        "critic.width=8",
        "critic.num_warmup_steps=1",
        "value.kind=conv",
        "training.num_iterations=2",
        "training.batch_size=6",
        "training.n_critic=1",
        "training.eval_every=2",
        "training.plots=false",
        "metrics.num_samples=10",
        "metrics.full_step=2",
        "rollout.num_workers=0",
        "policy.lora.rank=2",
    ]
