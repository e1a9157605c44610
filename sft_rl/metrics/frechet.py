"""Distances between two sets of images' features."""

import numpy as np
import torch

Array = np.ndarray
CHUNK = 500


def frechet_distance(real: Array, generated: Array) -> float:
    r"""Fréchet distance between the Gaussians fitted to features (N, dim) each.

    .. math::
        |\mu_1 - \mu_2|^2 + \mathrm{tr}\bigl(C_1 + C_2 - 2 (C_1 C_2)^{1/2}\bigr)

    The trace of the root is the sum of the roots of the eigenvalues of C_1^{1/2} C_2 C_1^{1/2}.
    """
    mean_1, mean_2 = real.mean(axis=0), generated.mean(axis=0)
    cov_1, cov_2 = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (real, generated))
    values, vectors = np.linalg.eigh(cov_1)
    root = vectors * np.sqrt(values.clip(0.0)) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ cov_2 @ root).clip(0.0)
    traces = np.trace(cov_1) + np.trace(cov_2) - 2.0 * np.sqrt(crossed).sum()
    return float(np.square(mean_1 - mean_2).sum() + traces)


def kernel_distance(real: Array, generated: Array) -> float:
    """Unbiased MMD^2 of features (N, dim) under the cubic kernel (x.y / dim + 1)^3.

    The kernel inception distance (Binkowski et al., 2018), in whatever features are given.
    """

    def kernel(x: Array, y: Array) -> Array:
        return np.asarray((x @ y.T / x.shape[1] + 1.0) ** 3)

    def off_diagonal(k: Array) -> float:
        return float((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)))

    within = off_diagonal(kernel(real, real)) + off_diagonal(kernel(generated, generated))
    return within - 2.0 * float(kernel(real, generated).mean())


def nearest_distances(images: Array, others: Array) -> Array:
    """Euclidean distance of each image (N, ...) to its nearest among others (M, ...), shape (N,).

    Pixel values are taken as they are.
    """
    x, y = (torch.from_numpy(a.reshape(len(a), -1).astype(np.float32)) for a in (images, others))
    parts = [torch.cdist(part, y).amin(dim=1) for part in torch.split(x, CHUNK)]
    return torch.cat(parts).numpy()
