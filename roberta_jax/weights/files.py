"""Finds a model's weight files and opens them with the reader of their format.

The formats, most preferred first: `model.safetensors`, `pytorch_model.bin` and
`flax_model.msgpack`, each a single file or shards that an index lists, then fairseq's checkpoints.
The module that reads a format is imported when a file of that format is opened. Opening reads the
headers alone; the tensors are read later, one at a time.
"""

import dataclasses
import importlib
import os
import pathlib
import types
from collections.abc import Mapping
from typing import Any

from roberta_jax.errors import UsageError, listed
from roberta_jax.storage.reading import parse_json, read_text
from roberta_jax.weights.tensors import FileContents, LazyTensor

SAFE_WEIGHTS_NAME = "model.safetensors"
TORCH_WEIGHTS_NAME = "pytorch_model.bin"
FLAX_WEIGHTS_NAME = "flax_model.msgpack"
FAIRSEQ_NAMES = ("model.pt", "checkpoint_best.pt", "checkpoint_last.pt")

# Each of these modules has a function `read_weights(path) -> FileContents`.
_MODULES = {
    "safetensors": "roberta_jax.weights.formats.safetensors",
    "bin": "roberta_jax.weights.formats.pytorch",
    "msgpack": "roberta_jax.weights.formats.msgpack",
    "fairseq": "roberta_jax.weights.formats.fairseq",
}
_FORMATS = {".safetensors": "safetensors", ".bin": "bin", ".msgpack": "msgpack", ".pt": "fairseq"}
_INDEX = ".index.json"
_SINGLE_OR_SHARDED = (SAFE_WEIGHTS_NAME, TORCH_WEIGHTS_NAME, FLAX_WEIGHTS_NAME)

# Endings of all files that are read from a model's folder.
FILE_ENDINGS = (".json", *_FORMATS)


def _shard_pattern(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return f"{stem}-*-of-*{ending}"


# For `hub.fetch`: the first group of which a repository has a file is fetched.
WEIGHT_FILE_GROUPS: tuple[tuple[str, ...], ...] = (
    *(
        group
        for name in _SINGLE_OR_SHARDED
        for group in ((name,), (name + _INDEX, _shard_pattern(name)))
    ),
    *((name,) for name in FAIRSEQ_NAMES),
)


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The tensors that a folder's weight files hold.

    Attributes:
      format: "safetensors", "bin", "msgpack" or "fairseq".
      files: The files that were opened.
      tensors: {PyTorch name: tensor}.
      config: The contents of a `config.json`, if the weight files themselves say them (fairseq);
        otherwise None.
      written_for: Fields of the `config.json` that the weights were written with, if they are
        stored with the weights.
    """

    format: str
    files: tuple[pathlib.Path, ...]
    tensors: dict[str, LazyTensor]
    config: Mapping[str, Any] | None = None
    written_for: Mapping[str, Any] | None = None


def format_of(name: str) -> str | None:
    """The format of a weight file or of an index, by its name; None if it is neither."""
    return _FORMATS.get(os.path.splitext(name.removesuffix(_INDEX))[1])


def format_module(name: str) -> types.ModuleType:
    """Imports the module that reads and writes a format."""
    return importlib.import_module(_MODULES[name])


def weights_in(folder: os.PathLike) -> list[str]:
    """Names of the weight files and indices in a folder, in order of preference.

    Args:
      folder: A folder, or one weight file.
    """
    if folder.is_file():
        return [folder.name] if format_of(folder.name) else []
    names = [name + ending for name in _SINGLE_OR_SHARDED for ending in ("", _INDEX)]
    return [name for name in (*names, *FAIRSEQ_NAMES) if (folder / name).exists()]


def open_weights(path: pathlib.Path) -> WeightFiles:
    """Opens the preferred weight files of a folder, or one weight file.

    Raises:
      UsageError: A file is missing, truncated, of another kind, or holds more than tensors.
    """
    name = weights_in(path)[0]
    folder = path.parent if path.is_file() else path
    format = format_of(name)
    reader = format_module(format)
    shards = _shards(folder / name) if name.endswith(_INDEX) else [folder / name]
    tensors: dict[str, LazyTensor] = {}
    contents = FileContents({})
    for shard in shards:
        contents = reader.read_weights(shard)
        for key, tensor in contents.tensors.items():
            if key in tensors:
                raise UsageError(f"{shard} repeats {key} of another shard; fetch the files again")
            tensors[key] = tensor
    return WeightFiles(format, tuple(shards), tensors, contents.config, contents.written_for)


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    try:
        names = sorted(set(parse_json(read_text(index))["weight_map"].values()))
        outside = [
            name[:100]
            for name in names
            if name in ("", ".", "..") or os.path.basename(name) != name or len(name) > 200
        ]
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{index} is not an index of weights; fetch the file again") from None
    if outside:
        raise UsageError(f"{index} names files outside its folder: {listed(outside)}")
    paths = [index.parent / name for name in names]
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        raise UsageError(
            f"{index} names files that do not exist: {listed(absent)}; fetch them, too"
        )
    if not paths:
        raise UsageError(f"{index} names no files; fetch the file again")
    return paths
