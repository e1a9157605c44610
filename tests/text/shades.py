"""A reward of pictures that processes elsewhere import."""

from typing import Any


def darkest_asked_for(
    pictures: list[Any], prompts: list[str], metadata: list[dict[str, int]]
) -> list[float]:
    """How dark the channel is that the table names; prompts are those of their rows."""
    assert [len(prompt) for prompt in prompts] == [row["length"] for row in metadata]
    means = [picture.resize((1, 1)).getpixel((0, 0)) for picture in pictures]
    return [-float(mean[row["channel"]]) / 255 for mean, row in zip(means, metadata, strict=True)]


darkest_asked_for.wants = "pil"  # type: ignore[attr-defined]
