"""The image that every node runs: non-root, pinned by the project's constraints.txt."""

from cluster.config import ClusterSettings

HOME = "/opt/sft-rl"
RUNS = f"{HOME}/runs"
COPIED = ("pyproject.toml", "README.md", "LICENSE", "constraints.txt")
PACKAGES = ("sft_rl", "envs", "tuning", "cluster")

_CPU = """\
# Index of the CPU builds of torch; left empty, pip installs the default build, which is larger.
ARG TORCH_INDEX_URL=""
RUN pip install --no-cache-dir --constraint constraints.txt \\
    ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch
"""

_CUDA = """\
# torch brings its own CUDA libraries; the driver comes from the host's NVIDIA container toolkit.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pip install --no-cache-dir --constraint constraints.txt torch
"""


def dockerfile(settings: ClusterSettings) -> str:
    """Return the Dockerfile; build it with the root of the repository as context."""
    docker = settings.docker
    extras = f"[{','.join(docker.extras)}]" if docker.extras else ""
    torch = _CUDA if docker.accelerator == "cuda" else _CPU
    packages = "\n".join(f"COPY {package} ./{package}" for package in PACKAGES)
    return f"""\
FROM {docker.base_image}

# `ray up` copies files with rsync; KubeRay's older health probes need wget.
# Debian removes old versions from its archive, so pinning them would break the build.
# hadolint ignore=DL3008
RUN apt-get update \\
    && apt-get install --yes --no-install-recommends rsync wget \\
    && rm -rf /var/lib/apt/lists/*

WORKDIR {HOME}
COPY {" ".join(COPIED)} ./
{torch}
{packages}
RUN pip install --no-cache-dir --constraint constraints.txt ".{extras}"

# {RUNS} is where shared storage is mounted; ~/.ray is where `ray up` puts the token file.
RUN groupadd --gid {docker.uid} ray \\
    && useradd --uid {docker.uid} --gid ray --create-home ray \\
    && install --directory --owner=ray --group=ray {RUNS} \\
    && install --directory --owner=ray --group=ray --mode=0700 /home/ray/.ray

# Nodes without a token refuse to start; the token itself is never part of the image.
ENV RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
USER {docker.uid}:{docker.uid}
CMD ["sft-rl", "--help"]
"""
