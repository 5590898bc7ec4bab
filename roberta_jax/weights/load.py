"""Models as Hugging Face's `transformers` and fairseq keep them: loaded, without PyTorch.

A model is a folder or a hub id: `config.json`, the weights in one of the formats of
`weight_files` and the tokenizer's files; or a checkpoint of fairseq's, which needs no config.
`saving` writes them.

Weights never load in part: a tensor that is missing, left over or of another shape is an error
that lists it. Only where it is asked for does a head begin with random numbers.
"""

import dataclasses
import inspect
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util

from roberta_jax.errors import UsageError, listed
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import MODEL_CLASSES
from roberta_jax.storage import hub
from roberta_jax.storage.atomic import local_copy
from roberta_jax.storage.hub import tokenizer_folder as tokenizer_folder
from roberta_jax.weights.config_file import read_settings
from roberta_jax.weights.files import FILE_ENDINGS, WEIGHTS, StoredWeights, open_weights, weights_in
from roberta_jax.weights.formats import fairseq
from roberta_jax.weights.match import Tensors
from roberta_jax.weights.names import Leaf, canonical, leaves
from roberta_jax.weights.names import stack_layers as stack_layers
from roberta_jax.weights.names import unstack_layers as unstack_layers
from roberta_jax.weights.save import CONFIG as CONFIG
from roberta_jax.weights.save import parameter_shapes, parameter_values
from roberta_jax.weights.save import save_pretrained as save_pretrained
from roberta_jax.weights.tensors import read_all

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model, its parameters, and how they came out of their files.

    Attributes:
      model: The module.
      params: A nested dictionary of NumPy arrays.
      new: The PyTorch names of parameters that no file held and that are random.
      unused: The file's names of tensors that the model has no place for.
      weights: The files, with every tensor's shape and type.
      folder: Where they are.
    """

    model: nn.Module
    params: dict[str, Any]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    weights: StoredWeights
    folder: pathlib.Path


def from_pretrained(
    path: str | os.PathLike,
    model_class: type[nn.Module] | None = None,
    execution: Execution | None = None,
    *,
    param_dtype: Any = "float32",
    new_head: bool = False,
    seed: int = 0,
    revision: str | None = None,
    token: str | bool | None = None,
    **config_changes: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a model and its parameters, which go to JAX's default device.

        model, params = from_pretrained(
            "roberta-base", RobertaForSequenceClassification, new_head=True, num_labels=3
        )

    Args:
      path: A folder in Hugging Face's format, a weight file in one, fairseq's `model.pt` or its
        folder, the workdir of a finished training run, or a hub id.
      model_class: One of `modeling.heads.MODEL_CLASSES`. Default: what `config.json` names under
        `architectures`, or where it names nothing, what the tensors are. A `RobertaModel` gets
        its pooler if the file has one.
      execution: How the model computes. `execution.scan_layers` also decides whether the
        parameters come stacked (the default) or a layer each.
      param_dtype: The type of the parameters, whatever the file's; the file's bits are kept where
        it is the same. None keeps the file's types.
      new_head: Whether parameters outside the encoder (and its cross-attention) may begin as
        random numbers where the file lacks them, or has them for another number of labels. What
        fits is loaded all the same. A warning lists those that are new.
      seed: Of those random numbers.
      revision: A branch, a tag or a commit of a hub id.
      token: A token of the hub; None takes `HF_TOKEN` or the stored one, False none.
      config_changes: Fields of the config to change, such as `num_labels=3`.

    Returns:
      `(model, params)`, to be called as `model.apply({"params": params}, input_ids, …)`. `params`
      is a nested dictionary of JAX arrays.

    Raises:
      UsageError: There is no such model, a file is damaged, or the tensors are not the model's.
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
    for place in list(flat):  # one after the other, so that the host's copy of each goes at once
        flat[place] = jax.device_put(flat.pop(place))
    return model, traverse_util.unflatten_dict(flat)


def read_pretrained(
    path: str | os.PathLike,
    model_class: type[nn.Module] | None = None,
    execution: Execution | None = None,
    **options: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """`from_pretrained` with NumPy arrays on the host, for a caller that places them itself."""
    loaded = load_pretrained(path, model_class, execution, **options)
    return loaded.model, loaded.params


def load_pretrained(
    path: str | os.PathLike,
    model_class: type[nn.Module] | None = None,
    execution: Execution | None = None,
    *,
    param_dtype: Any = "float32",
    new_head: bool = False,
    seed: int = 0,
    revision: str | None = None,
    token: str | bool | None = None,
    **config_changes: Any,
) -> Loaded:
    """`read_pretrained` with an account of which tensors were used; see `from_pretrained`."""
    if param_dtype is not None and not jnp.issubdtype(jnp.dtype(param_dtype), jnp.floating):
        raise UsageError(f"param_dtype={param_dtype!r}: parameters are of a floating type, or None")
    with local_copy(model_folder(path, revision=revision, token=token), FILE_ENDINGS) as folder:
        weights = open_weights(folder)
        settings = _read_settings(folder, weights)
        try:
            config = RobertaConfig.from_dict(settings).replace(**config_changes)
        except (ValueError, TypeError) as error:
            place = _config_path(folder) if weights.settings is None else folder
            raise UsageError(f"cannot use {place}: {error}") from None
        tensors = Tensors(weights.tensors)
        model_class = model_class or _default_class(settings, tensors, folder)
        model = _build(model_class, config, execution or Execution(), tensors)
        wanted = leaves(parameter_shapes(model))
        new = tensors.check(wanted, folder, model_class, new_head)
        flat = _read_leaves(wanted, tensors, new, param_dtype)
    fresh = [leaf for leaf in wanted if new & set(map(canonical, leaf.names))]
    if fresh:
        _fill_new(flat, fresh, new, model, seed)
        logger.warning(
            "%s lacks %s, which begin as random numbers: train the model before using it",
            path,
            ", ".join(name for leaf in fresh for name in leaf.names if canonical(name) in new),
        )
    return Loaded(
        model,
        traverse_util.unflatten_dict(flat),
        tuple(name for leaf in fresh for name in leaf.names if canonical(name) in new),
        tuple(tensors.unused(wanted)),
        weights,
        folder,
    )


def model_folder(
    path: str | os.PathLike, *, revision: str | None = None, token: str | bool | None = None
) -> epath.Path:
    """Returns what holds the model: `path` itself, a workdir's `hf/`, or what the hub gave.

    Raises:
      UsageError: There is no model; the message says what was looked for.
    """
    named = path
    path = hub.fetch(path, hub.MODEL_FILES, hub.WEIGHT_FILES, revision=revision, token=token)
    if not path.exists():
        raise UsageError(
            f"no folder {str(path)!r} (looked for {path / CONFIG} with {path / WEIGHTS}, and for "
            f"{path / 'hf' / CONFIG}, as training leaves it)"
        )
    for folder in (path / "hf", path):
        names = weights_in(folder)
        if names and (_config_path(folder).exists() or names[0].endswith(".pt")):
            return folder
    if (path / "checkpoints").exists() or (path / "metrics.jsonl").exists():
        raise UsageError(
            f"{path} is the workdir of a run that has not finished: it has no {path / 'hf'} yet. "
            "Run the same training command again; it continues where it was and writes that "
            "folder at its end"
        )
    names = sorted(child.name for child in path.iterdir()) if path.is_dir() else ["no folder"]
    message = (
        f"{named} holds no model: looked for {CONFIG} with {WEIGHTS}, pytorch_model.bin or "
        f"flax_model.msgpack (each also as shards with their index), or for fairseq's "
        f"{' or '.join(fairseq.CHECKPOINTS)}, there and in {path / 'hf'}; found {listed(names)}"
    )
    if any(name.endswith((".h5", ".ckpt", ".onnx")) for name in names):
        message += (
            ". Weights in other formats become safetensors by loading them with transformers and "
            "calling save_pretrained"
        )
    raise UsageError(message)


def _config_path(folder: os.PathLike) -> os.PathLike:
    return (folder.parent if folder.is_file() else folder) / CONFIG


def _read_settings(folder: pathlib.Path, weights: StoredWeights) -> Mapping[str, Any]:
    if weights.settings is not None:
        return weights.settings
    return read_settings(_config_path(folder))


def _default_class(settings: Mapping[str, Any], tensors: Tensors, folder: pathlib.Path) -> type:
    names = settings.get("architectures") or [_class_of(tensors)]
    # XLM-R and CamemBERT are RoBERTa under another class name.
    name = names[0].replace("XLMRoberta", "Roberta").replace("Camembert", "Roberta")
    if name not in MODEL_CLASSES:
        raise UsageError(
            f"{folder} holds a {names[0]}, which cannot be loaded; these can: "
            f"{', '.join(MODEL_CLASSES)}. Pass model_class=RobertaModel to load its encoder alone"
        )
    return MODEL_CLASSES[name]


def _class_of(tensors: Tensors) -> str:
    """The class that has these tensors."""
    if tensors.has("classifier.out_proj"):
        return "RobertaForSequenceClassification"
    if tensors.has("classifier"):
        single = "classifier.weight" in tensors.names and (
            tensors.find("classifier.weight").shape[0] == 1
        )
        return f"RobertaFor{'MultipleChoice' if single else 'TokenClassification'}"
    if tensors.has("qa_outputs"):
        return "RobertaForQuestionAnswering"
    return "RobertaForMaskedLM" if tensors.has("lm_head") else "RobertaModel"


def _build(model_class, config, execution, tensors: Tensors) -> nn.Module:
    if "add_pooling_layer" in inspect.signature(model_class).parameters:
        return model_class(config, execution, add_pooling_layer=tensors.has("pooler"))
    return model_class(config, execution)


def _read_leaves(
    wanted: list[Leaf], tensors: Tensors, new: set[str], dtype: Any
) -> dict[tuple[str, ...], np.ndarray]:
    """Reads all tensors, each straight into its place, several at a time."""
    flat, work = {}, []
    for leaf in wanted:
        stored = [None if canonical(name) in new else tensors.find(name) for name in leaf.names]
        found = [np.dtype(tensor.dtype) for tensor in stored if tensor is not None]
        kind = jnp.dtype(dtype) if dtype is not None else jnp.result_type(*(found or ["float32"]))
        flat[leaf.path] = array = _empty(leaf.value.shape, kind)
        for i, tensor in enumerate(stored):
            if tensor is not None:
                place = array[i] if leaf.stacked else array
                work.append((tensor, place.T if leaf.transposed else place))
    read_all(work)
    return flat


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that JAX takes over on a CPU without a copy, which needs this alignment."""
    count = int(np.prod(shape)) * dtype.itemsize
    buffer = np.empty(count + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + count].view(dtype).reshape(shape)


def _fill_new(
    flat: dict[tuple[str, ...], np.ndarray],
    fresh: list[Leaf],
    new: set[str],
    model: nn.Module,
    seed: int,
) -> None:
    """Draws the parameters that no file holds; of the others not one is computed."""
    places = [leaf.path for leaf in fresh]

    @jax.jit
    def draw(key):
        values = traverse_util.flatten_dict(parameter_values(model, key))
        return [values[place] for place in places]

    for leaf, value in zip(fresh, draw(jax.random.key(seed)), strict=True):
        array = flat[leaf.path]
        for i, name in enumerate(leaf.names):
            if canonical(name) in new:
                place = array[i] if leaf.stacked else array
                place[...] = value[i] if leaf.stacked else value
