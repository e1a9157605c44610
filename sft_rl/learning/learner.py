"""The central learner: networks, optimisers, their state, and one update of each."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sft_rl.algorithms import Algorithm, Networks
from sft_rl.config import CriticConfig, PolicyConfig, TrainingConfig, ValueConfig
from sft_rl.data import Dataset
from sft_rl.learning.monitors import numbers
from sft_rl.learning.optim import (
    accumulate,
    clip_gradients,
    decay_factor,
    judge_optimizer,
    micro_batches,
    policy_optimizer,
    update_average,
)
from sft_rl.learning.team import Team
from sft_rl.policy import DenoisingPolicy, to_arrays
from sft_rl.rollout.runner import Weights
from sft_rl.seeding import derive_seed, generator
from sft_rl.storage.checkpoint import TensorGroups
from sft_rl.storage.dtensors import whole
from sft_rl.storage.state import (
    kept_state,
    load_kept_state,
    load_module_tensors,
    load_optimizer_tensors,
    optimizer_tensors,
)
from sft_rl.types import Loss, Metrics, Trajectories, for_all, given


@dataclass(frozen=True)
class Optimisation:
    """How each network is optimised."""

    policy: PolicyConfig
    critic: CriticConfig
    value: ValueConfig


class Learner:
    """Updates critic, value and policy; counts the policy's versions.

    Args:
        networks: Policy, critic and value, on the learner's device.
        algorithm: How the policy learns.
        data: Real samples for the critic.
        training: Batch sizes and the rest of the outer loop.
        optimisation: Learning rates and the like of policy, critic and value.
        seed: The run's seed.
        team: The learners that share the work; by default this one alone.
    """

    def __init__(
        self,
        networks: Networks,
        algorithm: Algorithm,
        *,
        data: Dataset,
        training: TrainingConfig,
        optimisation: Optimisation,
        seed: int,
        team: Team | None = None,
    ) -> None:
        self.team = team or Team()
        self.networks = networks
        self.algorithm = algorithm
        self.data = data
        self.training = training
        self.optimisation = optimisation
        self.seed = seed
        self.device = networks.policy.device
        self.version = 0
        self.team.split(networks.pretrained.network)
        self.average = self._copied()
        # Versions before, oldest first: they drew what is still on its way when rollouts overlap.
        lead = training.max_offpolicy_steps
        self.previous = nn.ModuleList(self._copied() for _ in range(lead)).eval()
        self.best = self._copied()
        self.best_loss = math.inf
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, "algorithm weights"))
            algorithm.begin(networks)
        self._split()
        self.optimizers = {
            "policy": policy_optimizer(networks.policy, optimisation.policy),
            **judge_optimizer("critic", networks.critic, optimisation.critic),
            **judge_optimizer("value", networks.value, optimisation.value),
        }
        self._base_rates = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in self.optimizers.items()
        }

    @property
    def evaluated_policy(self) -> DenoisingPolicy:
        """The averaged policy, or the current one if averaging is off."""
        return self.average if self.optimisation.policy.ema_decay > 0 else self.networks.policy

    @property
    def result(self) -> DenoisingPolicy:
        """What the training gives: the best policy seen, or the last one."""
        return self.best if self.training.select_best else self.evaluated_policy

    def consider(self, loss: float) -> None:
        """Keep the evaluated policy if its validation loss is the least so far."""
        if loss < self.best_loss:
            self.best_loss = loss
            self.best.load_state_dict(self.evaluated_policy.state_dict())

    def weights(self) -> Weights:
        """The policy that draws now as plain arrays; they carry the number ``version``."""
        return to_arrays(self.algorithm.behaviour(self.networks))

    def previous_weights(self) -> Iterator[tuple[int, Weights]]:
        """The versions before this one and their weights; before a new run's first it is that."""
        for age, policy in zip(range(len(self.previous), 0, -1), self.previous, strict=True):
            yield max(self.version - age, 0), to_arrays(policy)

    def begin_iteration(self, iteration: int) -> None:
        """Set the learning rates of an iteration, counted from 0."""
        decay = decay_factor(self.training.lr_decay, iteration / self.training.num_iterations)
        for name, optimizer in self.optimizers.items():
            final = getattr(self.optimisation, name).final_lr_factor
            factor = final + (1.0 - final) * decay
            for group, base in zip(optimizer.param_groups, self._base_rates[name], strict=True):
                group["lr"] = base * factor

    def update_critic(
        self, generated: Tensor, iteration: int, update: int, labels: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """Take one critic step on as many real as generated samples (B, *shape).

        If the generated ones have labels, the real ones are drawn of the same classes or vectors.

        Returns:
            The critic's scores of the generated samples after the step, shape (B,), and the
            numbers.
        """
        source = generator(self.seed, "critic", iteration, update, device=self.device)
        real = self.data.batch(len(generated), source, labels)
        critic = self.networks.critic

        def loss_of(rows: slice) -> Loss:
            of_rows = (y[rows] for y in given(labels))
            return critic.loss(real[rows], generated[rows], source, *of_rows)

        if "critic" in self.optimizers:
            parts = micro_batches(len(generated), self.training.micro_batch_size)
            losses = ((loss_of(rows), share) for rows, share in parts)
            loss = self._step("critic", critic, losses)
            critic.after_step()
        else:
            loss = loss_of(slice(None))
        with torch.no_grad():
            scores = critic(generated, *given(labels))
        return scores, numbers(loss.metrics)

    def judge(self, batch: Trajectories, iteration: int, update: int) -> tuple[Tensor, Metrics]:
        """Step the critic, if it takes part; score a batch by the objective.

        Returns:
            The objective at the final samples, shape (B,), and the numbers.
        """
        objective, labels = self.networks.objective, given(batch.labels)
        scores, metrics = objective.of_fixed(batch.rewards), Metrics()
        if objective.critic is not None:
            of_critic, metrics = self.update_critic(batch.final, iteration, update, batch.labels)
            scores[objective.critic.config.name] = of_critic
        with torch.no_grad():
            for term in objective.live:
                if term.score is not None:
                    scores[term.config.name] = term.score(batch.final, *labels)
            objective.observe(scores, *labels)
            total = objective.total(scores, *labels)
        watched = {
            "reward_mean": total.mean(),
            "reward_std": total.std(),
            "sample_spread": batch.final.std(),
            **{f"term_{t.config.name}": scores[t.config.name].mean() for t in objective.rewards},
        }
        return total, metrics | numbers(watched)

    def update_value(self, trajectories: Trajectories, scores: Tensor) -> Metrics:
        """Regress V(s_k) on the final scores (B,) over all T * B states; they are detached."""
        latents, size = trajectories.latents[:-1], self.training.micro_batch_size
        steps = torch.arange(trajectories.num_steps, device=self.device)[:, None]
        labels = [for_all(y, latents.shape[:2]) for y in given(trajectories.labels)]
        targets = scores.detach().expand(latents.shape[:2])
        if size is not None:  # single states in place of the grid
            grids = (latents, steps.expand_as(targets), targets, *labels)
            latents, steps, targets, *labels = (grid.flatten(0, 1) for grid in grids)

        def loss_of(rows: slice) -> Loss:
            of_rows = (y[rows] for y in labels)
            values = self.networks.value(latents[rows], steps[rows], *of_rows).squeeze(-1)
            return Loss(F.mse_loss(values, targets[rows]), {})

        parts = micro_batches(len(latents), size)
        losses = ((loss_of(rows), share) for rows, share in parts)
        return {"value_loss": self._step("value", self.networks.value, losses).value.item()}

    def update_policy(self, trajectories: Trajectories, iteration: int) -> Metrics:
        """Take the algorithm's policy steps on one iteration's trajectories; count a version."""
        source = generator(self.seed, "policy", iteration, device=self.device)
        prepared = self.algorithm.prepare(trajectories, self.networks)
        policy = self.networks.policy
        if self.previous:
            oldest = self.previous.pop(0)
            oldest.load_state_dict(self.algorithm.behaviour(self.networks).state_dict())
            self.previous.append(oldest)
        metrics: Metrics = {}
        with _frozen(self.networks.critic, self.networks.value):
            for batch in self.algorithm.batches(prepared, source):
                self.optimizers["policy"].zero_grad(set_to_none=True)
                loss = accumulate(self._policy_losses(batch))
                watched = dict(loss.metrics)
                ratio = watched.pop("ratio", None)
                if ratio is not None and not metrics:
                    deviation = torch.as_tensor(ratio) - 1.0
                    metrics["first_ratio_deviation"] = deviation.abs().max().item()
                self.team.sum_gradients(policy.parameters())
                norm = clip_gradients(policy.parameters(), self.optimisation.policy.max_grad_norm)
                self.optimizers["policy"].step()
                metrics |= {"policy_loss": loss.value.item(), "policy_grad_norm": norm.item()}
                metrics |= numbers(watched)
                if self.algorithm.should_stop(metrics):
                    break
        self.algorithm.finish(self.networks)
        options = self.optimisation.policy
        update_average(
            self.average,
            policy,
            decay=options.ema_decay,
            num_updates=self.version,
            ramp=options.ema_ramp,
        )
        self.version += 1
        return metrics

    def _policy_losses(self, batch: Any) -> Iterator[tuple[Loss, float]]:
        """Loss and share of each part of a batch of the algorithm, or of all of it."""
        size = self.training.micro_batch_size
        if size is None:
            yield self.algorithm.loss(batch, self.networks), 1.0
            return
        for rows, share in micro_batches(len(batch), size):
            yield self.algorithm.loss(batch[rows], self.networks), share

    def _step(self, name: str, module: nn.Module, losses: Iterable[tuple[Loss, float]]) -> Loss:
        """Take one optimiser step on the losses of a batch's parts; return that of the batch."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        module.train()  # what spectral norm iterates in; everywhere else networks only score
        loss = accumulate(losses)
        module.eval()
        self.team.sum_gradients(module.parameters())
        optimizer.step()
        return loss

    def _copied(self) -> DenoisingPolicy:
        """A copy of the policy that is not trained; split at once, if the team splits networks."""
        policy = self.networks.policy
        copied = copy.deepcopy(policy).requires_grad_(False)
        if policy.network._compiled_call_impl is not None:  # a copy is not
            copied.network.compile()
        self.team.split(copied.network)
        return copied

    def _split(self) -> None:
        """Split what is trained, once all copies are made, and policies that an algorithm keeps."""
        networks = self.networks
        kept = (own for own in vars(self.algorithm).values() if isinstance(own, DenoisingPolicy))
        self.team.split(*(policy.network for policy in (*kept, networks.policy)), networks.value)
        if not networks.critic.differentiates_twice:
            self.team.split(networks.critic)

    def _whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named tensors without a part missing, on the leader's CPU; other learners get none."""
        gathered = ((name, whole(tensor)) for name, tensor in tensors.items())
        return {name: tensor.cpu() for name, tensor in gathered if self.team.leads}

    def state(self) -> TensorGroups:
        """Everything that is needed to go on: networks, average, optimisers, normalisations.

        The learners of a team ask together; the leader gets it.
        """
        groups = {
            name: self._whole(module.state_dict()) for name, module in self._modules().items()
        }
        groups["objective"] = self.networks.objective.state()
        for name, optimizer in self.optimizers.items():
            groups[f"{name}_optimizer"] = self._whole(optimizer_tensors(optimizer))
        for name, owner in self._owners().items():
            if kept := kept_state(owner):
                groups[name] = self._whole(kept)
        return groups

    def load_state(self, groups: TensorGroups, *, version: int) -> None:
        """Undo :meth:`state`; names and shapes must match exactly."""
        for name, module in self._modules().items():
            load_module_tensors(module, groups[name])
        self.networks.objective.load_state(groups["objective"])
        for name, optimizer in self.optimizers.items():
            load_optimizer_tensors(optimizer, groups[f"{name}_optimizer"])
        for name, owner in self._owners().items():
            load_kept_state(owner, groups.get(name, {}))
        self.version = version

    def _owners(self) -> dict[str, object]:
        """Who may keep more than the networks, by the names of their groups in a checkpoint."""
        return {"algorithm": self.algorithm, "critic_state": self.networks.critic}

    def _modules(self) -> dict[str, nn.Module]:
        return {
            "policy": self.networks.policy,
            "average": self.average,
            "best": self.best,
            "critic": self.networks.critic,
            "value": self.networks.value,
            **({"previous": self.previous} if self.previous else {}),
        }


@contextmanager
def _frozen(*modules: nn.Module) -> Iterator[None]:
    """Keep gradients out of modules that a loss only looks through."""
    for module in modules:
        module.requires_grad_(False)
    try:
        yield
    finally:
        for module in modules:
            module.requires_grad_(True)
