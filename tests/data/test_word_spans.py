"""Tests of whole-word and span masking against the rules in plain Python.

Letters in array names as in the modules: B rows, L positions, M inputs in a row, K slots, W words,
U units.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.data import word_spans
from roberta_jax.data.hashing import fold, hash32
from tests.support.masked_rows import (
    MASK_ID,
    SPECIALS,
    VOCAB,
    WORD_STARTS,
    chosen,
    layouts,
    make_masker,
    make_rows,
    mask,
    words_of,
)


@pytest.mark.parametrize("specials", [True, False])
def test_whole_words(specials):
    seq_len, num_rows, length = 128, 400, 120
    rng = np.random.default_rng(1)
    lengths_BM = np.full((num_rows, 1), length)
    ids_BL = make_rows(rng, lengths_BM, seq_len)
    masker = make_masker(seq_len, scheme="whole_word", mask_special_tokens=specials)
    masked_BL, positions_BK, _, weights_BK = mask(masker, ids_BL, lengths_BM)
    chosen_BL = chosen(positions_BK, weights_BK, seq_len)
    actions = {"mask": 0, "keep": 0, "random": 0}
    for ids, masked, is_chosen in zip(ids_BL, masked_BL, chosen_BL, strict=True):
        for word in words_of(ids, length):
            assert is_chosen[word].all() or not is_chosen[word].any()
            if is_chosen[word].all() and word.stop - word.start > 1:
                if (masked[word] == MASK_ID).all():
                    actions["mask"] += 1
                elif (masked[word] == ids[word]).all():
                    actions["keep"] += 1
                else:
                    actions["random"] += 1
    # A word is masked, replaced or left unchanged as a whole.
    total = sum(actions.values())
    for action, share in [("mask", 0.8), ("keep", 0.1), ("random", 0.1)]:
        assert abs(actions[action] / total - share) < 6 * np.sqrt(share * (1 - share) / total)
    # Stopping before the count is exceeded loses about half a word.
    maskable = length if specials else (~np.isin(ids_BL[:, :length], SPECIALS)).sum() / num_rows
    assert 0.85 < weights_BK.sum() / (0.15 * maskable * num_rows) <= 1.01


def test_a_very_long_word_does_not_prevent_masking():
    """A word longer than the count is never chosen, and other words still are."""
    ids_BL = np.full((200, 64), 4, np.int32)  # 4 starts no word
    ids_BL[:, 40:] = 6  # 6 does: a word of 40 tokens, then 24 words of one token
    masker = make_masker(64, scheme="whole_word")
    _, positions_BK, _, weights_BK = mask(masker, ids_BL, np.full((200, 1), 64))
    assert (weights_BK.sum(axis=1) >= 9).all()
    assert positions_BK[weights_BK > 0].min() == 40


def spans_of(ids, length, positions, key, specials, p, max_length):
    """The spans of one input as slices, in the order in which they are chosen, in plain Python.

    Args:
      ids: The token ids of the input.
      length: The number of tokens.
      positions: The positions of the tokens in the row, which are hashed.
      key: The random key of the row.
      specials: Whether special tokens may be chosen.
      p: The parameter of the geometric distribution.
      max_length: The maximum length of a span in words.
    """
    noise, order = (hash32(fold(key, stream), positions)[0] for stream in (4, 0))
    spans, remaining = [], 0
    for word in words_of(ids, length):
        special = ids[word.start] in SPECIALS
        if special and not specials:
            remaining = 0
        elif special or not remaining:
            spans.append(word)
            lengths = [p * (1 - p) ** k for k in range(max_length)]
            if word.start == 0 or ids[word.start - 1] in SPECIALS:
                lengths = [sum(lengths[k:]) for k in range(max_length)]  # the rest of a span
            share = noise[word.start] / 2**32 * sum(lengths)
            remaining = next(
                (k for k in range(max_length) if share < sum(lengths[: k + 1])), max_length - 1
            )
            remaining *= not special
        else:
            spans[-1] = slice(spans[-1].start, word.stop)
            remaining -= 1
    return sorted(spans, key=lambda span: order[span.start])


@given(layouts(), st.booleans(), st.sampled_from([(0.2, 10), (0.6, 3), (1.0, 4), (0.1, 50)]))
@settings(max_examples=100, deadline=None)
def test_spans_equal_the_reference(layout, specials, lengths):
    """The tokens of an input's first spans in random order, of which the last may be truncated."""
    seed, ids_BL, lengths_BM = layout
    p, max_length = lengths
    seq_len = ids_BL.shape[1]
    masker = make_masker(
        seq_len,
        lengths_BM.shape[1],
        rate=0.4,
        scheme="span",
        mask_special_tokens=specials,
        geometric_p=p,
        max_span_length=max_length,
    )
    _, positions_BK, _, weights_BK = mask(masker, ids_BL, lengths_BM, seed)
    chosen_BL = chosen(positions_BK, weights_BK, seq_len)
    for row, lengths_M in enumerate(lengths_BM):
        for end, length in zip(np.cumsum(lengths_M), lengths_M, strict=True):
            input_slice = slice(end - length, end)
            input_positions, key = np.arange(input_slice.start, input_slice.stop), fold(seed, row)
            spans = spans_of(
                ids_BL[row, input_slice], length, input_positions, key, specials, p, max_length
            )
            in_order = [i for span in spans for i in range(span.start, span.stop)]
            actual = np.flatnonzero(chosen_BL[row, input_slice])
            assert sorted(in_order[: len(actual)]) == actual.tolist()


