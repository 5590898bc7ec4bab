"""Tests of inputs of whole lines against fairseq's break modes in plain Python."""

import itertools
import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.data.packing import blocks
from tests.support import plain_packing

# Documents as the lengths of their lines in tokens, `</s>` included; `line_ends` adds blank lines.
documents = st.lists(st.lists(st.integers(2, 40), min_size=1, max_size=12), min_size=1, max_size=12)


def as_tuples(starts_and_lengths):
    starts, lengths = starts_and_lengths
    assert starts.dtype == lengths.dtype == np.int64
    return list(zip(starts.tolist(), lengths.tolist(), strict=True))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(1, 45))
@settings(max_examples=300, deadline=None)
def test_full_sentences_equals_the_reference(line_lengths, block):
    inputs = as_tuples(blocks.full_sentences(np.cumsum(line_lengths), block))
    assert inputs == plain_packing.full_sentences(line_lengths, block)


@given(documents, st.integers(1, 60))
@settings(max_examples=300, deadline=None)
def test_doc_sentences_equals_the_reference(documents, block):
    inputs = as_tuples(blocks.doc_sentences(*plain_packing.line_ends(documents), block))
    assert inputs == plain_packing.doc_sentences(documents, block)


@given(documents, st.integers(1, 45))
@settings(max_examples=200, deadline=None)
def test_sentences_equals_the_reference(documents, block):
    inputs = as_tuples(blocks.sentences(*plain_packing.line_ends(documents), block))
    assert inputs == plain_packing.sentences(documents, block)


def complete_doc(sizes, block):
    """fairseq's loop over the sizes of the lines; like fairseq, it drops inputs of one token."""
    inputs, start, size = [], 0, 0
    for line in [*sizes, 1]:
        if line == 1 or (size and size + line > block):
            if size > 1:
                inputs.append((start, size))
            start, size = start + size, 0
        if line == 1:
            start += 1
        else:
            size += line
    return inputs


@given(documents)
@settings(max_examples=200, deadline=None)
def test_doc_sentences_equals_fairseq_if_no_line_is_cut(documents):
    sizes = [length for document in documents for length in [*document, 1]]
    inputs = as_tuples(blocks.doc_sentences(*plain_packing.line_ends(documents), 40))
    assert inputs == complete_doc(sizes, 40)


def test_by_hand():
    # A document of lines of 3 and 6 tokens, one of 12 (cut into 8 + 4), 2 and 1 + 7 (cut from 9).
    ends = plain_packing.line_ends([[3, 6], [12, 2, 9]])
    assert ends[0].tolist() == [3, 9, 10, 22, 24, 33, 34]
    assert ends[1].tolist() == [10, 34]
    assert as_tuples(blocks.full_sentences(ends[0], 8)) == [
        (0, 3),
        (3, 7),  # with the blank line
        (10, 8),
        (18, 6),
        (24, 8),
        (32, 2),  # with the last blank line
    ]
    assert as_tuples(blocks.doc_sentences(*ends, 8)) == [
        (0, 3),
        (3, 6),
        (10, 8),
        (18, 6),
        (24, 8),
        (32, 1),
    ]
    assert as_tuples(blocks.sentences(*ends, 8)) == [
        (0, 3),
        (3, 6),
        (10, 8),
        (18, 4),
        (22, 2),
        (24, 8),
        (32, 1),
    ]


def test_empty_documents_give_no_input():
    ends = plain_packing.line_ends([[], [5], [], []])
    assert as_tuples(blocks.doc_sentences(*ends, 8)) == [(1, 5)]
    assert as_tuples(blocks.sentences(*ends, 8)) == [(1, 5)]
    nothing = plain_packing.line_ends([[]])
    for take in (blocks.doc_sentences, blocks.sentences):
        assert as_tuples(take(*nothing, 8)) == []
    assert as_tuples(blocks.full_sentences(nothing[0], 8)) == [(0, 1)]


@given(documents, st.integers(1, 45))
@settings(max_examples=100, deadline=None)
def test_every_token_is_in_one_input(documents, block):
    line_ends, document_ends = plain_packing.line_ends(documents)
    everything = set(range(line_ends[-1]))
    for take in (blocks.full_sentences, blocks.doc_sentences, blocks.sentences):
        ends = (line_ends,) if take is blocks.full_sentences else (line_ends, document_ends)
        inputs = as_tuples(take(*ends, block))
        used = [i for start, length in inputs for i in range(start, start + length)]
        blank = set() if take is blocks.full_sentences else set(document_ends - 1)
        assert len(used) == len(set(used))
        assert set(used) == everything - blank
        assert all(1 <= length <= block for _, length in inputs)
        assert all(a <= b for a, b in itertools.pairwise(inputs))


def test_packing_is_fast():
    """Each takes some hundredths of a second; the bound allows for a busy machine."""
    rng = np.random.default_rng(0)
    documents = [rng.geometric(1 / 25, 20) + 1 for _ in range(20_000)]
    line_ends, document_ends = plain_packing.line_ends([list(lines) for lines in documents])
    start = time.perf_counter()
    blocks.full_sentences(line_ends, 511)
    blocks.doc_sentences(line_ends, document_ends, 511)
    blocks.sentences(line_ends, document_ends, 511)
    assert time.perf_counter() - start < 6
