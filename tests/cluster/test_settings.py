"""Bad settings are refused in one line that names the field, and never repeats a secret."""

import copy
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import cluster.config
from cluster.config import ClusterSettings, check_strings, load_settings
from cluster.package import stage
from cluster.render import render
from sft_rl.cli import main
from sft_rl.errors import UserError
from sft_rl.storage.urls import Remote

EXAMPLES = Path(cluster.config.__file__).parent / "settings"
TOKEN = "0123456789abcdef" * 4


def example(name: str) -> dict:
    return yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())


def write(path: Path, raw: object) -> Path:
    path.write_text(yaml.safe_dump(raw))
    return path


def changed(raw: dict, field: str, value: object) -> dict:
    raw = copy.deepcopy(raw)
    section = raw
    *parents, last = field.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    return raw


@pytest.mark.parametrize(
    ("name", "field", "value", "said"),
    [
        ("aws", "worker", {}, "worker: unknown key; did you mean 'workers'?"),
        ("aws", "aws.regoin", "x", "aws.regoin: unknown key; did you mean 'region'?"),
        ("kuberay", "workers.gpu", 1, "workers.gpu: unknown key; did you mean 'gpus'?"),
        ("aws", "workers.gpus", -1, "workers.gpus: got -1; input should be greater than or equal"),
        ("aws", "workers.cpus", "8", "workers.cpus: got '8'; input should be a valid integer"),
        ("aws", "workers.cpus", True, "workers.cpus: got True; input should be a valid integer"),
        ("aws", "workers.min", 9, "workers: min is 9 and max is 8; allowed: min <= max"),
        ("aws", "aws.security_group_ids", [], "aws.security_group_ids: got []; "),
        ("aws", "name", "Sft RL", "name: got 'Sft RL'; allowed: a-z, 0-9 and '-'"),
        ("aws", "dashboard_host", "all", "dashboard_host: got 'all'; allowed: an IP address"),
        ("aws", "image", "a; rm -rf /", "image: got 'a; rm -rf /'; allowed: letters, digits"),
        ("aws", "token_file", "token", "token_file: got 'token'; allowed: a path that starts"),
        (
            "aws",
            "docker.accelerator",
            "tpu",
            "docker.accelerator: got 'tpu'; input should be 'cpu'",
        ),
        ("kuberay", "kuberay", {"token_secret": "t"}, "kuberay.storage_claim: missing"),
        ("slurm", "slurm.directory", "~/x", "slurm.directory: got '~/x'; allowed: a path that"),
        ("slurm", "slurm.time_limit", "8h", "slurm.time_limit: got '8h'; "),
        ("slurm", "slurm.partition", "gpu\n#SBATCH -x", "slurm.partition: got 'gpu\\n#SBATCH -x';"),
        ("slurm", "activate", ["a\nb"], "activate[0]: got 'a\\nb'; allowed: one line"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, name, field, value, said):
    path = write(tmp_path / "settings.yaml", changed(example(name), field, value))
    with pytest.raises(UserError) as caught:
        load_settings(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {said}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kuberay.token_secret", TOKEN),
        ("job", ["train", f"--token={TOKEN}"]),
        ("activate", [f"export RAY_AUTH_TOKEN={TOKEN}"]),
        ("kuberay.node_selector", {"token": TOKEN.upper()}),
        ("kuberay.node_selector", {TOKEN: "x"}),
    ],
)
def test_a_token_is_refused_and_not_repeated(tmp_path, field, value):
    path = write(tmp_path / "settings.yaml", changed(example("kuberay"), field, value))
    with pytest.raises(UserError, match="looks like a token") as caught:
        load_settings(path)
    assert TOKEN.lower() not in str(caught.value).lower()


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "aB3" * 12,
        "ghp_" + "aB3" * 12,
        "github_pat_" + "aB3_" * 20,
        "AKIA" + "ABCD2345" * 2,
        "sk-" + "aB3" * 12,
        "sk-proj-" + "aB3_" * 12,
        "xoxb-" + "123456-" * 3,
        "https://me:pass@example.com/x",
        "az://box/run?sig=a%2Fb",
    ],
)
def test_secrets_of_others_are_known(tmp_path, secret, monkeypatch, capsys):
    with pytest.raises(UserError, match="looks like a token") as caught:
        check_strings(["train", "swiss_roll", f"data.path={secret}"])
    assert secret not in str(caught.value)
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(f"first = 1\nkey = '{secret}'\n")
    (tmp_path / "stage").mkdir()
    with pytest.raises(UserError, match=r"mine\.py: line 2 looks like a secret") as caught:
        stage(tmp_path / "stage", ["mine.py"])
    assert secret not in str(caught.value)
    with pytest.raises(UserError, match="credentials"):
        Remote(f"s3://bucket/{secret}")


