"""Reads and writes the files of `torch.save`, without PyTorch.

Both of PyTorch's formats are read. Since version 1.6 a file is an uncompressed zip archive:
`NAME/data.pkl` is the pickled object, which refers to the tensors' data in `NAME/data/KEY`. Each
entry has a CRC-32, which is verified. A CRC-32 of 0 stands for none, which PyTorch can be told to
write (`torch.serialization.set_crc32_options(False)`). Before, a file was four pickles in a row (a
magic number, a version, information about the system, the object), the list of the keys, then for
each key the number of elements and the data. That format has no checksums.
"""

import json
import math
import pathlib
import struct
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from roberta_jax.errors import UsageError
from roberta_jax.storage.reading import check_regular_file
from roberta_jax.weights.formats import unpickler
from roberta_jax.weights.formats.unpickler import PickledTensor, Storage
from roberta_jax.weights.tensors import (
    ByteRange,
    Checksum,
    FileContents,
    LazyTensor,
    element_span,
    row_major_strides,
    verify,
)

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_ALIGNMENT = 64  # bytes, of the data in the archive, so that it can be memory-mapped
_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
}


def read(path: pathlib.Path, inert: bool = False) -> Any:
    """Reads a file's object, with a `LazyTensor` for each tensor; no tensor's data is read.

    Args:
      path: The file.
      inert: Whether to skip unknown objects; see `unpickler.load`.

    Raises:
      UsageError: The file is truncated, compressed, of another format, or holds more than data.
    """
    try:
        check_regular_file(path)
        with path.open("rb") as file:
            start = file.read(8)
            file.seek(0)
            if start.startswith(b"PK"):
                value = _read_archive(file, path, inert)
            elif start.startswith(b"\x80\x02\x8a\x0a"):
                value = _read_legacy(file, path, inert)
            else:
                raise UsageError(_not_pytorch(path, start))
        return _with_lazy_tensors(value, path, {})
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except RecursionError:
        raise UsageError(f"{path} is nested deeper than any file of weights") from None


def _not_pytorch(path: pathlib.Path, start: bytes) -> str:
    if start.startswith(b"version "):
        return f"{path} is a Git LFS pointer, not the weights; fetch the file itself (git lfs pull)"
    size = path.stat().st_size
    return (
        f"{path} ({size:,} bytes) is cut short or was not written by PyTorch 0.4 or later; fetch "
        "or write it again"
    )


def _read_archive(file: BinaryIO, path: pathlib.Path, inert: bool) -> Any:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UsageError(
            f"{path} ({path.stat().st_size:,} bytes) is cut short or damaged ({error}); fetch or "
            "write it again"
        ) from None
    entries = {entry.filename: entry for entry in archive.infolist()}
    objects = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(objects) != 1:
        raise UsageError(f"{path} is a zip archive, but not one of PyTorch's (it has no data.pkl)")
    folder = objects[0].removesuffix("data.pkl")
    file.seek(_verified_start(file, entries[objects[0]], path))
    value = unpickler.load(file, str(path), inert)
    byte_order = entries.get(f"{folder}byteorder")
    if byte_order is not None:
        file.seek(_verified_start(file, byte_order, path))
        if file.read(byte_order.file_size).strip() == b"big":
            raise UsageError(f"{path} was written on a big-endian machine; save it on another one")
    for storage in _storages(value):
        entry = entries.get(f"{folder}data/{storage.key}")
        if entry is None:
            raise UsageError(f"{path} lacks the data of {storage.key!r}; write it again")
        storage.start = _data_start(file, entry, path)
        storage.checksum = _checksum(entry, storage.start)
        _check_size(storage, entry.file_size, path)
    return value


def _verified_start(file: BinaryIO, entry: zipfile.ZipInfo, path: pathlib.Path) -> int:
    start = _data_start(file, entry, path)
    if checksum := _checksum(entry, start):
        verify(path, checksum)
    return start


def _checksum(entry: zipfile.ZipInfo, start: int) -> Checksum | None:
    """The checksum of an entry's data, if it has one."""
    return (
        Checksum(entry.filename, ByteRange(start, entry.file_size), entry.CRC)
        if entry.CRC
        else None
    )


