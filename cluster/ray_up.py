"""Cluster file of `ray up`: machines of your own, AWS or Google Cloud."""

from typing import Any

from cluster.config import Aws, ClusterSettings, Gcp, OnPremise
from sft_rl.errors import UserError

TOKEN_ON_NODE = "~/.ray/auth_token"  # where Ray looks for its token by itself
HEAD, WORKER = "head", "worker"


def ray_up(settings: ClusterSettings) -> dict[str, Any]:
    """Return the cluster file; the token travels as a file mount, not in the text."""
    config: dict[str, Any] = {
        "cluster_name": settings.name,
        "max_workers": settings.workers.max,
        "idle_timeout_minutes": settings.workers.idle_minutes,
        **_provider(settings),
        "file_mounts": {TOKEN_ON_NODE: settings.token_file},
        "setup_commands": [f"chmod 600 {TOKEN_ON_NODE}"],
        "head_start_ray_commands": _start(settings, head=True),
        "worker_start_ray_commands": _start(settings, head=False),
    }
    if settings.image is not None:
        config["docker"] = {
            "image": settings.image,
            "container_name": settings.name,
            "pull_before_run": True,
            "run_options": ["--ulimit nofile=65536:65536"],
        }
    return config


def _provider(settings: ClusterSettings) -> dict[str, Any]:
    given = [p for p in (settings.on_premise, settings.aws, settings.gcp) if p is not None]
    if len(given) != 1:
        raise UserError(
            f"ray-up needs exactly one of the sections on_premise, aws, gcp; got {len(given)}"
        )
    match given[0]:
        case OnPremise() as machines:
            return _on_premise(settings, machines)
        case Aws() as aws:
            return _aws(settings, aws)
        case Gcp() as gcp:
            return _gcp(settings, gcp)


def _start(settings: ClusterSettings, *, head: bool) -> list[str]:
    """Return the commands that start Ray on a node: `activate`, token mode, `ray start`."""
    if head:
        flags = ["--head", "--port=6379", f"--dashboard-host={settings.dashboard_host}"]
        flags += ["--autoscaling-config=~/ray_bootstrap_config.yaml", "--disable-usage-stats"]
        flags += [] if settings.head.schedule_work else ["--num-cpus=0"]
    else:
        flags = ['--address="$RAY_HEAD_IP:6379"']
    start = " ".join(["ray", "start", *flags, "--object-manager-port=8076"])
    before = [*settings.activate, "export RAY_AUTH_MODE=token"]
    return [
        " && ".join([*before, "ray stop"]),
        " && ".join([*before, "ulimit -n 65536", start]),
    ]


def _on_premise(settings: ClusterSettings, machines: OnPremise) -> dict[str, Any]:
    count = len(machines.worker_ips)
    for key, value in (("min", settings.workers.min), ("max", settings.workers.max)):
        if value != count:
            raise UserError(
                f"workers.{key}: got {value}; allowed: {count}, "
                "the number of on_premise.worker_ips, which are all used"
            )
    auth = {"ssh_user": machines.ssh_user}
    if machines.ssh_private_key is not None:
        auth["ssh_private_key"] = machines.ssh_private_key
    return {
        "provider": {
            "type": "local",
            "head_ip": machines.head_ip,
            "worker_ips": list(machines.worker_ips),
        },
        "auth": auth,
    }


def _node_types(
    settings: ClusterSettings, head: dict[str, Any], worker: dict[str, Any]
) -> dict[str, Any]:
    """Return a CPU head and its workers, with the limits of the autoscaler."""
    workers = settings.workers
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    return {
        "head_node_type": HEAD,
        "available_node_types": {
            HEAD: {
                "resources": {"CPU": settings.head.cpus if settings.head.schedule_work else 0},
                "min_workers": 0,
                "max_workers": 0,
                "node_config": head,
            },
            WORKER: {
                "resources": resources,
                "min_workers": workers.min,
                "max_workers": workers.max,
                "node_config": worker,
            },
        },
    }


def _aws(settings: ClusterSettings, aws: Aws) -> dict[str, Any]:
    def machine(instance: str) -> dict[str, Any]:
        disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": aws.disk_gib, "Encrypted": True}}
        node = {
            "InstanceType": instance,
            "SecurityGroupIds": list(aws.security_group_ids),
            "BlockDeviceMappings": [disk],
            "MetadataOptions": {"HttpTokens": "required"},
        }
        subnets = {"SubnetIds": list(aws.subnet_ids)} if aws.subnet_ids else {}
        image = {"ImageId": aws.machine_image} if aws.machine_image else {}
        return node | subnets | image

    spot = {"InstanceMarketOptions": {"MarketType": "spot"}} if aws.spot else {}
    return {
        "provider": {
            "type": "aws",
            "region": aws.region,
            "availability_zone": ",".join(aws.zones),
            "use_internal_ips": aws.use_internal_ips,
            "cache_stopped_nodes": False,
        },
        "auth": {"ssh_user": aws.ssh_user},
        **_node_types(settings, machine(aws.head_instance), machine(aws.worker_instance) | spot),
    }


def _gcp(settings: ClusterSettings, gcp: Gcp) -> dict[str, Any]:
    def machine(machine_type: str) -> dict[str, Any]:
        boot = {"diskSizeGb": gcp.disk_gib, "sourceImage": gcp.machine_image}
        disk = {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": boot}
        return {"machineType": machine_type, "disks": [disk]}

    worker = machine(gcp.worker_machine)
    scheduling: dict[str, Any] = {"preemptible": True} if gcp.spot else {}
    if settings.workers.gpus:
        # Ray completes the type to its full address; a machine with a GPU cannot be moved live.
        worker["guestAccelerators"] = [
            {"acceleratorType": gcp.accelerator, "acceleratorCount": settings.workers.gpus}
        ]
        worker["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
        scheduling["onHostMaintenance"] = "TERMINATE"
    if scheduling:
        worker["scheduling"] = scheduling
    return {
        "provider": {
            "type": "gcp",
            "project_id": gcp.project_id,
            "region": gcp.region,
            "availability_zone": gcp.zone,
            "use_internal_ips": gcp.use_internal_ips,
        },
        "auth": {"ssh_user": gcp.ssh_user},
        **_node_types(settings, machine(gcp.head_machine), worker),
    }
