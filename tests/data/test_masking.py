"""Tests of masking: counts, 80/10/10, replacements, shared rows, pinned values.

Letters in array names as in the module: B rows, L positions, M inputs in a row, K slots.
"""

import math
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.data.hashing import fold
from roberta_jax.data.masking import SCHEMES, Masker, Masking, num_slots
from roberta_jax.data.masking_schemes import ChosenTokens, Scheme, input_numbers
from roberta_jax.errors import UsageError
from tests.support.masked_rows import (
    MASK_ID,
    SPECIALS,
    VOCAB,
    chosen,
    layouts,
    make_masker,
    make_rows,
    mask,
)

options = st.fixed_dictionaries(
    {
        "rate": st.sampled_from([0.01, 0.15, 0.5, 0.97]),
        "scheme": st.sampled_from(list(SCHEMES)),
        "mask_special_tokens": st.booleans(),
    }
)


@given(options, layouts())
@settings(max_examples=300, deadline=None)
def test_invariants_for_all_options(options, layout):
    seed, ids_BL, lengths_BM = layout
    seq_len, max_inputs = ids_BL.shape[1], lengths_BM.shape[1]
    masker = make_masker(seq_len, max_inputs, **options)
    masked_BL, positions_BK, labels_BK, weights_BK = mask(masker, ids_BL, lengths_BM, seed)

    num_masked = weights_BK.sum(axis=1).astype(int)
    used_BK = np.arange(masker.num_slots) < num_masked[:, None]
    assert np.array_equal(weights_BK, used_BK)  # used slots come first
    assert (positions_BK[~used_BK] == 0).all()
    assert (labels_BK[~used_BK] == 1).all()
    ascending = np.diff(positions_BK, axis=1) > 0
    assert ascending[used_BK[:, 1:]].all()

    # Labels are the original tokens, other tokens are unchanged, and padding is never chosen.
    chosen_BL = chosen(positions_BK, weights_BK, seq_len)
    assert chosen_BL.sum() == num_masked.sum()
    assert np.array_equal(labels_BK[used_BK], ids_BL[chosen_BL])
    assert np.array_equal(masked_BL[~chosen_BL], ids_BL[~chosen_BL])
    inputs_BL = input_numbers(lengths_BM, seq_len)
    assert not chosen_BL[inputs_BL == max_inputs].any()
    if not options["mask_special_tokens"]:
        assert not np.isin(ids_BL[chosen_BL], SPECIALS).any()

    # The count of an input is rate * tokens, rounded down or up; whole words may stop below it.
    for number in range(max_inputs):
        input_BL = inputs_BL == number
        maskable_BL = (
            input_BL if options["mask_special_tokens"] else input_BL & ~np.isin(ids_BL, SPECIALS)
        )
        exact = options["rate"] * maskable_BL.sum(axis=1)
        count = (chosen_BL & input_BL).sum(axis=1)
        assert (count <= np.floor(exact + 1e-6) + 1).all()
        if options["scheme"] != "whole_word":
            assert (count >= np.floor(exact - 1e-6)).all()


def test_pinned_values():
    """Never change these numbers: a resumed run would get other batches."""
    ids_BL = np.tile(np.arange(4, 24, dtype=np.int32), (2, 1))
    masker = make_masker(20, rate=0.25, mask_replace_prob=0.3, random_replace_prob=0.4)
    masked_BL, positions_BK, labels_BK, _ = mask(masker, ids_BL, [[20], [20]])
    assert positions_BK.tolist() == [[4, 7, 15, 18, 19, 0, 0, 0], [1, 3, 7, 10, 11, 0, 0, 0]]
    assert labels_BK.tolist() == [[8, 11, 19, 22, 23, 1, 1, 1], [5, 7, 11, 14, 15, 1, 1, 1]]
    rows, slots = np.arange(2)[:, None], np.arange(5)
    assert masked_BL[rows, positions_BK[rows, slots]].tolist() == [
        [35, 51, 39, 43, 31],
        [5, 57, 10, 35, 59],
    ]


@pytest.mark.parametrize(
    ("options", "max_inputs", "checksum"),
    [
        ({}, 1, 3994224612),
        ({"mask_special_tokens": False}, 1, 657750350),
        ({"scheme": "whole_word"}, 1, 2592773618),
        ({}, 2, 584335308),
        ({"mask_special_tokens": False}, 2, 952865251),
        ({"scheme": "whole_word"}, 2, 3900443709),
        ({"scheme": "span"}, 1, 1464293892),
        ({"scheme": "span", "mask_special_tokens": False}, 1, 2290942718),
        ({"scheme": "span", "geometric_p": 0.5, "max_span_length": 3}, 2, 4110385370),
    ],
)
def test_pinned_checksums(options, max_inputs, checksum):
    """Like `test_pinned_values`, for longer arrays."""
    lengths_BM = np.tile(np.array([[40, 20]])[:, :max_inputs], (5, 1))
    ids_BL = (fold(0, np.arange(5)[:, None], np.arange(64)) % np.uint64(55)).astype(np.int32) + 4
    ids_BL[:, ::6] = 2
    arrays = mask(make_masker(64, max_inputs, **options), ids_BL, lengths_BM)
    assert zlib.crc32(b"".join(array.tobytes() for array in arrays)) == checksum


