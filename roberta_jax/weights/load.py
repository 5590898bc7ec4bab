"""Loads models that Hugging Face's `transformers` or fairseq saved, without PyTorch.

A model is a folder or a hub id. It has a `config.json`, weights in one of the formats of `files`
and a tokenizer. A fairseq checkpoint needs no `config.json`.

Loading is strict: a tensor that is missing, left over or of another shape is an error that lists
it. Only on request are the parameters of a missing head initialized randomly.
"""

import dataclasses
import inspect
import logging
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util

from roberta_jax.errors import NotFoundError, UsageError, listed
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import MODEL_CLASSES
from roberta_jax.storage import hub
from roberta_jax.storage.atomic import is_local, local_copy
from roberta_jax.weights import next_sentence
from roberta_jax.weights.config_file import (
    CONFIG_NAME,
    config_path,
    parse_config,
    read_config_dict,
)
from roberta_jax.weights.files import (
    FAIRSEQ_NAMES,
    FILE_ENDINGS,
    FLAX_WEIGHTS_NAME,
    SAFE_WEIGHTS_NAME,
    TORCH_WEIGHTS_NAME,
    WEIGHT_FILE_GROUPS,
    WeightFiles,
    format_of,
    open_weights,
    weights_in,
)
from roberta_jax.weights.match import Tensors
from roberta_jax.weights.names import Leaf, canonical, leaves
from roberta_jax.weights.parameters import parameter_shapes, parameter_values
from roberta_jax.weights.tensors import read_all

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A loaded model, and which tensors its parameters came from.

    Attributes:
      model: The module.
      params: Its parameters, a nested dictionary of NumPy arrays.
      new: PyTorch names of the parameters that were initialized randomly, since no file has them.
      unused: Names in the file of the tensors that the model has no parameter for.
      weights: The weight files, with the shape and type of every tensor in them.
      folder: The local folder (or weight file) they were read from.
    """

    model: nn.Module
    params: dict[str, Any]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    weights: WeightFiles
    folder: pathlib.Path


def from_pretrained(
    path: str | os.PathLike,
    model_class: type[nn.Module] | None = None,
    execution: Execution | None = None,
    *,
    param_dtype: Any = "float32",
    new_head: bool | Collection[str] = False,
    seed: int = 0,
    revision: str | None = None,
    token: str | bool | None = None,
    **config_changes: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a model and puts its parameters on JAX's default device.

        model, params = from_pretrained(
            "roberta-base", RobertaForSequenceClassification, new_head=True, num_labels=3
        )

    Args:
      path: A folder in Hugging Face's format or a weight file in one; fairseq's `model.pt` or its
        folder; the workdir of a finished training run; or a hub id.
      model_class: One of `modeling.heads.MODEL_CLASSES`, or `RobertaForPreTraining`, whose
        next-sentence head is read from `nsp_head.safetensors` beside the weights. Default: the
        class that `config.json` names under `architectures`, or else the class that the tensors
        belong to. A `RobertaModel` gets its pooler if the file has one.
      execution: How the model computes. `execution.scan_layers` also decides whether the
        parameters are stacked (the default) or unstacked.
      param_dtype: The type of the parameters, which are converted from the file's type if
        necessary. None keeps the types of the file.
      new_head: Which parameters outside the encoder may be initialized randomly if the file does
        not have them, or has them for another number of labels: all (True), none (False), or those
        of the parts named: "pooler", "lm_head", "classifier", "qa_outputs", "next_sentence",
        "crossattention". Tensors that fit are loaded in any case. A warning lists the new ones.
      seed: The seed of the random initialization.
      revision: A branch, tag or commit of a hub id.
      token: A hub token. None uses `HF_TOKEN` or the token of `hf auth login`, False none.
      config_changes: Fields of the config to change, such as `num_labels=3`.

    Returns:
      `(model, params)`, to be called as `model.apply({"params": params}, input_ids, …)`. `params`
      is a nested dictionary of JAX arrays.

    Raises:
      UsageError: There is no such model, a file is damaged, or the tensors are not the model's or
        not finite.
    """
    model, params = read_pretrained(
        path,
        model_class,
        execution,
        param_dtype=param_dtype,
        new_head=new_head,
        seed=seed,
        revision=revision,
        token=token,
        **config_changes,
    )
    flat = traverse_util.flatten_dict(params)
    del params
    for leaf_path in list(flat):  # one at a time, so that each host copy is freed at once
        flat[leaf_path] = jax.device_put(flat.pop(leaf_path))
    return model, traverse_util.unflatten_dict(flat)


