"""Files of the original DDPM code give the outputs they should."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from of_others import config_of, network_of
from safetensors.torch import save_file
from torch import Tensor, nn

from sft_rl.errors import UserError


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Block(nn.Module):
    """A residual block of the original, with its names."""

    def __init__(self, fan_in: int, fan_out: int, temb: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(fan_in), group_norm(fan_out)
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, padding=1)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1)
        self.temb_proj = nn.Linear(temb, fan_out)
        self.nin_shortcut = nn.Conv2d(fan_in, fan_out, 1) if fan_in != fan_out else None

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """Attention over all pixels, one head, with the original's names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weight = (q.transpose(1, 2) @ k / math.sqrt(x.shape[1])).softmax(-1)
        return x + self.proj_out((v @ weight.transpose(1, 2)).reshape(x.shape))


class Level(nn.Module):
    def __init__(self, blocks: list[Block], attentions: list[Attention]) -> None:
        super().__init__()
        self.block, self.attn = nn.ModuleList(blocks), nn.ModuleList(attentions)


class Resample(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=0 if stride == 2 else 1)


class OriginalUNet(nn.Module):
    """The U-Net of the original PyTorch DDPM code: two levels, attention at the second."""

    def __init__(self, width: int = 32, channels: int = 3) -> None:
        super().__init__()
        a, b, temb = width, 2 * width, 4 * width
        self.width = width
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(width, temb), nn.Linear(temb, temb)])
        self.conv_in = nn.Conv2d(channels, a, 3, padding=1)
        self.down = nn.ModuleList(
            [
                Level([Block(a, a, temb), Block(a, a, temb)], []),
                Level([Block(a, b, temb), Block(b, b, temb)], [Attention(b), Attention(b)]),
            ]
        )
        self.down[0].downsample = Resample(a, stride=2)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1 = Block(b, b, temb), Attention(b)
        self.mid.block_2 = Block(b, b, temb)
        # from the coarsest up: inputs are the last output and what the way down left
        low = [Block(b + b, b, temb), Block(b + b, b, temb), Block(b + a, b, temb)]
        high = [Block(b + a, a, temb), Block(a + a, a, temb), Block(a + a, a, temb)]
        self.up = nn.ModuleList([Level(high, []), Level(low, [Attention(b) for _ in range(3)])])
        self.up[1].upsample = Resample(b, stride=1)
        self.norm_out = group_norm(a)
        self.conv_out = nn.Conv2d(a, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.width // 2
        rates = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
        angles = t[:, None] * rates[None]
        temb = self.temb.dense[0](torch.cat([angles.sin(), angles.cos()], dim=1))
        temb = self.temb.dense[1](F.silu(temb))
        kept = [self.conv_in(x)]
        for i, level in enumerate(self.down):
            for j, block in enumerate(level.block):
                h = block(kept[-1], temb)
                kept.append(level.attn[j](h) if len(level.attn) else h)
            if i == 0:
                kept.append(level.downsample.conv(F.pad(kept[-1], (0, 1, 0, 1))))
        h = self.mid.block_1(kept[-1], temb)
        h = self.mid.block_2(self.mid.attn_1(h), temb)
        for i in (1, 0):
            for j, block in enumerate(self.up[i].block):
                h = block(torch.cat([h, kept.pop()], dim=1), temb)
                h = self.up[i].attn[j](h) if len(self.up[i].attn) else h
            if i == 1:
                h = self.up[i].upsample.conv(F.interpolate(h, scale_factor=2.0))
        return self.conv_out(F.silu(self.norm_out(h)))


@pytest.fixture
def original() -> OriginalUNet:
    torch.manual_seed(0)
    return OriginalUNet(channels=1)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "data parallel", "list of states"])
def test_an_original_ddpm_gives_equal_outputs(tmp_path: Path, original: OriginalUNet, kind: str):
    state, settings = original.state_dict(), []
    file = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.ckpt")
    if kind == "safetensors":
        save_file(state, file)
    elif kind == "pt":
        torch.save(state, file)
    elif kind == "data parallel":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, file)
    else:
        zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        torch.save([zeros, {"state": {}, "lr": 0.1}, 7, state], file)
        settings = ["pretrained.variant=ema"]
    network = network_of(file, *settings)
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0.0, 3.0, 500.0, 999.0])
    torch.testing.assert_close(network(x, t), original(x, t), rtol=1e-4, atol=1e-5)


def test_a_pickle_with_more_than_tensors_is_refused(tmp_path: Path):
    torch.save({"conv_in.weight": Path("x")}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="cannot read"):
        config_of(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot read"),
        (b"no checkpoint", "cannot read"),
        ({"weight": torch.zeros(2)}, "no original DDPM checkpoint"),
        ({"epoch": 3}, "no state dict"),
    ],
)
def test_a_bad_ddpm_file_is_named(tmp_path: Path, content: object, words: str):
    file = tmp_path / "model.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(UserError, match=words) as error:
        config_of(file)
    assert "model.pt" in str(error.value)
    assert "\n" not in str(error.value)
