"""Settings of the loop, of who computes what where, and of the measuring."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sft_rl.config.base import Count, NonNegative, NonNegativeInt, Positive, Section, Threads
from sft_rl.config.model import LABELLED, DataConfig


class TrainingConfig(Section):
    """The outer loop."""

    num_iterations: Count = 300
    """Iterations: one rollout, `n_critic` critic steps and `n_generator` policy steps each."""
    batch_size: Annotated[int, Field(ge=2, le=10**9)] = 512
    """Trajectories for one critic step."""
    n_critic: Count = 2
    """Critic (and value) steps an iteration; each on trajectories of its own."""
    n_generator: Count = 1
    """Policy steps an iteration."""
    micro_batch_size: Count | None = None
    """Rows of an update's batch that are back-propagated at once, for memory's sake; the gradient
    is that of the whole batch. Rows are samples for the critic, states for the value, transitions
    for `sft_pg` and `ppo`, chains of T steps for `pathwise` and `hybrid`. None takes all."""
    max_offpolicy_steps: Annotated[int, Field(ge=0, le=4)] = 0
    """How many versions old the weights that draw are: 0 draws with the newest, 1 draws the next
    iteration's trajectories while the learner still updates on this one's, N the next N's."""
    lr_decay: Literal["none", "linear", "cosine"] = "linear"
    """How learning rates fall over the run, to `final_lr_factor` of their peak."""
    eval_every: Count = 25
    """Iterations between two evaluations against validation data."""
    deterministic: bool = False
    """Choose kernels that give the same bits every time, on a GPU too, and refuse those that
    cannot. Results of a CPU are the same bits with and without."""
    select_best: bool = False
    """The result is the averaged policy whose leading metric was best on validation data, the
    pretrained sampler included; else the last one, to which falling learning rates lead."""
    checkpoint_every: Count = 50
    """Iterations between two checkpoints."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints are kept, besides the best."""
    plots: bool = True
    """Draw the pictures in `plots/` at the end; they take a second or two of a processor."""


def _branch(value: Any) -> Any:
    if value != "cycle" and (not isinstance(value, int) or value < 0):
        raise ValueError("must be a step, 0 or above, or 'cycle'")
    return value


class RolloutConfig(Section):
    """Who draws trajectories."""

    num_workers: Annotated[int, Field(ge=0, le=10**9)] = 2
    """Ray rollout actors; 0 draws in the learner's process, without Ray."""
    num_cpus_per_worker: NonNegative = 1.0
    """Logical CPUs of a worker, may be fractional."""
    num_gpus_per_worker: NonNegative = 0.0
    """GPUs of a worker, may be fractional."""
    placement: Literal["spread", "pack"] = "spread"
    """`spread`: workers on as many nodes as there are; `pack`: on few, the learner's first."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray's labels that a worker's node must have, as {ray.io/accelerator-type: L4}."""
    shards_per_batch: Count = 1
    """Parts into which the trajectories of a critic step are cut; the unit a worker draws."""
    group_size: Count = 1
    """Trajectories in a row that share their start noise, and their label if there are classes; it
    divides a shard. 1 draws no groups."""
    branch_step: Annotated[int | Literal["cycle"], BeforeValidator(_branch)] = 0
    """Step at which the trajectories of a group part: they share the latents up to it. 0 shares the
    start alone; `cycle` takes the steps in turn, from shard to shard and iteration to iteration."""
    latent_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What latents are rounded to as they are drawn: the narrow ones travel and are kept in half
    the bytes. The rounded latent is the action, so log-probs are those of what arrives. Near 1 it
    is off by up to 0.004 (bfloat16) or 0.0005 (float16), which the noise of a step must exceed."""
    cuda_graphs: bool = False
    """Draw all steps of a shard at one go by a CUDA graph; needs rollouts on a GPU."""
    num_threads: Threads = 1
    """CPU threads a worker computes with; a result depends on it in the last bits."""
    timeout_s: Positive = 300.0
    """Seconds without an answer after which a busy worker counts as hung and is replaced."""


class RayConfig(Section):
    """The Ray cluster."""

    address: str | None = None
    """Cluster to join; none starts a Ray on this machine, on loopback with a token."""
    object_store_gb: Annotated[float, Field(ge=0.08, le=10**4)] | None = None
    """GiB of memory for objects, weights and trajectories on their way, of a Ray that is started
    here; none takes what the run needs, or a search's trials at once, at least 0.25. What has no
    room goes through the disk."""
    dashboard: bool = False
    """Whether a Ray that is started here has a dashboard and exports the run's metrics; a cluster
    always gets them."""


class LearnerConfig(Section):
    """Where the networks are updated."""

    launcher: Literal["local", "ray_train"] = "local"
    """`local`: in this process; `ray_train`: in a worker of Ray Train, which is restarted when it
    dies."""
    num_workers: Count = 1
    """Learners under `ray_train` that share the work on every batch; a result depends on it in
    the last bits."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What each of several learners holds: `ddp` all weights, gradients and moments, `fsdp` (FSDP2
    of torch) its part of them, for a model whose training does not fit one GPU."""
    max_failures: NonNegativeInt = 8
    """How often Ray Train restarts the learners."""
    callbacks: tuple[str, ...] = ()
    """Callbacks of Ray Train, subclasses of ray.train.UserCallback as `module:Class`, made without
    arguments: they are told of every evaluation that is reported and of every failure."""
    num_threads: Threads = 1
    """CPU threads the learner computes with; a result depends on it in the last bits."""
    num_cpus: NonNegative = 1.0
    """Logical CPUs of the learner where Ray places it, as in `sft-rl tune`; may be fractional."""
    num_gpus: NonNegative = 0.0
    """GPUs of the learner where Ray places it; may be fractional."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray's labels that the learner's node must have where Ray places it."""


