"""Tests of the hashes and the permutation: pinned values, bijections, statistics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.data.hashing import fold, hash32, mix64, permute, unpermute


def test_pinned_values():
    """Never change these numbers: a resumed run would get other batches."""
    assert mix64(np.array([0, 1, 2**64 - 1], np.uint64)).tolist() == [
        0x0,
        0x5692161D100B05E5,
        0xB4D055FCF2CBBD7B,
    ]
    assert [int(fold(*v)[0]) for v in [(0,), (1, 2, 3), (3, 2, 1), (-1, 2**40)]] == [
        0xE220A8397B1DCDAF,
        0x6AE515C1C0AC7E37,
        0xD62A7F6E291FEF64,
        0x7B4330AD875AE93F,
    ]
    assert hash32(fold(7, np.arange(2)), np.arange(3, dtype=np.uint32)).tolist() == [
        [1247130523, 2922360580, 2736919010],
        [1311412576, 1086705929, 3359350989],
    ]
    assert permute(np.arange(12), 12, 0, 0).tolist() == [8, 6, 11, 5, 4, 2, 7, 10, 1, 3, 9, 0]
    assert permute(np.arange(12), 12, 0, 1).tolist() == [1, 6, 0, 5, 7, 11, 4, 2, 9, 8, 3, 10]
    assert permute([0, 1, 2, 3, 4], 23386, 17, 3).tolist() == [4056, 16874, 21839, 19812, 9382]
    n = 2**40 + 12345
    assert permute([0, 1, n - 1], n, 42, [0, 0, 7]).tolist() == [
        692470384125,
        55245535601,
        780594910991,
    ]


def test_mix64_and_fold_do_not_collide():
    assert len(np.unique(mix64(np.arange(200_000, dtype=np.uint64)))) == 200_000
    small = np.arange(64)
    keys = fold(small[:, None, None], small[:, None], small)
    assert len(np.unique(keys)) == 64**3


def test_fold_is_elementwise():
    keys = fold(3, np.arange(5), 9)
    assert keys.tolist() == [int(fold(3, i, 9)[0]) for i in range(5)]


def test_hash32_accepts_counters_per_row():
    keys = fold(1, np.arange(4))
    counters = np.arange(12, dtype=np.uint32).reshape(4, 3)
    expected = [hash32(keys[i : i + 1], counters[i])[0].tolist() for i in range(4)]
    assert hash32(keys, counters).tolist() == expected


def _bits(values: np.ndarray) -> np.ndarray:
    """[..., 32] zeros and ones."""
    return (values[..., None] >> np.arange(32, dtype=np.uint32)) & 1


def test_hash32_is_uniform():
    values = hash32(fold(0, 0, np.arange(2048)), np.arange(512, dtype=np.uint32))
    assert abs(_bits(values).mean(axis=(0, 1)) - 0.5).max() < 6 * 0.5 / np.sqrt(values.size)
    # Chi-square over 256 cells, by the top bits and by the low ones: mean 255, deviation 22.6.
    for cells in (values >> np.uint32(24), values & np.uint32(255)):
        counts = np.bincount(cells.reshape(-1), minlength=256)
        chi_square = ((counts - values.size / 256) ** 2).sum() / (values.size / 256)
        assert abs(chi_square - 255) < 6 * 22.6


@pytest.mark.parametrize("neighbour", ["row", "epoch", "seed", "position"])
def test_hashes_of_neighbours_are_independent(neighbour):
    """Each of the 32 bits differs between neighbours with probability 1/2."""
    rows, positions = np.arange(1024), np.arange(256, dtype=np.uint32)
    hashes = hash32(fold(5, 3, rows), positions)
    neighbours = {
        "row": hash32(fold(5, 3, rows + 1), positions),
        "epoch": hash32(fold(5, 4, rows), positions),
        "seed": hash32(fold(6, 3, rows), positions),
        "position": hash32(fold(5, 3, rows), positions + np.uint32(1)),
    }[neighbour]
    flipped = _bits(hashes ^ neighbours).mean(axis=(0, 1))
    assert abs(flipped - 0.5).max() < 6 * 0.5 / np.sqrt(hashes.size)


@given(
    n=st.integers(1, 5000),
    seed=st.integers(-(2**63), 2**64),
    epoch=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_permute_is_a_bijection(n, seed, epoch):
    assert np.array_equal(np.sort(permute(np.arange(n), n, seed, epoch)), np.arange(n))


@given(
    n=st.integers(1, 2**40),
    seed=st.integers(-(2**63), 2**64),
    epoch=st.integers(0, 2**31),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_unpermute_is_the_inverse(n, seed, epoch, data):
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)))
    assert np.array_equal(unpermute(permute(index, n, seed, epoch), n, seed, epoch), index)
    assert np.array_equal(permute(unpermute(index, n, seed, epoch), n, seed, epoch), index)


@pytest.mark.parametrize("n", [2**16, 2**16 + 1, 300_007])
def test_permute_is_a_bijection_of_large_ranges(n):
    assert np.array_equal(np.sort(permute(np.arange(n), n, 1, 2)), np.arange(n))


@pytest.mark.parametrize("n", [2**33 - 1, 2**40, 2**41 + 1, 2**62 + 3])
def test_permute_stays_inside_huge_ranges(n):
    image = permute(np.arange(100_000), n, 1, 2)
    assert image.min() >= 0
    assert image.max() < n
    assert len(np.unique(image)) == len(image)
    # Uniform: mean n / 2 within 6 standard errors.
    assert abs(image.mean() / n - 0.5) < 6 / np.sqrt(12 * len(image))


def test_permute_accepts_an_epoch_for_each_index():
    index, epochs = np.array([3, 9, 3, 0]), np.array([0, 0, 1, 7])
    one_by_one = [int(permute(i, 10, 5, e)[0]) for i, e in zip(index, epochs, strict=True)]
    assert permute(index, 10, 5, epochs).tolist() == one_by_one


@pytest.mark.parametrize("n", [3, 5, 16, 37])
def test_permute_mixes_pairs(n):
    """Over many epochs, all ordered pairs of images of two indices are equally likely."""
    epochs = np.arange(60_000)
    first, second = (permute(np.full(len(epochs), i), n, 8, epochs) for i in (0, 1))
    counts = np.bincount(first * n + second, minlength=n * n).reshape(n, n)
    counts = counts[~np.eye(n, dtype=bool)]
    expected = len(epochs) / len(counts)
    chi_square = ((counts - expected) ** 2).sum() / expected
    freedom = len(counts) - 1
    assert abs(chi_square - freedom) < 6 * np.sqrt(2 * freedom)


def test_permutations_of_different_epochs_are_uncorrelated():
    n = 20_000
    index = np.arange(n)
    orders = [permute(index, n, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    bound = 6 / np.sqrt(n)
    for i, order in enumerate(orders):
        assert abs(np.corrcoef(order, index)[0, 1]) < bound
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < bound
        assert abs(np.corrcoef(order, orders[i - 1])[0, 1]) < bound


@pytest.mark.parametrize(("index", "n"), [([5], 5), ([-1], 5), ([0], 0)])
def test_permute_rejects_indices_outside_the_range(index, n):
    with pytest.raises(ValueError, match="permute needs"):
        permute(index, n, 0, 0)
