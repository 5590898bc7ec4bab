"""Reads and writes safetensors files.

A file is the length of a JSON header (8 bytes, little-endian), the header with each tensor's type,
shape and place in the file, then the tensors' bytes.
"""

import json
import math
import os
import pathlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors

from roberta_jax.errors import UsageError
from roberta_jax.weights.config_file import to_json
from roberta_jax.weights.files import SAFE_WEIGHTS_NAME
from roberta_jax.weights.names import Leaf, split_leaves
from roberta_jax.weights.tensors import ByteRange, LazyTensor

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


def read_weights(path: pathlib.Path) -> tuple[dict[str, LazyTensor], None]:
    """Finds the tensors of a file.

    Returns:
      ({name: tensor}, None).

    Raises:
      UsageError: The file is truncated, of another format, or cannot be read.
    """
    try:
        with safetensors.safe_open(path, framework="np"):  # checks the header against the file
            pass
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(length))
    except (safetensors.SafetensorError, ValueError, struct.error) as error:
        raise UsageError(
            f"{path} ({path.stat().st_size:,} bytes) is cut short or not a safetensors file "
            f"({error}); fetch or write it again"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            dtype = _NUMPY_DTYPES.get(entry["dtype"], entry["dtype"])
            place = ByteRange(8 + length + start, end - start)
            tensors[name] = LazyTensor(tuple(entry["shape"]), dtype, path, (place,))
    return tensors, None


class TensorSpec(NamedTuple):
    """Name, shape and type of a tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: pathlib.Path, specs: Sequence[TensorSpec], tensors: Iterable[np.ndarray]
) -> None:
    """Writes one file, with the metadata that transformers' PyTorch loaders expect.

    Args:
      path: The file to write.
      specs: Name, shape and type of every tensor, in the order of `tensors`. Wider types must come
        first, so that each tensor's bytes are aligned.
      tensors: The tensors. They are consumed one at a time, so that a generator needs memory for
        one of them.
    """
    header: dict = {"__metadata__": {"format": "pt"}}
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
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for spec, tensor in zip(specs, tensors, strict=True):
            if tensor.shape != spec.shape or tensor.dtype != spec.dtype:
                raise ValueError(f"expected {spec}, got {tensor.shape} {tensor.dtype}")
            file.write(tensor.tobytes())
        file.flush()
        os.fsync(file.fileno())


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
      config: The model's `config.json`; not used here.
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
        write_safetensors(folder / SAFE_WEIGHTS_NAME, shards[0], tensors)
        return
    weight_map = {}
    for number, specs in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, specs, (next(tensors) for _ in specs))
        weight_map |= dict.fromkeys((spec.name for spec in specs), name)
    total = sum(spec.nbytes for specs in shards for spec in specs)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{SAFE_WEIGHTS_NAME}.index.json").write_text(to_json(index), encoding="utf-8")
