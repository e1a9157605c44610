"""The policy: the one place that samples an action or scores a given one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sft_rl.diffusion.prediction import data_of
from sft_rl.diffusion.reverse import (
    expand,
    gaussian_kl,
    gaussian_log_prob,
    reverse_mean,
)
from sft_rl.diffusion.schedule import StepSchedule
from sft_rl.seeding import random_labels
from sft_rl.storage.dtensors import whole
from sft_rl.types import Progress, given, silent


def chunk_of(shape: tuple[int, ...]) -> int:
    """How many samples of a shape go through a network at once, to stay in the CPU's cache."""
    return 2500 if len(shape) == 1 else 250


class Drawn(NamedTuple):
    """Actions that a policy drew, and what it knew of them."""

    action: Tensor
    """The next latents, shape (..., *shape)."""
    log_prob: Tensor
    """Their log-densities, nats, shape (...)."""
    expected: Tensor
    """The final samples that the network expected before it drew them, shape (..., *shape)."""


class DenoisingPolicy(nn.Module):
    r"""pi(a | s_k) = N(mu_theta(latents[k], timesteps[k]), sigma_k^2 I), a few-step sampler.

    The action is the next latent. ``step_index`` counts sampling steps 0..T-1. A policy samples
    and scores, so it is made in evaluation mode, its network included, and is fine-tuned in it:
    under dropout the ratio of a new policy to the old one would not start at 1.

    Args:
        network: Predicts what the schedule was built for, called as ``network(latents,
            timesteps)``, with labels as the third argument if there are classes.
        schedule: Timesteps, coefficients and standard deviations of the T steps.
        shape: Shape of one sample.
        learn_std: Learn a factor on each standard deviation, except the last step's.
        log_prob_reduction: ``"sum"`` or ``"mean"`` over a sample's dimensions.
        num_classes: Number of classes that the network is conditional on; 0 if it is not. Then
            all methods want ``labels``, int64, broadcastable to (...). A network that keeps
            ``conditions``, vectors of shape (K, D), is conditional on such ones, and labels are
            vectors, float32, broadcastable to (..., D).
        noisier: The same steps with other noise, for trajectories to explore by: step T + k is
            step k of it. None has none.
    """

    timesteps: Tensor
    coef_x: Tensor
    coef_output: Tensor
    base_std: Tensor
    alpha_bar: Tensor
    target: Tensor
    input_scale: Tensor | None
    noisier: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        schedule: StepSchedule,
        *,
        shape: tuple[int, ...],
        learn_std: bool = False,
        log_prob_reduction: str = "sum",
        num_classes: int = 0,
        noisier: StepSchedule | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.shape = shape
        self.num_classes = num_classes
        self.log_prob_reduction = log_prob_reduction
        for name, values in (
            ("timesteps", schedule.timesteps),
            ("coef_x", schedule.coef_x),
            ("coef_output", schedule.coef_output),
            ("base_std", schedule.std),
        ):
            self.register_buffer(name, torch.tensor(values.copy(), dtype=torch.float32))
        # Not among the weights: they follow from the settings.
        target = np.broadcast_to(schedule.target, (2, len(schedule)))
        for name, given_values in (
            ("alpha_bar", schedule.alpha_bar),
            ("target", target),
            ("input_scale", schedule.input_scale),
            ("noisier", None if noisier is None else noisier.table),
        ):
            tensor = None
            if given_values is not None:
                tensor = torch.tensor(given_values.copy(), dtype=torch.float32)
            self.register_buffer(name, tensor, persistent=False)
        self.clip = schedule.clip
        self.log_std_scale = nn.Parameter(torch.zeros(len(schedule) - 1)) if learn_std else None
        self.eval()

    @property
    def num_steps(self) -> int:
        """Number of denoising steps T."""
        return len(self.timesteps)

    @property
    def conditions(self) -> Tensor | None:
        """Vectors of shape (K, D), to draw those that samples are conditional on; None if none."""
        found: Tensor | None = getattr(self.network, "conditions", None)
        return found

    def random_labels(self, num: int, generator: torch.Generator) -> Tensor | None:
        """Draw what samples are conditional on: classes (num,), vectors (num, D), or None."""
        if self.conditions is None:
            return random_labels(self.num_classes, num, generator)
        rows = random_labels(len(self.conditions), num, generator)
        return self.conditions[rows]

    def blank_labels(self, num: int) -> Tensor | None:
        """Labels of the right type and shape, all zero; None if the network takes none."""
        if self.conditions is not None:
            return self.conditions.new_zeros(num, self.conditions.shape[1])
        if not self.num_classes:
            return None
        return torch.zeros(num, dtype=torch.int64, device=self.device)

    @property
    def device(self) -> torch.device:
        """Where the policy computes."""
        return self.timesteps.device

    @property
    def std(self) -> Tensor:
        """Standard deviation of every step, shape (T,); differentiable if it is learned."""
        if self.log_std_scale is None:
            return self.base_std
        last = self.log_std_scale.new_zeros(1)
        return self.base_std * torch.cat([self.log_std_scale, last]).exp()

    def mean(self, latents: Tensor, step_index: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean of the next latent, shape (..., *shape).

        Args:
            latents: Shape (..., *shape).
            step_index: k, int64, broadcastable to (...): scalar, (N,) or (T, 1).
            labels: Classes, int64, broadcastable to (...): (N,) or (B,), or vectors with D
                numbers each; None if unconditional.
        """
        output = self.output(latents, step_index, labels)
        return self.mean_from_output(latents, output, step_index)

    def output(self, latents: Tensor, step_index: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the network predicts at a state, shapes as in :meth:`mean`."""
        step_index = self._own_step(step_index)
        if self.input_scale is not None:
            latents = expand(self.input_scale[step_index], self.event_ndim) * latents
        return self.network(  # type: ignore[no-any-return]
            latents, self.timesteps[step_index], *given(labels)
        )

    def _own_step(self, step_index: Tensor) -> Tensor:
        """The step of which a noisier one is the like."""
        return step_index if self.noisier is None else step_index % self.num_steps

    def _of_step(self, row: int, own: Tensor, step_index: Tensor) -> Tensor:
        """One of the numbers that a noisier step has of its own, expanded."""
        numbers = own if self.noisier is None else torch.cat([own, self.noisier[row]])
        return expand(numbers[step_index], self.event_ndim)

    def mean_from_output(self, latents: Tensor, output: Tensor, step_index: Tensor) -> Tensor:
        """Mean of the next latent for a given prediction, shapes as in :meth:`mean`."""
        coef_x = self._of_step(0, self.coef_x, step_index)
        coef_output = self._of_step(1, self.coef_output, step_index)
        mean = reverse_mean(latents, output, coef_x, coef_output)
        if self.clip is None:
            return mean
        # What the step takes of x_0, at a given latent: the coefficient of the output, by x_0.
        (alpha, sigma), (a, b) = self._levels(step_index), self._target(step_index)
        x_0: Tensor = data_of(latents, output, (alpha, sigma), (a, b))
        coef_x_0: Tensor = -coef_output * (alpha * b - sigma * a) / sigma
        return mean + coef_x_0 * (x_0.clamp(-self.clip, self.clip) - x_0)

    def expected_final(
        self, latents: Tensor, step_index: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """The final sample that the network expects at a state, shapes as in :meth:`mean`."""
        output = self.output(latents, step_index, labels)
        return self.expected_from_output(latents, output, step_index)

    def expected_from_output(self, latents: Tensor, output: Tensor, step_index: Tensor) -> Tensor:
        """The final sample that a given prediction expects, shapes as in :meth:`mean`.

        At the last step it is the mean of the final sample.
        """
        x_0: Tensor = data_of(latents, output, self._levels(step_index), self._target(step_index))
        return x_0 if self.clip is None else x_0.clamp(-self.clip, self.clip)

    def _levels(self, step_index: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma of the latents, expanded."""
        bar = expand(self.alpha_bar[self._own_step(step_index)], self.event_ndim)
        return bar.sqrt(), (1.0 - bar).sqrt()

    def _target(self, step_index: Tensor) -> tuple[Tensor, Tensor]:
        """The prediction's share of data and of noise, expanded."""
        a, b = self.target[:, self._own_step(step_index)]
        return expand(a, self.event_ndim), expand(b, self.event_ndim)

    def noised(self, x_0: Tensor, eps: Tensor, step_index: Tensor) -> Tensor:
        """The latent that the forward process makes of a sample, as a step finds it.

        Args:
            x_0: Samples, shape (..., *shape).
            eps: Standard normal noise of that shape.
            step_index: k, int64, broadcastable to (...).
        """
        alpha, sigma = self._levels(step_index)
        return alpha * x_0 + sigma * eps

    def step_std(self, step_index: Tensor) -> Tensor:
        """Standard deviation at the given steps, expanded to multiply latents."""
        return self._of_step(2, self.std, step_index)

    @property
    def event_ndim(self) -> int:
        """Number of dimensions of one sample."""
        return len(self.shape)

    def act(
        self,
        latents: Tensor,
        step_index: Tensor,
        noise: Tensor,
        labels: Tensor | None = None,
        *,
        rounded_to: torch.dtype | None = None,
    ) -> Drawn:
        """Turn standard normal noise into actions.

        With `rounded_to`, actions are numbers of that type, in the type of the latents.
        """
        output = self.output(latents, step_index, labels)
        mean, std = self.mean_from_output(latents, output, step_index), self.step_std(step_index)
        action = mean + std * noise
        if rounded_to is not None:
            action = action.to(rounded_to).to(mean.dtype)
        return Drawn(
            action,
            self._log_prob(action, mean, std),
            self.expected_from_output(latents, output, step_index),
        )

    def log_prob(
        self, latents: Tensor, actions: Tensor, step_index: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Log-density of given actions, nats, reduced over a sample, shape (...)."""
        return self.log_prob_from_mean(actions, self.mean(latents, step_index, labels), step_index)

    def log_prob_from_mean(self, actions: Tensor, mean: Tensor, step_index: Tensor) -> Tensor:
        """Log-density of given actions for a mean that is known, shapes as in :meth:`log_prob`."""
        return self._log_prob(actions, mean, self.step_std(step_index))

    def kl(
        self,
        reference: DenoisingPolicy,
        latents: Tensor,
        step_index: Tensor,
        labels: Tensor | None = None,
    ) -> Tensor:
        """KL(self || reference) of the next latent in closed form, nats summed, shape (...)."""
        with torch.no_grad():
            ref_mean = reference.mean(latents, step_index, labels)
        return gaussian_kl(
            self.mean(latents, step_index, labels),
            self.step_std(step_index),
            ref_mean,
            reference.step_std(step_index),
            event_ndim=self.event_ndim,
        )

    def _log_prob(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return gaussian_log_prob(
            x, mean, std, event_ndim=self.event_ndim, reduction=self.log_prob_reduction
        )

    def denoise(
        self, latents: Tensor, generator: torch.Generator, labels: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yield the latents after every step, from pure noise (B, *shape) to final samples."""
        for k in range(self.num_steps):
            index = torch.tensor(k, device=self.device)
            mean, std = self.mean(latents, index, labels), self.step_std(index)
            latents = mean + std * _normal(latents.shape, generator)
            yield latents

    @torch.inference_mode()
    def sample(
        self,
        num: int,
        generator: torch.Generator,
        labels: Tensor | None = None,
        *,
        progress: Progress = silent,
    ) -> Tensor:
        """Draw final samples, shape (num, *shape), in chunks that stay in the CPU's cache.

        Args:
            num: How many.
            generator: Source of noise, and before it of labels.
            labels: Classes (num,) or vectors (num, D); None draws them, if the model has any.
            progress: Is told after every step how many of all there are over.
        """
        if labels is None:
            labels = self.random_labels(num, generator)
        chunk_size = chunk_of(self.shape)
        samples = torch.empty(num, *self.shape, device=self.device)
        done, total = 0, -(-num // chunk_size) * self.num_steps
        for start in range(0, num, chunk_size):
            latents = _normal((min(chunk_size, num - start), *self.shape), generator)
            own = None if labels is None else labels[start : start + chunk_size]
            for latents in self.denoise(latents, generator, own):  # noqa: B007, B020
                done += 1
                progress(done, total, {})
            samples[start : start + len(latents)] = latents
        return samples


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def to_arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """Return a module's state as plain arrays, the form in which weights travel.

    All learners of a team that splits it ask together.
    """
    return {name: whole(tensor).cpu().numpy() for name, tensor in module.state_dict().items()}


def load_arrays(module: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    """Undo :func:`to_arrays`; names and shapes must match exactly."""
    # Ray's arrays are read-only, which torch.from_numpy warns about: copy into the module.
    own = module.state_dict()
    assert own.keys() == arrays.keys(), f"weights of another policy: {own.keys() ^ arrays.keys()}"
    with torch.no_grad():
        for name, array in arrays.items():
            own[name].copy_(torch.tensor(array))
