"""Flax's msgpack files, as Hugging Face's Flax classes keep their parameters: read and written.

A file is a msgpack map of maps down to the arrays. An array is extension 1 around (shape, type's
name, bytes); one of more than a gigabyte is a map that holds the shape and a list of flat pieces
(`flax/serialization.py`). Reading finds where each array lies and copies none; writing takes one
array in memory at a time.
"""

import math
import pathlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np

from roberta_jax.errors import UsageError
from roberta_jax.weights.tensors import Extent, StoredTensor

WEIGHTS = "flax_model.msgpack"
_ARRAY = 1
_CHUNKED = "__msgpack_chunked_array__"
_CHUNK_BYTES = 1 << 30  # Flax's own limit
_MOST_DEPTH = 64


def read(path: pathlib.Path) -> dict[tuple[str, ...], StoredTensor]:
    """Returns {path in the tree: array}, of a tree nested or, as in a shard, joined by "/".

    Raises:
      UsageError: The file is no such tree, or cut short.
    """
    try:
        with path.open("rb") as file:
            parser = _Parser(file, path)
            tree = parser.value()
            if parser.left():
                raise ValueError("bytes behind the end")
            return _flatten(tree)
    except (ValueError, TypeError, struct.error, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path} ({path.stat().st_size:,} bytes) is cut short or no file of Flax's ({error}); "
            "fetch or write it again"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _flatten(tree: Any, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], StoredTensor]:
    if isinstance(tree, StoredTensor):
        return {prefix: tree}
    if not isinstance(tree, dict):
        raise ValueError(f"{'/'.join(prefix) or 'the file'} holds no array")
    if _CHUNKED in tree:
        return {prefix: _joined(tree)}
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, (*prefix, *str(key).split("/")))
    return flat


def _joined(tree: dict) -> StoredTensor:
    shape = _numbered(tree["shape"])
    chunks = _numbered(tree["chunks"])
    extents = tuple(extent for chunk in chunks for extent in chunk.extents)
    joined = StoredTensor(tuple(shape), chunks[0].dtype, chunks[0].path, extents)
    if joined.size != sum(chunk.size for chunk in chunks):
        raise ValueError("pieces that do not make up their array")
    return joined


def _numbered(items: dict | list) -> list:
    """A list, which Flax writes as a map from "0", "1", …."""
    return [items[str(i)] for i in range(len(items))] if isinstance(items, dict) else items


class _Parser:
    """The part of msgpack that Flax writes, with arrays left where they lie."""

    def __init__(self, file: BinaryIO, path: pathlib.Path):
        self.file, self.path = file, path
        self.size = path.stat().st_size

    def left(self) -> int:
        return self.size - self.file.tell()

    def take(self, count: int) -> bytes:
        data = self.file.read(count) if count <= self.left() else b""
        if len(data) != count:
            raise ValueError("it ends too early")
        return data

    def number(self, kind: str) -> Any:
        return struct.unpack(f">{kind}", self.take(struct.calcsize(kind)))[0]

    def value(self, depth: int = 0) -> Any:
        if depth > _MOST_DEPTH:
            raise ValueError("a tree deeper than any model's")
        code = self.take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code < 0x90:
            return self.map(code & 0x0F, depth)
        if code < 0xA0:
            return self.list(code & 0x0F, depth)
        if code < 0xC0:
            return self.take(code & 0x1F).decode()
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in _SCALARS:
            return self.number(_SCALARS[code])
        if code in _STRINGS:
            return self.take(self.number(_STRINGS[code])).decode()
        if code in _BYTES:
            return self.extent(self.number(_BYTES[code]))
        if code in (0xDC, 0xDD):
            return self.list(self.number("H" if code == 0xDC else "I"), depth)
        if code in (0xDE, 0xDF):
            return self.map(self.number("H" if code == 0xDE else "I"), depth)
        if code in _EXTENSIONS or 0xD4 <= code <= 0xD8:
            size = self.number(_EXTENSIONS[code]) if code in _EXTENSIONS else 1 << (code - 0xD4)
            return self.extension(self.number("b"), size, depth)
        raise ValueError(f"byte {code:#x} starts nothing")

    def map(self, count: int, depth: int) -> dict:
        found = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str | int):
                raise ValueError("a name that is no text")
            found[key] = self.value(depth + 1)
        return found

    def list(self, count: int, depth: int) -> list:
        return [self.value(depth + 1) for _ in range(count)]

    def extent(self, size: int) -> Extent:
        start = self.file.tell()
        if size > self.left():
            raise ValueError("it ends too early")
        self.file.seek(start + size)
        return Extent(start, size)

    def extension(self, kind: int, size: int, depth: int) -> StoredTensor:
        end = self.file.tell() + size
        if kind != _ARRAY:
            raise ValueError(f"extension {kind} is no array")
        shape, dtype, extent = self.value(depth + 1)
        if not isinstance(extent, Extent) or self.file.tell() != end:
            raise ValueError("an array without its bytes")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"an array of shape {shape}")
        array = StoredTensor(tuple(shape), np.dtype(dtype).name, self.path, (extent,))
        if extent.size != array.size * np.dtype(dtype).itemsize:
            raise ValueError(f"an array of shape {shape} in {extent.size} bytes")
        return array


