"""Settings of the data, the forward process and the denoising network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from sft_rl.config.base import (
    Count,
    NonNegative,
    NonNegativeInt,
    Positive,
    Reference,
    Section,
    Seed,
)

IMAGES = ("digits", "glyphs", "cifar10", "images", "pipeline")
LABELLED = ("digits", "glyphs", "cifar10")
WITH_PATH = ("file", "cifar10", "images")


def _characters(values: str) -> str:
    if not values or not (values.isascii() and values.isalnum()) or len(set(values)) < len(values):
        raise ValueError(f"needs different digits and letters of a-z and A-Z, got {values!r}")
    return values


class DataConfig(Section):
    """The data to generate."""

    name: Literal[
        "swiss_roll",
        "two_moons",
        "file",
        "digits",
        "glyphs",
        "cifar10",
        "images",
        "pipeline",
        "memory",
    ] = "swiss_roll"
    """Points: `swiss_roll`, `two_moons`, or a `file`, which a `path` selects. Images: the 8x8
    `digits` in scikit-learn, `glyphs`, coloured characters that are drawn here, `cifar10` in its
    binary format, a user's `images`, or `pipeline`: what the text-to-image pipeline of
    `pretrained.path` draws of `prompts.path`. `memory` is what Python hands over, or what
    `factory` returns."""
    factory: Reference | None = None
    """A user's `module:function` that returns points (N, dim), or images (N, channels, height,
    width) in uint8, the same ones at every call; sets `name=memory`."""
    path: str | None = None
    """A user's own points, one a row: .npy, .npz, .csv, .csv.gz or .parquet; for `cifar10` the
    folder with data_batch_1.bin; for `images` a folder of pictures, or .parquet or .arrow files of
    them."""
    columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Columns of a table to read, by name, or by position from 0 where they have none: of points
    the dimensions. None takes all, but for an index."""
    condition_columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Columns of numbers, in a table of points or of pictures, that are given, not generated: the
    model is conditional on them, as on the parameters of an experiment."""
    captions: str | None = None
    """Captions of `images`, which a text-to-image pipeline is prompted with: a column of their
    table, or `txt`, a file beside each picture. None takes their labels."""
    pipeline_steps: Count = 50
    """Steps of a picture of `name=pipeline`."""
    separator: Literal["comma", "semicolon", "tab", "pipe", "space"] | None = None
    """What parts the columns of a .csv; None finds it out."""
    header: bool | None = None
    """Whether the first row of a .csv names the columns; None finds it out."""
    num_points: Annotated[int, Field(ge=2, le=10**9)] = 200_000
    """Training points to draw from a synthetic source, or `glyphs`; of `pipeline` all pictures, 256
    if not given."""
    noise: NonNegative = 0.05
    """Noise of the synthetic sources, in scikit-learn's units."""
    test_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of a file's rows, or of the images, that is held out as the reference of the
    metrics, of labelled images the same of each class; CIFAR-10 brings its own, and `glyphs` are
    drawn beside the training images."""
    standardise: bool = True
    """Shift points to mean 0 and scale to std 1 for the model; undone on output. Pixels go to
    -1..1 always."""
    image_size: Annotated[int, Field(ge=4, le=10**9)] = 32
    """Height and width of `glyphs`, and to which `images` are scaled."""
    channels: Literal[1, 3] = 3
    """Colours of `glyphs` and `images`: 3, or 1 for grey."""
    characters: Annotated[str, AfterValidator(_characters)] = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"
    """What `glyphs` show, and their classes in this order: digits and letters of English."""
    crop: tuple[int, int, int, int] | None = None
    """Box cut out of every one of `images` first: left, top, right, bottom, pixels."""
    flip: bool = False
    """Mirror training images at random."""
    seed: Seed = 0
    """Seed of synthetic points and of the split."""

    @property
    def all_columns(self) -> tuple[str, ...] | None:
        """What is read of a table of points: `columns` with `condition_columns`, or all."""
        if self.columns is None:
            return None
        return (*self.columns, *(self.condition_columns or ()))

    @property
    def is_images(self) -> bool:
        """Whether samples are images, of shape (channels, height, width)."""
        return self.name in IMAGES

    @property
    def is_handed_over(self) -> bool:
        """Whether they are there in Python alone: no setting says where to find them again."""
        return self.name == "memory" and self.factory is None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of images."""
        known = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}
        return known.get(self.name, (self.channels, self.image_size, self.image_size))

    @field_validator("columns", "condition_columns", mode="before")
    @classmethod
    def _names_may_be_numbers(cls, value: Any) -> Any:
        return [str(name) for name in value] if isinstance(value, (list, tuple)) else value

    @model_validator(mode="before")
    @classmethod
    def _source_means_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("factory") is not None:
            return {**values, "name": "memory"}
        if isinstance(values, dict) and values.get("path") is not None:
            return values if values.get("name") in IMAGES else {**values, "name": "file"}
        return values

    @model_validator(mode="before")
    @classmethod
    def _few_of_a_pipeline(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("name") == "pipeline":
            return {"num_points": 256, **values}
        return values

    @model_validator(mode="after")
    def _path_is_read(self) -> DataConfig:
        if self.captions is not None and self.name != "images":
            raise ValueError(f"data.captions: goes with data.name=images, got {self.captions!r}")
        if self.path is not None and self.name not in WITH_PATH:
            raise ValueError(
                f"data.path: data.name={self.name} reads no path, got {self.path!r}; for pictures "
                "of your own add data.name=images"
            )
        tables = {name: getattr(self, name) for name in ("columns", "separator", "header")}
        for name, value in tables.items():
            if value is not None and self.name not in ("file", "images", "memory"):
                raise ValueError(f"data.{name}: data.name={self.name} reads no table, got {value}")
        if self.condition_columns is not None and self.name not in ("file", "images", "memory"):
            raise ValueError(
                "data.condition_columns: goes with a table of points or pictures, got "
                f"data.name={self.name}"
            )
        both = sorted(set(self.columns or ()) & set(self.condition_columns or ()))
        if both:
            raise ValueError(f"data.condition_columns: {both} are in data.columns, too")
        return self

    @model_validator(mode="after")
    def _file_needs_path(self) -> DataConfig:
        if self.name == "file" and self.path is None:
            raise ValueError("data.path: name 'file' needs a path to .npy, .csv or .parquet")
        return self


class NoiseConfig(Section):
    """The forward process the model was trained with."""

    path: Literal["vp", "ve", "flow"] = "vp"
    """From data to noise: `vp` keeps the variance, by the betas below (DDPM); `ve` adds noise of
    std `sigma_min` to `sigma_max` (EDM); `flow` is the straight line of flow matching."""
    schedule: Literal["linear", "scaled_linear", "sigmoid", "cosine"] = "linear"
    """Shape of the betas; `scaled_linear` is linear in their roots."""
    num_train_timesteps: Annotated[int, Field(ge=1, le=10_000)] = 1000
    """Number of training steps."""
    beta_start: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-4
    """First beta."""
    beta_end: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.02
    """Last beta."""
    betas: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] | None = None
    """Own list of betas, one for each training step; in place of a `schedule`."""
    variance: Literal["fixed_small", "fixed_large", "none"] = "fixed_small"
    """Noise of the full-step sampler's steps: the posterior's, of variance beta, or none, which is
    DDIM and a flow's Euler steps."""
    shift: Positive = 1.0
    """How much denser the times of `path=flow` are in the noise than in the data; 1 for evenly, 3
    of Stable Diffusion 3."""
    sigma_min: Positive = 0.002
    """Least noise of `path=ve`, in units of the data's."""
    sigma_max: Positive = 80.0
    """Most noise of `path=ve`."""

    @model_validator(mode="before")
    @classmethod
    def _as_many_as_betas(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("betas") is not None:
            betas = values["betas"]
            num = len(betas) if isinstance(betas, list | tuple) else 1
            return {**values, "num_train_timesteps": num}
        return values

    @model_validator(mode="after")
    def _noise_grows(self) -> NoiseConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"noise.sigma_max: must be above sigma_min {self.sigma_min:g}, "
                f"got {self.sigma_max:g}"
            )
        return self


