"""The orders in which training goes through the rows of a corpus, as functions of the position.

`FullOrder` is a random permutation of all rows. Reading rows of a store in that order touches pages
all over its files, so the whole store has to be on a fast local disk, or in memory.

`WindowedOrder` is random, too, and reads whole blocks: runs of consecutive rows, which are
consecutive in the files. Each epoch it

1. puts the blocks in a random order,
2. divides this sequence of blocks into windows of some blocks each, and
3. puts the rows of each window in a random order.

While training goes through a window, only the blocks of that window are read. Systems that stream
from object stores shuffle in the same way (a shuffle buffer over files in random order; the block
shuffles of MosaicML's StreamingDataset), but keep a state. Here a row is a function of (seed,
position) computed in O(1) with the stateless permutations of `hashing`, so that a run resumes at
any step by starting there, and any host computes any part of any batch.

With several streams a batch is divided into parts, and each part goes through a section of the
sequence of blocks of its own. A host whose rows are all in some streams reads only the blocks of
those streams, and a batch mixes the windows of all streams. The number of streams is part of the
order and does not depend on the number of hosts, so the rows of a step are the same for any number.
"""

import dataclasses
from typing import Protocol

import numpy as np

from roberta_jax.data import hashing

ORDERS = ("full", "windowed")

_BLOCKS = 0x626C6F63  # streams of random numbers: the order of the blocks ...
_ROWS = 0x726F7773  # ... and that of the rows in a window


class RowOrder(Protocol):
    """An order of the rows of a corpus for each epoch."""

    def __call__(self, index: np.ndarray, size: int, seed: int, epochs: np.ndarray) -> np.ndarray:
        """Returns the rows at some places of the epochs.

        Args:
          index: int64 [B], places in the epoch, in [0, size).
          size: Number of rows of the corpus.
          seed: The seed of the orders.
          epochs: int64 [B], the epoch of each place.

        Returns:
          int64 [B]. For a fixed epoch, a bijection of range(size).
        """
        ...

    def of_parts(self) -> "RowOrder":
        """The order within one corpus of a mixture, whose own order is this one."""
        ...

    def of_mixture(self, ends: np.ndarray) -> "RowOrder":
        """The order of a mixture whose corpora have the rows up to `ends`, int64 [C]."""
        ...


@dataclasses.dataclass(frozen=True)
class FullOrder:
    """A random permutation of all rows."""

    def __call__(self, index, size, seed, epochs):
        return hashing.permute(index, size, seed, epochs)

    def of_parts(self) -> "FullOrder":
        return self

    def of_mixture(self, ends: np.ndarray) -> "FullOrder":
        return self


