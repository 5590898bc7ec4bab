"""A folder's weights, whichever of the formats they are in.

In order of preference: `model.safetensors`, `pytorch_model.bin`, `flax_model.msgpack`, each whole
or in shards that an index lists, and fairseq's checkpoints. What is found is a description of each
tensor under Hugging Face's PyTorch name; numbers are read later, one tensor at a time.

A safetensors file is the length of a JSON header (8 bytes, little-endian), the header with each
tensor's type, shape and place, then the tensors' bytes.
"""

import dataclasses
import json
import math
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors

from roberta_jax.errors import UsageError
from roberta_jax.weights.formats import fairseq, msgpack, pytorch
from roberta_jax.weights.names import torch_name
from roberta_jax.weights.tensors import Extent, StoredTensor

WEIGHTS = "model.safetensors"
_DTYPES = {
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
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class StoredWeights:
    """What a folder's weight files hold.

    Attributes:
      format: "safetensors", "bin", "msgpack" or "fairseq".
      files: Those that were opened.
      tensors: {PyTorch name: tensor}.
      settings: What the files themselves say of the config, where they do (fairseq).
    """

    format: str
    files: tuple[pathlib.Path, ...]
    tensors: dict[str, StoredTensor]
    settings: Mapping[str, Any] | None = None


def weights_in(folder: os.PathLike) -> list[str]:
    """The names of the weight files (or their indices) in a folder, the preferred one first.

    Args:
      folder: A folder, or one of the weight files in it.
    """
    if folder.is_file():
        return [folder.name] if _format_of(folder.name) else []
    wanted = [name + ending for name in _READERS for ending in ("", ".index.json")]
    return [name for name in [*wanted, *fairseq.CHECKPOINTS] if (folder / name).exists()]


def open_weights(path: pathlib.Path) -> StoredWeights:
    """Finds every tensor of a folder, or of one file.

    Raises:
      UsageError: A file is missing, cut short, of another kind, or holds more than tensors.
    """
    name = weights_in(path)[0]
    folder = path.parent if path.is_file() else path
    kind = _format_of(name)
    if kind == "fairseq":
        tensors, settings = fairseq.read(folder / name)
        return StoredWeights(kind, (folder / name,), tensors, settings)
    shards = _shards(folder / name) if name.endswith(".index.json") else [folder / name]
    tensors = {}
    for shard in shards:
        for key, tensor in _READER_OF[kind](shard).items():
            if key in tensors:
                raise UsageError(f"{shard} repeats {key} of another shard; fetch the files again")
            tensors[key] = tensor
    return StoredWeights(kind, tuple(shards), tensors)


def _read_safetensors(path: pathlib.Path) -> dict[str, StoredTensor]:
    try:
        with safetensors.safe_open(path, framework="np"):  # checks the header against the file
            pass
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(length))
    except (safetensors.SafetensorError, ValueError, struct.error) as error:
        raise UsageError(
            f"{path} ({path.stat().st_size:,} bytes) is cut short or no safetensors file "
            f"({error}); fetch or write it again"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            dtype = _DTYPES.get(entry["dtype"], entry["dtype"])
            extent = Extent(8 + length + start, end - start)
            tensors[name] = StoredTensor(tuple(entry["shape"]), dtype, path, (extent,))
    return tensors


def _read_msgpack(path: pathlib.Path) -> dict[str, StoredTensor]:
    return {
        torch_name(place): tensor.T if place[-1] == "kernel" else tensor
        for place, tensor in msgpack.read(path).items()
    }


_READERS: dict[str, tuple[str, Callable]] = {
    WEIGHTS: ("safetensors", _read_safetensors),
    "pytorch_model.bin": ("bin", pytorch.state_dict),
    msgpack.WEIGHTS: ("msgpack", _read_msgpack),
}
_READER_OF = dict(_READERS.values())
_FORMATS = {".safetensors": "safetensors", ".bin": "bin", ".msgpack": "msgpack", ".pt": "fairseq"}
FILE_ENDINGS = (".json", *_FORMATS)  # of all that is read of a model's folder


def _format_of(name: str) -> str | None:
    return _FORMATS.get(os.path.splitext(name.removesuffix(".index.json"))[1])


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [index.parent / os.path.basename(name) for name in shards]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{index} is no index of weights; fetch the file again") from None
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        raise UsageError(
            f"{index} names files that are not there: {', '.join(absent)}; fetch them, too"
        )
    return paths


class TensorSpec(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: pathlib.Path, specs: Sequence[TensorSpec], tensors: Iterable[np.ndarray]
) -> None:
    """Writes a file that PyTorch's loaders take.

    Args:
      path: The file to write.
      specs: Name, shape and type of every tensor, in the order of `tensors`. The wider types come
        first, so that each tensor's bytes are aligned.
      tensors: The tensors; consumed one by one, so a generator keeps one of them in memory.
    """
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        start, end = end, end + spec.nbytes
        header[spec.name] = {
            "dtype": _NAMES[spec.dtype.name],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for spec, tensor in zip(specs, tensors, strict=True):
            if tensor.shape != spec.shape or tensor.dtype != spec.dtype:
                raise ValueError(f"{spec} was promised, {tensor.shape} {tensor.dtype} came")
            file.write(tensor.tobytes())
        file.flush()
        os.fsync(file.fileno())
