"""Batches of examples by length: what is in them, and how much padding."""

import itertools

import numpy as np
import pytest

from roberta_jax.data.row_lengths import choose_lengths
from roberta_jax.finetuning.batches import (
    TrainingRows,
    evaluation_batches,
    padded_length,
    training_batches,
)
from roberta_jax.tasks.features import Features
from roberta_jax.training.partitioning import create_mesh


def features_of(lengths):
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Features(
        np.arange(starts[-1], dtype=np.int32) + 5,
        starts,
        1,
        np.arange(len(lengths), dtype=np.int32),
        {"labels": np.arange(len(lengths), dtype=np.int32)},
    )


@pytest.fixture(scope="module")
def features():
    return features_of(np.random.default_rng(0).integers(3, 100, 203))


def test_every_epoch_has_every_row_once_and_batches_are_full(features):
    lengths = choose_lengths(features.row_lengths, 4, 512)
    rows_of = TrainingRows(features, lengths, 8, seed=3)
    # 203 rows in groups of 6 batches: after 203 groups, 48 epochs have been seen.
    rows = np.concatenate([rows_of(step)[0] for step in range(203 * 6)])
    assert np.bincount(rows, minlength=203).tolist() == [48] * 203
    first = np.concatenate([rows_of(step)[0] for step in range(24)])
    assert len(set(first)) == 192  # within an epoch no row occurs twice


def test_a_batch_depends_on_seed_and_step_alone(features):
    lengths = choose_lengths(features.row_lengths, 4, 512)
    rows_of, again = (TrainingRows(features, lengths, 8, seed=3) for _ in range(2))
    steps = [40, 3, 17, 0, 100_000]
    expected = {step: rows_of(step) for step in sorted(steps)}
    for step in steps:
        rows, length = again(step)
        np.testing.assert_array_equal(rows, expected[step][0])
        assert length == expected[step][1]
    other = TrainingRows(features, lengths, 8, seed=4)
    assert not np.array_equal(other(0)[0], rows_of(0)[0])


def test_rows_of_a_batch_have_similar_lengths(features):
    lengths = choose_lengths(features.row_lengths, 6, 512)
    rows_of = TrainingRows(features, lengths, 8, seed=0)
    tokens = features.row_lengths.mean() * 8
    assert tokens <= rows_of.mean_tokens() < 1.35 * tokens
    for step in range(60):
        rows, length = rows_of(step)
        assert length == padded_length(features.row_lengths[rows], lengths)
        assert length in lengths


def test_fewer_rows_than_a_batch():
    small = features_of(np.array([4, 6, 5]))
    rows, length = TrainingRows(small, np.array([8]), 8, seed=0)(5)
    assert sorted(np.bincount(rows, minlength=3)) == [2, 3, 3]
    assert length == 8


def test_training_batches_start_anywhere(features):
    mesh, lengths = create_mesh(), choose_lengths(features.row_lengths, 3, 512)
    rows_of = TrainingRows(features, lengths, 8, seed=0)

    def batches(start, count):
        data = training_batches(
            features, rows_of, {"labels": -100}, 1, mesh, 8, start, engine="numpy"
        )
        taken = list(itertools.islice(data, count))
        data.close()
        return taken

    for batch, later in zip(batches(0, 6)[4:], batches(4, 2), strict=True):
        for name in ("input_ids", "attention_mask", "labels"):
            np.testing.assert_array_equal(batch[name], later[name])
    rows, length = rows_of(0)
    batch = batches(0, 1)[0]
    assert batch["input_ids"].shape == (8, length)
    np.testing.assert_array_equal(batch["labels"], rows)
    for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
        tokens = features.tokens[features.starts[row] : features.starts[row + 1]]
        np.testing.assert_array_equal(ids, [*tokens, *[1] * (length - len(tokens))])
        assert int(mask.sum()) == len(tokens)


@pytest.mark.parametrize("batch_size", [8, 64])
def test_evaluation_has_every_row_once(features, batch_size):
    mesh, lengths = create_mesh(), choose_lengths(features.row_lengths, 3, 512)
    seen = []
    for rows, batch in evaluation_batches(
        features, lengths, {"labels": -100}, 1, mesh, batch_size, "numpy"
    ):
        assert batch["input_ids"].shape[0] == batch_size
        np.testing.assert_array_equal(batch["labels"], np.where(rows >= 0, rows, -100))
        seen += [row for row in rows if row >= 0]
    assert sorted(seen) == list(range(203))