def test_a_span_is_masked_replaced_or_unchanged_as_a_whole():
    seq_len, num_rows = 128, 1500
    lengths_BM = np.full((num_rows, 1), seq_len)
    ids_BL = make_rows(np.random.default_rng(1), lengths_BM, seq_len, end_share=0)
    masker = make_masker(seq_len, scheme="span")
    masked_BL, positions_BK, _, weights_BK = mask(masker, ids_BL, lengths_BM)
    chosen_BL = chosen(positions_BK, weights_BK, seq_len)
    actions = {"mask": 0, "keep": 0, "random": 0}
    for row, (ids, masked) in enumerate(zip(ids_BL, masked_BL, strict=True)):
        spans = spans_of(ids, seq_len, np.arange(seq_len), fold(0, row), True, 0.2, 10)
        for span in spans:
            if not chosen_BL[row, span].all():
                break
            if span.stop - span.start > 3:
                if (masked[span] == MASK_ID).all():
                    actions["mask"] += 1
                elif (masked[span] == ids[span]).all():
                    actions["keep"] += 1
                else:
                    assert (masked[span] >= 4).all()
                    actions["random"] += 1
    total = sum(actions.values())
    assert total > num_rows
    for action, share in [("mask", 0.8), ("keep", 0.1), ("random", 0.1)]:
        assert abs(actions[action] / total - share) < 6 * np.sqrt(share * (1 - share) / total)


@pytest.mark.parametrize(("p", "max_length"), [(0.2, 10), (0.5, 3), (0.01, 4)])
def test_distribution_of_span_lengths(p, max_length):
    """Uses spans 2 to 13 of each row, which are too early to be cut by the row's end."""
    num_rows, seq_len, num_spans = 4000, 128, 12
    ids_BL = np.full((num_rows, seq_len), 6, np.int32)  # every token is a word
    zeros_BL, ones_BL = np.zeros_like(ids_BL), np.ones_like(ids_BL, bool)
    words, breaks_W = word_spans.find_words(
        ids_BL, zeros_BL, ones_BL, 1, WORD_STARTS, np.zeros(VOCAB, bool)
    )
    noise_W = hash32(fold(0, np.arange(num_rows)), np.arange(seq_len)).reshape(-1)
    lengths_W = word_spans.span_lengths(p, max_length, noise_W, breaks_W)
    spans = word_spans.join_words(words, breaks_W, lengths_W)
    assert (spans.starts[1:] == (spans.starts + spans.lengths)[:-1]).all()  # no gap, no overlap
    assert spans.lengths.sum() == ids_BL.size
    assert spans.lengths.max() == max_length

    second_U = np.searchsorted(spans.groups, np.arange(num_rows)) + 1
    first_U = second_U[:, None] + np.arange(num_spans)
    counts = np.bincount(spans.lengths[first_U].reshape(-1), minlength=max_length + 1)[1:]
    shares = p * (1 - p) ** np.arange(max_length)
    expected = shares / shares.sum() * counts.sum()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - (max_length - 1)) < 6 * np.sqrt(2 * (max_length - 1))
    if (p, max_length) == (0.2, 10):  # SpanBERT's values; the paper states the mean
        assert counts @ np.arange(1, 11) / counts.sum() == pytest.approx(3.8, abs=0.05)


def test_all_positions_are_equally_likely_to_be_in_a_span():
    """Except near the edges, where spans are shorter and therefore less often truncated."""
    num_rows, seq_len = 30_000, 128
    ids_BL = np.full((num_rows, seq_len), 6, np.int32)  # every token is a word
    _, positions_BK, _, weights_BK = mask(
        make_masker(seq_len, scheme="span"), ids_BL, np.full((num_rows, 1), seq_len)
    )
    shares = chosen(positions_BK, weights_BK, seq_len).mean(axis=0)
    assert shares.mean() == pytest.approx(0.15, abs=0.001)
    assert np.abs(shares - 0.15).max() < 0.025
    assert np.abs(shares[4:] - 0.15).max() < 0.01


@pytest.mark.parametrize("max_inputs", [1, 3])
def test_spans_of_one_token_equal_the_token_scheme(max_inputs):
    lengths_BM = np.full((50, max_inputs), 20)
    ids_BL = np.full((50, 64), 6, np.int32)
    tokens = mask(make_masker(64, max_inputs), ids_BL, lengths_BM)
    spans = mask(make_masker(64, max_inputs, scheme="span", max_span_length=1), ids_BL, lengths_BM)
    for expected, actual in zip(tokens, spans, strict=True):
        assert np.array_equal(expected, actual)
