"""Reads and writes Flax's msgpack files, in which Hugging Face's Flax classes save parameters.

A file is a nested msgpack map with arrays as its leaves. An array is an extension of type 1 that
holds (shape, name of the type, bytes). An array of more than 1 GiB is a map that holds its shape
and a list of flat chunks (`flax/serialization.py`). Opening a file finds the bytes of each array
and reads none of them. Writing needs memory for one array at a time.

The format has no checksums and no place for one: Flax restores every entry of the map as a
parameter, and msgpack allows nothing after the map. A changed byte of an array is not noticed.
"""

import math
import pathlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from roberta_jax.errors import UsageError
from roberta_jax.storage.reading import check_regular_file
from roberta_jax.weights.files import FLAX_WEIGHTS_NAME
from roberta_jax.weights.names import Leaf, torch_name
from roberta_jax.weights.tensors import ByteRange, FileContents, LazyTensor

_ARRAY = 1
_CHUNKED = "__msgpack_chunked_array__"
_CHUNK_BYTES = 1 << 30  # Flax's own limit
_MAX_DEPTH = 64


def read_weights(path: pathlib.Path) -> FileContents:
    """Finds the tensors of a file.

    Raises:
      UsageError: The file is truncated or does not hold a tree of arrays.
    """
    tensors = {
        torch_name(leaf_path): array.T if leaf_path[-1] == "kernel" else array
        for leaf_path, array in read(path).items()
    }
    return FileContents(tensors)


def read(path: pathlib.Path) -> dict[tuple[str, ...], LazyTensor]:
    """Finds the arrays of a file.

    Returns:
      {path in the tree: array}. In shards, whose keys are paths joined by "/", these are split.

    Raises:
      UsageError: The file is truncated or does not hold a tree of arrays.
    """
    try:
        check_regular_file(path)
        with path.open("rb") as file:
            parser = _Parser(file, path)
            tree = parser.value()
            if parser.remaining():
                raise ValueError("bytes after the end")
            return _flatten(tree)
    except UsageError:
        raise
    except (
        LookupError,
        AttributeError,
        ValueError,
        TypeError,
        struct.error,
        RecursionError,
    ) as error:
        raise UsageError(
            f"{path} ({path.stat().st_size:,} bytes) is cut short or not a Flax file ({error}); "
            "fetch or write it again"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _flatten(tree: Any, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], LazyTensor]:
    if isinstance(tree, LazyTensor):
        return {prefix: tree}
    if not isinstance(tree, dict):
        raise ValueError(f"{'/'.join(prefix) or 'the file'} is not an array")
    if _CHUNKED in tree:
        return {prefix: _join_chunks(tree)}
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, (*prefix, *str(key).split("/")))
    return flat


def _join_chunks(tree: dict) -> LazyTensor:
    shape = _as_list(tree["shape"])
    chunks = _as_list(tree["chunks"])
    byte_ranges = tuple(part for chunk in chunks for part in chunk.byte_ranges)
    array = LazyTensor(tuple(shape), chunks[0].dtype, chunks[0].path, byte_ranges)
    if array.size != sum(chunk.size for chunk in chunks):
        raise ValueError("the chunks of an array do not have its size")
    return array


def _as_list(items: dict | list) -> list:
    """A list, which Flax writes as a map from "0", "1", …."""
    return [items[str(i)] for i in range(len(items))] if isinstance(items, dict) else items


