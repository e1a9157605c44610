"""The settings of a cluster: typed, frozen, and checked before anything is rendered."""

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sft_rl.config.plain_yaml import read_file
from sft_rl.errors import UserError, did_you_mean
from sft_rl.storage.secrets import holds_secret


def _text(pattern: str, allowed: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, flags=re.ASCII):
            raise ValueError(f"allowed: {allowed}")
        return text

    return AfterValidator(check)


def _ip(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError("allowed: an IP address such as 127.0.0.1 or 0.0.0.0") from None


Count = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[int, Field(ge=1, strict=True)]
Name = Annotated[
    str,
    _text(
        "[a-z]([a-z0-9-]{0,38}[a-z0-9])?",
        "a-z, 0-9 and '-', starting with a letter, at most 40 characters",
    ),
]
Word = Annotated[
    str, _text(r"(?!-)[\w./:@+=,-]+", "letters, digits and _ . / : @ + = , - without a leading '-'")
]
Ip = Annotated[str, AfterValidator(_ip)]
LocalPath = Annotated[
    str, _text(r"~?/[\w./@+=-]+", "a path that starts with / or ~/, without spaces")
]
AbsolutePath = Annotated[str, _text(r"/[\w./@+=-]+", "a path that starts with /, without spaces")]
Line = Annotated[str, Field(min_length=1)]


class _Settings(BaseModel):
    """Frozen, no unknown keys, and the string under a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Head(_Settings):
    """The head node: a CPU machine that coordinates."""

    cpus: Positive = 4
    """CPU cores of the head node."""
    memory_gib: Positive = 16
    """Memory of the head node in GiB (KubeRay)."""
    schedule_work: bool = False
    """Whether tasks and actors may run on the head; false keeps it free to coordinate."""


class Workers(_Settings):
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

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max is {self.max}; allowed: min <= max")
        return self


class Docker(_Settings):
    """The image that every node runs."""

    accelerator: Literal["cpu", "cuda"] = "cpu"
    """cpu: small, CPU build of torch; cuda: torch with its CUDA libraries, GPUs visible."""
    base_image: Word = "python:3.11-slim"
    """Image to build on: Debian with Python 3.11; pin it by digest for a repeatable build."""
    extras: tuple[Name, ...] = ()
    """Optional dependency groups of the project to install as well."""
    uid: Positive = 1000
    """User and group id in the image; with `ray up` that of `ssh_user`, who owns the token file."""


class OnPremise(_Settings):
    """Machines of your own for `ray up`, reached over SSH; all of them are always used."""

    head_ip: Word
    """Address of the head machine."""
    worker_ips: Annotated[tuple[Word, ...], Field(min_length=1)]
    """Addresses of the worker machines; `workers.min` and `workers.max` are their number."""
    ssh_user: Word
    """User to log in as on every machine."""
    ssh_private_key: LocalPath | None = None
    """Path of the SSH key on the machine that runs `ray up`; by default SSH decides."""


class _Cloud(_Settings):
    """What the machines of any cloud have."""

    disk_gib: Positive = 200
    """Size of the boot disk in GiB."""
    spot: bool = False
    """Whether workers are spot machines, which the cloud may take back at any time."""
    use_internal_ips: bool = False
    """Whether nodes have only private addresses (run `ray up` inside the network then)."""
    ssh_user: Word = "ubuntu"
    """User of the machine image to log in as."""


class Aws(_Cloud):
    """Machines of AWS for `ray up`."""

    region: Word
    """Region, for example eu-central-1."""
    zones: Annotated[tuple[Word, ...], Field(min_length=1)]
    """Availability zones, tried in this order."""
    head_instance: Word
    """Instance type of the head, with `head.cpus` cores."""
    worker_instance: Word
    """Instance type of the workers, with `workers.cpus` cores and `workers.gpus` GPUs."""
    security_group_ids: Annotated[tuple[Word, ...], Field(min_length=1)]
    """Your security groups; a group made by Ray would open SSH to the whole internet."""
    subnet_ids: tuple[Word, ...] = ()
    """Subnets to start in; by default those of the default network."""
    machine_image: Word | None = None
    """AMI id; by default the one Ray knows for the region."""


class Gcp(_Cloud):
    """Machines of Google Cloud for `ray up`."""

    project_id: Word
    """Project that owns the machines."""
    region: Word
    """Region, for example europe-west4."""
    zone: Word
    """Zone in that region, for example europe-west4-a."""
    head_machine: Word
    """Machine type of the head, with `head.cpus` cores."""
    worker_machine: Word
    """Machine type of the workers, with `workers.cpus` cores."""
    accelerator: Word = "nvidia-l4"
    """GPU type of the workers; `workers.gpus` of them are attached."""
    machine_image: Word = "projects/deeplearning-platform-release/global/images/family/common-cu129"
    """Boot image with Docker and, for GPUs, the driver."""


class KubeRay(_Settings):
    """A Kubernetes cluster with the KubeRay operator, 1.6 or later."""

    namespace: Name = "default"
    """Namespace of everything that is rendered."""
    token_secret: Name
    """Name of the Secret whose key `auth_token` holds the token; the token stays there."""
    storage_claim: Name
    """Name of the PersistentVolumeClaim for run folders, shared by all pods (ReadWriteMany)."""
    storage_gib: Positive = 100
    """Size of that claim in GiB (target kuberay-storage)."""
    storage_class: Word | None = None
    """Storage class of that claim; by default the cluster's own."""
    gpu_resource: Word = "nvidia.com/gpu"
    """Name under which Kubernetes counts GPUs, such as nvidia.com/mig-1g.10gb."""
    gpu_taint: Word = "nvidia.com/gpu"
    """Taint of GPU nodes, which workers tolerate; MIG's nodes have it, too."""
    learner_gpus: Count = 1
    """GPUs of the learner, on a worker node, where workers have GPUs (target kuberay-job)."""
    retries: Count = 2
    """How often a job whose driver was lost is run again; its `job` says `--resume=auto`."""
    deadline_minutes: Positive | None = None
    """Minutes after which a job is ended; by default never."""
    queue: Name | None = None
    """Kueue's local queue that a job waits in; by default none."""
    env: Mapping[Word, Line] = Field(default_factory=dict)
    """Environment variables of all pods."""
    env_secrets: tuple[Name, ...] = ()
    """Secrets whose keys are environment variables of all pods."""
    service_account: Name | None = None
    """Service account of all pods; by default the namespace's own."""
    pull_secrets: tuple[Name, ...] = ()
    """Secrets for the image's registry."""
    node_selector: Mapping[Word, Word] = Field(default_factory=dict)
    """Labels that a node must carry to run workers."""
    keep_minutes: Count = 10
    """Minutes that the cluster of a finished job stays up, for its logs."""


class Slurm(_Settings):
    """A Slurm cluster; one task per node, `workers.cpus/gpus/memory_gib` on each."""

    nodes: Positive
    """Number of nodes; the first one carries the head as well."""
    directory: AbsolutePath
    """Folder on a shared file system where the job runs and leaves its `runs/`."""
    time_limit: Annotated[str, Field(pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$")] = "04:00:00"
    """Time limit, [days-]hours:minutes:seconds; the job is told `notice_seconds` before it."""
    partition: Word | None = None
    """Partition; by default the cluster's own."""
    account: Word | None = None
    """Account to charge; by default your own."""
    qos: Word | None = None
    """Quality of service; by default the partition's own."""
    constraint: Line | None = None
    """Features that nodes must have, for example a100&nvlink."""
    gres: Word | None = None
    """GPUs as the cluster names them, for example gpu:a100:2; by default `workers.gpus` of any."""
    sbatch: tuple[Line, ...] = ()
    """Further lines for sbatch, for example --exclusive."""
    notice_seconds: Positive = 60
    """Seconds before the time limit at which the job is told to save: longer than an iteration."""
    interface: Word | None = None
    """Network interface whose address Ray uses, for example ib0; by default the first one."""
    token_directory: AbsolutePath | None = None
    """Shared folder for the job's token file (0600, removed at the end); by default ~/.ray."""


class ClusterSettings(_Settings):
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
    job: Annotated[tuple[Line, ...], Field(min_length=1)] = ("train", "swiss_roll")
    """Arguments of `sft-rl` that a KubeRay or Slurm job runs."""
    head: Head = Head()
    """The head node."""
    workers: Workers = Workers()
    """The worker nodes."""
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
