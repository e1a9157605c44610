"""Networks that look at what a sample is conditional on: a class, or a vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sft_rl.types import for_all

PROJECTED = 64
"""Numbers of a prompt that critics and values see."""


class ByVector(nn.Module):
    """A network of points that takes the vector they are conditional on as further coordinates.

    Args:
        network: Of as many input dimensions as a point and its vector have.
        table: Shape (K, D) of the vectors to keep as ``conditions``; None keeps none.
    """

    def __init__(self, network: nn.Module, table: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.network = network
        if table is not None:
            self.register_buffer("conditions", torch.zeros(table))

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Map x (..., dim) to the network's output.

        Args:
            x: Samples or latents.
            others: The time or step, if the network wants one; at last the vectors, float32,
                broadcastable to (..., D).
        """
        *steps, vectors = others
        both = torch.cat([x, for_all(vectors, x.shape[:-1])], dim=-1)
        return self.network(both, *steps)  # type: ignore[no-any-return]


class ByLabel(nn.Module):
    """A network of 1 + K outputs as one number of a sample and its label, one of K.

    The first output, common to all classes, plus the label's own: the projection of Miyato and
    Koyama (2018), since outputs are linear in the network's last features.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Map x (..., *shape) to numbers (..., 1).

        Args:
            x: Samples or latents.
            others: The step index, if the network wants one; at last the labels, int64. Both
                broadcastable to (...).
        """
        *steps, labels = others
        outputs = self.network(x, *steps)
        label = labels.expand(outputs.shape[:-1])[..., None]
        return outputs[..., :1] + outputs[..., 1:].gather(-1, label)  # type: ignore[no-any-return]


class ByProjection(nn.Module):
    """A network of 1 + P outputs as one number of an image and its vector.

    The first output, common to all vectors, plus the product of the others with a map of the
    vector: the projection of :class:`ByLabel`, which vectors that are near each other share.

    Args:
        network: Of 1 + :data:`PROJECTED` outputs.
        project: Maps vectors (..., D) to (..., :data:`PROJECTED`).
    """

    def __init__(self, network: nn.Module, project: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.project = project

    @staticmethod
    def of_vectors(network: nn.Module, num_conditions: int) -> ByProjection:
        """Look at vectors of so many numbers."""
        project = nn.Sequential(
            nn.Linear(num_conditions, PROJECTED), nn.SiLU(), nn.Linear(PROJECTED, PROJECTED)
        )
        return ByProjection(network, project)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Map x (..., *shape) to numbers (..., 1).

        Args:
            x: Samples or latents.
            others: The step index, if the network wants one; at last the vectors, float32,
                broadcastable to (..., D).
        """
        *steps, vectors = others
        outputs, seen = self.network(x, *steps), self.project(vectors)
        product = (outputs[..., 1:] * seen).sum(dim=-1, keepdim=True)
        return outputs[..., :1] + product / PROJECTED**0.5  # type: ignore[no-any-return]


class ByPrompt(ByProjection):
    """The same of prompts, by a linear map of their embeddings.

    Args:
        network: Of 1 + :data:`PROJECTED` outputs.
        table: Number of prompts K, and numbers of a token of their embeddings.
    """

    embeddings: Tensor

    def __init__(self, network: nn.Module, table: tuple[int, int]) -> None:
        super().__init__(network, nn.Linear(table[1], PROJECTED, bias=False))
        self.register_buffer("embeddings", torch.zeros(table))

    def keep(self, prompts: Tensor) -> None:
        """Keep what tells prompts apart, of embeddings as of :func:`told_apart`."""
        self.embeddings.copy_(told_apart(prompts))

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Map x (..., *shape) to numbers (..., 1).

        Args:
            x: Samples or latents.
            others: The step index, if the network wants one; at last numbers of prompts, int64.
                Both broadcastable to (...).
        """
        *steps, labels = others
        return super().forward(x, *steps, self.embeddings[labels])


def told_apart(prompts: Tensor) -> Tensor:
    """What tells prompts apart: means over tokens, centred and scaled to a mean square of 1.

    Args:
        prompts: Embeddings, shape (K + 1, tokens, width), the empty prompt's behind the others.

    Returns:
        Shape (K, width).
    """
    means = prompts[:-1].mean(dim=1)
    centred = means - means.mean(dim=0)
    return centred / (centred.square().mean().sqrt() + 1e-8)


def keep_prompts(module: nn.Module, prompts: Tensor | None) -> None:
    """Let the networks in a module that look at prompts keep their embeddings, if there are any."""
    for part in module.modules():
        if isinstance(part, ByPrompt) and prompts is not None:
            part.keep(prompts)
