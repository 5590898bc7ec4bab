"""Reads and writes safetensors files.

A file is the length of a JSON header (8 bytes, little-endian), the header with each tensor's type,
shape and place in the file, then the tensors' bytes.

The format has no checksums. Files that are written here have two further entries in the header's
`__metadata__`, which other programs ignore and leave out when they write the file themselves:
`crc32` is a JSON object with the CRC-32 of each tensor's bytes, as 8 hexadecimal digits. `config`
is one with those fields of `config.json` that the outputs depend on and the tensors do not show.
Both are verified when a model is loaded. A program that changes tensors in place, or copies the
metadata to another file, has to leave out `crc32`.
"""

import json
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors

from roberta_jax.errors import UsageError
from roberta_jax.storage.reading import check_regular_file
from roberta_jax.weights.config_file import to_json
from roberta_jax.weights.files import SAFE_WEIGHTS_NAME
from roberta_jax.weights.names import Leaf, split_leaves
from roberta_jax.weights.tensors import ByteRange, Checksum, FileContents, LazyTensor

_NUMPY_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_FILE_DTYPES = {dtype: name for name, dtype in _NUMPY_DTYPES.items()}


# Fields of `config.json` in the entry `config` of the metadata.
CHECKSUMS, CONFIG = "roberta_jax.crc32", "roberta_jax.config"  # keys of `__metadata__`

_CONFIG_FIELDS = (
    "hidden_act",
    "is_decoder",
    "layer_norm_eps",
    "num_attention_heads",
    "pad_token_id",
    "position_embedding_type",
)


def read_weights(path: pathlib.Path) -> FileContents:
    """Finds the tensors of a file.

    Raises:
      UsageError: The file is truncated, of another format, or cannot be read.
    """
    try:
        check_regular_file(path)
        with safetensors.safe_open(path, framework="np"):  # checks the header against the file
            pass
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
        metadata = header.pop("__metadata__", {})
        checksums = json.loads(metadata.get(CHECKSUMS, "{}"))
        written_for = json.loads(metadata.get(CONFIG, "null"))
        if not isinstance(checksums, dict) or not isinstance(written_for, dict | None):
            raise ValueError("its metadata is not what this package writes")
        tensors = {}
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            dtype = _NUMPY_DTYPES.get(entry["dtype"], entry["dtype"])
            place, checksum = ByteRange(8 + length + start, end - start), None
            if name in checksums:
                checksum = Checksum(name, place, int(checksums[name], 16))
            tensors[name] = LazyTensor(
                tuple(entry["shape"]), dtype, path, (place,), checksum=checksum
            )
    except UsageError:
        raise
    except (
        safetensors.SafetensorError, ValueError, TypeError, RecursionError, struct.error
    ) as error:  # fmt: skip
        raise UsageError(
            f"{path} ({path.stat().st_size:,} bytes) is cut short or not a safetensors file "
            f"({error}); fetch or write it again"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    return FileContents(tensors, written_for=written_for)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    items = dict(pairs)
    if len(items) < len(pairs):
        raise ValueError("its header has a name twice")
    return items


class TensorSpec(NamedTuple):
    """Name, shape and type of a tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: pathlib.Path,
    specs: Sequence[TensorSpec],
    tensors: Iterable[np.ndarray],
    config: Mapping[str, Any] | None = None,
) -> None:
    """Writes one file, with the metadata that transformers' PyTorch loaders expect.

    Args:
      path: The file to write.
      specs: Name, shape and type of every tensor, in the order of `tensors`. Wider types must come
        first, so that each tensor's bytes are aligned.
      tensors: The tensors. They are consumed one at a time, so that a generator needs memory for
        one of them.
      config: The contents of the model's `config.json`; see the module's docstring.
    """
    with path.open("wb") as file:
        crcs = {spec.name: 0 for spec in specs}
        file.write(_header(specs, crcs, config))
        for spec, tensor in zip(specs, tensors, strict=True):
            if tensor.shape != spec.shape or tensor.dtype != spec.dtype:
                raise ValueError(f"expected {spec}, got {tensor.shape} {tensor.dtype}")
            data = tensor.tobytes()
            crcs[spec.name] = zlib.crc32(data)
            file.write(data)
        file.seek(0)
        file.write(_header(specs, crcs, config))  # of the same length
        file.flush()
        os.fsync(file.fileno())


def _header(
    specs: Sequence[TensorSpec], crcs: Mapping[str, int], config: Mapping[str, Any] | None
) -> bytes:
    """The header's length and the header; its size does not depend on the checksums."""
    metadata = {
        "format": "pt",
        CHECKSUMS: json.dumps({name: f"{crc:08x}" for name, crc in crcs.items()}),
    }
    if config is not None:
        metadata[CONFIG] = json.dumps({name: config[name] for name in _CONFIG_FIELDS})
    header: dict = {"__metadata__": metadata}
    end = 0
    for spec in specs:
        start, end = end, end + spec.nbytes
        header[spec.name] = {
            "dtype": _FILE_DTYPES[spec.dtype.name],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_weights(
    folder: pathlib.Path,
    leaves: Sequence[Leaf],
    arrays: Iterable[np.ndarray],
    config: Mapping[str, Any],
    max_shard_size: int,
) -> None:
    """Writes a model's weights under their PyTorch names.

    Args:
      folder: Gets `model.safetensors`, or shards and `model.safetensors.index.json`.
      leaves: The parameters, wider types first.
      arrays: The leaves' values on the host, in the same order; consumed one at a time.
      config: The contents of the model's `config.json`; some fields are written, too.
      max_shard_size: Bytes above which a file becomes shards.
    """
    shards: list[list[TensorSpec]] = [[]]
    for leaf in leaves:
        for name in leaf.names:
            spec = TensorSpec(name, leaf.tensor_shape, np.dtype(leaf.value.dtype))
            if shards[-1] and sum(s.nbytes for s in shards[-1]) + spec.nbytes > max_shard_size:
                shards.append([])
            shards[-1].append(spec)
    tensors = (tensor for _, tensor in split_leaves(leaves, arrays))
    if len(shards) == 1:
        write_safetensors(folder / SAFE_WEIGHTS_NAME, shards[0], tensors, config)
        return
    weight_map = {}
    for number, specs in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, specs, (next(tensors) for _ in specs), config)
        weight_map |= dict.fromkeys((spec.name for spec in specs), name)
    total = sum(spec.nbytes for specs in shards for spec in specs)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{SAFE_WEIGHTS_NAME}.index.json").write_text(to_json(index), encoding="utf-8")
