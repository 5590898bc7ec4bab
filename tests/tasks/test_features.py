"""Rows of variable length and their batches."""

import itertools

import numpy as np
import pytest

from roberta_jax.tasks.features import Features, flattened

PAD = 1
SEQUENCES = [[0, 5, 6, 2], [0, 2], [0, 7, 8, 9, 2], [0, 4, 2], [0, 2], [0, 3, 3, 3, 3, 2]]


def made(choices=1):
    tokens, starts = flattened(SEQUENCES)
    rows = len(SEQUENCES) // choices
    return Features(
        tokens,
        starts,
        choices,
        np.arange(rows, dtype=np.int32),
        {
            "labels": np.arange(10, 10 + rows, dtype=np.int32),
            "several": np.eye(rows, 3, dtype=np.float32),
        },
        {"tags": np.arange(len(tokens), dtype=np.int32)},
        host_arrays={"kept": np.zeros(1)},
    )


FILL = {"labels": -100, "several": 0.0, "tags": -1}


def test_flattened_sequences():
    tokens, starts = flattened(SEQUENCES)
    assert tokens.dtype == np.int32
    assert starts.dtype == np.int64
    assert [tokens[a:b].tolist() for a, b in itertools.pairwise(starts)] == SEQUENCES
    tokens, starts = flattened([])
    assert (tokens.tolist(), starts.tolist()) == ([], [0])


def test_the_length_of_a_row_is_that_of_its_longest_sequence():
    assert made().row_lengths.tolist() == [4, 2, 5, 3, 2, 6]
    assert made(2).row_lengths.tolist() == [4, 5, 6]
    assert made(3).row_lengths.tolist() == [5, 6]
    assert made(3).num_rows == 2
    empty = Features(*flattened([]), 1, np.zeros(0, np.int32))
    assert (empty.num_rows, empty.row_lengths.tolist()) == (0, [])


@pytest.mark.parametrize("length", [6, 9])
def test_rows_are_padded_and_columns_follow_them(length):
    features, rows = made(), np.array([5, 1, -1, 1])
    batch = features.gather(rows, length, FILL, PAD)
    assert batch.keys() == {"input_ids", "attention_mask", "labels", "several", "tags"}
    for name in ("input_ids", "attention_mask", "tags"):
        assert batch[name].shape == (4, length)
        assert batch[name].dtype == np.int32
    for row, number in enumerate(rows):
        tokens = SEQUENCES[number] if number >= 0 else None
        count = len(tokens) if tokens else 1
        assert batch["attention_mask"][row].tolist() == [1] * count + [0] * (length - count)
        assert (batch["input_ids"][row, count:] == PAD).all()
        if tokens:
            first = features.starts[number]
            assert batch["input_ids"][row, :count].tolist() == tokens
            assert batch["tags"][row, :count].tolist() == list(range(first, first + count))
            assert (batch["tags"][row, count:] == -1).all()
            assert batch["labels"][row] == 10 + number
            np.testing.assert_array_equal(batch["several"][row], np.eye(6, 3)[number])
        else:
            assert (batch["tags"][row] == -1).all()
            assert batch["labels"][row] == -100
            assert not batch["several"][row].any()
    assert batch["several"].dtype == np.float32


def test_rows_of_several_sequences_have_an_axis_for_them():
    batch = made(2).gather(np.array([1, -1]), 7, FILL, PAD)
    assert batch["input_ids"].shape == batch["tags"].shape == (2, 2, 7)
    assert batch["input_ids"][0].tolist() == [
        [0, 7, 8, 9, 2, PAD, PAD],
        [0, 4, 2, PAD, PAD, PAD, PAD],
    ]
    assert batch["attention_mask"].sum(-1).tolist() == [[5, 3], [1, 1]]
    assert batch["labels"].tolist() == [11, -100]


def test_a_batch_only_of_filling_rows():
    batch = made().gather(np.array([-1, -1]), 8, FILL, PAD)
    assert batch["attention_mask"].sum(-1).tolist() == [1, 1]
    assert batch["labels"].tolist() == [-100, -100]