def _data_start(file: BinaryIO, entry: zipfile.ZipInfo, path: pathlib.Path) -> int:
    """The offset of an entry's data: after its own header, which repeats its name."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise UsageError(
            f"{path} is a compressed archive, which PyTorch does not write; repack it uncompressed"
        )
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
        raise UsageError(f"{path} is damaged: {entry.filename} is not where its index says")
    name, extra = struct.unpack("<HH", header[26:])
    return entry.header_offset + 30 + name + extra


def _read_legacy(file: BinaryIO, path: pathlib.Path, inert: bool) -> Any:
    magic, version, system = (unpickler.load(file, str(path)) for _ in range(3))
    if magic != _MAGIC or version != _VERSION or not isinstance(system, dict):
        raise UsageError(f"{path} has an unknown version of PyTorch's format")
    if not system.get("little_endian", True):
        raise UsageError(f"{path} was written on a big-endian machine; save it on another one")
    value = unpickler.load(file, str(path), inert)
    storages = {storage.key: storage for storage in _storages(value)}
    end = path.stat().st_size
    for key in unpickler.load(file, str(path)):
        count = file.read(8)
        if len(count) < 8 or key not in storages:
            raise UsageError(f"{path} is cut short or damaged; fetch or write it again")
        storage = storages[key]
        storage.start = file.tell()
        size = struct.unpack("<q", count)[0] * np.dtype(storage.dtype).itemsize
        _check_size(storage, min(size, end - storage.start), path)
        file.seek(storage.start + size)
    return value


def _check_size(storage: Storage, size: int, path: pathlib.Path) -> None:
    expected = storage.count * np.dtype(storage.dtype).itemsize
    if size < expected:
        raise UsageError(
            f"{path} is cut short: {storage.key!r} has {size:,} of its {expected:,} bytes; fetch "
            "or write it again"
        )


def _tensors(value: Any, seen: set[int]) -> Iterator[PickledTensor]:
    """Yields every tensor in an object. Containers are visited once, since they may be cyclic."""
    if isinstance(value, PickledTensor):
        yield value
    elif isinstance(value, dict | list | tuple | set | frozenset) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item, seen)


def _storages(value: Any) -> Iterator[Storage]:
    storages = {tensor.storage.key: tensor.storage for tensor in _tensors(value, set())}
    return iter(storages.values())


def _with_lazy_tensors(value: Any, path: pathlib.Path, converted: dict[int, Any]) -> Any:
    """Replaces the tensors in an object, or in nested dictionaries, by `LazyTensor`s.

    Args:
      value: The object.
      path: The file.
      converted: {id of a dictionary: its copy}, which makes cycles possible.
    """
    if isinstance(value, PickledTensor):
        storage, width = value.storage, np.dtype(value.storage.dtype).itemsize
        if storage.start is None:
            raise UsageError(f"{path} lacks the data of {storage.key!r}; write it again")
        data = ByteRange(
            storage.start + value.offset * width, element_span(value.shape, value.strides) * width
        )
        return LazyTensor(
            value.shape, storage.dtype, path, (data,), value.strides, storage.checksum
        )
    if isinstance(value, dict):
        if id(value) not in converted:
            converted[id(value)] = {}
            converted[id(value)] |= {
                key: _with_lazy_tensors(item, path, converted) for key, item in value.items()
            }
        return converted[id(value)]
    return value


def state_dict(path: pathlib.Path) -> dict[str, LazyTensor]:
    """Finds the tensors of a file that holds a state dict, such as `pytorch_model.bin`.

    Raises:
      UsageError: See `read`; or the file holds something else.
    """
    state = read(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UsageError(f"{path} does not hold a state dict but a {type(state).__name__}")
    others = [name for name, value in state.items() if not isinstance(value, LazyTensor)]
    if others:
        raise UsageError(
            f"{path} does not hold a state dict: {json.dumps(others[:8])} are not tensors. Save "
            "only model.state_dict()"
        )
    return state


def read_weights(path: pathlib.Path) -> FileContents:
    """Finds the tensors of a state dict; see `state_dict`."""
    return FileContents(state_dict(path))


class Reference:
    """A placeholder for a tensor in an object that `write` saves.

    Attributes:
      key: Identifies the tensor's data; several references may share it.
      shape: The tensor's shape.
      dtype: NumPy's name of its type.
    """

    def __init__(self, key: int, shape: Sequence[int], dtype: str):
        self.key, self.shape, self.dtype = key, tuple(shape), dtype


def write(path: pathlib.Path, value: Any, tensors: Iterable[tuple[int, np.ndarray]]) -> None:
    """Writes a file that `torch.load` reads, also with `weights_only=True`.

    Args:
      path: The file.
      value: Dictionaries, lists, strings, numbers, None and `Reference`s. Tensors whose references
        have the same key share their data.
      tensors: (key, array) for every key of a reference; consumed one at a time.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:

        def record(name: str, data) -> None:
            entry = zipfile.ZipInfo(f"archive/{name}")
            large = len(data) >= 1 << 31
            # Padding in the header's extra field aligns the data.
            start = archive.fp.tell() + 30 + len(entry.filename) + (20 if large else 0) + 4
            padding = -start % _ALIGNMENT
            entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            with archive.open(entry, "w", force_zip64=large) as out:
                out.write(data)

        record("data.pkl", b"\x80\x02" + _pickled(value) + b".")
        record("byteorder", b"little")
        for key, array in tensors:
            flat = np.ascontiguousarray(array).reshape(-1)
            record(f"data/{key}", memoryview(flat.view(np.uint8)))
        record("version", b"3\n")


def _pickled(value: Any) -> bytes:
    """The opcodes (pickle protocol 2) that build a value."""
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        if -(1 << 31) <= value < 1 << 31:
            return b"J" + struct.pack("<i", value)
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(data)) + data
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_pickled, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_pickled, value)) + b"e"
    if isinstance(value, dict):
        items = b"".join(_pickled(key) + _pickled(item) for key, item in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, Reference):
        storage = b"".join(
            (
                _pickled("storage"),
                b"ctorch\n" + _STORAGES[value.dtype].encode() + b"\n",
                _pickled(str(value.key)),
                _pickled("cpu"),
                _pickled(math.prod(value.shape)),
            )
        )
        no_hooks = b"ccollections\nOrderedDict\n)R"
        arguments = _pickled(0) + _pickled(value.shape) + _pickled(row_major_strides(value.shape))
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n(("
            + storage
            + b"tQ"
            + arguments
            + b"\x89"
            + no_hooks
            + b"tR"
        )
    raise TypeError(f"cannot write a {type(value).__name__}")
