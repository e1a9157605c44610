"""The settings of a cluster: typed, frozen, and checked before anything is rendered."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from cluster.fields import Count, Ip, Line, LocalPath, Name, Positive, Settings, Word
from cluster.platforms import Aws, Gcp, KubeRay, OnPremise, Slurm
from sft_rl.config.plain_yaml import read_file
from sft_rl.errors import UserError, did_you_mean
from sft_rl.storage.secrets import holds_secret


class Head(Settings):
    """The head node: a CPU machine that coordinates."""

    cpus: Positive = 4
    """CPU cores of the head node."""
    memory_gib: Positive = 16
    """Memory of the head node in GiB (KubeRay)."""
    schedule_work: bool = False
    """Whether tasks and actors may run on the head; false keeps it free to coordinate."""


class Workers(Settings):
    """The worker nodes, all alike."""

    min: Count = 0
    """Worker nodes that always run."""
    max: Positive = 2
    """Worker nodes at most: the autoscaler stops here."""
    cpus: Positive = 8
    """CPU cores of one worker node."""
    memory_gib: Positive = 32
    """Memory of one worker node in GiB (KubeRay, Slurm)."""
    gpus: Count = 1
    """GPUs of one worker node; 0 for a CPU cluster."""
    idle_minutes: Positive = 10
    """Minutes without work after which a worker node above `min` is given back."""

    @property
    def is_elastic(self) -> bool:
        """Whether an autoscaler has anything to do."""
        return self.min < self.max

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max is {self.max}; allowed: min <= max")
        return self


class Docker(Settings):
    """The image that every node runs."""

    accelerator: Literal["cpu", "cuda"] = "cpu"
    """cpu: small, CPU build of torch; cuda: torch with its CUDA libraries, GPUs visible."""
    base_image: Word = "python:3.11-slim"
    """Image to build on: Debian with Python 3.11; pin it by digest for a repeatable build."""
    extras: tuple[Name, ...] = ()
    """Optional dependency groups of the project to install as well."""
    uid: Positive = 1000
    """User and group id in the image; with `ray up` that of `ssh_user`, who owns the token file."""


class ClusterSettings(Settings):
    """Everything that the rendered files of one cluster depend on."""

    name: Name
    """Name of the cluster, and of the job on it."""
    ray_version: Annotated[str, Field(pattern=r"^2\.\d+\.\d+$")] = "2.60.0"
    """Ray's version in the image (KubeRay needs to know it)."""
    image: Word | None = None
    """Image built from the rendered Dockerfile; KubeRay needs it, `ray up` runs Docker if given."""
    dashboard_host: Ip = "127.0.0.1"
    """Address the dashboard and job server listen on at the head; loopback unless changed here."""
    token_file: LocalPath = "~/.ray/auth_token"
    """Token file (0600) on the machine that runs `ray up`; copied to the nodes, never rendered."""
    activate: tuple[Line, ...] = ()
    """Shell lines that run on a node just before Ray starts, for example to enter a venv."""
    job: Annotated[tuple[Line, ...], Field(min_length=1)] = (
        *("train", "swiss_roll"),
        *("--out", "runs/swiss_roll", "--resume=auto"),
    )
    """Arguments of `sft-rl` that a KubeRay or Slurm job runs."""
    head: Head = Head()
    """The head node."""
    workers: Workers = Workers()
    """The worker nodes."""
    rollout_workers: Workers | None = None
    """A second group of them (KubeRay), such as CPU nodes that draw beside a learner on GPUs."""
    docker: Docker = Docker()
    """How the image is built."""
    on_premise: OnPremise | None = None
    """For `ray up` on machines of your own."""
    aws: Aws | None = None
    """For `ray up` on AWS."""
    gcp: Gcp | None = None
    """For `ray up` on Google Cloud."""
    kuberay: KubeRay | None = None
    """For KubeRay."""
    slurm: Slurm | None = None
    """For Slurm."""


def load_settings(path: str | Path) -> ClusterSettings:
    """Read and check a settings file.

    Raises:
        UserError: the file cannot be read, or one line that says which field is wrong and why.
    """
    raw = read_mapping(path, ClusterSettings)
    try:
        check_strings(raw)
        return ClusterSettings.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_mapping(path: str | Path, kind: Any = Any) -> dict[str, Any]:
    """Read a YAML file of keys and values, by the type of what it holds.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    raw = read_file(path, kind)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys and values, got {type(raw).__name__}")
    return raw


def check_strings(value: object) -> None:
    """Refuse, in nested settings, strings that break out of their line and those like a token.

    Raises:
        UserError: Naming the field; a token is not repeated.
    """
    for where, text in _strings(value):
        if not text.isprintable():
            raise UserError(f"{where}: got {text!r}; allowed: one line of printable characters")
        if holds_secret(text):
            raise UserError(
                f"{where}: looks like a token; give the name of its secret or file instead"
            )


def _strings(value: object, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string in nested settings, keys too, with the name of its field."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield where or "a key", str(key)
            yield from _strings(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, Sequence):
        for index, item in enumerate(value):
            yield from _strings(item, f"{where}[{index}]")


def _explain(error: ValidationError) -> str:
    """Turn pydantic's first complaint into one line: field, what was given, what is allowed."""
    first = error.errors(include_url=False)[0]
    parts = first["loc"]
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).lstrip(".")
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key; {did_you_mean(str(parts[-1]), _keys(parts[:-1]))}"
    if first["type"] == "missing":
        return f"{where}: missing"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and not isinstance(first["input"], str):
        return f"{where}: {message}"
    message = message[0].lower() + message[1:]
    return f"{where}: got {first['input']!r}; {message}"


def _keys(parts: Sequence[int | str]) -> list[str]:
    """Return the valid keys of the section that `parts` leads to."""
    section: Any = ClusterSettings
    for part in parts:
        annotation = section.model_fields[part].annotation
        options = (annotation, *getattr(annotation, "__args__", ()))
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(section.model_fields)