DISTANCES = {
    "two_sample": "accuracy of the two-sample test",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "frechet_inf": "Fréchet distance in a classifier's features, of infinitely many samples",
    "frechet": "Fréchet distance in a classifier's features",
    "kernel": "kernel distance in a classifier's features",
    "fid": "Fréchet inception distance",
}
"""Metrics that can lead a run, the smaller the better: their names in its files, and in words."""


OF_FEATURES = ("frechet_inf", "frechet", "kernel", "fid")
"""Those of images' features."""


WATCHED_OF_POINTS = ("two_sample", "precision", "recall", "sliced_wasserstein")
"""What every evaluation of points measures, whatever leads."""


def _off(value: Any) -> Any:
    return "off" if value is False else value  # as YAML reads the word


class MetricsConfig(Section):
    """How samples are measured, against held-out real data unless `reference` says otherwise."""

    distance: Literal[
        "auto", "two_sample", "sliced_wasserstein", "frechet_inf", "frechet", "kernel", "fid"
    ] = "auto"
    """The metric that leads: of points `two_sample`, how well a nearest neighbour tells samples
    from data; of images `frechet_inf`, `frechet` or `kernel` in the features of a small classifier
    trained on the data's labels, or `fid` in Inception's; of either `sliced_wasserstein`. `auto`
    takes `two_sample` for points; for images `fid` where `inception_path` is set, else
    `frechet_inf` for `digits` and `cifar10`."""
    inception_path: str | None = None
    """Local file of Inception's weights as torch-fidelity has them; never downloaded."""
    dinov2_path: str | None = None
    """Local folder of a DINOv2 of transformers (config.json, model.safetensors), for a Fréchet
    distance in its features beside those of the leading metric; never downloaded."""
    clip_path: str | None = None
    """Local folder of a CLIP of transformers (config.json, model.safetensors, its tokenizer and
    image processor), for `clip_score` of pictures with prompts; never downloaded."""
    reference: Literal["held_out", "train"] = "held_out"
    """What features of images are compared with: images held out, or all training images, as the
    published FIDs of CIFAR-10 are. Evaluations on the way and the floor take the other."""
    reference_stats: str | None = None
    """Local .npz with `mu` and `sigma` of Inception's features, as others publish them, for the
    FID; KID, precision and recall keep the images of `reference`."""
    full_step: Annotated[Literal["all", "off"] | Count, BeforeValidator(_off)] = "all"
    """Steps of the sampler that stands beside the results as what many steps give: `all` the
    model's own, a number of them, spread evenly, or `off`."""
    num_samples: Annotated[int, Field(ge=10, le=10**9)] = 10_000
    """Samples to measure, and real images for the floor; of points as many real ones."""
    num_excess: Annotated[int, Field(ge=10, le=10**9)] = 65_536
    """Points of a few-step sampler for the excess distance; the full steps' has `num_samples`."""
    num_projections: Count = 100
    """Random directions of the sliced Wasserstein distance."""
    num_exact: Annotated[int, Field(ge=10, le=10**9)] = 2_000
    """Samples on each side of the exact distance and the MMD."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of directions, reference draw and sampling noise."""

    def leading(self, data: DataConfig, *, is_images: bool) -> str:
        """Name of the metric that leads: it chooses the result and stands in summary.json."""
        if self.distance != "auto":
            return self.distance
        if self.inception_path is not None:
            return "fid"
        if data.name in LABELLED:
            return "frechet_inf"
        return "sliced_wasserstein" if is_images else "two_sample"
