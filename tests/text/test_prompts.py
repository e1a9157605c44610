"""Files of prompts, and what tables say of them."""

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from tiny_pipelines import PROMPTS

from sft_rl.config import PromptsConfig
from sft_rl.config.files import load_config
from sft_rl.data.prompts import read_prompts
from sft_rl.errors import UserError
from sft_rl.networks.conditions import keep_prompts
from sft_rl.runs.parts import network_of, policy_of, seeded_critic
from sft_rl.runs.resolve import resolve


@pytest.mark.parametrize(
    ("content", "ending", "expected"),
    [
        ("one\n\n two  words \none\n", ".txt", ("one", "two words")),
        ('{"id": 1, "caption": "a"}\n{"caption": "b"}\n', ".jsonl", ("a", "b")),
        ("text,n\na,1\nb,2\n", ".csv", ("a", "b")),
        ("", ".txt", "holds no prompts"),
        ("x" * 10_000_000, ".txt", "10,000,000 bytes; take at most 200,000"),
        ("words,n\na,1\n", ".csv", "no column prompt or caption or text, but words, n"),
        ('{"prompt": 3}\n', ".jsonl", "row 0 holds no text: 3"),
        ("[1]\n", ".jsonl", "every line holds one"),
        ("{\n", ".jsonl", "cannot read"),
        ("\xff", ".txt", "is not UTF-8"),
        ("a", ".toml", "expected a file that ends in"),
    ],
)
def test_files_of_prompts(tmp_path, content, ending, expected):
    file = tmp_path / f"prompts{ending}"
    file.write_bytes(content.encode("latin-1"))
    if isinstance(expected, tuple):
        assert read_prompts(PromptsConfig(path=str(file))) == {text: {} for text in expected}
        return
    with pytest.raises(UserError) as error:
        read_prompts(PromptsConfig(path=str(file)))
    assert expected in str(error.value)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


TABLE = "prompt,digit,weight,share\na seven,7,thin,0.1\na two,2,,\na seven,7,thin,0.2\n"


def test_metadata_of_prompts(tmp_path):
    """Of the columns that are named, the same from all kinds of tables."""
    file = tmp_path / "prompts.csv"
    file.write_text(TABLE)
    table = pd.read_csv(file)
    table.to_parquet(file.with_suffix(".parquet"))
    table.to_json(file.with_suffix(".jsonl"), orient="records", lines=True)

    def read(ending: str, *metadata: str) -> dict[str, dict[str, object]]:
        path = str(file.with_suffix(ending))
        return read_prompts(PromptsConfig(path=path, metadata=metadata))

    for ending in (".csv", ".parquet", ".jsonl"):
        assert read(ending, "digit", "weight") == {
            "a seven": {"digit": 7, "weight": "thin"},
            "a two": {"digit": 2, "weight": None},
        }
        assert read(ending) == {"a seven": {}, "a two": {}}
        with pytest.raises(UserError, match="row 2 says other things of 'a seven'"):
            read(ending, "share")
    with pytest.raises(
        UserError, match=r"prompts.metadata: .* no column 'font', but prompt, digit"
    ):
        read(".csv", "digit", "font")
    file.write_text(f"prompt,long\na,{'x' * 300_000}\n")
    with pytest.raises(UserError, match="metadata of 300,012 bytes; take at most 200,000"):
        read(".csv", "long")
    file.with_suffix(".txt").write_text("a\n")
    with pytest.raises(UserError, match=r"prompts.metadata: .* is no table, got \('digit',\)"):
        read(".txt", "digit")


def test_too_long_prompts_are_said_once(settings, tmp_path):
    (tmp_path / "long.txt").write_text("a thin seven leaning right " * 3 + "\nseven\n")
    said: list[str] = []
    resolve(
        load_config("images", [*settings, f"prompts.path={tmp_path / 'long.txt'}"]),
        warn=said.append,
    )
    assert said == ["prompts: 1 of 2 are too long for the text_encoder, which cuts them"]


def test_an_env_of_prompts(settings):
    """Episodes of some prompts: their numbers, and what tells their embeddings apart."""
    config, data = resolve(load_config("images", settings))
    seen = seeded_critic(config)
    keep_prompts(seen, data.embeddings["prompts"])
    vectors = seen.get_buffer("network.embeddings").numpy()

    def lengths(_: torch.Tensor, prompts: list[str]) -> list[float]:
        return [float(len(prompt)) for prompt in prompts]

    options = {"preset": "images", "settings": settings, "prompts": PROMPTS[::2], "reward": lengths}
    name = "envs:sft_rl/Denoising-v0"
    envs = gymnasium.make_vec(name, num_envs=8, **options)
    many, _ = envs.reset(seed=5)
    assert set(many["label"].tolist()) == {0, 2}
    assert np.array_equal(many["condition"], vectors[many["label"]])
    env = gymnasium.make(name, **options)
    one, _ = env.reset(seed=7)
    assert env.observation_space.contains(one)
    assert env.observation_space["condition"].shape == (16,)
    for key, value in one.items():
        assert np.array_equal(value, many[key][2])
    for _ in range(3):
        _, reward, *_ = env.step(one["latent"])
    assert reward == len(PROMPTS[one["label"]])
    for given, words in (
        (["a cat"], "prompts: 'a cat' is none of the run's 3 prompts, the first is 'a thin seven"),
        ("seven", "prompts: expected a list of texts, got 'seven'"),
        ([], r"prompts: expected a list of texts, got \[\]"),
    ):
        with pytest.raises(UserError, match=words):
            gymnasium.make(name, **{**options, "prompts": given})
    with pytest.raises(UserError, match="prompts: go with a run or preset of a text-to-image"):
        gymnasium.make(name, policy=policy_of(config, network_of(config)), prompts=["seven"])
