"""Random numbers that depend on the seed and their purpose, never on the machine room.

Every draw comes from a generator made for it: ``generator(seed, "actions", iteration, shard)``.
Nothing is carried from one draw to the next, so a shard that is drawn again, on another worker or
after a restart, gets the same numbers, and a checkpoint has no random state to lose.
"""

import math
import zlib

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, stream: str, *indices: int) -> int:
    """Return a 63-bit seed for one purpose, independent of every other purpose's.

    Args:
        seed: The run's seed.
        stream: The purpose, such as ``"actions"``.
        indices: Which draw of that purpose, such as iteration and shard.
    """
    # With their number, since numpy pads entropy with zeros: no index is not the index 0.
    entropy = [seed, zlib.crc32(stream.encode()), len(indices), *indices]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def generator(
    seed: int, stream: str, *indices: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a fresh torch generator for one purpose; see :func:`derive_seed`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, stream, *indices))


def random_labels(num_classes: int, num: int, generator: torch.Generator) -> Tensor | None:
    """Draw classes uniformly, int64, shape (num,), on the generator's device; None without any."""
    if not num_classes:
        return None
    return torch.randint(num_classes, (num,), generator=generator, device=generator.device)


_GOLDEN_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift 64-bit integers right, filling with zeros (torch's own shift keeps the sign)."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _splitmix64(x: Tensor) -> Tensor:
    """Scramble 64-bit integers: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = _shift_right(x, 30).bitwise_xor_(x).mul_(_MIX_1)
    x = _shift_right(x, 27).bitwise_xor_(x).mul_(_MIX_2)
    return _shift_right(x, 31).bitwise_xor_(x)


def _random_bits(keys: Tensor, stream: int, num: int) -> Tensor:
    """64 random bits for each of `num` counters of a stream, int64, shape (B, num)."""
    counters = torch.arange(num, device=keys.device, dtype=torch.int64) * _GOLDEN_GAMMA
    streams = torch.tensor(stream, device=keys.device) * _MIX_1
    return _splitmix64(_splitmix64(keys + streams)[:, None] + counters)


def row_keys(seeds: Tensor) -> Tensor:
    """Make the keys that rows are drawn with from one seed a row; both int64, shape (B,)."""
    return _splitmix64(seeds * _GOLDEN_GAMMA + 1)


def normal_rows(keys: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal rows, each from its own key, all at once.

    Row i depends on ``keys[i]`` and ``draw`` alone, so a batch of one gives the same numbers as
    the same row of a large batch. A counter-based generator with the Box-Muller transform.

    Args:
        keys: One a row, of :func:`row_keys`, int64, shape (B,).
        draw: Which draw from these keys, counted from 0.
        shape: Shape of one row.

    Returns:
        float32 tensor of shape (B, *shape), on the device of ``keys``.
    """
    num = math.prod(shape)
    half = (num + 1) // 2
    bits = _random_bits(keys, draw + 1, 2 * half)
    uniform = (_shift_right(bits, 11).double() + 0.5) * 2.0**-53
    radius = torch.sqrt(-2.0 * torch.log(uniform[:, :half]))
    angle = 2.0 * math.pi * uniform[:, half:]
    pairs = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return pairs[:, :num].reshape(len(keys), *shape).float()


def label_rows(keys: Tensor, draw: int, num_classes: int) -> Tensor:
    """Draw one label a row, uniformly, each from its own key as in :func:`normal_rows`.

    Args:
        keys: One a row, of :func:`row_keys`, int64, shape (B,).
        draw: Which draw from these keys, counted from 0; independent of all normal ones.
        num_classes: Labels are 0..num_classes - 1.

    Returns:
        int64 tensor of shape (B,), on the device of ``keys``.
    """
    return _shift_right(_random_bits(keys, -1 - draw, 1)[:, 0], 1) % num_classes
