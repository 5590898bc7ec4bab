"""Reading and writing `model.safetensors`, one tensor in memory at a time.

A safetensors file is the length of a JSON header (8 bytes, little-endian), the header with each
tensor's type, shape and place, then the tensors' bytes. Reading goes through the safetensors
library; its writer wants all tensors on the host at once, which this one avoids.
"""

import contextlib
import json
import math
import os
import pathlib
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import ml_dtypes  # noqa: F401  (teaches NumPy the name "bfloat16", which safetensors looks up)
import numpy as np
import safetensors

from roberta_jax.errors import UsageError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_TYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class TensorSpec(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


class WeightFiles(contextlib.AbstractContextManager):
    """The tensors of a folder: of its `model.safetensors`, or of the shards that its index names.

    Attributes:
      shapes: {name: shape} of every tensor.
      types: {name: safetensors' type name, such as "F32"}.

    Raises:
      UsageError: A file is missing, cut short or no safetensors file.
    """

    def __init__(self, folder: pathlib.Path):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        self._files = {}
        with contextlib.ExitStack() as stack:
            for path in _weight_paths(folder):
                file = stack.enter_context(_open(path))
                for name in file.keys():  # noqa: SIM118  (no mapping: it has no __iter__)
                    tensor = file.get_slice(name)
                    self.shapes[name] = tuple(tensor.get_shape())
                    self.types[name] = tensor.get_dtype()
                    self._files[name] = file
            self._stack = stack.pop_all()

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor in the file's own type."""
        return self._files[name].get_tensor(name)

    def __exit__(self, *exception):
        self._files.clear()
        self._stack.close()


def weights_exist(folder: pathlib.Path) -> bool:
    """Whether the folder has weights that `WeightFiles` reads."""
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()


def _weight_paths(folder: pathlib.Path) -> list[pathlib.Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    index = folder / INDEX
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{index} is no index of weights; fetch the file again") from None
    absent = [name for name in shards if not (folder / os.path.basename(name)).exists()]
    if absent:
        raise UsageError(
            f"{index} names files that are not there: {', '.join(absent)}; fetch them, too"
        )
    return [folder / os.path.basename(name) for name in shards]


def _open(path: pathlib.Path):
    try:
        return safetensors.safe_open(path, framework="np")
    except safetensors.SafetensorError as error:
        size = path.stat().st_size
        raise UsageError(
            f"{path} ({size:,} bytes) is cut short or no safetensors file ({error}); "
            "fetch or write it again"
        ) from None


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
    for name, shape, dtype in specs:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _TYPES[dtype.name],
            "shape": list(shape),
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
