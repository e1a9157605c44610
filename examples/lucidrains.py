"""A checkpoint of denoising-diffusion-pytorch becomes a sampler of four steps.

    pip install denoising-diffusion-pytorch
    python -m examples.lucidrains IMAGES results/model-10.pt

Copy it and write your own ``Unet(…)``, with the arguments that it was trained with.
"""

import os
import sys
from typing import Any

import torch
from torch import nn

import sft_rl

OBJECTIVE = "v_prediction"
"""GaussianDiffusion's `objective`: pred_v; pred_noise is `epsilon`, pred_x0 is `sample`."""
CHECKPOINT = "LUCIDRAINS_CHECKPOINT"
"""Variable that tells the function below, in every process of a run, what it reads."""


def checkpoint() -> dict[str, Any]:
    """Read what its Trainer saved; nothing is unpickled but tensors and plain containers."""
    return torch.load(  # type: ignore[no-any-return]
        os.environ[CHECKPOINT], map_location="cpu", weights_only=True
    )


def unet() -> nn.Module:
    """The network of the checkpoint; it is called as ``unet(images, times)``."""
    from denoising_diffusion_pytorch import Unet

    return averaged(Unet(dim=64, dim_mults=(1, 2, 4, 8)))


def averaged(network: nn.Module) -> nn.Module:
    """Give a network the averaged weights of the checkpoint."""
    prefix, state = "ema_model.model.", checkpoint()["ema"]
    own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    network.load_state_dict(own)
    return network


def main(images: str, file: str, *settings: str) -> sft_rl.Result:
    """Fine-tune it to four steps; its betas are in the checkpoint."""
    os.environ[CHECKPOINT] = os.path.abspath(file)
    betas = checkpoint()["model"]["betas"].tolist()
    given = [
        "data.name=images",
        f"data.path={images}",
        "model.factory=examples.lucidrains:unet",
        "model.weights=factory",
        f"model.prediction={OBJECTIVE}",
        "model.clip_x0=1.0",
        f"noise.betas={betas}",
        "sampler.num_steps=4",
    ]
    result = sft_rl.fine_tune(sft_rl.load_config("images", [*given, *settings]))
    print(f"the sampler is in {result.folder}")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
