"""The settings of each platform that a cluster can run on."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from cluster.fields import AbsolutePath, Count, Line, LocalPath, Name, Positive, Settings, Word


class OnPremise(Settings):
    """Machines of your own for `ray up`, reached over SSH; all of them are always used."""

    head_ip: Word
    """Address of the head machine."""
    worker_ips: Annotated[tuple[Word, ...], Field(min_length=1)]
    """Addresses of the worker machines; `workers.min` and `workers.max` are their number."""
    ssh_user: Word
    """User to log in as on every machine."""
    ssh_private_key: LocalPath | None = None
    """Path of the SSH key on the machine that runs `ray up`; by default SSH decides."""


class _Cloud(Settings):
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


class KubeRay(Settings):
    """A Kubernetes cluster with the KubeRay operator, 1.6 or later."""

    namespace: Name = "default"
    """Namespace of everything that is rendered."""
    token_secret: Name | None = None
    """Secret whose key `auth_token` is the token; none: Kubernetes says who may (a cluster)."""
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
    """Service account of all pods; by default the namespace's. Needed without `token_secret`."""
    pull_secrets: tuple[Name, ...] = ()
    """Secrets for the image's registry."""
    node_selector: Mapping[Word, Word] = Field(default_factory=dict)
    """Labels that a node must carry to run workers."""
    rollout_selector: Mapping[Word, Word] = Field(default_factory=dict)
    """Labels that a node must carry to run `rollout_workers`."""
    head_selector: Mapping[Word, Word] = Field(default_factory=dict)
    """Labels that a node must carry to run the head."""
    keep_minutes: Count = 10
    """Minutes that the cluster of a finished job stays up, for its logs."""


class Slurm(Settings):
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
