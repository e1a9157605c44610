"""A Slurm batch script: the head on the first node, a worker on every other, then the job."""

import shlex

from cluster.config import ClusterSettings
from sft_rl.errors import UserError

_BODY = r"""
if [[ -n "${token_directory}" ]]; then
  mkdir -p "${token_directory}"
else
  token_directory="${HOME}/.ray"
  install -d -m 700 "${token_directory}"
fi

# The token of this job alone: made here, readable by its owner only, removed at the end.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="${token_directory}/sft-rl-${SLURM_JOB_ID}.token"
clean_up() {
  local pids
  pids="$(jobs -p)"
  [[ -z "${pids}" ]] || xargs kill <<< "${pids}" 2> /dev/null || true
  rm -f "${RAY_AUTH_TOKEN_PATH}"
}
# The job saves a checkpoint when it is told to stop; Ray stays until it has.
stop_job() {
  [[ -z "${job_pid:-}" ]] || { kill -TERM "${job_pid}" && wait "${job_pid}"; } || true
  exit 143
}
trap clean_up EXIT
trap stop_job TERM INT
python -c 'import secrets; print(secrets.token_hex(32))' > "${RAY_AUTH_TOKEN_PATH}"
chmod 600 "${RAY_AUTH_TOKEN_PATH}"

# Nodes must reach each other, so Ray uses this address of a node instead of loopback.
node_address() {
  if [[ -n "${interface}" ]]; then
    ip -4 -oneline address show dev "${interface}" | awk '{ split($4, a, "/"); print a[1]; exit }'
  else
    hostname --all-ip-addresses | awk '{ print $1 }'
  fi
}
export -f node_address

start_worker() {
  ray start --address="${RAY_ADDRESS}" --node-ip-address="$(node_address)" \
    --num-cpus="${SLURM_CPUS_PER_TASK}" --num-gpus="${gpus}" \
    --dashboard-agent-listen-port=$((port + 3)) --temp-dir="/tmp/ray-${SLURM_JOB_ID}" --block
}
export -f start_worker

# This script runs on the first node. Ports follow the job's number: nodes may be shared.
head="${SLURMD_NODENAME}"
address="$(node_address)"
if [[ -z "${address}" ]]; then
  echo "no address on ${head}; check 'interface' in the settings" >&2
  exit 2
fi
port=$((20000 + SLURM_JOB_ID % 3000 * 4))
export RAY_ADDRESS="${address}:${port}"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK}" interface gpus port

srun --overlap --nodes=1 --ntasks=1 --nodelist="${head}" \
  ray start --head --node-ip-address="${address}" --port="${port}" \
  --dashboard-host="${dashboard_host}" --dashboard-port=$((port + 1)) \
  --ray-client-server-port=$((port + 2)) --dashboard-agent-listen-port=$((port + 3)) \
  --num-cpus="${SLURM_CPUS_PER_TASK}" --num-gpus="${gpus}" \
  --temp-dir="/tmp/ray-${SLURM_JOB_ID}" --disable-usage-stats --block &

for attempt in {1..60}; do
  if ray health-check --address "${RAY_ADDRESS}" > /dev/null 2>&1; then break; fi
  if [[ "${attempt}" == 60 ]]; then
    echo "Ray's head did not start on ${head}" >&2
    exit 1
  fi
  sleep 2
done

if ((SLURM_JOB_NUM_NODES > 1)); then
  srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) \
    --exclude="${head}" bash -c start_worker &
fi

python - "${SLURM_JOB_NUM_NODES}" << 'PYTHON'
import sys, time
import ray

wanted, end = int(sys.argv[1]), time.monotonic() + 300
ray.init(log_to_driver=False)
while (alive := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > end:
        sys.exit(f"only {alive} of {wanted} nodes joined within 5 minutes")
    time.sleep(1)
PYTHON

# In the background, so that Slurm's warning before the time limit is handled at once.
srun --overlap --nodes=1 --ntasks=1 --nodelist="${head}" "${job[@]}" &
job_pid=$!
wait "${job_pid}"
"""


def slurm_script(settings: ClusterSettings) -> str:
    """Return the batch script for `sbatch`."""
    slurm, workers = settings.slurm, settings.workers
    if slurm is None:
        raise UserError("slurm: missing; target slurm needs this section")
    options: dict[str, object] = {
        "job-name": settings.name,
        "nodes": slurm.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": workers.cpus,
        "mem": f"{workers.memory_gib}G",
        "time": slurm.time_limit,
        "signal": "B:TERM@60",
        "chdir": slurm.directory,
        "output": "%x-%j.log",
    }
    if workers.gpus:
        options["gpus-per-node"] = workers.gpus
    if slurm.partition is not None:
        options["partition"] = slurm.partition
    if slurm.account is not None:
        options["account"] = slurm.account
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{key}={value}" for key, value in options.items()),
            "",
            "set -eo pipefail",
            *settings.activate,
            "set -u",
            "umask 077 # what Ray and the job write is their owner's alone",
            "",
            f"job=(python -m sft_rl {shlex.join(settings.job)})",
            f"gpus={workers.gpus}",
            f"dashboard_host={shlex.quote(settings.dashboard_host)}",
            f"interface={shlex.quote(slurm.interface or '')}",
            f"token_directory={shlex.quote(slurm.token_directory or '')}",
            _BODY.lstrip("\n").rstrip("\n"),
            "",
        ]
    )