class _Parser:
    """Parses the subset of msgpack that Flax writes, without reading the arrays' bytes."""

    def __init__(self, file: BinaryIO, path: pathlib.Path):
        self.file, self.path = file, path
        self.size = path.stat().st_size

    def remaining(self) -> int:
        return self.size - self.file.tell()

    def take(self, count: int) -> bytes:
        data = self.file.read(count) if count <= self.remaining() else b""
        if len(data) != count:
            raise ValueError("it ends too early")
        return data

    def number(self, kind: str) -> Any:
        return struct.unpack(f">{kind}", self.take(struct.calcsize(kind)))[0]

    def value(self, depth: int = 0) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("the tree is deeper than any model's")
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
            return self.byte_range(self.number(_BYTES[code]))
        if code in (0xDC, 0xDD):
            return self.list(self.number("H" if code == 0xDC else "I"), depth)
        if code in (0xDE, 0xDF):
            return self.map(self.number("H" if code == 0xDE else "I"), depth)
        if code in _EXTENSIONS or 0xD4 <= code <= 0xD8:
            size = self.number(_EXTENSIONS[code]) if code in _EXTENSIONS else 1 << (code - 0xD4)
            return self.extension(self.number("b"), size, depth)
        raise ValueError(f"unknown type byte {code:#x}")

    def map(self, count: int, depth: int) -> dict:
        items = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str | int):
                raise ValueError("a key is not text")
            items[key] = self.value(depth + 1)
        return items

    def list(self, count: int, depth: int) -> list:
        return [self.value(depth + 1) for _ in range(count)]

    def byte_range(self, size: int) -> ByteRange:
        start = self.file.tell()
        if size > self.remaining():
            raise ValueError("it ends too early")
        self.file.seek(start + size)
        return ByteRange(start, size)

    def extension(self, kind: int, size: int, depth: int) -> LazyTensor:
        end = self.file.tell() + size
        if kind != _ARRAY:
            raise ValueError(f"extension {kind} is not an array")
        shape, dtype, data = self.value(depth + 1)
        if not isinstance(data, ByteRange) or self.file.tell() != end:
            raise ValueError("an array without its bytes")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"an array of shape {shape}")
        array = LazyTensor(tuple(shape), np.dtype(dtype).name, self.path, (data,))
        if data.size != array.size * np.dtype(dtype).itemsize:
            raise ValueError(f"an array of shape {shape} in {data.size} bytes")
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
      arrays: (path in the tree, array), in any order; consumed one at a time.
    """
    tree: dict[str, Any] = {}
    for leaf_path, spec in specs.items():
        node = tree
        for key in leaf_path[:-1]:
            node = node.setdefault(key, {})
        node[leaf_path[-1]] = spec
    reserved: dict[tuple[str, ...], list[ByteRange]] = {}
    with path.open("wb") as file:
        _write_tree(file, tree, (), reserved)
        for leaf_path, array in arrays:
            shape, dtype = specs[leaf_path]
            if array.shape != tuple(shape) or array.dtype != dtype:
                raise ValueError(f"{leaf_path}: expected {shape} {dtype}, got {array.shape}")
            data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            for start, size in reserved.pop(leaf_path):
                file.seek(start)
                file.write(data[:size])
                data = data[size:]
        if reserved:
            raise ValueError(f"no array was given for {sorted(reserved)}")


def write_weights(
    folder: pathlib.Path,
    leaves: Sequence[Leaf],
    arrays: Iterable[np.ndarray],
    config: Mapping[str, Any],
    max_shard_size: int,
) -> None:
    """Writes `flax_model.msgpack` with unstacked parameters.

    Args:
      folder: Where to write it.
      leaves: The parameters.
      arrays: The leaves' values on the host, in the same order; consumed one at a time.
      config: The model's `config.json`; not used here.
      max_shard_size: Not used here; the file is never split.
    """
    specs = {}
    for leaf in leaves:
        shape = leaf.value.shape[1:] if leaf.stacked else leaf.value.shape
        for leaf_path in _unstacked_paths(leaf):
            specs[leaf_path] = (tuple(shape), np.dtype(leaf.value.dtype))
    unstacked = (
        item
        for leaf, array in zip(leaves, arrays, strict=True)
        for item in zip(_unstacked_paths(leaf), array if leaf.stacked else [array], strict=True)
    )
    write(folder / FLAX_WEIGHTS_NAME, specs, unstacked)


def _unstacked_paths(leaf: Leaf) -> list[tuple[str, ...]]:
    if not leaf.stacked:
        return [leaf.path]
    depth = leaf.path.index("layer") + 1
    return [(*leaf.path[:depth], str(i), *leaf.path[depth:]) for i in range(len(leaf.names))]


def _write_tree(file: BinaryIO, node: Any, path: tuple[str, ...], reserved: dict) -> None:
    """Writes a tree without the arrays' bytes, and records the byte ranges reserved for them."""
    if isinstance(node, dict):
        file.write(_map_head(len(node)))
        for key, value in node.items():
            file.write(_text(key))
            _write_tree(file, value, (*path, key), reserved)
        return
    shape, dtype = node
    count, width = math.prod(shape), np.dtype(dtype).itemsize
    reserved[path] = []
    if count * width <= _CHUNK_BYTES:
        reserved[path].append(_reserve_array(file, shape, dtype))
        return
    per_chunk = _CHUNK_BYTES // width
    counts = [min(per_chunk, count - start) for start in range(0, count, per_chunk)]
    file.write(_map_head(3) + _text(_CHUNKED) + b"\xc3")
    file.write(_text("shape") + _map_head(len(shape)))
    for axis, n in enumerate(shape):
        file.write(_text(str(axis)) + _integer(n))
    file.write(_text("chunks") + _map_head(len(counts)))
    for i, n in enumerate(counts):
        file.write(_text(str(i)))
        reserved[path].append(_reserve_array(file, (n,), dtype))


def _reserve_array(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> ByteRange:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    head = b"\x93" + bytes([0x90 | len(shape)]) + b"".join(map(_integer, shape))
    head += _text(np.dtype(dtype).name) + b"\xc6" + struct.pack(">I", size)
    file.write(b"\xc9" + struct.pack(">Ib", len(head) + size, _ARRAY) + head)
    data = ByteRange(file.tell(), size)
    file.seek(data.start + size)
    file.truncate()
    return data


def _map_head(count: int) -> bytes:
    return bytes([0x80 | count]) if count < 16 else b"\xde" + struct.pack(">H", count)


def _integer(n: int) -> bytes:
    return bytes([n]) if n < 0x80 else b"\xcf" + struct.pack(">Q", n)


def _text(text: str) -> bytes:
    data = text.encode()
    return (bytes([0xA0 | len(data)]) if len(data) < 32 else b"\xd9" + bytes([len(data)])) + data
