"""A network as critic: its objective, and what keeps it Lipschitz."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sft_rl.config import CriticConfig
from sft_rl.critics.base import Critic
from sft_rl.types import Loss


def wasserstein_loss(real_scores: Tensor, generated_scores: Tensor) -> Tensor:
    """Minus the integral probability metric E_real[f] - E_gen[f] (Arjovsky et al., 2017)."""
    return generated_scores.mean() - real_scores.mean()


def hinge_loss(real_scores: Tensor, generated_scores: Tensor) -> Tensor:
    """Hinge loss of a critic (Lim and Ye, 2017)."""
    return F.relu(1.0 - real_scores).mean() + F.relu(1.0 + generated_scores).mean()


def n2ce_loss(real_scores: Tensor, generated_scores: Tensor, *, noise_ratio: float) -> Tensor:
    """Noisier noise-contrastive estimation: NCE with M generated samples to a real one.

    With r = exp f it maximises E_real[log(r / (M + r))] + M E_gen[log(M / (M + r))]; M = 1 is
    plain NCE.
    """
    log_m = math.log(noise_ratio)
    real = F.softplus(log_m - real_scores).mean()
    return real + noise_ratio * F.softplus(generated_scores - log_m).mean()


def relativistic_loss(real_scores: Tensor, generated_scores: Tensor) -> Tensor:
    """Logistic loss of pairs, a real sample and a generated one (Jolicoeur-Martineau, 2019)."""
    return F.softplus(generated_scores - real_scores).mean()


PENALTIES = ("gradient_penalty", "r1", "r1_r2")
"""Regularisers by the critic's gradient."""
OBJECTIVES = ("wasserstein", "hinge", "n2ce", "relativistic")


def one_sided_gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    generated: Tensor,
    *,
    target: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """E[max(0, |grad f| - target)^2] between real and generated (Gulrajani et al., 2017).

    One-sided: gradients below the target are free. With target 0 it is the zero-centred penalty
    (Thanh-Tung et al., 2019).

    Returns:
        The penalty and the mean gradient norm, both scalar.
    """
    num = min(len(real), len(generated))
    weight = torch.rand(num, generator=generator, device=real.device)
    weight = weight.reshape(-1, *[1] * (real.ndim - 1))
    norm = _gradient(critic, torch.lerp(real[:num], generated[:num], weight)).norm(dim=1)
    return F.relu(norm - target).square().mean(), norm.detach().mean()


def r1_penalty(critic: Callable[[Tensor], Tensor], real: Tensor) -> tuple[Tensor, Tensor]:
    """E_real[|grad f|^2] (Mescheder et al., 2018); and the mean gradient norm, both scalar."""
    grad = _gradient(critic, real)
    return grad.square().sum(dim=1).mean(), grad.detach().norm(dim=1).mean()


def _gradient(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The critic's gradient at samples (B, *shape), differentiable, shape (B, dim)."""
    x = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return grad.flatten(1)


class NetworkCritic(Critic):
    """f is a network; see :class:`sft_rl.config.CriticConfig` for objective and regulariser."""

    num_steps: Tensor

    def __init__(self, network: nn.Module, config: CriticConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.differentiates_twice = config.regulariser in PENALTIES
        self.register_buffer("num_steps", torch.tensor(0))

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor:
        """Score samples (B, *shape), shape (B,)."""
        return self.network(x, *labels).reshape(len(x))  # type: ignore[no-any-return]

    def loss(
        self, real: Tensor, generated: Tensor, generator: torch.Generator, *labels: Tensor
    ) -> Loss:
        """Return the objective plus the penalty, and the gap E_real[f] - E_gen[f]."""
        scores = self(torch.cat([real, generated]), *(torch.cat([y, y]) for y in labels))
        real_scores, generated_scores = scores[: len(real)], scores[len(real) :]
        value = self._objective(real_scores, generated_scores)
        value = value + self.config.drift_weight * scores.square().mean()
        metrics = {"critic_gap": (real_scores.mean() - generated_scores.mean()).detach()}
        every = self.config.penalty_every  # StyleGAN2's lazy regularisation (Karras et al., 2020)
        # A dry run's counter is "meta": it counts a step with the penalty.
        is_due = self.num_steps.is_meta or int(self.num_steps) % every == 0
        if self.differentiates_twice and is_due:
            penalty, norm = self._penalty(real, generated, generator, *labels)
            value = value + every * self.config.penalty_weight * penalty
            metrics |= {"critic_penalty": penalty.detach(), "critic_input_grad_norm": norm}
        return Loss(value, {"critic_loss": value.detach(), **metrics})

    def _penalty(
        self, real: Tensor, generated: Tensor, generator: torch.Generator, *labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        def score(x: Tensor) -> Tensor:
            # By `forward`, past a compiled call: torch.compile has no second derivatives.
            return self.forward(x, *labels)

        if self.config.regulariser == "r1":
            return r1_penalty(score, real)
        if self.config.regulariser == "r1_r2":  # R3GAN (Huang et al., 2024)
            at_real, at_generated = r1_penalty(score, real), r1_penalty(score, generated)
            return at_real[0] + at_generated[0], 0.5 * (at_real[1] + at_generated[1])
        return one_sided_gradient_penalty(
            score, real, generated, target=self.config.penalty_target, generator=generator
        )

    def _objective(self, real_scores: Tensor, generated_scores: Tensor) -> Tensor:
        if self.config.objective == "hinge":
            return hinge_loss(real_scores, generated_scores)
        if self.config.objective == "relativistic":
            return relativistic_loss(real_scores, generated_scores)
        if self.config.objective == "n2ce":
            return n2ce_loss(real_scores, generated_scores, noise_ratio=self.config.noise_ratio)
        return wasserstein_loss(real_scores, generated_scores)

    @torch.no_grad()
    def after_step(self) -> None:
        """Count the step; clip the weights, if that is the regulariser."""
        self.num_steps += 1
        if self.config.regulariser == "weight_clip":
            for parameter in self.parameters():
                parameter.clamp_(-self.config.clip_value, self.config.clip_value)