_SCALARS = {0xCA: "f", 0xCB: "d", 0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q"}
_SCALARS |= {0xD0: "b", 0xD1: "h", 0xD2: "i", 0xD3: "q"}
_STRINGS = {0xD9: "B", 0xDA: "H", 0xDB: "I"}
_BYTES = {0xC4: "B", 0xC5: "H", 0xC6: "I"}
_EXTENSIONS = {0xC7: "B", 0xC8: "H", 0xC9: "I"}


def write(
    path: pathlib.Path,
    specs: Mapping[tuple[str, ...], tuple[tuple[int, ...], np.dtype]],
    arrays: Iterable[tuple[tuple[str, ...], np.ndarray]],
) -> None:
    """Writes a file that Flax's `from_bytes` and Hugging Face's Flax classes read.

    Args:
      path: The file.
      specs: {path in the tree: (shape, type)} of every array.
      arrays: (path in the tree, array), in any order; consumed one by one.
    """
    tree: dict[str, Any] = {}
    for place, spec in specs.items():
        node = tree
        for key in place[:-1]:
            node = node.setdefault(key, {})
        node[place[-1]] = spec
    starts: dict[tuple[str, ...], list[Extent]] = {}
    with path.open("wb") as file:
        _write_tree(file, tree, (), starts)
        for place, array in arrays:
            shape, dtype = specs[place]
            if array.shape != tuple(shape) or array.dtype != dtype:
                raise ValueError(f"{place}: {shape} {dtype} was promised, {array.shape} came")
            data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            for start, size in starts.pop(place):
                file.seek(start)
                file.write(data[:size])
                data = data[size:]
        if starts:
            raise ValueError(f"no array came for {sorted(starts)}")


def _write_tree(file: BinaryIO, node: Any, place: tuple[str, ...], starts: dict) -> None:
    """Writes a tree with room for the arrays' bytes, and notes where it is."""
    if isinstance(node, dict):
        file.write(_map_head(len(node)))
        for key, value in node.items():
            file.write(_text(key))
            _write_tree(file, value, (*place, key), starts)
        return
    shape, dtype = node
    count, width = math.prod(shape), np.dtype(dtype).itemsize
    starts[place] = []
    if count * width <= _CHUNK_BYTES:
        starts[place].append(_write_array(file, shape, dtype))
        return
    most = _CHUNK_BYTES // width
    counts = [min(most, count - begin) for begin in range(0, count, most)]
    file.write(_map_head(3) + _text(_CHUNKED) + b"\xc3")
    file.write(_text("shape") + _map_head(len(shape)))
    for axis, n in enumerate(shape):
        file.write(_text(str(axis)) + _integer(n))
    file.write(_text("chunks") + _map_head(len(counts)))
    for i, n in enumerate(counts):
        file.write(_text(str(i)))
        starts[place].append(_write_array(file, (n,), dtype))


def _write_array(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> Extent:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    head = b"\x93" + bytes([0x90 | len(shape)]) + b"".join(map(_integer, shape))
    head += _text(np.dtype(dtype).name) + b"\xc6" + struct.pack(">I", size)
    file.write(b"\xc9" + struct.pack(">Ib", len(head) + size, _ARRAY) + head)
    extent = Extent(file.tell(), size)
    file.seek(extent.start + size)
    file.truncate()
    return extent


def _map_head(count: int) -> bytes:
    return bytes([0x80 | count]) if count < 16 else b"\xde" + struct.pack(">H", count)


def _integer(n: int) -> bytes:
    return bytes([n]) if n < 0x80 else b"\xcf" + struct.pack(">Q", n)


def _text(text: str) -> bytes:
    data = text.encode()
    return (bytes([0xA0 | len(data)]) if len(data) < 32 else b"\xd9" + bytes([len(data)])) + data
