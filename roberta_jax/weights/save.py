"""Models written as `transformers` and fairseq load them, without PyTorch.

Names and layouts are those of each format; `layouts` and `fairseq` translate. The decoder of a
language model's head is the word table where the two are tied, so that Hugging Face's files leave
it out; its bias is `lm_head.bias`. One leaf at a time is fetched from the devices.
"""

import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from jax.experimental import multihost_utils

from roberta_jax.errors import UsageError, listed
from roberta_jax.modeling.heads import RobertaForMultipleChoice
from roberta_jax.storage import atomic
from roberta_jax.storage.atomic import replace_folder
from roberta_jax.storage.hub import TOKENIZER_FILES as TOKENIZER_FILES
from roberta_jax.weights.config_file import to_json
from roberta_jax.weights.files import WEIGHTS, TensorSpec, write_safetensors
from roberta_jax.weights.formats import fairseq, msgpack
from roberta_jax.weights.names import Leaf, Params, canonical, leaves
from roberta_jax.weights.next_sentence import FILE as NEXT_SENTENCE
from roberta_jax.weights.next_sentence import head_tensors

CONFIG = "config.json"
FORMATS = ("hf", "flax", "fairseq")
MAX_SHARD_SIZE = 5_000_000_000  # bytes, as transformers cuts them

_FAIRSEQ_WEIGHTS = fairseq.CHECKPOINTS[0]
_OURS = (
    CONFIG,
    WEIGHTS,
    f"{WEIGHTS}.index.json",
    NEXT_SENTENCE,
    msgpack.WEIGHTS,
    _FAIRSEQ_WEIGHTS,
)
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def save_pretrained(
    path: str | os.PathLike,
    model: nn.Module,
    params: Params,
    tokenizer: Any = None,
    *,
    format: str = "hf",
    max_shard_size: int = MAX_SHARD_SIZE,
    next_sentence: Params | None = None,
) -> None:
    """Writes a folder that `from_pretrained` and, of each format, its own programs load.

    The folder appears whole or not at all: it is written beside its place and renamed. A folder
    that is there already is replaced if it holds nothing but such files, and keeps its tokenizer
    where none is given. On an object store (`gs://…`) there is no rename: `config.json`, without
    which no folder counts as a model, is removed first and written last.

    With several processes all must call it, since each holds a part of the parameters; the first
    writes.

    Args:
      path: The folder to write.
      model: The module whose parameters these are; its config is written.
      params: The parameters, stacked or a layer each, of any floating type, which is kept.
      tokenizer: An object with `save_pretrained(folder)`; its files are put beside the model's.
      format: "hf", `model.safetensors` for transformers' PyTorch classes; "flax",
        `flax_model.msgpack` for its Flax classes; "fairseq", `model.pt`, which holds
        the config, too.
      max_shard_size: Bytes above which `model.safetensors` becomes shards with an index.
      next_sentence: Parameters of a head of next-sentence prediction, which goes into a file of its
        own; see `interchange.next_sentence`.

    Raises:
      UsageError: The parameters are not the model's, the folder holds other files, fairseq has no
        place for the model, or it cannot be written. Nothing that was there has changed then.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}: use one of {', '.join(FORMATS)}")
    target = epath.Path(path)
    # Tensors that a wider type aligns come first in the file.
    ours = sorted(leaves(params), key=lambda leaf: -np.dtype(leaf.value.dtype).itemsize)
    _check_params(ours, model)
    settings = model.config.to_dict(type(model).__name__)
    settings["dtype"] = np.dtype(ours[0].value.dtype).name
    if format == "fairseq":
        _check_fairseq(settings, ours)
        # The token types' row goes into the positions' rows, so that it has to come first.
        ours.sort(key=lambda leaf: canonical(leaf.names[0]) != fairseq.TYPES)
    head = {} if next_sentence is None else head_tensors(jax.tree.map(_on_host, next_sentence))
    if jax.process_index() == 0:
        check_replaceable(target)
        try:
            last = _FAIRSEQ_WEIGHTS if format == "fairseq" else CONFIG
            with replace_folder(target, last=last) as folder:
                _WRITERS[format](folder, ours, settings, max_shard_size)
                if head:
                    specs = [TensorSpec(name, x.shape, x.dtype) for name, x in head.items()]
                    write_safetensors(folder / NEXT_SENTENCE, specs, head.values())
                if tokenizer is not None:
                    tokenizer.save_pretrained(folder)
                else:
                    _copy_tokenizer(target, folder)
                if format != "fairseq":  # whose checkpoint holds its own
                    (folder / CONFIG).write_text(to_json(settings), encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"cannot write {target}: {error.strerror or error}; what was there before is "
                "unchanged. Make room or choose another folder"
            ) from error
    else:
        for _ in _host_leaves(ours):
            pass
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"save_pretrained {target}")


def parameter_values(model: nn.Module, key: jax.Array) -> dict[str, Any]:
    """A model's initial parameters."""
    ids = jnp.zeros((1, 1, 1) if isinstance(model, RobertaForMultipleChoice) else (1, 1), jnp.int32)
    return nn.meta.unbox(model.init(key, ids)["params"])


