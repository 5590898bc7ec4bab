"""Batches of examples of different lengths, with little padding and few compiled programs.

The inputs of a batch are padded to one of a few lengths, each of which is compiled once. The
examples of an epoch are in a random order. Successive examples, some 50 batches of them, form a
group; within a group the rows are sorted by length and cut into batches, and the order of the
batches is random. So the rows of a batch have similar lengths, and which rows they are is random.

A batch is a pure function of (seed, step): position p of the endless sequence of rows belongs to
epoch p // N, and each epoch has all N rows once. A group takes the positions of its batches, so
that no batch is smaller than the others and no row is dropped or repeated within an epoch. There is
no iterator state: a run resumes at any step by starting there.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from roberta_jax.data import hashing
from roberta_jax.data.pipeline import build_ahead
from roberta_jax.tasks.features import Features
from roberta_jax.training.partitioning import local_batch_rows, to_global

_GROUP_BATCHES = 50
_MOST_GROUPS_PER_EPOCH = 4


class TrainingRows:
    """Which rows are in the batch of a step, and the length it is padded to.

    Args:
      features: the rows, at least one.
      lengths: from `row_lengths.choose_lengths`.
      batch_size: rows of the global batch.
      seed: of the order.
    """

    def __init__(self, features: Features, lengths: np.ndarray, batch_size: int, seed: int):
        self._row_lengths, self._lengths = features.row_lengths, lengths
        self._batch_size, self._seed = batch_size, seed
        per_epoch = features.num_rows // (_MOST_GROUPS_PER_EPOCH * batch_size)
        self._group_batches = int(np.clip(per_epoch, 1, _GROUP_BATCHES))
        # Threads ask for the batches of one or two groups at a time.
        self._group = functools.lru_cache(maxsize=4)(self._compute_group)

    def __call__(self, step: int) -> tuple[np.ndarray, int]:
        """(rows int64 [B], length) of a step."""
        group, batch = divmod(step, self._group_batches)
        rows = self._group(group)[batch]
        return rows, padded_length(self._row_lengths[rows], self._lengths)

    def mean_tokens(self, num_steps: int = 200) -> float:
        """Tokens per batch, padding included, over the first steps."""
        return float(np.mean([len(rows) * length for rows, length in map(self, range(num_steps))]))

    def _compute_group(self, group: int) -> np.ndarray:
        """Rows int64 [batches, B]."""
        size = self._group_batches * self._batch_size
        positions = group * size + np.arange(size)
        total = len(self._row_lengths)
        epochs = positions // total
        rows = np.concatenate(
            [
                hashing.permute(positions[epochs == epoch] % total, total, self._seed, int(epoch))
                for epoch in np.unique(epochs)
            ]
        )
        # The sort is stable: rows of one length keep their random order.
        rows = rows[np.argsort(self._row_lengths[rows], kind="stable")]
        batches = rows.reshape(self._group_batches, self._batch_size)
        order = np.arange(self._group_batches)
        # The seed of the order of rows, with other bits for that of batches.
        return batches[hashing.permute(order, len(order), self._seed ^ 0x5BA7C4, group)]


def padded_length(row_lengths: np.ndarray, lengths: np.ndarray) -> int:
    """The smallest of the lengths that holds all rows."""
    return int(lengths[np.searchsorted(lengths, row_lengths.max())])


def training_batches(
    features: Features,
    rows_of: TrainingRows,
    fill: Mapping[str, Any],
    pad_id: int,
    mesh: Mesh,
    batch_size: int,
    start: int,
    engine: str,
) -> Iterator[dict[str, jax.Array]]:
    """The global batches of the steps start, start + 1, ... on the mesh, without an end.

    Args:
      features: the rows.
      rows_of: step -> (rows, length).
      fill: see `Kind.fill`.
      pad_id: the token of padding.
      mesh: the devices; each process builds the rows of its own.
      batch_size: rows of the global batch.
      start: the first step, from 0.
      engine: what builds batches ahead, see `pipeline.train_batches`.
    """
    local = local_batch_rows(mesh, batch_size)

    def build(step: int) -> dict[str, np.ndarray]:
        rows, length = rows_of(step)
        return features.gather(rows[local], length, fill, pad_id)

    for batch in build_ahead(build, start, None, engine, prefetch=8, workers=None):
        yield to_global(batch, mesh, batch_size, local)


def evaluation_batches(
    features: Features,
    lengths: np.ndarray,
    fill: Mapping[str, Any],
    pad_id: int,
    mesh: Mesh,
    batch_size: int,
    engine: str,
) -> Iterator[tuple[np.ndarray, dict[str, jax.Array]]]:
    """Every row once: (rows int64 [B], global batch); the longest rows first.

    The last batch is filled up with rows -1, which count nowhere. The arguments are those of
    `training_batches`.
    """
    local = local_batch_rows(mesh, batch_size)
    order = np.argsort(-features.row_lengths, kind="stable")
    padding = -len(order) % batch_size
    batches = np.concatenate([order, np.full(padding, -1)]).reshape(-1, batch_size)
    row_lengths = features.row_lengths

    def build(number: int) -> dict[str, np.ndarray]:
        rows = batches[number]
        length = padded_length(row_lengths[rows[rows >= 0]], lengths)
        return features.gather(rows[local], length, fill, pad_id)

    built = build_ahead(build, 0, len(batches), engine, prefetch=4, workers=None)
    for rows, batch in zip(batches, built, strict=True):
        yield rows, to_global(batch, mesh, batch_size, local)
