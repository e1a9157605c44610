"""The weights of one of NVlabs' EDM pickles as a .safetensors file, which sft-rl reads.

    git clone https://github.com/NVlabs/edm
    PYTHONPATH=edm python examples/edm_weights.py edm-cifar10-32x32-uncond-vp.pkl net.safetensors

A pickle runs whatever code is in it when it is opened. Open it only if you trust where it came
from, and where nothing is that you would miss.
"""

import pickle
import sys
from pathlib import Path

from safetensors.torch import save_file


def main(source: str, target: str) -> None:
    """Open a pickle and keep the averaged network's tensors, and the name of its class."""
    if Path(target).exists():
        raise SystemExit(f"{target}: exists already")
    with open(source, "rb") as stream:
        network = pickle.load(stream)["ema"]  # noqa: S301 (said above)
    state = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, target, metadata={"preconditioning": type(network).__name__})


if __name__ == "__main__":
    main(*sys.argv[1:])
