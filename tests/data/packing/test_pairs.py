"""Tests of pairs: BERT's sampling in plain Python, invariants and statistics."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.data.packing import pairs
from roberta_jax.data.packing.pairs import Choices
from tests.support import plain_packing
from tests.support.plain_packing import Sampler, line_ends

# Documents as the lengths of their lines in tokens, `</s>` included.
documents = st.lists(st.lists(st.integers(2, 30), min_size=1, max_size=12), min_size=1, max_size=8)
budgets = st.integers(2, 80)
seeds = st.tuples(st.integers(0, 2**40), st.integers(0, 9), st.integers(0, 3))


def as_tuples(sampled):
    arrays = [vars(sampled)[name] for name in ("a_start", "a_len", "b_start", "b_len", "label")]
    return list(zip(*(array.tolist() for array in arrays), strict=True))


def segment_pairs(documents, budget, short_seq_prob=0.1, seed=(0, 0, 0)):
    return pairs.segment_pairs(*line_ends(documents), budget, short_seq_prob, Choices(*seed))


def sentence_pairs(documents, budget, seed=(0, 0, 0)):
    return pairs.sentence_pairs(*line_ends(documents), budget, Choices(*seed))


@given(documents, budgets, st.sampled_from([0, 0.1, 0.5, 1]), seeds)
@settings(max_examples=400, deadline=None)
def test_segment_pairs_equal_the_reference(documents, budget, short_seq_prob, seed):
    expected = plain_packing.segment_pairs(
        documents, budget, short_seq_prob, Sampler(documents, *seed)
    )
    actual = as_tuples(segment_pairs(documents, budget, short_seq_prob, seed))
    assert actual == [pair[:5] for pair in expected]


@given(documents, budgets, seeds)
@settings(max_examples=400, deadline=None)
def test_sentence_pairs_equal_the_reference(documents, budget, seed):
    expected = plain_packing.sentence_pairs(documents, budget, Sampler(documents, *seed))
    assert as_tuples(sentence_pairs(documents, budget, seed)) == [pair[:5] for pair in expected]


def make_documents(count, lines=12, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 30, rng.integers(1, lines + 1)).tolist() for _ in range(count)]


def test_pairs_equal_the_reference_on_a_larger_corpus():
    documents = make_documents(300, lines=40)
    for short_seq_prob in (0, 0.1, 1):
        expected = plain_packing.segment_pairs(documents, 60, short_seq_prob, Sampler(documents))
        assert as_tuples(segment_pairs(documents, 60, short_seq_prob)) == [p[:5] for p in expected]
    expected = plain_packing.sentence_pairs(documents, 60, Sampler(documents))
    assert as_tuples(sentence_pairs(documents, 60)) == [p[:5] for p in expected]


def test_by_hand():
    """Two documents of one line each: only the truncation is random."""
    for find in (segment_pairs, sentence_pairs):
        assert as_tuples(find([[4], [6]], 20)) == [(0, 3, 5, 5, 1), (5, 5, 0, 3, 1)]
        (a_start, a_len, b_start, b_len, label), _ = as_tuples(find([[4], [6]], 5))
        assert (a_len, b_len, label) == (3, 2, 1)  # B was the longer one
        assert a_start == 0
        assert 5 <= b_start <= 8
    # One document: B follows A, because there is no other document to draw from.
    assert as_tuples(sentence_pairs([[4, 6, 8]], 20)) == [(0, 3, 4, 5, 0)]
    assert as_tuples(sentence_pairs([[4]], 20)) == []
    assert as_tuples(segment_pairs([[4, 6]], 20)) == [(0, 3, 4, 5, 0)]
    assert as_tuples(segment_pairs([[4]], 20)) == []


def test_empty_lines_are_in_no_pair():
    """Stores have no empty lines, but no text of a pair may be empty in any case."""
    for find in (segment_pairs, sentence_pairs):
        for seed in range(20):
            sampled = find([[1, 5, 1], [], [7, 3], [1]], 9, seed=(seed, 0, 0))
            assert (sampled.a_len > 0).all()
            assert (sampled.b_len > 0).all()


@given(documents, budgets, seeds)
@settings(max_examples=200, deadline=None)
def test_labels_are_correct(documents, budget, seed):
    for sampled in (
        segment_pairs(documents, budget, 0.1, seed),
        sentence_pairs(documents, budget, seed),
    ):
        plain_packing.assert_true_pairs(*line_ends(documents), budget, **vars(sampled))


def test_half_of_the_labels_that_are_drawn_are_random():
    documents = make_documents(3000)
    expected = {
        "segments": plain_packing.segment_pairs(documents, 60, 0.1, Sampler(documents)),
        "sentences": plain_packing.sentence_pairs(documents, 60, Sampler(documents)),
    }
    for sampled in expected.values():  # tested above to equal the pairs
        labels = np.array([pair.label for pair in sampled if pair.had_choice])
        assert len(labels) > 3000
        assert abs(labels.mean() - 0.5) < 5 * 0.5 / math.sqrt(len(labels))
        assert all(pair.label == pairs.RANDOM for pair in sampled if not pair.had_choice)


def test_seeds_duplicates_and_shards_give_different_samples():
    documents = make_documents(50)
    for find in (segment_pairs, sentence_pairs):
        seeds = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
        tables = [as_tuples(find(documents, 60, seed=seed)) for seed in seeds]
        for i, table in enumerate(tables):
            for other in tables[:i]:
                assert len(set(table) & set(other)) < 0.6 * len(table)
                assert [pair[4] for pair in table] != [pair[4] for pair in other]
        assert tables[0] == as_tuples(find(documents, 60))


def test_random_documents_and_lines_are_uniform():
    """With 8 documents of 4 lines, B is any line of the other 7."""
    documents = [[2] * 4] * 8
    lines, _ = line_ends(documents)
    counts = np.zeros((8, len(lines)))
    for duplicate in range(2000):
        sampled = sentence_pairs(documents, 60, seed=(3, duplicate, 0))
        random = sampled.label == pairs.RANDOM
        a, b = (
            np.searchsorted(lines, x[random], side="right")
            for x in (sampled.a_start, sampled.b_start)
        )
        np.add.at(counts, (a // 5, b), 1)
    for document, drawn in enumerate(counts):
        allowed = np.array([i % 5 < 4 and i // 5 != document for i in range(len(lines))])
        assert drawn[~allowed].sum() == 0
        mean = drawn.sum() / allowed.sum()
        assert mean > 100
        chi_square = ((drawn[allowed] - mean) ** 2 / mean).sum()
        freedom = allowed.sum() - 1
        assert abs(chi_square - freedom) < 6 * math.sqrt(2 * freedom)


def test_short_targets_are_uniform():
    """From 2 to the budget. With lines of one token, pairs that follow reach their target."""
    documents = [[2] * 30] * 4000
    budget = 20
    sampled = segment_pairs(documents, budget, 1)
    ends = line_ends(documents)[1]
    first = np.unique(np.searchsorted(ends, sampled.a_start, side="right"), return_index=True)[1]
    first = first[sampled.label[first] == pairs.FOLLOWS]
    sizes = sampled.a_len[first] + sampled.b_len[first]
    # n lines hold 2n - 2 tokens without the last `</s>` of A and B; n is the least that suffices.
    counts = np.bincount(sizes, minlength=budget + 1)
    assert set(np.flatnonzero(counts)) == set(range(2, budget + 1, 2))
    expected = np.full(budget // 2, 2.0)
    expected[0] = 1  # length 2 is for target 2, length 4 for targets 3 and 4, and so on
    expected *= len(sizes) / expected.sum()
    chi_square = ((counts[2::2] - expected) ** 2 / expected).sum()
    assert abs(chi_square - 9) < 6 * math.sqrt(2 * 9)


def test_short_seq_prob_is_the_fraction_of_short_documents():
    documents = [[2] * 40] * 5000
    ends = line_ends(documents)[1]
    for share in (0.0, 0.1, 0.5):
        sampled = segment_pairs(documents, 60, share)
        first = np.unique(np.searchsorted(ends, sampled.a_start, side="right"), return_index=True)[
            1
        ]
        first = first[sampled.label[first] == pairs.FOLLOWS]
        short = (sampled.a_len + sampled.b_len)[first] < 59
        expected = share * 57 / 59  # targets 59 and 60 do not show
        assert abs(short.mean() - expected) <= 6 * math.sqrt(expected / len(first))


@pytest.mark.parametrize("tosses", [1, 2, 7, 63, 64, 65, 130, 400])
def test_heads_are_binomial(tosses):
    count = 20_000
    heads = Choices(7, 0, 0).heads(pairs._FRONT_A, np.arange(count), np.full(count, tosses))
    assert heads.min() >= 0
    assert heads.max() <= tosses
    sigma = math.sqrt(tosses) / 2
    assert abs(heads.mean() - tosses / 2) < 6 * sigma / math.sqrt(count)
    assert abs(heads.var() / sigma**2 - 1) < 6 * math.sqrt(2 / count)
    expected = np.array([math.comb(tosses, k) * count / 2**tosses for k in range(tosses + 1)])
    likely = expected > 10
    chi_square = ((np.bincount(heads, minlength=tosses + 1) - expected) ** 2)[likely] / expected[
        likely
    ]
    assert abs(chi_square.sum() - likely.sum()) < 6 * math.sqrt(2 * likely.sum())


def test_heads_do_not_depend_on_the_other_counts():
    tosses = np.array([0, 3, 64, 0, 200, 1])
    choices, lines = Choices(7, 1, 2), np.array([5, 6, 7, 8, 9, 5])
    together = choices.heads(pairs._FRONT_B, lines, tosses)
    alone = [
        choices.heads(pairs._FRONT_B, lines[i : i + 1], tosses[i : i + 1])[0] for i in range(6)
    ]
    assert together.tolist() == alone
    assert together[0] == together[3] == 0


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 60))
@settings(max_examples=200, deadline=None)
def test_truncation_equals_removing_one_token_at_a_time(a, b, budget):
    expected = [a, b]
    while sum(expected) > budget:
        expected[0 if expected[0] > expected[1] else 1] -= 1
    (pair,) = as_tuples(sentence_pairs([[a + 1, b + 1]], budget))
    assert [pair[1], pair[3]] == expected
    assert 0 <= pair[0] <= a - expected[0]
    assert 0 <= pair[2] - (a + 1) <= b - expected[1]
