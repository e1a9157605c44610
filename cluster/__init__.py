"""Cluster files: one small settings file, rendered for `ray up`, KubeRay, Slurm and Docker.

    settings = load_settings("cluster/settings/kuberay.yaml")
    manifest = render(settings, "kuberay-cluster")

Nothing here starts a process or talks to a cluster, and no rendered file holds a secret.
"""

from cluster.config import ClusterSettings, load_settings
from cluster.render import TARGETS, Target, render

__all__ = ["TARGETS", "ClusterSettings", "Target", "load_settings", "render"]