@pytest.mark.parametrize("max_inputs", [1, 2])
def test_statistics(max_inputs):
    """Counts, positions, actions and replacements in 8000 rows of 62 tokens and 2 of padding."""
    seq_len, num_rows = 64, 8000
    rng = np.random.default_rng(0)
    lengths_BM = np.zeros((num_rows, max_inputs), np.int64)
    lengths_BM[:, 0] = 62
    ids_BL = make_rows(rng, lengths_BM, seq_len)
    masker = make_masker(seq_len, max_inputs)
    masked_BL, positions_BK, _, weights_BK = mask(masker, ids_BL, lengths_BM)

    # 0.15 * 62 = 9.3: nine or ten tokens, ten in 30% of the rows.
    counts = weights_BK.sum(axis=1)
    assert set(counts) == {9, 10}
    assert abs((counts == 10).mean() - 0.3) < 6 * np.sqrt(0.3 * 0.7 / num_rows)

    # All positions are equally likely (chi-square with 61 degrees of freedom), <s> included.
    chosen_BL = chosen(positions_BK, weights_BK, seq_len)
    places = chosen_BL.sum(axis=0)
    assert places[62:].sum() == 0
    chi_square = ((places[:62] - places.sum() / 62) ** 2).sum() / (places.sum() / 62)
    assert abs(chi_square - 61) < 6 * np.sqrt(2 * 61)
    assert (ids_BL[chosen_BL] == 2).any()

    # 80% <mask>, 10% random tokens, 10% unchanged. A random token can be <mask> or the original.
    before, after = ids_BL[chosen_BL], masked_BL[chosen_BL]
    drawable = VOCAB - 4
    expected = {
        "mask": (0.8 + 0.1 / drawable, (after == MASK_ID).mean()),
        "same": (0.1 + 0.1 * (before >= 4).mean() / drawable, (after == before).mean()),
    }
    for share, frequency in expected.values():
        assert abs(frequency - share) < 6 * np.sqrt(share * (1 - share) / len(after))
    drawn = after[(after != MASK_ID) & (after != before)]
    assert drawn.min() == 4
    counts = np.bincount(drawn, minlength=VOCAB)[4:MASK_ID]
    chi_square = ((counts - counts.mean()) ** 2).sum() / counts.mean()
    assert abs(chi_square - len(counts)) < 6 * np.sqrt(2 * len(counts))


def test_random_replacements_are_all_ids_but_the_first_four():
    ids_BL = np.full((2000, 32), 10, np.int32)
    masker = make_masker(32, rate=0.9, mask_replace_prob=0, random_replace_prob=1)
    masked_BL, *_ = mask(masker, ids_BL, np.full((2000, 1), 32))
    assert set(masked_BL.reshape(-1)) == set(range(4, VOCAB))  # <mask> and 10 itself too


@pytest.mark.parametrize(("mask_replace_prob", "random_replace_prob"), [(1, 0), (0, 0)])
def test_extreme_probabilities(mask_replace_prob, random_replace_prob):
    ids_BL = np.full((50, 32), 10, np.int32)
    masker = make_masker(
        32, mask_replace_prob=mask_replace_prob, random_replace_prob=random_replace_prob
    )
    masked_BL, positions_BK, _, weights_BK = mask(masker, ids_BL, np.full((50, 1), 32))
    expected = MASK_ID if mask_replace_prob else 10
    assert (masked_BL[chosen(positions_BK, weights_BK, 32)] == expected).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_rows_and_empty_rows(scheme):
    masker = make_masker(16, 2, scheme=scheme)
    for num_rows in (0, 3):
        ids_BL, lengths_BM = np.ones((num_rows, 16), np.int32), np.zeros((num_rows, 2), np.int64)
        masked_BL, positions_BK, _, weights_BK = mask(masker, ids_BL, lengths_BM)
        assert positions_BK.shape == weights_BK.shape == (num_rows, masker.num_slots)
        assert weights_BK.sum() == 0
        assert np.array_equal(masked_BL, ids_BL)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("lengths_M", [[30], [20, 9]])