def read_pretrained(
    path: str | os.PathLike,
    model_class: type[nn.Module] | None = None,
    execution: Execution | None = None,
    **options: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Like `from_pretrained`, but returns NumPy arrays on the host."""
    loaded = load_pretrained(path, model_class, execution, **options)
    if loaded.new:
        logger.warning(
            "%s lacks %s, which are initialized randomly: train the model before using it",
            *(path, ", ".join(loaded.new)),
        )
    return loaded.model, loaded.params


def load_pretrained(
    path: str | os.PathLike,
    model_class: type[nn.Module] | None = None,
    execution: Execution | None = None,
    *,
    param_dtype: Any = "float32",
    new_head: bool | Collection[str] = False,
    seed: int = 0,
    revision: str | None = None,
    token: str | bool | None = None,
    **config_changes: Any,
) -> Loaded:
    """Like `read_pretrained`, but also reports which tensors were used, in place of the warning."""
    if param_dtype is not None and not jnp.issubdtype(jnp.dtype(param_dtype), jnp.floating):
        raise UsageError(f"param_dtype={param_dtype!r}: use a floating type, or None")
    with local_copy(model_folder(path, revision=revision, token=token), FILE_ENDINGS) as folder:
        match = _match(folder, model_class, execution, new_head, **config_changes)
        flat = _read_leaves(match.leaves, match.tensors, match.new, param_dtype)
    new = match.new
    new_leaves = [leaf for leaf in match.leaves if new & set(map(canonical, leaf.names))]
    new_names = [name for leaf in new_leaves for name in leaf.names if canonical(name) in new]
    if new_leaves:
        _initialize(flat, new_leaves, new, match.model, seed)
    return Loaded(
        match.model,
        traverse_util.unflatten_dict(flat),
        tuple(new_names),
        tuple(match.tensors.unused(match.leaves)),
        match.weights,
        folder,
    )


def check_pretrained(
    path: str | os.PathLike,
    model_class: type[nn.Module],
    *,
    new_head: bool | Collection[str] = False,
) -> None:
    """Checks that a model can be loaded, by the names, shapes and types of its tensors.

    No tensor is read, except where the files have an output layer beside the word embeddings: the
    two are compared. A model on an object store is not checked, since that would copy its files.

    Args:
      path, model_class, new_head: As for `from_pretrained`.

    Raises:
      UsageError: As `from_pretrained`.
    """
    folder = model_folder(path)
    if is_local(folder):
        _match(pathlib.Path(folder), model_class, None, new_head)


@dataclasses.dataclass(frozen=True)
class _Match:
    """A model and the stored tensors that are its parameters.

    Attributes:
      model: The module.
      leaves: The leaves of its parameters.
      tensors: The tensors of the files.
      new: The canonical names of parameters that no file has.
      weights: The files.
    """

    model: nn.Module
    leaves: list[Leaf]
    tensors: Tensors
    new: set[str]
    weights: WeightFiles


def _match(
    folder: pathlib.Path,
    model_class: type[nn.Module] | None,
    execution: Execution | None,
    new_head: bool | Collection[str],
    **config_changes: Any,
) -> _Match:
    weights = open_weights(folder)
    config_dict = weights.config
    if config_dict is None:
        config_dict = read_config_dict(config_path(folder))
    source = config_path(folder) if weights.config is None else folder
    config = parse_config(config_dict, source, weights.written_for, **config_changes)
    tensors = Tensors(weights.tensors)
    tensors.check_layers(config.num_hidden_layers, source)
    model_class = model_class or _default_class(config_dict, tensors, folder)
    model = _build(model_class, config, execution or Execution(), tensors)
    shapes = parameter_shapes(model)
    if next_sentence.PARAMS_KEY in shapes:
        head = next_sentence.open_head(config_path(folder).parent, config.hidden_size)
        tensors = Tensors(weights.tensors | head)
    model_leaves = leaves(shapes)
    new = tensors.check(model_leaves, folder, model_class, new_head)
    return _Match(model, model_leaves, tensors, new, weights)


def read_config(
    path: str | os.PathLike, *, revision: str | None = None, token: str | bool | None = None
) -> RobertaConfig:
    """Reads a model's config, without reading its tensors.

    A fairseq checkpoint is opened, since its config follows from the shapes of its tensors. If the
    checkpoint has an output layer of its own, that is compared with the word embeddings, which
    reads these two tensors.

    Args:
      path, revision, token: As for `from_pretrained`. The weight files of a hub id are fetched into
        the cache, if they are not there.

    Raises:
      UsageError: There is no model with weights, or its config cannot be used.
    """
    folder = model_folder(path, revision=revision, token=token)
    if format_of(weights_in(folder)[0]) == "fairseq":
        with local_copy(folder, FILE_ENDINGS) as local:
            return parse_config(open_weights(local).config, local)
    file = config_path(folder)
    return parse_config(read_config_dict(file), file)


def model_folder(
    path: str | os.PathLike, *, revision: str | None = None, token: str | bool | None = None
) -> epath.Path:
    """Returns where a model is: `path` itself, a workdir's `hf/`, or the local copy of a hub id.

    Raises:
      NotFoundError: There is no model; the message lists the files that were looked for.
      UsageError: The model is a run's that has not finished.
    """
    name = path
    path = hub.fetch(
        path, (CONFIG_NAME, next_sentence.FILE), WEIGHT_FILE_GROUPS, revision=revision, token=token
    )
    if not path.exists():
        raise NotFoundError(
            f"no folder {str(path)!r} (looked for {path / CONFIG_NAME} with "
            f"{path / SAFE_WEIGHTS_NAME}, and for {path / 'hf' / CONFIG_NAME}, which a training "
            "run writes)"
        )
    for folder in (path / "hf", path):
        files = weights_in(folder)
        if files and (config_path(folder).exists() or format_of(files[0]) == "fairseq"):
            return folder
    if (path / "checkpoints").exists() or (path / "metrics.jsonl").exists():
        raise UsageError(
            f"{path} is the workdir of a run that has not finished: it has no {path / 'hf'} yet. "
            "Run the same training command again; it continues from its last checkpoint and "
            "writes that folder at the end"
        )
    files = sorted(child.name for child in path.iterdir()) if path.is_dir() else ["no folder"]
    message = (
        f"{name} holds no model: looked for {CONFIG_NAME} with {SAFE_WEIGHTS_NAME}, "
        f"{TORCH_WEIGHTS_NAME} or {FLAX_WEIGHTS_NAME} (each also as shards with their index), or "
        f"for fairseq's {' or '.join(FAIRSEQ_NAMES)}, there and in {path / 'hf'}; found "
        f"{listed(files)}"
    )
    if any(file.endswith((".h5", ".ckpt", ".onnx")) for file in files):
        message += (
            ". To convert weights of another format to safetensors, load them with transformers "
            "and call save_pretrained"
        )
    raise NotFoundError(message)


def _default_class(config: Mapping[str, Any], tensors: Tensors, folder: pathlib.Path) -> type:
    architectures = config.get("architectures") or [_class_of(tensors)]
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise UsageError(
            f"{config_path(folder)} has architectures={architectures!r:.60}; it must be a list "
            f"with the name of a class, such as {_class_of(tensors)}"
        )
    architecture = architectures[0][:100]
    # XLM-R and CamemBERT have RoBERTa's architecture and classes of their own.
    name = architecture.replace("XLMRoberta", "Roberta").replace("Camembert", "Roberta")
    if name not in MODEL_CLASSES:
        raise UsageError(
            f"{folder} holds a {architecture}, which cannot be loaded; these can: "
            f"{', '.join(MODEL_CLASSES)}. Pass model_class=RobertaModel to load its encoder alone"
        )
    return MODEL_CLASSES[name]


def _class_of(tensors: Tensors) -> str:
    """The name of the class that has these tensors."""
    if tensors.has("classifier.out_proj"):
        return "RobertaForSequenceClassification"
    if tensors.has("classifier"):
        one_logit = "classifier.weight" in tensors.names and (
            tensors.find("classifier.weight").shape[0] == 1
        )
        return f"RobertaFor{'MultipleChoice' if one_logit else 'TokenClassification'}"
    if tensors.has("qa_outputs"):
        return "RobertaForQuestionAnswering"
    return "RobertaForMaskedLM" if tensors.has("lm_head") else "RobertaModel"


def _build(model_class, config, execution, tensors: Tensors) -> nn.Module:
    if "add_pooling_layer" in inspect.signature(model_class).parameters:
        return model_class(config, execution, add_pooling_layer=tensors.has("pooler"))
    return model_class(config, execution)


def _read_leaves(
    model_leaves: list[Leaf], tensors: Tensors, new: set[str], dtype: Any
) -> dict[tuple[str, ...], np.ndarray]:
    """Reads all tensors, several at a time, each directly into its place in its leaf's array.

    Raises:
      UsageError: A file is cut short, or a tensor is not finite.
    """
    flat, reads = {}, []
    for leaf in model_leaves:
        parts = [None if canonical(name) in new else tensors.find(name) for name in leaf.names]
        dtypes = [np.dtype(tensor.dtype) for tensor in parts if tensor is not None]
        if dtype is not None:
            leaf_dtype = jnp.dtype(dtype)
        else:
            leaf_dtype = jnp.result_type(*(dtypes or ["float32"]))
        flat[leaf.path] = array = _empty(leaf.value.shape, leaf_dtype)
        for i, tensor in enumerate(parts):
            if tensor is not None:
                place = array[i] if leaf.stacked else array
                name = tensors.names[canonical(leaf.names[i])]
                reads.append((name, tensor, place.T if leaf.transposed else place))
    read_all(reads)
    return flat


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialized array with the alignment (64 bytes) that lets JAX use it without a copy."""
    count = int(np.prod(shape)) * dtype.itemsize
    buffer = np.empty(count + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + count].view(dtype).reshape(shape)


def _initialize(
    flat: dict[tuple[str, ...], np.ndarray],
    new_leaves: list[Leaf],
    new: set[str],
    model: nn.Module,
    seed: int,
) -> None:
    """Initializes the parameters that no file has. Under jit, the other ones are not computed."""
    paths = [leaf.path for leaf in new_leaves]

    @jax.jit
    def initial_values(key):
        values = traverse_util.flatten_dict(parameter_values(model, key))
        return [values[path] for path in paths]

    values = initial_values(jax.random.key(seed))
    for leaf, value in zip(new_leaves, values, strict=True):
        array = flat[leaf.path]
        for i, name in enumerate(leaf.names):
            if canonical(name) in new:
                place = array[i] if leaf.stacked else array
                place[...] = value[i] if leaf.stacked else value
