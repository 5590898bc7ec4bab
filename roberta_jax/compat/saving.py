"""Writes the folders that the drop-in classes save.

It differs from `roberta_jax.weights.save_pretrained` in what scripts for transformers' Flax classes
rely on: the folder may hold other files, which stay, and parameters may be missing.
"""

import contextlib
import logging
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from roberta_jax.errors import UsageError, listed
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.storage import atomic
from roberta_jax.weights.config_file import CONFIG_NAME, to_json
from roberta_jax.weights.files import FLAX_WEIGHTS_NAME, SAFE_WEIGHTS_NAME, weights_in
from roberta_jax.weights.finite import check_before_saving
from roberta_jax.weights.formats import msgpack
from roberta_jax.weights.formats.safetensors import TensorSpec, write_safetensors
from roberta_jax.weights.names import leaves

logger = logging.getLogger(__name__)

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SAVED_WEIGHTS = re.compile(
    r"(flax_model|model)(-\d{5}-of-\d{5})?\.(msgpack|safetensors)(\.index\.json)?"
)

Writer = Callable[[pathlib.Path], None]  # writes a file at a path


def write_model_folder(
    path: str | os.PathLike,
    shapes: Mapping[str, Any],
    params: Mapping[str, Any],
    json_files: Mapping[str, Mapping[str, Any]],
    *,
    safe_serialization: bool,
    max_shard_size: int | str,
) -> None:
    """Writes weights and JSON files into a folder. Each file appears whole or not at all.

    If writing a file fails, none of the folder's files changes.

    Args:
      path: The folder; created if it does not exist. Its other files stay.
      shapes: The tree of the model's parameters; leaves need only a shape.
      params: The parameters. A warning lists those that are missing.
      json_files: {file name: contents} of the JSON files, which appear in this order after the
        weights.
      safe_serialization: Whether to write `model.safetensors`, with PyTorch's names, instead of
        `flax_model.msgpack`.
      max_shard_size: Size above which the msgpack file is split into shards with an index, in
        bytes or as a string such as "200MB".

    Raises:
      UsageError: `path` is a file, `max_shard_size` is not a size, or the parameters are not the
        model's.
    """
    target = epath.Path(path)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; choose another name for the model's folder")
    _check_params(shapes, params)
    shard_bytes = _parse_bytes(max_shard_size)
    target.mkdir(parents=True, exist_ok=True)
    if safe_serialization:
        config = RobertaConfig.from_dict(json_files[CONFIG_NAME]).to_dict()
        writers = {SAFE_WEIGHTS_NAME: lambda file: _write_safetensors(file, params, config)}
    else:
        writers = _msgpack_writers(params, shard_bytes)
    weight_files = list(writers)
    for name, values in json_files.items():
        writers[name] = _json_writer(values)
    _replace_files(target, writers)
    _remove_stale_weights(target, weight_files)


def _replace_files(target: epath.Path, writers: Mapping[str, Writer]) -> None:
    """Writes all files under temporary names, then moves them into the folder in order."""
    with contextlib.ExitStack() as stack:
        if atomic.is_local(target):
            # The stack replaces the files in reverse order, once all of them are written.
            paths = {
                name: stack.enter_context(atomic.replace_file(target / name))
                for name in reversed(writers)
            }
        else:
            staging = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            paths = {name: staging / name for name in writers}
        for name, write in writers.items():
            write(paths[name])
        if not atomic.is_local(target):
            for name in writers:
                epath.Path(paths[name]).copy(target / name, overwrite=True)


def _remove_stale_weights(target: epath.Path, weight_files: list[str]) -> None:
    """Removes other weight files of the format that was written; warns of other formats."""
    ending = ".safetensors" if SAFE_WEIGHTS_NAME in weight_files else ".msgpack"
    for file in list(target.iterdir()):
        stale = file.name not in weight_files and _SAVED_WEIGHTS.fullmatch(file.name)
        if stale and ending in file.name:
            file.unlink()
    other_formats = [name for name in weights_in(target) if name not in weight_files]
    if other_formats:
        logger.warning(
            "%s also holds %s, from an earlier save: remove the files that are out of date, since "
            "it depends on the program which of them it loads",
            target,
            ", ".join(other_formats),
        )


