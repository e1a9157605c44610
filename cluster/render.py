"""From settings to the text of a cluster file."""

from typing import Literal, get_args

import yaml

from cluster.config import ClusterSettings
from cluster.dockerfile import dockerfile
from cluster.kuberay import ray_cluster, ray_job, storage
from cluster.ray_up import ray_up
from cluster.slurm import slurm_script
from sft_rl.errors import UserError, did_you_mean

Target = Literal[
    "ray-up", "kuberay-cluster", "kuberay-job", "kuberay-storage", "slurm", "dockerfile"
]
TARGETS: tuple[Target, ...] = get_args(Target)

_YAML = {
    "ray-up": ray_up,
    "kuberay-cluster": ray_cluster,
    "kuberay-job": ray_job,
    "kuberay-storage": storage,
}
_TEXT = {"slurm": slurm_script, "dockerfile": dockerfile}


def render(settings: ClusterSettings, target: str) -> str:
    """Return the file for `target`, one of `TARGETS`.

    Raises:
        UserError: the target is unknown, or the settings do not fit it.
    """
    if target in _YAML:
        return yaml.safe_dump(_YAML[target](settings), sort_keys=False, width=100)
    if target in _TEXT:
        return _TEXT[target](settings)
    raise UserError(f"target: got {target!r}; {did_you_mean(target, TARGETS)}")
