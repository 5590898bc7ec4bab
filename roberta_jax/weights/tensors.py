"""Tensors in files: described when a file is opened, read when they are needed.

Every supported format holds a tensor as plain numbers, so that one description serves all of them:
which bytes of the file are the tensor's, and in which order its elements follow each other.
"""

import concurrent.futures
import dataclasses
import math
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import ml_dtypes  # noqa: F401  (registers the dtypes "bfloat16" and "float8_…" with NumPy)
import numpy as np

from roberta_jax.errors import UsageError
from roberta_jax.weights.finite import count_not_finite

FLOATING = ("float64", "float32", "float16", "bfloat16")

# Size of the buffer for elements that have to be converted or reordered.
_CHUNK_BYTES = 1 << 24
# Rows and columns of a tile of a transpose. Source and target of a tile fit in a core's cache.
_TILE = 128
# Tensors read at the same time. More gain nothing, and each needs some megabytes.
_THREADS = 4


class ByteRange(NamedTuple):
    """A range of bytes in a file."""

    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file, read on demand.

    Attributes:
      shape: Its shape.
      dtype: NumPy's name of its type, such as "float32" or "bfloat16".
      path: The file. None stands for a tensor of zeros that is in no file.
      byte_ranges: Its bytes, in order. There is more than one range where the format splits large
        tensors.
      strides: Per axis, the number of elements from one index to the next. None means row-major
        and contiguous.
    """

    shape: tuple[int, ...]
    dtype: str
    path: pathlib.Path | None = None
    byte_ranges: tuple[ByteRange, ...] = ()
    strides: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.strides is not None:
            contiguous = row_major_strides(self.shape)
            strides = zip(self.strides, contiguous, self.shape, strict=True)
            if all(a == b or n == 1 for a, b, n in strides):
                object.__setattr__(self, "strides", None)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def T(self) -> "LazyTensor":
        """The transpose; nothing is read."""
        strides = self.strides or row_major_strides(self.shape)
        return dataclasses.replace(self, shape=self.shape[::-1], strides=strides[::-1])

    def rows(self, start: int, stop: int) -> "LazyTensor":
        """The slice [start:stop] of the first axis; nothing is read.

        The tensor must be in one byte range.
        """
        strides = self.strides or row_major_strides(self.shape)
        shape = (stop - start, *self.shape[1:])
        width = np.dtype(self.dtype).itemsize
        [whole] = self.byte_ranges
        part = ByteRange(
            whole.start + start * strides[0] * width, element_span(shape, strides) * width
        )
        return dataclasses.replace(self, shape=shape, strides=strides, byte_ranges=(part,))

    def read(self) -> np.ndarray:
        """Reads the tensor, in its own type.

        Raises:
          UsageError: The file ends before the tensor does, or cannot be read.
        """
        array = np.empty(self.shape, self.dtype)
        self.read_into(array)
        return array

    def read_into(self, target: np.ndarray) -> None:
        """Reads the tensor into an array of its shape, which may be of another floating type.

        This needs no memory besides the target's if the target has the same type and layout as the
        file, and a few megabytes otherwise.

        Raises:
          UsageError: The file ends before the tensor does, or cannot be read.
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
                    data = np.empty(self.byte_ranges[0].size, np.uint8)
                    self._fill(file, memoryview(data), 0)
                    elements = data.view(self.dtype)
                    strides = [stride * elements.itemsize for stride in self.strides]
                    _copy(target, np.lib.stride_tricks.as_strided(elements, self.shape, strides))
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror or error}") from error

    def _read_rows(self, file, target: np.ndarray) -> None:
        dtype = np.dtype(self.dtype)
        if target.dtype == dtype and target.flags.c_contiguous:
            self._fill(file, memoryview(target.reshape(-1).view(np.uint8)), 0)
            return
        shape = self.shape or (1,)
        target = target.reshape(shape) if not self.shape else target
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        rows = max(1, min(shape[0], _CHUNK_BYTES // max(row_bytes, 1)))
        buffer = np.empty((rows, *shape[1:]), dtype)
        for start in range(0, shape[0], rows):
            chunk = buffer[: min(rows, shape[0] - start)]
            self._fill(file, memoryview(chunk.reshape(-1).view(np.uint8)), start * row_bytes)
            _copy(target[start : start + rows], chunk)

    def _fill(self, file, view: memoryview, offset: int) -> None:
        """Fills the view with the tensor's bytes from `offset` on."""
        for start, size in self.byte_ranges:
            skipped, offset = min(offset, size), max(0, offset - size)
            file.seek(start + skipped)
            remaining = min(size - skipped, len(view))
            while remaining:
                count = file.readinto(view[:remaining])
                if not count:
                    raise UsageError(
                        f"{self.path} is cut short: it ends before one of its tensors does; fetch "
                        "or write it again"
                    )
                view, remaining = view[count:], remaining - count


def read_all(reads: Iterable[tuple[str, LazyTensor, np.ndarray]]) -> None:
    """Reads each tensor into the array that comes with it, several at a time.

    Args:
      reads: (name in the file, tensor, array).

    Raises:
      UsageError: A file ends before a tensor does or cannot be read, or the numbers are not finite.
    """

    def read(name, tensor, array):
        # A number too large for the array becomes infinite, which is an error below.
        with np.errstate(over="ignore"):
            tensor.read_into(array)
        return count_not_finite(array)

    reads = list(reads)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        counts = list(pool.map(lambda each: read(*each), reads))
    bad = [(*each, count) for each, count in zip(reads, counts, strict=True) if count]
    if bad:
        others = f" (one of {len(bad)} such tensors of {len(reads)})" if len(bad) > 1 else ""
        raise _not_finite_error(*bad[0], others)


def _not_finite_error(
    name: str, tensor: LazyTensor, array: np.ndarray, count: int, others: str
) -> UsageError:
    if np.dtype(tensor.dtype) != array.dtype and not count_not_finite(tensor.read()):
        return UsageError(
            f"{count} of the {array.size} values of {name} in {tensor.path} are too large for "
            f"{array.dtype.name}{others}: use float32 or bfloat16 parameters"
        )
    return UsageError(
        f"the weights are not finite: {count} of the {array.size} values of {name} in "
        f"{tensor.path} are NaN or infinite{others}. The training that wrote them has diverged, or "
        "the file is damaged: use other weights, or an earlier checkpoint of that training"
    )


def row_major_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a contiguous row-major array."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def element_span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The number of elements from the first one of a strided array to the last, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    """Like `target[...] = source`, but copies between row- and column-major matrices by tiles."""
    if source.ndim != 2 or target.flags.c_contiguous == source.flags.c_contiguous:
        target[...] = source
        return
    # Each tile is copied through a padded buffer. With rows of a power of two bytes, all elements
    # of a column would compete for the same few cache lines.
    buffer = np.empty((_TILE, _TILE + 16), source.dtype)
    rows, columns = source.shape
    for i in range(0, rows, _TILE):
        for j in range(0, columns, _TILE):
            tile = source[i : i + _TILE, j : j + _TILE]
            part = buffer[: tile.shape[0], : tile.shape[1]]
            part[...] = tile
            target[i : i + _TILE, j : j + _TILE] = part
