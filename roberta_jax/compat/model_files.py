"""The drop-in classes' folders: as transformers' Flax classes read and write them.

They differ from `hf.from_pretrained` and `saving.save_pretrained` in what those classes' scripts
rely on: of several weight files `flax_model.msgpack` is read first, parameters may be absent where
the caller says how to go on, and files are put into a folder beside whatever else is there.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from roberta_jax.errors import UsageError, listed
from roberta_jax.storage import hub
from roberta_jax.storage.atomic import local_copy
from roberta_jax.weights.config_file import read_settings, to_json
from roberta_jax.weights.files import (
    FILE_ENDINGS,
    WEIGHTS,
    TensorSpec,
    open_weights,
    weights_in,
    write_safetensors,
)
from roberta_jax.weights.formats import msgpack
from roberta_jax.weights.match import HEADS, Tensors
from roberta_jax.weights.names import canonical, leaves, torch_name
from roberta_jax.weights.save import CONFIG
from roberta_jax.weights.tensors import FLOATING, StoredTensor, read_all

logger = logging.getLogger(__name__)

GENERATION = "generation_config.json"
_FLAX_FIRST = ((msgpack.WEIGHTS,), (f"{msgpack.WEIGHTS}.index.json", "flax_model-*.msgpack"))
# Tensors of PyTorch's files that repeat another one or hold no parameter.
_NO_PARAMETERS = (
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "lm_head.decoder.bias",
    "lm_head.decoder.weight",
)
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

Path = tuple[str, ...]  # of a leaf


@dataclasses.dataclass(frozen=True)
class FlaxWeights:
    """What a folder's files have of a model's parameters.

    Attributes:
      values: {path in the tree: array}, in the file's type.
      missing: Paths that no file has.
      mismatched: {path: (shape in the file, the model's)}.
      unused: The file's names of tensors that the model has no place for.
    """

    values: dict[Path, np.ndarray]
    missing: tuple[Path, ...]
    mismatched: dict[Path, tuple[tuple[int, ...], tuple[int, ...]]]
    unused: tuple[str, ...]


@contextlib.contextmanager
def model_files(
    path: str | os.PathLike,
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Iterator[pathlib.Path]:
    """Gives a local folder with a model's files, fetched from the hub if need be; or one file.

    Args:
      path: A folder, a weight file in one, a finished run's workdir, or a hub id.
      subfolder: Where in it the model is.
      revision, token: As in `interchange.hf.from_pretrained`; a local folder has neither.
      local_files_only: Take a hub id's files from the cache alone.

    Raises:
      UsageError: There is no such model.
    """
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    if not hub.is_hub_id(path):
        folder = epath.Path(path) / prefix
    elif local_files_only:
        import huggingface_hub  # not at the top: most uses are of local folders

        try:
            cached = huggingface_hub.snapshot_download(
                path, revision=revision, local_files_only=True
            )
        except (huggingface_hub.errors.LocalEntryNotFoundError, FileNotFoundError):
            raise UsageError(
                f"{path} is not in the cache; leave out local_files_only=True to fetch it"
            ) from None
        folder = epath.Path(cached) / prefix
    else:
        names = [f"{prefix}{name}" for name in (CONFIG, GENERATION)]
        groups = [[f"{prefix}{name}" for name in group] for group in _FLAX_FIRST + hub.WEIGHT_FILES]
        folder = hub.fetch(path, names, groups, revision=revision, token=token) / prefix
    if not folder.exists():
        raise UsageError(f"no folder {str(folder)!r}; give a folder of a model or a hub id")
    workdir = not folder.is_file() and not weights_in(folder) and (folder / "hf").exists()
    with local_copy(folder / "hf" if workdir else folder, FILE_ENDINGS) as local:
        if not weights_in(local):
            raise UsageError(
                f"{folder} holds no weights: looked for {msgpack.WEIGHTS}, {WEIGHTS} or "
                "pytorch_model.bin (each also as shards with their index)"
            )
        yield local


def settings_in(place: pathlib.Path) -> Mapping[str, Any]:
    """The `config.json` beside the weights, or what a fairseq checkpoint says of itself."""
    file = epath.Path(place.parent if place.is_file() else place) / CONFIG
    if not file.exists() and (settings := open_weights(place).settings) is not None:
        return settings
    return read_settings(file)


def read_weights(place: pathlib.Path, shapes: Mapping[str, Any]) -> FlaxWeights:
    """Reads the parameters that a folder's weight files have.

    Args:
      place: The folder, or a weight file.
      shapes: The parameters' tree, a layer each, of anything with shapes.

    Raises:
      UsageError: A file is damaged, or none of its tensors are these parameters.
    """
    for names in _FLAX_FIRST:
        if (place / names[0]).exists():
            place = place / names[0]
            break
    tensors = Tensors(_by_torch_names(open_weights(place).tensors))
    wanted = leaves(shapes)
    values, work, missing, mismatched = {}, [], [], {}
    for leaf in wanted:
        [name] = leaf.names
        if canonical(name) not in tensors.names:
            missing.append(leaf.path)
            continue
        stored = tensors.find(name)
        if stored.shape != leaf.tensor_shape:
            shape = stored.shape[::-1] if leaf.transposed else stored.shape
            mismatched[leaf.path] = (shape, tuple(leaf.value.shape))
            continue
        if stored.dtype not in FLOATING:
            raise UsageError(f"{place} has {name} as {stored.dtype}; only floating types are read")
        values[leaf.path] = array = np.empty(leaf.value.shape, stored.dtype)
        work.append((stored, array.T if leaf.transposed else array))
    if not any(is_encoder(leaf.path) and leaf.path not in missing for leaf in wanted):
        raise UsageError(
            f"no tensor in {place} is this model's: it holds {listed(sorted(tensors.stored))}"
        )
    read_all(work)
    unused = [name for name in tensors.unused(wanted) if canonical(name) not in _NO_PARAMETERS]
    return FlaxWeights(values, tuple(missing), mismatched, tuple(unused))


def is_encoder(path: Path) -> bool:
    """Whether a parameter is the encoder's own: of no head and no cross-attention."""
    part = path[1] if path[0] == "roberta" else path[0]
    return part not in HEADS and "crossattention" not in path


def _by_torch_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Under PyTorch's names also what transformers' Flax classes write as safetensors."""
    renamed = {}
    for name, tensor in tensors.items():
        path = tuple(name.split("."))
        if path[-1] in ("kernel", "scale", "embedding"):
            renamed[torch_name(path)] = tensor.T if path[-1] == "kernel" else tensor
        else:
            renamed[name] = tensor
    return renamed


def write_folder(
    path: str | os.PathLike,
    shapes: Mapping[str, Any],
    params: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    *,
    safe_serialization: bool,
    max_shard_size: int | str,
) -> None:
    """Puts weights and JSON files into a folder, each file whole or not at all.

    Args:
      path: The folder, made if need be; other files in it stay.
      shapes: The tree that the parameters should have.
      params: The parameters; some may be absent, which a warning says.
      files: {name: values} of the JSON files, the one that must come last at the end.
      safe_serialization: `model.safetensors`, as transformers' PyTorch classes write it, instead of
        `flax_model.msgpack`.
      max_shard_size: Bytes, or "200MB", above which msgpack becomes shards with an index.

    Raises:
      UsageError: `path` is a file, or the parameters are not the model's.
    """
    target = epath.Path(path)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; choose another name for the model's folder")
    _check(shapes, params)
    limit = _bytes_of(max_shard_size)
    target.mkdir(parents=True, exist_ok=True)
    local = "://" not in os.fspath(target)
    with tempfile.TemporaryDirectory(dir=target if local else None, prefix=".partial-") as name:
        staging = pathlib.Path(name)
        if safe_serialization:
            _write_safetensors(staging, params)
        else:
            _write_msgpack(staging, params, limit)
        written = sorted(file.name for file in staging.iterdir())
        for name, values in files.items():
            (staging / name).write_text(to_json(values), encoding="utf-8")
        for name in (*written, *files):
            if local:
                os.replace(staging / name, target / name)
            else:
                epath.Path(staging / name).copy(target / name, overwrite=True)
    _tidy_up(target, written)


def _tidy_up(target: epath.Path, written: list[str]) -> None:
    """Removes what an earlier save left in the format written; names weights that remain."""
    ours = re.compile(
        r"(flax_model|model)(-\d{5}-of-\d{5})?\.(msgpack|safetensors)(\.index\.json)?"
    )
    ending = ".safetensors" if WEIGHTS in written else ".msgpack"
    for file in list(target.iterdir()):
        if file.name not in written and ours.fullmatch(file.name) and ending in file.name:
            file.unlink()
    others = [name for name in weights_in(target) if name not in written]
    if others:
        logger.warning(
            "%s also holds %s, of an earlier save: remove what is out of date, since which of them "
            "is loaded depends on the program",
            target,
            ", ".join(others),
        )


def _check(shapes: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    wanted = traverse_util.flatten_dict(shapes, sep="/")
    given = traverse_util.flatten_dict(params, sep="/")
    problems = [f"{name} is not the model's" for name in given if name not in wanted]
    problems += [
        f"{name} has shape {tuple(np.shape(given[name]))}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and np.shape(given[name]) != wanted[name].shape
    ]
    if problems:
        raise UsageError(f"these are not this model's parameters: {listed(problems)}")
    absent = [name for name in wanted if name not in given]
    if absent:
        logger.warning("saved without %s, which are not among the parameters", listed(absent))


def _bytes_of(size: int | str) -> int:
    match = re.fullmatch(r"(\d+)\s*([A-Z]*)", str(size).strip().upper())
    if not match or match[2] not in _UNITS:
        raise UsageError(f'max_shard_size is a number of bytes or "200MB", not {size!r}')
    return int(match[1]) * _UNITS[match[2]]


def _write_safetensors(folder: pathlib.Path, params: Mapping[str, Any]) -> None:
    # Tensors that a wider type aligns come first.
    ours = sorted(leaves(params), key=lambda leaf: -np.dtype(leaf.value.dtype).itemsize)
    specs = [
        TensorSpec(leaf.names[0], leaf.tensor_shape, np.dtype(leaf.value.dtype)) for leaf in ours
    ]
    arrays = (np.asarray(leaf.value) for leaf in ours)
    tensors = (
        array.T if leaf.transposed else array for leaf, array in zip(ours, arrays, strict=True)
    )
    write_safetensors(folder / WEIGHTS, specs, tensors)


def _write_msgpack(folder: pathlib.Path, params: Mapping[str, Any], limit: int) -> None:
    shards: list[dict[Path, Any]] = [{}]
    size = total = 0
    for path, value in traverse_util.flatten_dict(params).items():
        nbytes = value.size * np.dtype(value.dtype).itemsize
        if shards[-1] and size + nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][path] = value
        size, total = size + nbytes, total + nbytes
    stem, ending = os.path.splitext(msgpack.WEIGHTS)
    files = {}
    for number, shard in enumerate(shards, start=1):
        part = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        name = f"{stem}{part}{ending}"
        specs = {path: (value.shape, np.dtype(value.dtype)) for path, value in shard.items()}
        arrays = ((path, np.asarray(jax.device_get(value))) for path, value in shard.items())
        msgpack.write(folder / name, specs, arrays)
        files |= dict.fromkeys(("/".join(path) for path in shard), name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / f"{msgpack.WEIGHTS}.index.json").write_text(to_json(index), encoding="utf-8")
