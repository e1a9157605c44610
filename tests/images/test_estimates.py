"""Distances of features and their errors: closed forms, scatter, bootstrap, torch-fidelity."""

import tracemalloc

import numpy as np
import pytest

from sft_rl.metrics.estimates import Estimate, Measured
from sft_rl.metrics.frechet import FrechetTo, Gaussian
from sft_rl.metrics.kernel import KernelTo

Array = np.ndarray
FEATURES = np.random.default_rng(0).normal(size=(300, 5)) * [1.0, 2.0, 3.0, 0.5, 0.1]


def frechet(real: Array, generated: Array) -> float:
    return FrechetTo.of(real)(generated).value


def kernel(real: Array, generated: Array) -> float:
    return KernelTo(real)(generated).value


def test_frechet_of_a_translation_is_its_squared_length():
    moved = FEATURES + np.array([3.0, 4.0, 0.0, 0.0, 0.0])
    assert frechet(FEATURES, moved) == pytest.approx(25.0)
    assert frechet(FEATURES, FEATURES) == pytest.approx(0.0, abs=1e-6)


def test_frechet_of_a_scaling_is_in_the_trace():
    scaled = FEATURES.mean(0) + 3.0 * (FEATURES - FEATURES.mean(0))
    trace = np.trace(np.cov(FEATURES, rowvar=False))
    assert frechet(FEATURES, scaled) == pytest.approx(4.0 * trace)


def test_frechet_of_a_rotation_agrees_with_the_matrix_root():
    from scipy.linalg import sqrtm

    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    turned = FEATURES @ rotation
    one, two = (np.cov(x, rowvar=False) for x in (FEATURES, turned))
    shift = np.square(FEATURES.mean(0) - turned.mean(0)).sum()
    expected = shift + np.trace(one + two - 2.0 * sqrtm(one @ two).real)
    assert frechet(FEATURES, turned) == pytest.approx(expected, rel=1e-5)


def test_frechet_of_fewer_samples_than_features_is_finite():
    few = np.random.default_rng(0).normal(size=(10, 40))
    found = FrechetTo.of(few)(few + 1.0)
    assert found.value == pytest.approx(40.0)
    assert np.isfinite(found.error)
    assert FrechetTo.of(few).value(few + 1.0) == pytest.approx(found.value)


def test_kernel_distance_by_hand():
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    # k(1,2) = 27, k(0,3) = 1, cross: 1, 64, 1, 343
    assert kernel(x, y) == pytest.approx(27.0 + 1.0 - 2.0 * (1 + 64 + 1 + 343) / 4)


MIXED = np.random.default_rng(5).normal(size=(8, 8)) / 3.0


def draw(num: int, seed: int, *, shift: float = 0.0, scale: float = 1.0) -> Array:
    return np.random.default_rng(seed).normal(size=(num, 8)) @ MIXED * scale + shift


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.1, 1.0), (0.1, 1.3)])
def test_distances_of_gaussians_are_unbiased_and_their_errors_the_scatter(
    shift: float, scale: float
):
    true = 8 * shift**2 + (scale - 1.0) ** 2 * np.trace(MIXED.T @ MIXED)
    rows = []
    for seed in range(80):
        real, generated = draw(150, 2 * seed), draw(200, 2 * seed + 1, shift=shift, scale=scale)
        to = FrechetTo.of(real)
        plain = to(generated)
        found = (KernelTo(real)(generated), to.at_infinity(plain, generated), plain)
        rows.append([*(e.value for e in found), *(e.error for e in found)])
    mean, scatter = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1)
    tolerance = 3.0 * scatter / np.sqrt(80)
    assert abs(mean[1] - true) < tolerance[1]
    assert mean[2] - true > 3 * tolerance[2]  # what extrapolation takes away
    if shift == 0.0:
        assert abs(mean[0]) < tolerance[0]
    # Squared distances are degenerate at zero: there errors may be too large, by up to a half.
    assert 0.75 < mean[3] / scatter[0] < 1.6
    assert 0.75 < mean[4] / scatter[1] < 1.6