@dataclasses.dataclass(frozen=True)
class WindowedOrder:
    """A random order that reads whole blocks, see the module's docstring.

    The last block of a corpus is shorter. An epoch of n blocks has max(1, n // window_blocks)
    windows of nearly equal numbers of blocks, so each has at least `window_blocks` and less than
    twice as many (or all blocks, if there are fewer).

    Attributes:
      block_rows: Rows in a block, at least 1.
      window_blocks: Blocks in a window, at least 1.
      streams: Number of sections of the epoch that are read at the same time, at least 1.
      stream_rows: Consecutive places of the epoch that belong to one stream: the rows of a batch
        divided by `streams`, so that each part of a batch belongs to one stream.
    """

    block_rows: int
    window_blocks: int
    streams: int = 1
    stream_rows: int = 1

    def __call__(self, index, size, seed, epochs):
        epochs = np.broadcast_to(np.asarray(epochs, np.int64), np.shape(index))
        return self._rows(self.in_streams(index, size), size, seed, epochs)

    def of_parts(self) -> "WindowedOrder":
        return dataclasses.replace(self, streams=1, stream_rows=1)

    def of_mixture(self, ends: np.ndarray) -> "RowOrder":
        return _MixtureOrder(self, tuple(int(end) for end in ends))

    def in_streams(self, index: np.ndarray, size: int) -> np.ndarray:
        """Maps places of the epoch to places in the sequence of blocks; a bijection of range(size).

        The sequence is divided into one section for each stream. The places of the epoch belong to
        the streams in turn, `stream_rows` at a time.
        """
        cycle = self.streams * self.stream_rows
        cycles, in_cycle = np.divmod(np.asarray(index, np.int64), cycle)
        stream, in_part = np.divmod(in_cycle, self.stream_rows)
        full_cycles, rest = divmod(size, cycle)
        section_starts = stream * (full_cycles * self.stream_rows)
        section_starts += np.minimum(stream * self.stream_rows, rest)
        return section_starts + cycles * self.stream_rows + in_part

    def window_blocks_at(self, place: int, size: int, seed: int, epoch: int) -> np.ndarray:
        """int64: the blocks of the window of a place in the sequence of blocks.

        They are the only blocks that the rows of this window are from. Block b has the rows from
        b * block_rows up to, but not including, (b + 1) * block_rows.
        """
        epochs = np.array([epoch], np.int64)
        sequence = _Blocks(self.block_rows, size, seed, epochs)
        window = self._window(sequence.slots(np.array([place])), sequence.count)
        first, end = (int(slot[0]) for slot in self._window_slots(window, sequence.count))
        return hashing.permute(np.arange(first, end), sequence.count, sequence.seed, epoch)

    def _rows(self, places, size, seed, epochs):
        """The rows at places of the sequence of blocks."""
        sequence = _Blocks(self.block_rows, size, seed, epochs)
        windows = self._window(sequence.slots(places), sequence.count)
        first, end = self._window_slots(windows, sequence.count)
        starts = sequence.starts(first)
        sizes = sequence.starts(end) - starts
        keys = hashing.fold(_ROWS, epochs, windows)
        shuffled = np.empty_like(places)
        for window_size in np.unique(sizes):  # few: windows have some blocks or one more
            chosen = sizes == window_size
            offsets = places[chosen] - starts[chosen]
            shuffled[chosen] = hashing.permute(offsets, int(window_size), seed, keys[chosen])
        return sequence.rows(starts + shuffled)

    def _num_windows(self, blocks: int) -> int:
        return max(1, blocks // self.window_blocks)

    def _window(self, slots: np.ndarray, blocks: int) -> np.ndarray:
        """The window that the block in each slot of the sequence is in."""
        return ((slots + 1) * self._num_windows(blocks) - 1) // blocks

    def _window_slots(self, windows: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray]:
        """The first slot of each window, and the slot after its last."""
        number = self._num_windows(blocks)
        return windows * blocks // number, (windows + 1) * blocks // number


class _Blocks:
    """The sequence of blocks of an epoch.

    A slot is the number of a block in the sequence, and a place that of a row in it. The last block
    of the corpus is shorter, and its slot differs from epoch to epoch.

    Args:
      block_rows: Rows in a block.
      size: Rows in the corpus.
      seed: The seed of the orders.
      epochs: int64 [B], the epoch of each place that the methods get.
    """

    def __init__(self, block_rows: int, size: int, seed: int, epochs: np.ndarray):
        self.count = -(-size // block_rows)
        self.seed = int(hashing.fold(_BLOCKS, seed)[0])
        self._block_rows, self._epochs = block_rows, epochs
        self._last_rows = size - (self.count - 1) * block_rows
        distinct, inverse = np.unique(epochs, return_inverse=True)
        last_slots = hashing.unpermute(
            np.full(len(distinct), self.count - 1), self.count, self.seed, distinct
        )
        self._last_slots = last_slots[inverse]

    def slots(self, places: np.ndarray) -> np.ndarray:
        before = np.minimum(places // self._block_rows, self._last_slots)
        after = (places + self._block_rows - self._last_rows) // self._block_rows
        is_before = places < self._last_slots * self._block_rows + self._last_rows
        return np.where(is_before, before, after)

    def starts(self, slots: np.ndarray) -> np.ndarray:
        """The place of the first row of each slot."""
        missing = self._block_rows - self._last_rows
        return slots * self._block_rows - np.where(slots > self._last_slots, missing, 0)

    def rows(self, places: np.ndarray) -> np.ndarray:
        slots = self.slots(places)
        blocks = hashing.permute(slots, self.count, self.seed, self._epochs)
        return blocks * self._block_rows + places - self.starts(slots)


@dataclasses.dataclass(frozen=True)
class _MixtureOrder:
    """The order of a mixture of corpora that are in windowed order themselves.

    An epoch is divided into windows of about the same number of rows as the corpora's. Each window
    has the next rows of each corpus, in proportion to the corpora's sizes, in a random order. The
    next rows of a corpus are in its own windowed order.

    Attributes:
      order: The order of the corpora.
      ends: The number of the row after the last of each corpus, ascending.
    """

    order: WindowedOrder
    ends: tuple[int, ...]

    def __call__(self, index, size, seed, epochs):
        places = self.order.in_streams(index, size)
        epochs = np.broadcast_to(np.asarray(epochs, np.int64), places.shape)
        ends_C = np.array(self.ends, np.int64)
        sizes_C = np.diff(ends_C, prepend=0)
        window_rows = self.order.block_rows * self.order.window_blocks
        number = max(1, size // window_rows)
        windows = places * number // size  # or one of the next few, because shares are rounded
        while (late := places >= self._starts(windows + 1, number, sizes_C).sum(axis=1)).any():
            windows = windows + late
        starts_BC = self._starts(windows, number, sizes_C)
        shares_BC = self._starts(windows + 1, number, sizes_C) - starts_BC
        offsets = places - starts_BC.sum(axis=1)
        keys = hashing.fold(_ROWS, epochs, windows)
        rows = np.empty_like(places)
        totals = shares_BC.sum(axis=1)
        for total in np.unique(totals):
            chosen = totals == total
            rows[chosen] = hashing.permute(offsets[chosen], int(total), seed, keys[chosen])
        share_ends_BC = np.cumsum(shares_BC, axis=1)
        corpus = (rows[:, None] >= share_ends_BC).sum(axis=1)
        each = np.arange(len(rows))
        in_share = rows - share_ends_BC[each, corpus] + shares_BC[each, corpus]
        return ends_C[corpus] - sizes_C[corpus] + starts_BC[each, corpus] + in_share

    @staticmethod
    def _starts(windows: np.ndarray, number: int, sizes_C: np.ndarray) -> np.ndarray:
        """int64 [B, C]: how many rows of each corpus the windows before these ones have."""
        return windows[:, None] * sizes_C // number

    def of_parts(self) -> RowOrder:
        return self.order.of_parts()

    def of_mixture(self, ends: np.ndarray) -> RowOrder:
        raise TypeError("a mixture holds corpora, not mixtures")


FULL = FullOrder()