@pytest.mark.parametrize(
    "text", ["git+ssh://git@github.com/a/b", "sk-learn", "hf_hub", "s3://bucket/run?region=a"]
)
def test_what_is_no_secret_passes(text):
    check_strings(["pip", text])


def test_an_image_may_be_pinned_by_digest(tmp_path):
    image = f"registry.example.com/sft-rl@sha256:{TOKEN}"
    path = write(tmp_path / "settings.yaml", changed(example("kuberay"), "image", image))
    assert image in render(load_settings(path), "kuberay-cluster")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "not valid YAML at line 1"),
        ("[1, 2]", "expected keys and values, got list"),
        ("", "expected keys and values, got NoneType"),
        ("!!python/object/apply:os.system ['true']", "tags .* are not allowed"),
    ],
)
def test_what_is_not_a_settings_file_is_refused(tmp_path, text, said):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        load_settings(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*no\.yaml: No such file"):
        load_settings(tmp_path / "no.yaml")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("name", "target", "field", "value", "said"),
    [
        ("slurm", "ray-up", "name", "x", "exactly one of the sections on_premise, aws, gcp; got 0"),
        ("gcp", "ray-up", "aws", example("aws")["aws"], "on_premise, aws, gcp; got 2"),
        ("slurm", "kuberay-cluster", "name", "x", "kuberay: missing"),
        ("slurm", "kuberay-job", "name", "x", "kuberay: missing"),
        ("aws", "slurm", "name", "x", "slurm: missing"),
        ("kuberay", "kuberay-cluster", "image", None, "image: missing"),
        ("kuberay", "kuberay-job", "kuberay.token_secret", None, "kuberay.token_secret: missing"),
        (
            "kuberay",
            "kuberay-cluster",
            "kuberay.token_secret",
            None,
            "kuberay.service_account must",
        ),
        ("slurm", "slurm", "rollout_workers", {"gpus": 0}, "rollout_workers: KubeRay has a second"),
        ("kuberay", "kuberay-job", "dashboard_host", "127.0.0.1", "dashboard_host: got 127.0.0.1"),
        ("on-premise", "ray-up", "workers.min", 1, "workers.min: got 1; allowed: 2, the number"),
        ("aws", "docker", "name", "x", "target: got 'docker'; did you mean 'dockerfile'?"),
    ],
)
def test_settings_that_do_not_fit_the_target(tmp_path, name, target, field, value, said):
    settings = load_settings(write(tmp_path / "s.yaml", changed(example(name), field, value)))
    with pytest.raises(UserError) as caught:
        render(settings, target)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


SEARCH = ("--search", "lr_steps", "--num-trials", "1")


def test_a_search_that_goes_on_when_it_is_run_again_is_rendered(tmp_path, capsys):
    job = ["tune", "swiss_roll", *SEARCH, "--out", "runs/a", "--resume=auto"]
    settings = write(tmp_path / "s.yaml", changed(example("slurm"), "job", job))
    assert main(["cluster", "render", "--settings", str(settings), "--target", "slurm"]) == 0
    assert "tune swiss_roll --search lr_steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "job", "said"),
    [
        ("slurm", ["trian", "swiss_roll"], "did you mean 'train'?"),
        ("slurm", ["train", "swiss_rol"], "preset: 'swiss_rol' is unknown"),
        ("kuberay-job", ["train", "swiss_roll", "sead=1"], "did you mean 'seed'?"),
        ("kuberay-job", ["train", "swiss_roll"], "with --out FOLDER and --resume=auto it goes on"),
        ("slurm", ["train", "swiss_roll", "--resume=auto"], "with --out FOLDER and --resume"),
        (
            "slurm",
            ["tune", "swiss_roll", *SEARCH, "--out", "runs/a"],
            "with --out FOLDER and --resume=auto it goes on",
        ),
        (
            "kuberay-job",
            ["train", "swiss_roll", "data.path=a.npy", "--out", "runs/a", "--resume=auto"],
            "a.npy is neither in the image nor on the claim",
        ),
    ],
)
def test_a_job_that_would_fail_or_start_anew_is_not_rendered(tmp_path, capsys, target, job, said):
    name = target.partition("-")[0]
    settings = write(tmp_path / "s.yaml", changed(example(name), "job", job))
    assert main(["cluster", "render", "--settings", str(settings), "--target", target]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("sft-rl: job: ")
    assert said in shown.err


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_settings(EXAMPLES / "aws.yaml").name = "other"


def test_every_field_is_documented():
    sections = [m for m in vars(cluster.config).values() if isinstance(m, type)]
    sections = [
        m for m in sections if issubclass(m, BaseModel) and m.__module__.startswith("cluster.")
    ]
    assert ClusterSettings in sections
    bare = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not field.description or "\n" in field.description
    ]
    assert bare == []