@pytest.mark.parametrize("to", [KernelTo, FrechetTo.of])
def test_an_influence_is_what_one_more_copy_changes(to):
    real, generated = draw(60, 0), draw(80, 1, shift=0.3, scale=1.4)
    found = to(real)(generated)
    for index in (0, 7):
        # Leaving one out moves the distance by minus its influence over what is left.
        without = to(real)(np.delete(generated, index, axis=0)).value
        assert (found.value - without) * 79 == pytest.approx(
            found.generated[index], abs=0.08 * found.generated.std()
        )
        without = to(np.delete(real, index, axis=0))(generated).value
        assert (found.value - without) * 59 == pytest.approx(
            found.real[index], abs=0.15 * found.real.std()
        )


@pytest.mark.parametrize("to", [KernelTo, FrechetTo.of])
def test_the_error_of_a_pair_is_that_of_a_paired_bootstrap(to):
    real, noise = draw(300, 0), draw(300, 1)
    one, other = 1.3 * noise + 0.2, 1.2 * noise + 0.2
    pair = to(real)(one).minus(to(real)(other))
    rng, found = np.random.default_rng(2), []
    for _ in range(200):
        at, of = rng.integers(300, size=300), rng.integers(300, size=300)
        resampled = to(real[at])
        found.append(resampled(one[of]).value - resampled(other[of]).value)
    assert pair.error == pytest.approx(np.std(found, ddof=1), rel=0.2)
    assert pair.value == to(real)(one).value - to(real)(other).value
    alone = np.hypot(to(real)(one).error, to(real)(other).error)
    assert pair.error < 0.5 * alone  # the same noise and the same reference


def test_a_pair_needs_the_same_counts():
    one = Estimate(1.0, np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="3 real and 4 generated, and 3 and 5"):
        one.minus(Estimate(1.0, np.zeros(3), np.zeros(5)))


def test_differences_are_named_by_both():
    one = Estimate(3.0, np.array([1.0, -1.0]), np.array([2.0, -2.0]))
    measured = Measured({"kernel": 3.0, "other": 1.0}, {"kernel": one, "only": one})
    less = measured.less({"kernel": one.at(1.0)}, "full_step")
    assert less == {"kernel_less_full_step": 2.0, "kernel_less_full_step_se": 0.0}


def test_the_kernel_distance_of_many_takes_little_memory():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(2, 5_000, 16))
    tracemalloc.start()
    found = KernelTo(real)(generated)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6  # a Gram matrix has 200 MB
    assert abs(found.value) < 3 * found.error


FID, KID, SHARES = 0.5511293949303706, 0.21370683183652028, (0.7575, 0.94)


def test_the_numbers_are_those_of_torch_fidelity():
    """Of torch-fidelity 0.4.0 for these features; KID of all, in one subset."""
    real, generated = draw(400, 0), draw(400, 1, shift=0.2, scale=1.2)
    assert frechet(real, generated) == pytest.approx(FID, rel=1e-9)
    assert kernel(real, generated) == pytest.approx(KID, rel=1e-9)
    from sft_rl.metrics.neighbours import precision_recall

    assert precision_recall(real, generated, neighbours=3) == pytest.approx(SHARES, abs=1e-9)


def test_what_torch_fidelity_computes_is_passed_on():
    """Where it is installed (extra `fid`); what it gives is held by the test before everywhere."""
    try:
        import torch_fidelity  # noqa: F401
    except (ImportError, RuntimeError) as error:  # torchvision of another torch raises the second
        pytest.skip(f"torch-fidelity: {error}")
    from sft_rl.metrics.fidelity import published

    real, generated = draw(1500, 0), draw(1400, 1, shift=0.2, scale=1.2)
    found = published(Gaussian.fit(real), real, generated)
    assert found["fid"] == pytest.approx(frechet(real, generated), rel=1e-6)
    whole = KernelTo(real)(generated)
    assert found["kid"] == pytest.approx(whole.value, abs=whole.error)  # of 100 subsets
    same = published(Gaussian.fit(real[:400]), draw(400, 0), draw(400, 1, shift=0.2, scale=1.2))
    assert same["kid"] == pytest.approx(KID)
    assert (same["precision"], same["recall"]) == pytest.approx(SHARES, abs=1e-6)
