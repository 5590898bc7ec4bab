"""A tensor that lies in a file, read when it is wanted and straight into its place.

Every format that is read here keeps a tensor as plain numbers, so that one description serves
all of them: where the bytes are, and how the numbers follow each other.
"""

import concurrent.futures
import dataclasses
import math
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import ml_dtypes  # noqa: F401  (teaches NumPy the names "bfloat16" and "float8_…")
import numpy as np

from roberta_jax.errors import UsageError

FLOATING = ("float64", "float32", "float16", "bfloat16")

# What is read at a time where the numbers do not go straight into their place.
_CHUNK_BYTES = 1 << 24
# Rows and columns of the squares that a transpose goes by; both then stay in a core's cache.
_TILE = 128
_THREADS = 4  # reading and transposing; more gain nothing, and each holds some megabytes


class Extent(NamedTuple):
    """A range of bytes in a file."""

    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's numbers are.

    Attributes:
      shape: Its shape.
      dtype: NumPy's name of its type, such as "float32" or "bfloat16".
      path: The file; None for a tensor of zeros that no file holds.
      extents: The bytes, in order; more than one where the format cuts large tensors in pieces.
      strides: Numbers from one element to the next, an axis each; None where the last axis is
        the fastest and nothing is left out.
    """

    shape: tuple[int, ...]
    dtype: str
    path: pathlib.Path | None = None
    extents: tuple[Extent, ...] = ()
    strides: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.strides is not None:
            plain = row_major(self.shape)
            steps = zip(self.strides, plain, self.shape, strict=True)
            if all(a == b or n == 1 for a, b, n in steps):
                object.__setattr__(self, "strides", None)

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def T(self) -> "StoredTensor":
        """Its transpose; no byte is read."""
        strides = self.strides or row_major(self.shape)
        return dataclasses.replace(self, shape=self.shape[::-1], strides=strides[::-1])

    def rows(self, start: int, stop: int) -> "StoredTensor":
        """Its part [start:stop] along the first axis, of a tensor in one extent."""
        strides = self.strides or row_major(self.shape)
        shape = (stop - start, *self.shape[1:])
        width = np.dtype(self.dtype).itemsize
        [extent] = self.extents
        place = Extent(extent.start + start * strides[0] * width, span(shape, strides) * width)
        return dataclasses.replace(self, shape=shape, strides=strides, extents=(place,))

    def read(self) -> np.ndarray:
        """Returns it in its own type.

        Raises:
          UsageError: The file ends before the tensor does, or cannot be read.
        """
        array = np.empty(self.shape, self.dtype)
        self.read_into(array)
        return array

    def read_into(self, target: np.ndarray) -> None:
        """Reads it into an array of its shape, whose type may be another floating type.

        Takes no memory beside the target if that is of the same type and laid out as the file is,
        and a few megabytes otherwise.

        Raises:
          UsageError: As `read`.
        """
        if self.path is None:
            target[...] = 0
            return
        if self.strides is not None and self.T.strides is None:
            self.T.read_into(target.T)
            return
        try:
            with self.path.open("rb", buffering=0) as file:
                if self.strides is None:
                    self._read_rows(file, target)
                else:
                    flat = np.empty(self.extents[0].size, np.uint8)
                    self._fill(file, memoryview(flat), 0)
                    numbers = flat.view(self.dtype)
                    width = numbers.itemsize
                    steps = [step * width for step in self.strides]
                    _copy(target, np.lib.stride_tricks.as_strided(numbers, self.shape, steps))
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror or error}") from error

    def _read_rows(self, file, target: np.ndarray) -> None:
        dtype = np.dtype(self.dtype)
        if target.dtype == dtype and target.flags.c_contiguous:
            self._fill(file, memoryview(target.reshape(-1).view(np.uint8)), 0)
            return
        shape = self.shape or (1,)
        target = target.reshape(shape) if not self.shape else target
        row = math.prod(shape[1:]) * dtype.itemsize
        count = max(1, min(shape[0], _CHUNK_BYTES // max(row, 1)))
        buffer = np.empty((count, *shape[1:]), dtype)
        for start in range(0, shape[0], count):
            part = buffer[: min(count, shape[0] - start)]
            self._fill(file, memoryview(part.reshape(-1).view(np.uint8)), start * row)
            _copy(target[start : start + count], part)

    def _fill(self, file, view: memoryview, skip: int) -> None:
        """Reads the tensor's bytes from number `skip` on until the view is full."""
        for start, size in self.extents:
            begin, skip = min(skip, size), max(0, skip - size)
            file.seek(start + begin)
            wanted = min(size - begin, len(view))
            while wanted:
                read = file.readinto(view[:wanted])
                if not read:
                    raise UsageError(
                        f"{self.path} is cut short: it ends before one of its tensors does; fetch "
                        "or write it again"
                    )
                view, wanted = view[read:], wanted - read


def read_all(work: Iterable[tuple[StoredTensor, np.ndarray]]) -> None:
    """Reads tensors, each into its place, several at a time."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda job: job[0].read_into(job[1]), work))


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in numbers, of an array whose last axis is the fastest."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many numbers lie from the first element to the last, both counted."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`; a matrix goes by tiles if one of the two lies the other way round."""
    if source.ndim != 2 or target.flags.c_contiguous == source.flags.c_contiguous:
        target[...] = source
        return
    # Each tile goes through a small buffer: of a width that is a power of two, a column's entries
    # would all fall on the same few lines of the cache.
    buffer = np.empty((_TILE, _TILE + 16), source.dtype)
    rows, columns = source.shape
    for i in range(0, rows, _TILE):
        for j in range(0, columns, _TILE):
            tile = source[i : i + _TILE, j : j + _TILE]
            part = buffer[: tile.shape[0], : tile.shape[1]]
            part[...] = tile
            target[i : i + _TILE, j : j + _TILE] = part