def parameter_shapes(model: nn.Module) -> dict[str, Any]:
    """The shapes and types of a model's parameters, which are not computed."""
    return jax.eval_shape(lambda key: parameter_values(model, key), jax.random.key(0))


def _host_leaves(ours: Iterable[Leaf]) -> Iterator[tuple[Leaf, np.ndarray]]:
    """Yields every leaf with its value; one leaf at a time is fetched from the devices."""
    for leaf in ours:
        yield leaf, _on_host(leaf.value)


def _on_host(value: Any) -> np.ndarray:
    if isinstance(value, jax.Array) and not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        value = multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(value)


def _host_tensors(ours: Iterable[Leaf]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every PyTorch tensor with its name."""
    for leaf, value in _host_leaves(ours):
        for name, tensor in zip(leaf.names, value if leaf.stacked else [value], strict=True):
            yield name, tensor.T if leaf.transposed else tensor


def _write_safetensors(folder, ours: list[Leaf], settings, max_shard_size: int) -> None:
    shards: list[list[TensorSpec]] = [[]]
    for leaf in ours:
        for name in leaf.names:
            spec = TensorSpec(name, leaf.tensor_shape, np.dtype(leaf.value.dtype))
            if shards[-1] and sum(s.nbytes for s in shards[-1]) + spec.nbytes > max_shard_size:
                shards.append([])
            shards[-1].append(spec)
    tensors = (tensor for _, tensor in _host_tensors(ours))
    if len(shards) == 1:
        write_safetensors(folder / WEIGHTS, shards[0], tensors)
        return
    files = {}
    for number, specs in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, specs, (next(tensors) for _ in specs))
        files |= dict.fromkeys((spec.name for spec in specs), name)
    total = sum(spec.nbytes for specs in shards for spec in specs)
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / f"{WEIGHTS}.index.json").write_text(to_json(index), encoding="utf-8")


def _write_flax(folder, ours: list[Leaf], settings, max_shard_size: int) -> None:
    specs = {}
    for leaf in ours:
        shape = leaf.value.shape[1:] if leaf.stacked else leaf.value.shape
        for place in _flax_paths(leaf):
            specs[place] = (tuple(shape), np.dtype(leaf.value.dtype))
    arrays = (
        (place, array)
        for leaf, value in _host_leaves(ours)
        for place, array in zip(_flax_paths(leaf), value if leaf.stacked else [value], strict=True)
    )
    msgpack.write(folder / msgpack.WEIGHTS, specs, arrays)


def _flax_paths(leaf: Leaf) -> list[tuple[str, ...]]:
    if not leaf.stacked:
        return [leaf.path]
    depth = leaf.path.index("layer") + 1
    return [(*leaf.path[:depth], str(i), *leaf.path[depth:]) for i in range(len(leaf.names))]


def _write_fairseq(folder, ours: list[Leaf], settings, max_shard_size: int) -> None:
    shapes = {
        canonical(name): (leaf.tensor_shape, np.dtype(leaf.value.dtype).name)
        for leaf in ours
        for name in leaf.names
    }
    tensors = ((canonical(name), tensor) for name, tensor in _host_tensors(ours))
    fairseq.write(folder / _FAIRSEQ_WEIGHTS, settings, shapes, tensors)


_WRITERS = {"hf": _write_safetensors, "flax": _write_flax, "fairseq": _write_fairseq}


def _check_fairseq(settings: dict[str, Any], ours: list[Leaf]) -> None:
    problems = fairseq.check_writable(
        settings, [canonical(name) for leaf in ours for name in leaf.names]
    )
    if problems:
        raise UsageError(
            f"fairseq's RoBERTa has no place for this {settings['architectures'][0]}: "
            f"{listed(problems)}"
        )


def _check_params(ours: list[Leaf], model: nn.Module) -> None:
    wanted = {
        name: leaf.tensor_shape for leaf in leaves(parameter_shapes(model)) for name in leaf.names
    }
    given = {name: leaf.tensor_shape for leaf in ours for name in leaf.names}
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} is not the model's" for name in given if name not in wanted]
    problems += [
        f"{name} has shape {list(given[name])}, not {list(wanted[name])}"
        for name in wanted
        if name in given and given[name] != wanted[name]
    ]
    problems += [
        f"{leaf.names[0]} is of type {leaf.value.dtype}"
        for leaf in ours
        if not jnp.issubdtype(leaf.value.dtype, jnp.floating)
    ]
    if problems:
        raise UsageError(
            f"these are not the parameters of this {type(model).__name__} (pass the tree under "
            f"'params', and the model that it was made with): {listed(problems)}"
        )


def check_replaceable(target: epath.Path) -> None:
    """Raises a UsageError if something is there that `save_pretrained` would not have written."""
    atomic.check_replaceable(
        target, lambda name: name in (*_OURS, *TOKENIZER_FILES) or bool(_SHARD.fullmatch(name))
    )


def _copy_tokenizer(source: epath.Path, folder: pathlib.Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            (source / name).copy(folder / name)
