"""KubeRay manifests against the operator's own schema, made strict."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

import cluster.config
from cluster.config import ClusterSettings, Workers, load_settings
from cluster.render import render

ROOT = Path(__file__).parents[2]
CRDS = ROOT.parent / "shared" / "kuberay"
SETTINGS = load_settings(Path(cluster.config.__file__).parent / "settings" / "kuberay.yaml")
CRD_OF = {"kuberay-cluster": "rayclusters", "kuberay-job": "rayjobs"}

needs_crds = pytest.mark.skipif(
    not CRDS.is_dir(), reason="the KubeRay CRDs are not beside the repo"
)


def strict(node: Any) -> Any:
    """Refuse unknown fields wherever the schema lists the known ones."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: strict(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and "type" in node:
        free = node.get("x-kubernetes-preserve-unknown-fields", False)
        node.setdefault("additionalProperties", free)
    return node


def validator(crd: str) -> Draft202012Validator:
    definition = yaml.load((CRDS / f"{crd}.yaml").read_text(), Loader=yaml.CSafeLoader)
    version = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")
    return Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


@pytest.fixture(scope="module")
def validators() -> dict[str, Draft202012Validator]:
    return {target: validator(crd) for target, crd in CRD_OF.items()}


def manifest(target: str, settings: ClusterSettings = SETTINGS) -> dict[str, Any]:
    return yaml.safe_load(render(settings, target))


def changed(section: str, **changes: Any) -> ClusterSettings:
    return changed_in(SETTINGS, section, **changes)


def changed_in(settings: ClusterSettings, section: str, **changes: Any) -> ClusterSettings:
    part = getattr(settings, section).model_copy(update=changes)
    return settings.model_copy(update={section: part})


def cluster_spec(target: str, settings: ClusterSettings = SETTINGS) -> dict[str, Any]:
    spec = manifest(target, settings)["spec"]
    return spec["rayClusterSpec"] if target == "kuberay-job" else spec


@needs_crds
@pytest.mark.parametrize("target", CRD_OF)
@pytest.mark.parametrize("changes", [{}, {"gpus": 0}, {"min": 4}])
def test_the_operator_knows_every_field(validators, target, changes):
    validators[target].validate(manifest(target, changed("workers", **changes)))


@needs_crds
@pytest.mark.parametrize("target", CRD_OF)
@pytest.mark.parametrize(
    "path",
    [
        "authOptions",
        "autoscalerOptions.idleTimeoutSeconds",
        "headGroupSpec.template.spec.restartPolicy",
        "workerGroupSpecs.0.template.spec.containers.0.securityContext.capabilities.drop",
    ],
)
def test_a_misspelt_field_fails(validators, target, path):
    whole = manifest(target)
    node: Any = whole["spec"].get("rayClusterSpec", whole["spec"])
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if part.isdigit() else node[part]
    node[f"{last}X"] = copy.deepcopy(node[last])
    with pytest.raises(ValidationError, match=f"{last}X"):
        validators[target].validate(whole)


@needs_crds
def test_the_claim_is_a_valid_claim(validators):
    node = validators["kuberay-cluster"].schema["properties"]["spec"]["properties"]["headGroupSpec"]
    for part in ("template", "spec", "volumes"):
        node = node["properties"][part]
    volume = node["items"]["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]
    claim = manifest("kuberay-storage", changed("kuberay", storage_class="fast"))
    Draft202012Validator(volume["properties"]["spec"]).validate(claim["spec"])
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "200Gi"}},
        "storageClassName": "fast",
    }


@needs_crds
@pytest.mark.parametrize("target", CRD_OF)
def test_words_that_yaml_takes_for_something_else_stay_words(validators, target):
    kuberay = {"namespace": "on", "storage_claim": "no", "token_secret": "null"}
    kuberay |= {"node_selector": {"example.com/a": "true", "y": "1e3"}}
    words = {"name": "yes", "image": "1:30", "kuberay": changed("kuberay", **kuberay).kuberay}
    whole = manifest(target, SETTINGS.model_copy(update=words))
    validators[target].validate(whole)
    labels = {"app.kubernetes.io/part-of": "yes"}
    assert whole["metadata"] == {"name": "yes", "namespace": "on", "labels": labels}


@pytest.mark.parametrize("target", CRD_OF)
def test_the_token_is_a_reference(target):
    spec = cluster_spec(target)
    assert spec["authOptions"] == {"mode": "token", "secretName": "sft-rl-token"}
    assert "RAY_AUTH_TOKEN" not in render(SETTINGS, target)


@pytest.mark.parametrize("target", CRD_OF)
def test_pods_are_not_root_and_share_the_storage(target):
    spec = cluster_spec(target)
    for group in (spec["headGroupSpec"], spec["workerGroupSpecs"][0]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "sft-rl-runs"}
        assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/opt/sft-rl/runs"


