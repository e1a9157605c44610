"""Data sources and the standardisation between a user's units and the model's."""

from sft_rl.data.dataset import Dataset, load_dataset

__all__ = ["Dataset", "load_dataset"]
