"""Random numbers by purpose, and rows that do not know their neighbours."""

import torch
from scipy import stats

from sft_rl.seeding import derive_seed, generator, normal_rows, row_keys


def test_streams_and_indices_give_different_seeds():
    seeds = {
        derive_seed(seed, stream, i, j)
        for seed in range(3)
        for stream in ("start", "actions")
        for i in range(10)
        for j in range(10)
    }
    assert len(seeds) == 600
    assert derive_seed(1, "start", 2) == derive_seed(1, "start", 2)


def test_indices_that_are_left_out_are_not_zero():
    seeds = {derive_seed(7, "start", *(0,) * num) for num in range(6)}
    seeds |= {derive_seed(7, "start", 2**32), derive_seed(7, "start", 0, 1)}
    assert len(seeds) == 8


def test_golden_seeds():
    """The seeds of a purpose never change between versions, or no run could be repeated."""
    assert [derive_seed(0, "actions", *i) for i in ((), (0,), (3, 1))] == SEEDS


def test_generators_are_fresh():
    first = torch.rand(3, generator=generator(0, "actions", 1))
    assert torch.equal(first, torch.rand(3, generator=generator(0, "actions", 1)))


def test_a_row_is_the_same_alone_and_in_a_batch():
    keys = row_keys(torch.tensor([7, -3, 2**62, 0]))
    batch = normal_rows(keys, 5, (3, 2))
    for i in range(len(keys)):
        assert torch.equal(batch[i], normal_rows(keys[i : i + 1], 5, (3, 2))[0])


def test_rows_are_standard_normal_and_independent():
    keys = row_keys(torch.arange(50_000))
    rows = normal_rows(keys, 0, (2,)).double()
    assert stats.kstest(rows.flatten().numpy(), "norm").pvalue > 1e-3
    neighbours = torch.corrcoef(torch.stack([rows[:-1, 0], rows[1:, 0]]))[0, 1]
    coordinates = torch.corrcoef(rows.T)[0, 1]
    draws = torch.corrcoef(torch.stack([rows[:, 0], normal_rows(keys, 1, (2,))[:, 0].double()]))
    for correlation in (neighbours, coordinates, draws[0, 1]):
        assert abs(correlation.item()) < 4.5 / 50_000**0.5


def test_golden_numbers():
    """The noise of a seed never changes between versions, or no run could be repeated."""
    rows = normal_rows(row_keys(torch.tensor([0, 1])), 0, (2,))
    torch.testing.assert_close(rows, torch.tensor(GOLDEN), rtol=0, atol=1e-6)


GOLDEN = [[2.0246682167053223, 1.5734436511993408], [0.058718401938676834, 2.9055047035217285]]


SEEDS = [1545933515072321796, 2096355827966262029, 6149451031464056145]
