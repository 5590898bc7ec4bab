"""Saves models in the formats that `transformers` and fairseq load, without PyTorch.

Hugging Face's files leave out the decoder of a language model's head where it is tied to the word
embeddings; its bias is `lm_head.bias`. Parameters are fetched from the devices one at a time.
"""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from jax.experimental import multihost_utils

from roberta_jax.errors import UsageError, listed
from roberta_jax.modeling.heads import MODEL_CLASSES
from roberta_jax.storage import atomic
from roberta_jax.storage.atomic import replace_folder, unchanged_on_error
from roberta_jax.storage.hub import TOKENIZER_FILES
from roberta_jax.weights import next_sentence
from roberta_jax.weights.config_file import CONFIG_NAME, to_json
from roberta_jax.weights.files import (
    FAIRSEQ_NAMES,
    FLAX_WEIGHTS_NAME,
    SAFE_WEIGHTS_NAME,
    format_module,
)
from roberta_jax.weights.finite import check_before_saving
from roberta_jax.weights.names import Leaf, Params, leaves
from roberta_jax.weights.parameters import parameter_shapes

# Name of the format in `save_pretrained` -> name of the format of the weight file.
_FILE_FORMATS = {"hf": "safetensors", "flax": "msgpack", "fairseq": "fairseq"}
FORMATS = tuple(_FILE_FORMATS)
MAX_SHARD_SIZE = 5_000_000_000  # bytes; transformers' default for model.safetensors

# Files that a save may replace.
_MODEL_FILES = (
    CONFIG_NAME,
    SAFE_WEIGHTS_NAME,
    f"{SAFE_WEIGHTS_NAME}.index.json",
    next_sentence.FILE,
    FLAX_WEIGHTS_NAME,
    FAIRSEQ_NAMES[0],
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
) -> None:
    """Writes a folder that `from_pretrained` and the format's own programs load.

    The folder is written under a temporary name and renamed, so that it is complete or absent. An
    existing folder is replaced if it holds only files that a save may have written. It keeps its
    tokenizer if none is given. On an object store (`gs://…`), which cannot rename, `config.json` is
    removed first and written last; a folder without it does not count as a model.

    The masked LM and the next-sentence head of a `RobertaForPreTraining` go into separate files:
    the folder is that of a `RobertaForMaskedLM`, with `nsp_head.safetensors` beside it.

    With several processes, all of them must call this function, since each holds a part of the
    parameters. The first one writes.

    Args:
      path: The folder to write.
      model: The module that the parameters belong to. Its config is written.
      params: The parameters, stacked or unstacked, of any floating type, which is kept.
      tokenizer: An object with `save_pretrained(folder)`, which is called to add its files.
      format: "hf" for `model.safetensors`, which transformers' PyTorch classes load; "flax" for
        `flax_model.msgpack`, which its Flax classes load; "fairseq" for `model.pt`, which contains
        the config.
      max_shard_size: Bytes above which `model.safetensors` becomes shards with an index.

    Raises:
      UsageError: The parameters are not the model's or not finite, the folder holds other files,
        fairseq does not support the model, or the folder cannot be written. An existing folder is
        then unchanged.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}: use one of {', '.join(FORMATS)}")
    target = epath.Path(path)
    _check_params(leaves(params), model)
    architecture, head = _architecture(type(model)), None
    if next_sentence.PARAMS_KEY in params:
        architecture = "RobertaForMaskedLM"
        params = dict(params)
        head = nn.meta.unbox(params.pop(next_sentence.PARAMS_KEY))
        head = {
            module: {name: on_host(value) for name, value in values.items()}
            for module, values in head.items()
        }
        for leaf in leaves({next_sentence.PARAMS_KEY: head}):
            _finite(leaf, leaf.value)
    # The wider types come first, so that each tensor of a safetensors file is aligned.
    ordered = sorted(leaves(params), key=lambda leaf: -np.dtype(leaf.value.dtype).itemsize)
    config = model.config.to_dict(architecture)
    config["dtype"] = np.dtype(ordered[0].value.dtype).name
    writer = format_module(_FILE_FORMATS[format])
    if format == "fairseq":
        ordered = writer.prepare_leaves(ordered, config)
    arrays = (_finite(leaf, on_host(leaf.value)) for leaf in ordered)
    if jax.process_index() == 0:
        check_replaceable(target)
        last = FAIRSEQ_NAMES[0] if format == "fairseq" else CONFIG_NAME
        with unchanged_on_error(target), replace_folder(target, last=last) as folder:
            writer.write_weights(folder, ordered, arrays, config, max_shard_size)
            if head is not None:
                next_sentence.write_head(folder, head)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            else:
                _copy_tokenizer(target, folder)
            if format != "fairseq":  # a fairseq checkpoint contains its config
                (folder / CONFIG_NAME).write_text(to_json(config), encoding="utf-8")
    else:
        for _ in arrays:  # each array is gathered by all processes
            pass
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"save_pretrained {target}")


def _architecture(model_class: type[nn.Module]) -> str:
    """The name of transformers' class with these parameters: a class or its base class."""
    names = [cls.__name__ for cls in model_class.__mro__]
    return next((name for name in names if name in MODEL_CLASSES), names[0])


def on_host(value: Any) -> np.ndarray:
    """A parameter as a NumPy array; one that several processes hold is gathered by all of them."""
    if isinstance(value, jax.Array) and not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        value = multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(value)


def _finite(leaf: Leaf, array: np.ndarray) -> np.ndarray:
    """Returns the array of a leaf, if all of it is finite."""
    names = leaf.names[0] if len(leaf.names) == 1 else f"{leaf.names[0]} to {leaf.names[-1]}"
    check_before_saving(names, array)
    return array


def _check_params(given_leaves: Sequence[Leaf], model: nn.Module) -> None:
    expected = {
        name: leaf.tensor_shape for leaf in leaves(parameter_shapes(model)) for name in leaf.names
    }
    given = {name: leaf.tensor_shape for leaf in given_leaves for name in leaf.names}
    problems = [f"{name} is missing" for name in expected if name not in given]
    problems += [f"{name} is not the model's" for name in given if name not in expected]
    problems += [
        f"{name} has shape {list(given[name])}, not {list(expected[name])}"
        for name in expected
        if name in given and given[name] != expected[name]
    ]
    problems += [
        f"{leaf.names[0]} is of type {leaf.value.dtype}"
        for leaf in given_leaves
        if not jnp.issubdtype(leaf.value.dtype, jnp.floating)
    ]
    if problems:
        raise UsageError(
            f"these are not the parameters of this {type(model).__name__} (pass the tree under "
            f"'params', and the model it was created with): {listed(problems)}"
        )


def check_replaceable(target: epath.Path) -> None:
    """Raises a UsageError if a folder holds files that `save_pretrained` would not have written."""
    names = (*_MODEL_FILES, *TOKENIZER_FILES)
    atomic.check_replaceable(
        target, lambda name: name in names or _SHARD.fullmatch(name) is not None
    )


def _copy_tokenizer(source: epath.Path, folder: pathlib.Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            (source / name).copy(folder / name)
