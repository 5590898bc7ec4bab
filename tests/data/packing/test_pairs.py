"""Pairs: BERT's sampling in plain Python against ours, the coins, and what must hold of each."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.data.packing import pairs
from roberta_jax.data.packing.pairs import Choices
from tests.support import plain_packing
from tests.support.plain_packing import Sampler, line_ends

# Lines in tokens with their `</s>`.
documents = st.lists(st.lists(st.integers(2, 30), min_size=1, max_size=12), min_size=1, max_size=8)
budgets = st.integers(2, 80)
seeds = st.tuples(st.integers(0, 2**40), st.integers(0, 9), st.integers(0, 3))


def listed(found):
    arrays = [vars(found)[name] for name in ("a_start", "a_len", "b_start", "b_len", "label")]
    return list(zip(*(array.tolist() for array in arrays), strict=True))


def segment_pairs(documents, budget, short_seq_prob=0.1, seed=(0, 0, 0)):
    return pairs.segment_pairs(*line_ends(documents), budget, short_seq_prob, Choices(*seed))


def sentence_pairs(documents, budget, seed=(0, 0, 0)):
    return pairs.sentence_pairs(*line_ends(documents), budget, Choices(*seed))


@given(documents, budgets, st.sampled_from([0, 0.1, 0.5, 1]), seeds)
@settings(max_examples=400, deadline=None)
def test_segment_pairs_are_berts(documents, budget, short_seq_prob, seed):
    expected = plain_packing.segment_pairs(
        documents, budget, short_seq_prob, Sampler(documents, *seed)
    )
    found = listed(segment_pairs(documents, budget, short_seq_prob, seed))
    assert found == [pair[:5] for pair in expected]


@given(documents, budgets, seeds)
@settings(max_examples=400, deadline=None)
def test_sentence_pairs_are_the_loop(documents, budget, seed):
    expected = plain_packing.sentence_pairs(documents, budget, Sampler(documents, *seed))
    assert listed(sentence_pairs(documents, budget, seed)) == [pair[:5] for pair in expected]


def make_documents(count, lines=12, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 30, rng.integers(1, lines + 1)).tolist() for _ in range(count)]


def test_the_references_agree_on_a_larger_corpus():
    documents = make_documents(300, lines=40)
    for short_seq_prob in (0, 0.1, 1):
        expected = plain_packing.segment_pairs(documents, 60, short_seq_prob, Sampler(documents))
        assert listed(segment_pairs(documents, 60, short_seq_prob)) == [p[:5] for p in expected]
    expected = plain_packing.sentence_pairs(documents, 60, Sampler(documents))
    assert listed(sentence_pairs(documents, 60)) == [p[:5] for p in expected]


def test_by_hand():
    """Two documents of one line each: nothing to choose but the cuts."""
    for find in (segment_pairs, sentence_pairs):
        assert listed(find([[4], [6]], 20)) == [(0, 3, 5, 5, 1), (5, 5, 0, 3, 1)]
        (a_start, a_len, b_start, b_len, label), _ = listed(find([[4], [6]], 5))
        assert (a_len, b_len, label) == (3, 2, 1)  # B was the longer one
        assert a_start == 0
        assert 5 <= b_start <= 8
    # One document: what can follow follows, and there is no other to draw from.
    assert listed(sentence_pairs([[4, 6, 8]], 20)) == [(0, 3, 4, 5, 0)]
    assert listed(sentence_pairs([[4]], 20)) == []
    assert listed(segment_pairs([[4, 6]], 20)) == [(0, 3, 4, 5, 0)]
    assert listed(segment_pairs([[4]], 20)) == []


def test_lines_without_text_make_no_pair():
    """Stores have none, but were there some, no pair may be of nothing."""
    for find in (segment_pairs, sentence_pairs):
        for seed in range(20):
            found = find([[1, 5, 1], [], [7, 3], [1]], 9, seed=(seed, 0, 0))
            assert (found.a_len > 0).all()
            assert (found.b_len > 0).all()


@given(documents, budgets, seeds)
@settings(max_examples=200, deadline=None)
def test_labels_are_true(documents, budget, seed):
    for found in (
        segment_pairs(documents, budget, 0.1, seed),
        sentence_pairs(documents, budget, seed),
    ):
        plain_packing.assert_true_pairs(*line_ends(documents), budget, **vars(found))


def test_half_of_the_pairs_that_have_a_choice_follow():
    documents = make_documents(3000)
    expected = {
        "segments": plain_packing.segment_pairs(documents, 60, 0.1, Sampler(documents)),
        "sentences": plain_packing.sentence_pairs(documents, 60, Sampler(documents)),
    }
    for found in expected.values():  # equal to ours, as tested above
        labels = np.array([pair.label for pair in found if pair.had_choice])
        assert len(labels) > 3000
        assert abs(labels.mean() - 0.5) < 5 * 0.5 / math.sqrt(len(labels))
        assert all(pair.label == pairs.RANDOM for pair in found if not pair.had_choice)


def test_other_seeds_duplicates_and_shards_are_other_samples():
    documents = make_documents(50)
    for find in (segment_pairs, sentence_pairs):
        seeds = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
        tables = [listed(find(documents, 60, seed=seed)) for seed in seeds]
        for i, table in enumerate(tables):
            for other in tables[:i]:
                assert len(set(table) & set(other)) < 0.6 * len(table)
                assert [pair[4] for pair in table] != [pair[4] for pair in other]
        assert tables[0] == listed(find(documents, 60))


def test_the_other_document_and_its_place_are_drawn_evenly():
    """Of 8 documents of 4 lines each: B is any line of any of the other 7."""
    documents = [[2] * 4] * 8
    lines, _ = line_ends(documents)
    counts = np.zeros((8, len(lines)))
    for duplicate in range(2000):
        found = sentence_pairs(documents, 60, seed=(3, duplicate, 0))
        random = found.label == pairs.RANDOM
        a, b = (
            np.searchsorted(lines, x[random], side="right") for x in (found.a_start, found.b_start)
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


def test_short_targets_are_even_from_two_to_the_budget():
    """Lines of one token with their `</s>`: a pair that follows is as long as its target."""
    documents = [[2] * 30] * 4000
    budget = 20
    found = segment_pairs(documents, budget, 1)
    ends = line_ends(documents)[1]
    first = np.unique(np.searchsorted(ends, found.a_start, side="right"), return_index=True)[1]
    first = first[found.label[first] == pairs.FOLLOWS]
    sizes = found.a_len[first] + found.b_len[first]
    # n lines hold 2n - 2 tokens without the two last `</s>`s, the first n to reach the target.
    counts = np.bincount(sizes, minlength=budget + 1)
    assert set(np.flatnonzero(counts)) == set(range(2, budget + 1, 2))
    expected = np.full(budget // 2, 2.0)
    expected[0] = 1  # of 2 the target 2, of 4 the targets 3 and 4, and so on
    expected *= len(sizes) / expected.sum()
    chi_square = ((counts[2::2] - expected) ** 2 / expected).sum()
    assert abs(chi_square - 9) < 6 * math.sqrt(2 * 9)


def test_so_many_documents_are_short():
    documents = [[2] * 40] * 5000
    ends = line_ends(documents)[1]
    for share in (0.0, 0.1, 0.5):
        found = segment_pairs(documents, 60, share)
        first = np.unique(np.searchsorted(ends, found.a_start, side="right"), return_index=True)[1]
        first = first[found.label[first] == pairs.FOLLOWS]
        short = (found.a_len + found.b_len)[first] < 59
        wanted = share * 57 / 59  # the targets 59 and 60 are as long as any
        assert abs(short.mean() - wanted) <= 6 * math.sqrt(wanted / len(first))


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


def test_heads_of_few_many_and_no_tosses_are_those_of_each_alone():
    tosses = np.array([0, 3, 64, 0, 200, 1])
    choices, about = Choices(7, 1, 2), np.array([5, 6, 7, 8, 9, 5])
    together = choices.heads(pairs._FRONT_B, about, tosses)
    alone = [
        choices.heads(pairs._FRONT_B, about[i : i + 1], tosses[i : i + 1])[0] for i in range(6)
    ]
    assert together.tolist() == alone
    assert together[0] == together[3] == 0


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 60))
@settings(max_examples=200, deadline=None)
def test_cut_lengths_are_those_of_one_token_at_a_time(a, b, budget):
    expected = [a, b]
    while sum(expected) > budget:
        expected[0 if expected[0] > expected[1] else 1] -= 1
    (found,) = listed(sentence_pairs([[a + 1, b + 1]], budget))
    assert [found[1], found[3]] == expected
    assert 0 <= found[0] <= a - expected[0]
    assert 0 <= found[2] - (a + 1) <= b - expected[1]
