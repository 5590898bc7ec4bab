"""Reads the folders that the drop-in classes load: fetched files, the config and the parameters.

It differs from `roberta_jax.weights.from_pretrained` in what scripts for transformers' Flax classes
rely on: `flax_model.msgpack` is preferred to other weight files, and the caller decides what to do
about missing parameters.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from roberta_jax.errors import NotFoundError, UsageError, listed
from roberta_jax.storage import hub
from roberta_jax.storage.atomic import local_copy
from roberta_jax.weights.config_file import CONFIG_NAME, read_config_dict
from roberta_jax.weights.files import (
    FILE_ENDINGS,
    FLAX_WEIGHTS_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHT_FILE_GROUPS,
    open_weights,
    weights_in,
)
from roberta_jax.weights.match import HEADS, Tensors
from roberta_jax.weights.names import canonical, leaves, torch_name
from roberta_jax.weights.tensors import FLOATING, LazyTensor, read_all

GENERATION_CONFIG = "generation_config.json"

# Flax's weight files, which are preferred: groups of names, of which the first that exists is used.
_FLAX_FILES = ((FLAX_WEIGHTS_NAME,), (f"{FLAX_WEIGHTS_NAME}.index.json", "flax_model-*.msgpack"))
# Tensors of PyTorch files that repeat another tensor or are not parameters.
_NOT_PARAMETERS = (
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "lm_head.decoder.bias",
    "lm_head.decoder.weight",
)

LeafPath = tuple[str, ...]  # the keys of a leaf in the tree of parameters


@dataclasses.dataclass(frozen=True)
class ParameterFiles:
    """The parameters of a model that its weight files have.

    Attributes:
      values: {path in the tree: array}, with the dtypes of the files.
      missing: The paths that the files lack.
      mismatched: {path: (shape in the file, shape in the model)}.
      unused: The names in the file of tensors that the model does not have.
    """

    values: dict[LeafPath, np.ndarray]
    missing: tuple[LeafPath, ...]
    mismatched: dict[LeafPath, tuple[tuple[int, ...], tuple[int, ...]]]
    unused: tuple[str, ...]


@contextlib.contextmanager
def local_model_files(path: str | os.PathLike, options: hub.HubOptions) -> Iterator[pathlib.Path]:
    """Yields a local folder with a model's files, or a local weight file if `path` is one.

    Args:
      path: A folder, a weight file, the workdir of a finished run, or a Hugging Face hub id, whose
        files are downloaded.
      options: Which files of a hub id are used; its `subfolder` also applies to a folder.

    Raises:
      NotFoundError: There is no such model.
    """
    names = options.in_subfolder((CONFIG_NAME, GENERATION_CONFIG))
    groups = [options.in_subfolder(group) for group in _FLAX_FILES + WEIGHT_FILE_GROUPS]
    folder = hub.fetch(path, names, groups, **options.fetch_arguments())
    if options.subfolder:
        folder = folder / options.subfolder
    if not folder.exists():
        raise NotFoundError(
            f"there is no folder {str(folder)!r}; give the folder of a model or a hub id"
        )
    if not folder.is_file() and not weights_in(folder) and (folder / "hf").exists():
        source = folder / "hf"  # of a workdir
    else:
        source = folder
    with local_copy(source, FILE_ENDINGS) as local:
        if not weights_in(local):
            raise NotFoundError(
                f"{folder} holds no weights: looked for {FLAX_WEIGHTS_NAME}, "
                f"{SAFE_WEIGHTS_NAME} or "
                "pytorch_model.bin (each also as shards with their index)"
            )
        yield local


def read_config(path: pathlib.Path) -> Mapping[str, Any]:
    """Returns the `config.json` beside the weights, or the config inside a fairseq checkpoint.

    Args:
      path: The folder, or a weight file.

    Raises:
      UsageError: There is no config, or it cannot be read.
    """
    file = epath.Path(path.parent if path.is_file() else path) / CONFIG_NAME
    if not file.exists() and (config := open_weights(path).config) is not None:
        return config
    return read_config_dict(file)


def read_parameters(
    path: pathlib.Path, shapes: Mapping[str, Any], check_config: Callable[[Mapping[str, Any]], None]
) -> ParameterFiles:
    """Reads a model's parameters from its weight files.

    Args:
      path: The folder, or a weight file.
      shapes: The tree of the model's parameters, layers not stacked; leaves need only a shape.
      check_config: Called with the fields of the config that the weights were written with, if they
        name them; raises UsageError if they are not those of the model.

    Raises:
      UsageError: A file is damaged, or none of its tensors is a parameter of the model's encoder.
    """
    for names in _FLAX_FILES:
        if (path / names[0]).exists():
            path = path / names[0]
            break
    files = open_weights(path)
    check_config(files.written_for or {})
    tensors = Tensors(_with_torch_names(files.tensors))
    model_leaves = leaves(shapes)
    values, reads, missing, mismatched = {}, [], [], {}
    for leaf in model_leaves:
        [name] = leaf.names
        if canonical(name) not in tensors.names:
            missing.append(leaf.path)
            continue
        tensor = tensors.find(name)
        if tensor.shape != leaf.tensor_shape:
            stored_shape = tensor.shape[::-1] if leaf.transposed else tensor.shape
            mismatched[leaf.path] = (stored_shape, tuple(leaf.value.shape))
            continue
        if tensor.dtype not in FLOATING:
            raise UsageError(
                f"{path} has {name} as {tensor.dtype}, but parameters must be of a floating-point "
                "dtype"
            )
        values[leaf.path] = array = np.empty(leaf.value.shape, tensor.dtype)
        in_file = tensors.names[canonical(name)]
        reads.append((in_file, tensor, array.T if leaf.transposed else array))
    if not any(is_encoder(leaf.path) and leaf.path not in missing for leaf in model_leaves):
        raise UsageError(
            f"no tensor in {path} is a parameter of this model's encoder: the file holds "
            f"{listed(sorted(tensors.in_file))}"
        )
    read_all(reads)
    unused = [
        name for name in tensors.unused(model_leaves) if canonical(name) not in _NOT_PARAMETERS
    ]
    return ParameterFiles(values, tuple(missing), mismatched, tuple(unused))


def is_encoder(path: LeafPath) -> bool:
    """Returns whether a parameter is the encoder's, not a head's or cross-attention's."""
    part = path[1] if path[0] == "roberta" else path[0]
    return part not in HEADS and "crossattention" not in path


def _with_torch_names(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Converts the names and layouts of a safetensors file of transformers' Flax classes.

    Tensors that have PyTorch names stay as they are.
    """
    renamed = {}
    for name, tensor in tensors.items():
        path = tuple(name.split("."))
        if path[-1] in ("kernel", "scale", "embedding"):
            renamed[torch_name(path)] = tensor.T if path[-1] == "kernel" else tensor
        else:
            renamed[name] = tensor
    return renamed