def test_a_row_is_masked_the_same_in_any_batch(scheme, lengths_M):
    rng = np.random.default_rng(2)
    lengths_BM = np.tile(lengths_M, (10, 1))
    ids_BL = make_rows(rng, lengths_BM, 32)
    masker = make_masker(32, len(lengths_M), scheme=scheme)
    whole = mask(masker, ids_BL, lengths_BM)
    for row in range(10):
        alone = ids_BL[row : row + 1].copy()
        arrays = masker(fold(0, np.array([row])), alone, lengths_BM[row : row + 1])
        for expected, actual in zip(whole, [alone, *arrays], strict=True):
            assert np.array_equal(expected[row], actual[0])


@given(st.integers(2, 600), st.floats(0.001, 0.999), st.integers(1, 16))
def test_num_slots(seq_len, rate, max_inputs):
    slots = num_slots(seq_len, rate, max_inputs)
    assert slots % 8 == 0
    most = math.floor(rate * seq_len) + max_inputs
    assert most - 1 <= slots <= most + 8  # the rate is rounded to a multiple of 2^-32 first


def test_num_slots_of_the_paper():
    assert num_slots(512, 0.15, 1) == 80
    assert num_slots(128, 0.15, 1) == 24
    assert num_slots(512, 0.15, 16) == 96


def test_overflow_is_an_error():
    masker = make_masker(16)
    with pytest.raises(RuntimeError, match="more than 8 masked positions"):
        masker(fold(0, np.arange(1)), np.full((1, 16), 9, np.int32), np.full((1, 1), 100))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, r"masking\.rate is 0"),
        ({"rate": 1.0}, r"masking\.rate is 1\.0"),
        ({"rate": float("nan")}, r"masking\.rate is nan"),
        ({"mask_replace_prob": -0.1}, r"masking\.mask_replace_prob is -0\.1"),
        ({"random_replace_prob": 1.5}, r"masking\.random_replace_prob is 1\.5"),
        ({"mask_replace_prob": 0.8, "random_replace_prob": 0.3}, r"together they are at most 1"),
        ({"scheme": "phrase"}, r"masking\.scheme is 'phrase'.* token, whole_word, span"),
        ({"geometric_p": 0}, r"masking\.geometric_p is 0"),
        ({"geometric_p": float("nan")}, r"masking\.geometric_p is nan"),
        ({"max_span_length": 0}, r"masking\.max_span_length is 0"),
        ({"dupe_factor": 0}, r"masking\.dupe_factor is 0"),
        ({"dupe_factor": float("nan")}, r"masking\.dupe_factor is nan"),
        ({"max_span_length": float("nan")}, r"masking\.max_span_length is nan"),
        ({"max_span_length": 1.5}, r"max_span_length is 1\.5, .* whole number"),
        ({"max_span_length": None}, r"max_span_length is None"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(UsageError, match=message):
        Masking(**options)


def test_a_scheme_is_one_row_of_the_table(monkeypatch):
    def choose_first(context):
        """The first token of each row."""
        positions_BK = np.zeros((len(context.ids_BL), context.num_slots), np.int32)
        used_BK = np.zeros(positions_BK.shape, bool)
        used_BK[:, 0] = True
        return ChosenTokens(positions_BK, positions_BK, used_BK)

    monkeypatch.setitem(SCHEMES, "first", Scheme(choose_first, needs_word_starts=False))
    assert not Masking(scheme="first").needs_word_starts
    ids_BL = np.full((3, 8), 10, np.int32)
    masker = make_masker(8, scheme="first", mask_replace_prob=1, random_replace_prob=0)
    masked_BL, _, labels_BK, weights_BK = mask(masker, ids_BL, np.full((3, 1), 8))
    assert masked_BL.tolist() == [[MASK_ID] + 7 * [10]] * 3
    assert labels_BK[:, 0].tolist() == [10, 10, 10]
    assert weights_BK.sum(axis=1).tolist() == [1, 1, 1]
    with pytest.raises(UsageError, match=r"'phrase'.* token, whole_word, span, first"):
        Masking(scheme="phrase")


def test_invalid_tables():
    common = {"seq_len": 8, "max_inputs": 1, "mask_id": 3, "pad_id": 1, "special_ids": [0, 1, 2]}
    with pytest.raises(UsageError, match="leaves no token to draw"):
        Masker(Masking(), vocab_size=4, **common)
    for scheme, word_starts in [
        ("whole_word", None),
        ("span", None),
        ("whole_word", np.ones(9, bool)),
    ]:
        with pytest.raises(UsageError, match=rf"masking\.scheme='{scheme}' needs"):
            Masker(Masking(scheme=scheme), vocab_size=10, word_starts=word_starts, **common)