@pytest.mark.parametrize("target", CRD_OF)
def test_gpus_are_asked_for_by_workers_only(target):
    spec = cluster_spec(target)
    head, worker = spec["headGroupSpec"], spec["workerGroupSpecs"][0]["template"]["spec"]
    limits = worker["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"}
    assert worker["containers"][0]["resources"]["requests"] == limits
    assert worker["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "nvidia" not in str(head)
    assert "nvidia" not in str(cluster_spec(target, changed("workers", gpus=0)))


@needs_crds
@pytest.mark.parametrize("target", CRD_OF)
def test_cpu_nodes_draw_beside_a_learner_on_gpus(validators, target):
    rollouts = Workers(min=0, max=8, cpus=16, gpus=0)
    settings = SETTINGS.model_copy(update={"rollout_workers": rollouts})
    selectors = {"rollout_selector": {"pool": "cpu"}, "head_selector": {"pool": "head"}}
    settings = changed_in(settings, "kuberay", **selectors)
    settings = changed_in(settings, "workers", min=4)
    validators[target].validate(manifest(target, settings))
    spec = cluster_spec(target, settings)
    learners, drawing = spec["workerGroupSpecs"]
    pods = [group["template"]["spec"] for group in (learners, drawing, spec["headGroupSpec"])]
    assert [pod.get("nodeSelector") for pod in pods] == [None, {"pool": "cpu"}, {"pool": "head"}]
    limits = [pod["containers"][0]["resources"]["limits"] for pod in pods[:2]]
    assert limits[0]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in limits[1] and limits[1]["cpu"] == "16"
    assert ("tolerations" in pods[0], "tolerations" in pods[1]) == (True, False)
    assert drawing["groupName"] == "rollouts"
    assert (drawing["minReplicas"], drawing["maxReplicas"]) == (0, 8)
    assert spec["enableInTreeAutoscaling"], "of the second group alone"


def test_the_autoscaler_has_limits_or_is_off():
    spec = cluster_spec("kuberay-cluster")
    assert spec["enableInTreeAutoscaling"] is True
    workers = spec["workerGroupSpecs"][0]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (0, 4)
    fixed = cluster_spec("kuberay-cluster", changed("workers", min=4))
    assert fixed["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in fixed


@pytest.mark.parametrize("works", [False, True])
def test_the_head_coordinates_on_loopback_by_default(works):
    default = ClusterSettings.model_fields["dashboard_host"].default
    settings = changed("head", schedule_work=works).model_copy(update={"dashboard_host": default})
    params = cluster_spec("kuberay-cluster", settings)["headGroupSpec"]["rayStartParams"]
    kept_free = {} if works else {"num-cpus": "0"}
    common = {"dashboard-host": "127.0.0.1", "disable-usage-stats": "true"}
    assert params == common | kept_free


@needs_crds
def test_kubernetes_own_tokens_are_taken_without_a_secret(validators):
    settings = changed("kuberay", token_secret=None, service_account="trainer")
    rendered = manifest("kuberay-cluster", settings)
    validators["kuberay-cluster"].validate(rendered)
    assert rendered["spec"]["authOptions"] == {"mode": "token", "enableK8sTokenAuth": True}
    pod = rendered["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert "automountServiceAccountToken" not in pod, "workers ask Kubernetes, too"


def test_the_job_is_quoted_and_cleans_up():
    settings = SETTINGS.model_copy(update={"job": ("train", "swiss roll; true")})
    spec = manifest("kuberay-job", settings)["spec"]
    assert spec["entrypoint"].endswith("python -m sft_rl train 'swiss roll; true'")
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] == 600
    assert spec["backoffLimit"] == 2


@needs_crds
def test_what_a_kubernetes_cluster_asks_for_is_there(validators):
    settings = changed(
        "kuberay",
        queue="research",
        deadline_minutes=90,
        gpu_resource="nvidia.com/mig-1g.10gb",
        env={"OMP_NUM_THREADS": "4"},
        env_secrets=("wandb",),
        service_account="trainer",
        pull_secrets=("registry",),
    )
    job = manifest("kuberay-job", settings)
    validators["kuberay-job"].validate(job)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    spec = job["spec"]
    assert (spec["suspend"], spec["activeDeadlineSeconds"]) == (True, 5400)
    assert spec["entrypointNumGpus"] == 1, "the learner is where the GPUs are"
    assert "entrypointNumGpus" not in manifest("kuberay-job", changed("workers", gpus=0))["spec"]
    for group in (
        spec["rayClusterSpec"]["headGroupSpec"],
        *spec["rayClusterSpec"]["workerGroupSpecs"],
    ):
        pod = group["template"]["spec"]
        assert pod["serviceAccountName"] == "trainer"
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        (container,) = pod["containers"]
        assert {"name": "OMP_NUM_THREADS", "value": "4"} in container["env"]
        assert {"name": "SFT_RL_CACHE", "value": "/opt/sft-rl/runs/.cache"} in container["env"]
        assert container["envFrom"] == [{"secretRef": {"name": "wandb"}}]
    assert container["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == "1"
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
