"""FID, KID, precision and recall of features by torch-fidelity; Gaussians that others fitted."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from sft_rl.errors import UserError
from sft_rl.metrics.frechet import Gaussian
from sft_rl.types import Metrics

Array = np.ndarray
KID_SUBSET = 1000
CHUNK = 2000
"""Rows of a matrix of distances at once; torch-fidelity holds some of them."""


def published(reference: Gaussian, real: Array, generated: Array) -> Metrics:
    """FID, KID, precision and recall as torch-fidelity computes them, in bounded memory.

    KID is the mean over 100 subsets of 1000, or of as many as there are.

    Args:
        reference: The Gaussian of the real features, for the FID.
        real: Features (M, dim), for the others.
        generated: Features (N, dim).
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    own = Gaussian.fit(generated)
    fid = fid_statistics_to_metric(own._asdict(), reference._asdict(), verbose=False)
    pair = (torch.from_numpy(generated), torch.from_numpy(real))  # in torch-fidelity's order
    kid = kid_features_to_metric(
        *pair, kid_subset_size=min(KID_SUBSET, len(real), len(generated)), verbose=False
    )
    shares = prc_features_to_metric(*pair, save_cpu_ram=True, prc_batch_size=CHUNK, verbose=False)
    return {
        "fid": fid[KEY_METRIC_FID],
        "kid": kid[KEY_METRIC_KID_MEAN],
        "precision": shares["precision"],
        "recall": shares["recall"],
    }


def read_gaussian(path: str) -> Gaussian:
    """Read what others published of their reference: an .npz with ``mu`` and ``sigma``.

    The form of pytorch-fid and of EDM. Nothing is unpickled.

    Raises:
        UserError: If the file is missing, is no .npz, or does not hold what it should.
    """
    name = f"metrics.reference_stats: {path}"
    if not Path(path).is_file():
        raise UserError(f"{name}: no such file; it is never downloaded")
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise UserError(f"{name} is a single array, expected an .npz with mu and sigma")
        with loaded as file:
            missing = sorted({"mu", "sigma"} - set(file))
            if missing:
                raise UserError(f"{name} has no {' and no '.join(missing)}, only {sorted(file)}")
            mu, sigma = (np.asarray(file[key]) for key in ("mu", "sigma"))
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{name}: {str(error).splitlines()[0]}") from error
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(
            f"{name}: mu has shape {mu.shape} and sigma {sigma.shape}, expected (N,) and (N, N)"
        )
    numeric = mu.dtype.kind in "fiu" and sigma.dtype.kind in "fiu"
    if not numeric or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{name}: mu and sigma must be finite numbers")
    return Gaussian(mu.astype(np.float64), sigma.astype(np.float64))
