"""The lengths that rows are padded to, compared with all possible choices."""

import itertools

import numpy as np
import pytest

from roberta_jax.data.row_lengths import choose_lengths


@pytest.mark.parametrize("most", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_the_chosen_lengths_have_the_least_padding(most, seed):
    row_lengths = np.random.default_rng(seed).integers(1, 100, 40)
    chosen = choose_lengths(row_lengths, most, longest=100)
    assert len(chosen) <= most
    assert all(chosen % 8 == 0) or chosen[-1] == 100
    tokens = chosen[np.searchsorted(chosen, row_lengths)].sum()
    possible = np.unique(np.minimum(-(-row_lengths // 8) * 8, 100))
    for number in range(most):
        for others in itertools.combinations(possible[:-1], min(number, len(possible) - 1)):
            lengths = np.array([*others, possible[-1]])
            assert tokens <= lengths[np.searchsorted(lengths, row_lengths)].sum()


def test_no_length_exceeds_what_the_model_takes():
    assert choose_lengths(np.array([3, 9, 30]), 6, longest=30).tolist() == [8, 16, 30]
    assert choose_lengths(np.array([], np.int64), 6, longest=30).tolist() == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [1, 2, 3])
def test_weighted_lengths_are_the_best_of_all_choices(seed, most):
    rng = np.random.default_rng(seed)
    lengths, weights = rng.integers(2, 61, 30), rng.integers(1, 5, 30)

    def cost(buckets):
        return (np.array(buckets)[np.searchsorted(buckets, lengths)] * weights).sum()

    chosen = choose_lengths(lengths, most, 60, weights)
    last = min(-(-lengths.max() // 8) * 8, 60)
    others = [*range(8, last, 8)]
    best = min(
        cost([*choice, last])
        for count in range(most)
        for choice in itertools.combinations(others, count)
    )
    assert len(chosen) <= most
    assert chosen[-1] >= lengths.max()
    assert (np.diff(chosen) > 0).all()
    assert cost(chosen) == best
