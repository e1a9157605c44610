"""Nodes are compared before a job begins, and asked whether they have room."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, time
import sft_rl
from sft_rl.config import RayConfig, RolloutConfig
from sft_rl.distributed.session import RaySession
from sft_rl.errors import UserError

address, name = sys.argv[1:]
config = RolloutConfig(num_workers=2, num_cpus_per_worker=0.5, labels={"name": name})
with RaySession(RayConfig(address=address), config) as session:
    session.wait()
    import ray
    from ray.util.state import list_actors
    from sft_rl.distributed.collector import RayCollector

    pools = [RayCollector(lambda: None, config, run="mine") for _ in range(2)]
    (node,) = [n["NodeID"] for n in ray.nodes() if n["Labels"].get("name") == name]
    found = []
    while len(found) < 4:
        time.sleep(0.2)
        alive = [("class_name", "=", "RolloutWorker"), ("state", "=", "ALIVE")]
        job = ray.get_runtime_context().get_job_id()
        found = list_actors(filters=[("job_id", "=", job), *alive])
    print({actor.node_id for actor in found} == {node}, *sorted(actor.name for actor in found))
    [pool.close() for pool in pools]
    try:  # no other process sees what is in memory, as none of another machine sees its disks
        placed = ["learner.launcher=ray_train", f"learner.labels.name={name}"]
        sft_rl.fine_tune(sft_rl.load_config("swiss_roll", placed), out="memory://runs/a")
    except UserError as error:
        print(error)
for version, wanted in (
    ("9.9.9", {}),
    (sft_rl.__version__, {"num_workers": 7}),
    (sft_rl.__version__, {"labels": {"name": "nowhere"}}),
):
    sft_rl.__version__ = version
    try:
        with RaySession(RayConfig(address=address), RolloutConfig(**wanted)) as session:
            session.wait()
    except UserError as error:
        print(error)
"""


@pytest.mark.ray
def test_workers_have_names_and_labelled_nodes_and_what_cannot_work_is_named(ray_cluster):
    name = next(iter(ray_cluster.nodes))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, ray_cluster.gcs, name],
        env=ray_cluster.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    workers, unseen, mismatch, room, nowhere = done.stdout.splitlines()
    first, first_again, second, second_again = workers.removeprefix("True ").split()
    assert (first, second) == ("sft-rl/mine/rollout-1", "sft-rl/mine/rollout-2")
    assert first_again.startswith(f"{first}-")
    assert second_again.startswith(f"{second}-")
    assert unseen.startswith("--out: node 127.0.0.1 (")
    assert f" does not see memory://runs/a/config.yaml, and 1 CPU labelled name={name}" in unseen
    assert mismatch.startswith("ray.address: node 127.0.0.1 (")
    assert ") has sft_rl 0.1.0, this process has 9.9.9; give all nodes the same image" in mismatch
    assert room.startswith("rollout.num_workers: no room for 7 workers with 1 CPU each: 127.0.0.1")
    assert nowhere.startswith("rollout.labels: no node is labelled name=nowhere: 127.0.0.1")
    assert f"labelled name={name}" in nowhere
