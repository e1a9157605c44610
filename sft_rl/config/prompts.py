"""What a text-to-image pipeline adds: prompts, and pictures as latents of an autoencoder."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from sft_rl.config.base import Count, Positive, Section
from sft_rl.errors import UserError, shortened


class PromptsConfig(Section):
    """The prompts that a text-to-image pipeline is fine-tuned on."""

    path: str | None = None
    """A file of them: .txt, one a line; or .csv, .jsonl or .parquet. Pictures that have captions
    bring their own."""
    column: str | None = None
    """Column of a table that holds them; None takes `prompt`, `caption` or `text`."""
    metadata: tuple[str, ...] = ()
    """Columns of the table that rewards get beside the prompt."""

    @model_validator(mode="after")
    def _columns_of_a_file(self) -> PromptsConfig:
        for name, given in (("column", self.column), ("metadata", self.metadata)):
            if given and self.path is None:
                raise ValueError(f"prompts.{name}: goes with prompts.path, got {given!r} alone")
        return self


class Latents(Section):
    """How an autoencoder makes latents of pictures, looked up in its folder."""

    path: str
    """The folder of the AutoencoderKL."""
    sha256: str
    """Hash of its weights."""
    scale: Positive
    """What encodings are multiplied by after the shift."""
    shift: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """What is taken off encodings."""
    image_shape: tuple[Count, Count, Count]
    """Channels, height and width of the pictures."""
    tiling: bool = False
    """Whether the autoencoder works on overlapping tiles."""


class Prompts(Section):
    """The prompts of a run, and the size of what a text encoder makes of one."""

    texts: tuple[str, ...]
    """Prompts by their number."""
    metadata: tuple[dict[str, Any], ...] = ()
    """What `prompts.metadata` names, of each."""
    num_tokens: Count
    """Length of a prompt in tokens, filled up."""
    width: Count
    """Numbers of a token."""

    def number(self, prompt: str, *, field: str) -> int:
        """The number of one of the prompts.

        Raises:
            UserError: If it is none of them; `field` is where it was given.
        """
        if prompt not in self.texts:
            raise UserError(
                f"{field}: {shortened(prompt)} is none of the run's {len(self.texts):,} prompts, "
                f"the first is {shortened(self.texts[0])}; an exported pipeline takes any"
            )
        return self.texts.index(prompt)
