"""Tensors in files: described when a file is opened, read when they are needed.

Every supported format holds a tensor as plain numbers, so that one description serves all of them:
which bytes of the file are the tensor's, and in which order its elements follow each other. Where
the file has a checksum of these bytes, reading verifies it.
"""

import concurrent.futures
import dataclasses
import math
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes  # noqa: F401  (registers the dtypes "bfloat16" and "float8_…" with NumPy)
import numpy as np

from roberta_jax.errors import UsageError
from roberta_jax.weights.finite import count_not_finite

FLOATING = ("float64", "float32", "float16", "bfloat16")

# Size of the buffer for elements that have to be converted or reordered.
_CHUNK_BYTES = 1 << 24
# Bytes read before their checksum is computed, so that they are still in the processor's cache.
_CHECKED_BYTES = 1 << 20
# Rows and columns of a tile of a transpose. Source and target of a tile fit in a core's cache.
_TILE = 128
# Tensors read at the same time. More gain nothing, and each needs some megabytes.
_THREADS = 4


class ByteRange(NamedTuple):
    """A range of bytes in a file."""

    start: int
    size: int


class Checksum(NamedTuple):
    """What the file says about a range of its bytes.

    Attributes:
      name: What the range holds, for error messages.
      range: The bytes.
      crc32: Their CRC-32.
    """

    name: str
    range: ByteRange
    crc32: int


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
      checksum: That of a range which contains the tensor, if the file has one.
    """

    shape: tuple[int, ...]
    dtype: str
    path: pathlib.Path | None = None
    byte_ranges: tuple[ByteRange, ...] = ()
    strides: tuple[int, ...] | None = None
    checksum: Checksum | None = None

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
          UsageError: As `read_all`, but the numbers need not be finite.
        """
        array = np.empty(self.shape, self.dtype)
        _read_arrays([(self, array)])
        return array

    @property
    def verifies_itself(self) -> bool:
        """Whether reading the tensor verifies its checksum, since it reads exactly these bytes."""
        in_order = self.strides is None or self.T.strides is None
        return self.checksum is None or (in_order and self.byte_ranges == (self.checksum.range,))

    def read_into(self, target: np.ndarray) -> None:
        """Reads the tensor into an array of its shape, which may be of another floating type.

        This needs no memory besides the target's if the target has the same type and layout as the
        file, and a few megabytes otherwise.

        Raises:
          UsageError: The file ends before the tensor does, cannot be read, or is damaged; the last
            only if the tensor `verifies_itself`.
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

    def _read_rows(self, file: BinaryIO, target: np.ndarray) -> None:
        dtype = np.dtype(self.dtype)
        crc = 0 if self.checksum is not None and self.verifies_itself else None
        if target.dtype == dtype and target.flags.c_contiguous:
            crc = self._fill(file, memoryview(target.reshape(-1).view(np.uint8)), 0, crc)
        else:
            shape = self.shape or (1,)
            target = target.reshape(shape) if not self.shape else target
            row_bytes = math.prod(shape[1:]) * dtype.itemsize
            rows = max(1, min(shape[0], _CHUNK_BYTES // max(row_bytes, 1)))
            buffer = np.empty((rows, *shape[1:]), dtype)
            for start in range(0, shape[0], rows):
                chunk = buffer[: min(rows, shape[0] - start)]
                view = memoryview(chunk.reshape(-1).view(np.uint8))
                crc = self._fill(file, view, start * row_bytes, crc)
                _copy(target[start : start + rows], chunk)
        if crc is not None and crc != self.checksum.crc32:
            raise _damaged(self.path, self.checksum)

    def _fill(self, file: BinaryIO, view: memoryview, offset: int, crc: int | None = None):
        """Fills the view with the tensor's bytes from `offset` on.

        Returns:
          `crc`, continued with these bytes; None if it is None.
        """
        for start, size in self.byte_ranges:
            skipped, offset = min(offset, size), max(0, offset - size)
            file.seek(start + skipped)
            remaining = min(size - skipped, len(view))
            while remaining:
                most = remaining if crc is None else min(remaining, _CHECKED_BYTES)
                count = file.readinto(view[:most])
                if not count:
                    raise _cut_short(self.path)
                if crc is not None:
                    crc = zlib.crc32(view[:count], crc)
                view, remaining = view[count:], remaining - count
        return crc


class FileContents(NamedTuple):
    """What a weight file holds.

    Attributes:
      tensors: {PyTorch name: tensor}.
      config: The contents of a `config.json`, if the file has them (fairseq).
      written_for: Fields of the `config.json` that the file was written with, if it names them.
    """

    tensors: dict[str, LazyTensor]
    config: Mapping[str, Any] | None = None
    written_for: Mapping[str, Any] | None = None


def read_all(reads: Iterable[tuple[str, LazyTensor, np.ndarray]]) -> None:
    """Reads each tensor into the array that comes with it, several at a time.

    Args:
      reads: (name in the file, tensor, array).

    Raises:
      UsageError: A file ends before one of its tensors does, cannot be read, or has other bytes
        than its checksums say; or the numbers are not finite.
    """
    reads = list(reads)
    counts = _read_arrays([(tensor, array) for _, tensor, array in reads])
    bad = [(*each, count) for each, count in zip(reads, counts, strict=True) if count]
    if bad:
        others = f" (one of {len(bad)} such tensors of {len(reads)})" if len(bad) > 1 else ""
        raise _not_finite_error(*bad[0], others)


def _read_arrays(pairs: Sequence[tuple[LazyTensor, np.ndarray]]) -> list[int]:
    """Reads each tensor into its array; returns how many numbers of each are not finite."""

    def read(pair: tuple[LazyTensor, np.ndarray]) -> int:
        tensor, array = pair
        # A number too large for the array becomes infinite, which the caller reports.
        with np.errstate(over="ignore"):
            tensor.read_into(array)
        return count_not_finite(array)

    # A tensor that is a part of the checked bytes, or reads them in another order. The range is
    # read on its own, once for all such tensors.
    checks = {(tensor.path, tensor.checksum) for tensor, _ in pairs if not tensor.verifies_itself}
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        checked = pool.map(lambda check: verify(*check), checks)
        counts = pool.map(read, pairs)
        for _ in checked:
            pass
        return list(counts)


def verify(path: pathlib.Path, checksum: Checksum) -> None:
    """Reads a range of a file's bytes and compares its CRC-32.

    Raises:
      UsageError: It differs, or the file cannot be read.
    """
    crc, remaining = 0, checksum.range.size
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(checksum.range.start)
            buffer = memoryview(bytearray(min(remaining, _CHECKED_BYTES)))
            while remaining:
                count = file.readinto(buffer[: min(remaining, len(buffer))])
                if not count:
                    raise _cut_short(path)
                crc, remaining = zlib.crc32(buffer[:count], crc), remaining - count
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    if crc != checksum.crc32:
        raise _damaged(path, checksum)


def _cut_short(path: pathlib.Path) -> UsageError:
    return UsageError(
        f"{path} is cut short: it ends before one of its tensors does; fetch or write it again"
    )


def _damaged(path: pathlib.Path, checksum: Checksum) -> UsageError:
    return UsageError(
        f"{path} is damaged: the bytes of {checksum.name} do not have the CRC-32 that the file "
        "says they have. Fetch or write it again"
    )


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