OF_PROMPTS = ("text_unet", "sd3", "pixart")
"""Networks of text-to-image pipelines."""


class ModelConfig(Section):
    """The network that predicts the noise, or what is equivalent to it."""

    kind: Literal["mlp", "paper_mlp", "unet", "dit", "edm", "text_unet", "sd3", "pixart", "own"] = (
        "mlp"
    )
    """`mlp`: continuous time; `paper_mlp`: the paper's toy, one learned scale per step; `unet`:
    the UNet2DModel of diffusers, for images; `dit`: its DiTTransformer2DModel, of pixels and
    conditional on classes; `edm`: NVlabs' DDPM++, NCSN++ or ADM, and `text_unet`,
    `sd3` and `pixart`: the UNet2DConditionModel, SD3Transformer2DModel or PixArtTransformer2DModel
    of a text-to-image pipeline, which `pretrained.path` reads; `own`: a network that Python hands
    over, or that `factory` makes."""
    factory: Reference | None = None
    """A user's `module:function` that returns the network, any torch module that is called as
    `network(x, times[, labels])`; sets `kind=own`."""
    weights: str | None = None
    """Of the network of `factory`: a file with its state dict, .safetensors or of `torch.save`, or
    `factory`, if the function returns it trained; without, it is pretrained here."""
    classes: NonNegativeInt = 0
    """Number of labels that the network of `factory` takes; of a text-to-image pipeline's,
    filled in, the prompts and the empty one."""
    null_class: bool = False
    """Whether the last of the network's labels stands for no class: it is no class of the data's,
    and `sampler.guidance_scale` needs it."""
    unet: dict[str, Any] = Field(default_factory=dict)
    """Arguments of UNet2DModel or DiTTransformer2DModel by their own names; size and channels come
    from the data. With `num_class_embeds` (`num_embeds_ada_norm`) it is conditional on the data's
    labels."""
    prediction: Literal["epsilon", "v_prediction", "sample", "flow", "score", "edm"] = "epsilon"
    """What the network predicts of x_t = alpha x_0 + sigma noise: the noise; v = alpha noise -
    sigma x_0 (Salimans and Ho, 2022); the `sample` x_0; a `flow`'s velocity noise - x_0; the
    `score` -noise / sigma; or the inner, preconditioned network of `edm` (Karras et al., 2022)."""
    sigma_data: Positive = 0.5
    """Standard deviation of the data that an `edm` network assumes; 1 for standardised points."""
    clip_x0: Positive | None = None
    """Bound of the |x_0| that every step expects: `clip_sample` of diffusers; none if not given."""
    channels_last: bool = False
    """Keep the U-Net's images channel by channel in memory, which convolutions on GPUs like. Not in
    pretraining; results differ in the last bits."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the U-Net computes in; weights and latents stay float32. Under bfloat16 likelihood
    ratios are off 1 by rounding, which pathwise gradients do not mind. Weights beside a low-rank
    adapter, which rest, are kept in bfloat16 then: the same numbers in half the memory."""
    gradient_checkpointing: bool = False
    """Let the blocks of a U-Net or transformer of diffusers be computed again on the way back, in
    place of kept: the same gradients with less memory in more time."""
    compile: bool = False
    """Compile it, and a critic with a network, by `torch.compile`: the first calls take long, the
    others less. Results differ in the last bits; gradient penalties stay uncompiled."""
    width: Count = 96
    """Units of a hidden layer."""
    depth: Count = 3
    """Number of hidden layers."""
    num_fourier: NonNegativeInt = 6
    """Fourier frequencies of the position, which resolve fine structure."""
    embedding_dim: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    """Sinusoidal features of the timestep."""

    @property
    def num_classes(self) -> int:
        """Number of classes that the model is conditional on; 0 if it is unconditional."""
        num: int = self.unet.get("num_class_embeds") or 0 if self.kind == "unet" else 0
        if self.kind == "own" or self.takes_prompts:
            num = self.classes
        if self.kind in ("dit", "edm"):  # theirs has a place of its own
            name = "num_labels" if self.kind == "edm" else "num_embeds_ada_norm"
            return int(self.unet.get(name) or 0)
        return num - 1 if num and self.null_class else num

    @property
    def takes_prompts(self) -> bool:
        """Whether it is the denoiser of a text-to-image pipeline."""
        return self.kind in OF_PROMPTS

    @model_validator(mode="before")
    @classmethod
    def _factory_means_own(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("factory") is not None:
            return {**values, "kind": "own"}
        return values

    @model_validator(mode="after")
    def _of_the_factory(self) -> ModelConfig:
        for name in ("weights", "classes"):
            if getattr(self, name) and self.factory is None and not self.takes_prompts:
                raise ValueError(f"model.{name}: goes with model.factory, got none")
        return self