def _check_params(shapes: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Raises an error for wrong parameters, and warns of missing ones."""
    expected = traverse_util.flatten_dict(shapes, sep="/")
    given = traverse_util.flatten_dict(params, sep="/")
    problems = [f"{name} is not a parameter of the model" for name in given if name not in expected]
    problems += [
        f"{name} has shape {tuple(np.shape(given[name]))}, not {tuple(expected[name].shape)}"
        for name in expected
        if name in given and np.shape(given[name]) != expected[name].shape
    ]
    if problems:
        raise UsageError(f"params does not match this model: {listed(problems)}")
    for name, value in given.items():
        if jax.numpy.issubdtype(value.dtype, jax.numpy.floating):
            check_before_saving(name, np.asarray(value))
    missing = [name for name in expected if name not in given]
    if missing:
        logger.warning("saved without %s, which params lacks", listed(missing))


def _parse_bytes(size: int | str) -> int:
    match = re.fullmatch(r"(\d+)\s*([A-Z]*)", str(size).strip().upper())
    if not match or match[2] not in _UNITS:
        raise UsageError(
            f'max_shard_size must be a number of bytes or a string such as "200MB", not {size!r}'
        )
    return int(match[1]) * _UNITS[match[2]]


def _json_writer(values: Mapping[str, Any]) -> Writer:
    def write(file: pathlib.Path) -> None:
        file.write_text(to_json(values), encoding="utf-8")

    return write


def _write_safetensors(
    file: pathlib.Path, params: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    # Tensors of wider dtypes come first, so that every tensor is aligned.
    sorted_leaves = sorted(leaves(params), key=lambda leaf: -np.dtype(leaf.value.dtype).itemsize)
    specs = [
        TensorSpec(leaf.names[0], leaf.tensor_shape, np.dtype(leaf.value.dtype))
        for leaf in sorted_leaves
    ]
    arrays = ((leaf, np.asarray(leaf.value)) for leaf in sorted_leaves)
    tensors = (array.T if leaf.transposed else array for leaf, array in arrays)
    write_safetensors(file, specs, tensors, config)


def _msgpack_writers(params: Mapping[str, Any], shard_bytes: int) -> dict[str, Writer]:
    """Returns {file name: writer} of the msgpack file, or of its shards and their index."""
    shards = _split_into_shards(traverse_util.flatten_dict(params), shard_bytes)
    if len(shards) == 1:
        return {FLAX_WEIGHTS_NAME: _msgpack_writer(shards[0])}
    stem, ending = os.path.splitext(FLAX_WEIGHTS_NAME)
    writers, weight_map = {}, {}
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}-{number:05}-of-{len(shards):05}{ending}"
        writers[name] = _msgpack_writer(shard)
        weight_map |= dict.fromkeys(("/".join(path) for path in shard), name)
    total_size = sum(_nbytes(value) for shard in shards for value in shard.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    writers[f"{FLAX_WEIGHTS_NAME}.index.json"] = _json_writer(index)
    return writers


def _split_into_shards(
    flat_params: Mapping[tuple[str, ...], Any], shard_bytes: int
) -> list[dict[tuple[str, ...], Any]]:
    shards: list[dict[tuple[str, ...], Any]] = [{}]
    size = 0
    for path, value in flat_params.items():
        if shards[-1] and size + _nbytes(value) > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][path] = value
        size += _nbytes(value)
    return shards


def _msgpack_writer(flat_params: Mapping[tuple[str, ...], Any]) -> Writer:
    def write(file: pathlib.Path) -> None:
        specs = {path: (value.shape, np.dtype(value.dtype)) for path, value in flat_params.items()}
        arrays = ((path, np.asarray(jax.device_get(value))) for path, value in flat_params.items())
        msgpack.write(file, specs, arrays)

    return write


def _nbytes(value: Any) -> int:
    return value.size * np.dtype(value.dtype).itemsize
