"""KubeRay manifests: a cluster, a job that brings its own cluster, and their shared storage."""

import shlex
from ipaddress import ip_address
from typing import Any

from cluster.config import ClusterSettings, KubeRay
from cluster.dockerfile import HOME, RUNS
from sft_rl.errors import UserError

Manifest = dict[str, Any]


def ray_cluster(settings: ClusterSettings) -> Manifest:
    """Return a RayCluster that stays until it is deleted."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(settings, settings.name),
        "spec": _cluster_spec(settings),
    }


def ray_job(settings: ClusterSettings) -> Manifest:
    """Return a RayJob: a cluster that lives as long as one job.

    Raises:
        UserError: the dashboard listens on loopback only, where the operator cannot reach it.
    """
    kuberay = _section(settings)
    if ip_address(settings.dashboard_host).is_loopback:
        raise UserError(
            f"dashboard_host: got {settings.dashboard_host}; a kuberay-job is submitted by another "
            "pod; allowed: an address that pods reach, such as 0.0.0.0 (the token stays required)"
        )
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(settings, settings.name),
        "spec": {
            "entrypoint": f"cd {HOME} && python -m sft_rl {shlex.join(settings.job)}",
            "submissionMode": "K8sJobMode",
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60 * kuberay.keep_minutes,
            "rayClusterSpec": _cluster_spec(settings),
        },
    }


def storage(settings: ClusterSettings) -> Manifest:
    """Return the claim for run folders, apart from the cluster so that it outlives it."""
    kuberay = _section(settings)
    spec: Manifest = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": f"{kuberay.storage_gib}Gi"}},
    }
    if kuberay.storage_class is not None:
        spec["storageClassName"] = kuberay.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(settings, kuberay.storage_claim),
        "spec": spec,
    }


def _section(settings: ClusterSettings) -> KubeRay:
    if settings.kuberay is None:
        raise UserError("kuberay: missing; the kuberay targets need this section")
    return settings.kuberay


def _metadata(settings: ClusterSettings, name: str) -> Manifest:
    return {
        "name": name,
        "namespace": _section(settings).namespace,
        "labels": {"app.kubernetes.io/part-of": settings.name},
    }


def _cluster_spec(settings: ClusterSettings) -> Manifest:
    """Return what RayCluster and RayJob share: token mode, head, workers, autoscaling."""
    head, workers = settings.head, settings.workers
    start = {"dashboard-host": settings.dashboard_host, "disable-usage-stats": "true"}
    if not head.schedule_work:
        start["num-cpus"] = "0"
    spec: Manifest = {
        "rayVersion": settings.ray_version,
        "authOptions": {"mode": "token", "secretName": _section(settings).token_secret},
        "enableInTreeAutoscaling": workers.min < workers.max,
        "headGroupSpec": {"rayStartParams": start, "template": _head_pod(settings)},
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": workers.min,
                "minReplicas": workers.min,
                "maxReplicas": workers.max,
                "rayStartParams": {},
                "template": _worker_pod(settings),
            }
        ],
    }
    if workers.min < workers.max:
        spec["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": 60 * workers.idle_minutes,
            "upscalingMode": "Default",
            "resources": _resources({"cpu": "500m", "memory": "1Gi"}),
            "securityContext": _locked_container(),
        }
    return spec


def _head_pod(settings: ClusterSettings) -> Manifest:
    head = settings.head
    amount = {"cpu": str(head.cpus), "memory": f"{head.memory_gib}Gi"}
    return {"spec": _pod(settings, "ray-head", amount)}


def _worker_pod(settings: ClusterSettings) -> Manifest:
    kuberay, workers = _section(settings), settings.workers
    amount = {"cpu": str(workers.cpus), "memory": f"{workers.memory_gib}Gi"}
    pod = _pod(settings, "ray-worker", amount)
    pod["automountServiceAccountToken"] = False  # only the head's autoscaler talks to Kubernetes
    if kuberay.node_selector:
        pod["nodeSelector"] = dict(kuberay.node_selector)
    if workers.gpus:
        amount[kuberay.gpu_resource] = str(workers.gpus)
        pod["tolerations"] = [
            {"key": kuberay.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}
        ]
    pod["containers"][0]["resources"] = _resources(amount)
    return {"spec": pod}


def _pod(settings: ClusterSettings, container: str, amount: dict[str, str]) -> Manifest:
    """Return a pod of one Ray node: non-root, no privileges, run folders on shared storage."""
    if settings.image is None:
        raise UserError("image: missing; the kuberay targets need the image to run")
    uid = settings.docker.uid
    claim = {"claimName": _section(settings).storage_claim}
    return {
        "restartPolicy": "Never",  # what the autoscaler needs; the operator replaces a dead pod
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": uid,
            "runAsGroup": uid,
            "fsGroup": uid,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": container,
                "image": settings.image,
                "resources": _resources(amount),
                "securityContext": _locked_container(),
                "volumeMounts": [{"name": "runs", "mountPath": RUNS}],
            }
        ],
        "volumes": [{"name": "runs", "persistentVolumeClaim": claim}],
    }


def _resources(amount: dict[str, str]) -> Manifest:
    """Return equal requests and limits: what Ray counts is what the pod has."""
    return {"requests": dict(amount), "limits": dict(amount)}


def _locked_container() -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
