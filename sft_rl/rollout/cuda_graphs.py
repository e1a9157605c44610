"""A whole chain of denoising steps as one CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from sft_rl.policy import DenoisingPolicy

NUM_WARMUPS = 3
"""Walks before the recording, in which libraries choose kernels and allocate their own."""


class GraphedChain:
    """Draws chains of one batch size: the GPU is told once what to do, not step by step.

    The few steps of a chain are thousands of small kernels, which a CPU hands over one by one. A
    graph replays their recording on the same memory, where new noise, labels and weights are
    written. Without a GPU the same steps are walked as they are.

    Args:
        policy: The sampler; its weights may change in place.
        batch_size: Number of chains B.
        latent_dtype: What latents are rounded to and kept in.
        keep_expected: Keep the final samples that the policy expects, too.
    """

    def __init__(
        self,
        policy: DenoisingPolicy,
        batch_size: int,
        *,
        latent_dtype: torch.dtype = torch.float32,
        keep_expected: bool = False,
    ) -> None:
        self.policy = policy
        num_steps, shape, device = policy.num_steps, (batch_size, *policy.shape), policy.device
        self._noise = torch.zeros(num_steps, *shape, device=device)
        self._latents = torch.zeros(num_steps + 1, *shape, device=device, dtype=latent_dtype)
        self._log_probs = torch.zeros(num_steps, batch_size, device=device)
        self._expected = torch.zeros_like(self._latents[1:]) if keep_expected else None
        self._labels = policy.blank_labels(batch_size)
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(
        self, start: Tensor, generator: torch.Generator, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Walk all steps with fresh noise.

        Args:
            start: Latents of pure noise, shape (B, *shape).
            generator: Source of the steps' noise.
            labels: Classes (B,) or vectors (B, D); None if the model is unconditional.

        Returns:
            All latents, shape (T+1, B, *shape), the log-probs of the actions, shape (T, B), and
            the expected final samples, shape (T, B, *shape), if they are kept.
        """
        self._latents[0] = start
        if self._labels is not None:
            assert labels is not None, "a conditional model needs labels"
            self._labels.copy_(labels)
        for noise in self._noise:  # one by one, as in a walk without a graph
            noise.normal_(generator=generator)
        if self.policy.device.type != "cuda":
            self._walk()
        else:
            self._graph = self._graph or self._recorded()
            self._graph.replay()
        expected = None if self._expected is None else self._expected.clone()
        return self._latents.clone(), self._log_probs.clone(), expected

    @torch.inference_mode()
    def _walk(self) -> None:
        dtype = self._latents.dtype
        for k, noise in enumerate(self._noise):
            # The index stays on the CPU: to read one from the GPU would stop the recording.
            step_index, latents = torch.tensor(k), self._latents[k].to(noise.dtype)
            drawn = self.policy.act(latents, step_index, noise, self._labels, rounded_to=dtype)
            self._latents[k + 1], self._log_probs[k] = drawn.action, drawn.log_prob
            if self._expected is not None:
                self._expected[k] = drawn.expected

    def _recorded(self) -> torch.cuda.CUDAGraph:
        here = torch.cuda.current_stream()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(NUM_WARMUPS):
                self._walk()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._walk()
        return graph
