"""A network of one's own, trained by a loop of one's own, becomes a sampler of four steps.

Run it from the repository's root:

    python -m examples.own_network
"""

import sys

import numpy as np
import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn

import sft_rl
from sft_rl.config import NoiseConfig
from sft_rl.diffusion.noise import NoiseSchedule


class SmallNetwork(nn.Module):
    """Predicts the noise in points of the plane."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(4, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map points x (N, 2) at times t (N,) in 0..999 to the noise in them (N, 2)."""
        angle = t[:, None] * (torch.pi / 1000.0)
        features = torch.cat([x, angle.sin(), angle.cos()], dim=1)
        return self.layers(features)  # type: ignore[no-any-return]


def pretrain(points: Tensor, *, num_iterations: int) -> SmallNetwork:
    """Train it as a DDPM, on the noise that the configuration below has: 1000 linear betas."""
    network, source = SmallNetwork(), torch.Generator().manual_seed(0)
    noise = NoiseSchedule.from_config(NoiseConfig())
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(num_iterations):
        x_0 = points[torch.randint(len(points), (1024,), generator=source)]
        t = torch.randint(1000, (1024,), generator=source).float()
        eps = torch.randn(x_0.shape, generator=source)
        loss = (network(noise.add_noise(x_0, eps, t), t) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def main(*settings: str, num_iterations: int = 3000) -> None:
    """Pretrain, fine-tune, print the distance before and after."""
    points = make_moons(20_000, noise=0.05, random_state=0)[0].astype(np.float32)
    points = (points - points.mean(0)) / points.std(0)  # what the network is trained on
    network = pretrain(torch.from_numpy(points), num_iterations=num_iterations)
    config = sft_rl.load_config("swiss_roll", num_steps=4, overrides=settings)
    result = sft_rl.fine_tune(config, network=network, data=points)
    before, after = (result.metrics[f"sliced_wasserstein_{w}"] for w in ("initial", "final"))
    print(f"distance to held-out data: {before:.4f} -> {after:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
