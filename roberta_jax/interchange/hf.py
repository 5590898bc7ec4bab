"""Folders as Hugging Face's `transformers` writes and reads them, without `torch`.

A folder is `config.json`, the weights as `model.safetensors` (or shards of it) and the tokenizer's
files. Names and layouts are those of HF's PyTorch classes; `layouts` translates. The decoder of
the masked-LM head is the word table, so that it is left out of the file; its bias is
`lm_head.bias`.

Weights never load in part: a tensor that is missing, left over or of another shape is an error
that lists it.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util
from jax.experimental import multihost_utils

from roberta_jax.errors import UsageError
from roberta_jax.interchange.folders import on_local_disk, written_whole
from roberta_jax.interchange.layouts import Leaf, Params, canonical, leaves
from roberta_jax.interchange.layouts import stack_layers as stack_layers
from roberta_jax.interchange.layouts import unstack_layers as unstack_layers
from roberta_jax.interchange.weight_files import (
    WEIGHTS,
    TensorSpec,
    WeightFiles,
    weights_exist,
    write_safetensors,
)
from roberta_jax.modeling.config import Execution, RobertaConfig
from roberta_jax.modeling.heads import RobertaForMaskedLM, RobertaModel

CONFIG = "config.json"
_CLASSES = {cls.__name__: cls for cls in (RobertaForMaskedLM, RobertaModel)}
_TOKENIZER_FILES = (
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)

# Parts that some classes have and others lack: where the class that is loaded lacks one, its
# tensors are passed over. (roberta-base's own file, a masked LM, has a pooler.)
_OPTIONAL_PARTS = ("pooler", "lm_head", "classifier", "qa_outputs")

# Second names of other tensors, and buffers that hold no parameter.
_WORDS = "embeddings.word_embeddings.weight"
_ALIASES = {"lm_head.decoder.weight": _WORDS, "lm_head.decoder.bias": "lm_head.bias"}
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def from_pretrained(
    path: str | os.PathLike,
    model_class: type[nn.Module] | None = None,
    execution: Execution | None = None,
    *,
    param_dtype: Any = "float32",
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a model and its parameters, which go to JAX's default device.

    Args:
      path: A folder in Hugging Face's format, or the workdir of a finished training run.
      model_class: `RobertaForMaskedLM` or `RobertaModel`. Default: what `config.json` names under
        `architectures`, or where it names nothing, what the tensors are. A `RobertaModel` gets
        its pooler if the file has one.
      execution: How the model computes. `execution.scan_layers` also decides whether the
        parameters come stacked (the default) or a layer each.
      param_dtype: The type of the parameters, whatever the file's; the file's bits are kept where
        it is the same.

    Returns:
      `(model, params)`, to be called as `model.apply({"params": params}, input_ids, …)`. `params`
      is a nested dictionary of JAX arrays.

    Raises:
      UsageError: There is no such model, a file is damaged, or the tensors are not the model's.
    """
    model, params = read_pretrained(path, model_class, execution, param_dtype=param_dtype)
    return model, jax.device_put(params)


def read_pretrained(
    path: str | os.PathLike,
    model_class: type[nn.Module] | None = None,
    execution: Execution | None = None,
    *,
    param_dtype: Any = "float32",
) -> tuple[nn.Module, dict[str, Any]]:
    """`from_pretrained` with NumPy arrays on the host, for a caller that places them itself."""
    with (
        on_local_disk(model_folder(path), (".json", ".safetensors")) as folder,
        WeightFiles(folder) as files,
    ):
        settings = _read_settings(folder)
        try:
            config = RobertaConfig.from_dict(settings)
        except ValueError as error:
            raise UsageError(f"cannot use {folder / CONFIG}: {error}") from None
        tensors = _Tensors(files)
        model_class = model_class or _default_class(settings, tensors, folder)
        model = _build(model_class, config, execution or Execution(), tensors)
        wanted = leaves(_parameter_shapes(model))
        tensors.check(wanted, folder, model_class)
        flat = {leaf.path: _read_leaf(leaf, tensors, param_dtype) for leaf in wanted}
        return model, traverse_util.unflatten_dict(flat)


def save_pretrained(
    path: str | os.PathLike, model: nn.Module, params: Params, tokenizer: Any = None
) -> None:
    """Writes a folder that `transformers` and `from_pretrained` load.

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

    Raises:
      UsageError: The parameters are not the model's, the folder holds other files, or it cannot be
        written. Nothing that was there has changed then.
    """
    target = epath.Path(path)
    # Tensors that a wider type aligns come first in the file.
    ours = sorted(leaves(params), key=lambda leaf: -np.dtype(leaf.value.dtype).itemsize)
    _check_params(ours, model)
    if jax.process_index() == 0:
        _check_replaceable(target)
    specs = [
        TensorSpec(name, leaf.tensor_shape, np.dtype(leaf.value.dtype))
        for leaf in ours
        for name in leaf.names
    ]
    settings = model.config.to_dict(type(model).__name__) | {"dtype": specs[0].dtype.name}

    if jax.process_index() == 0:
        try:
            with written_whole(target, last=CONFIG) as folder:
                write_safetensors(folder / WEIGHTS, specs, _host_tensors(ours))
                if tokenizer is not None:
                    tokenizer.save_pretrained(folder)
                else:
                    _copy_tokenizer(target, folder)
                text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
                (folder / CONFIG).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"cannot write {target}: {error.strerror or error}; what was there before is "
                "unchanged. Make room or choose another folder"
            ) from error
    else:
        for _ in _host_tensors(ours):
            pass
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"save_pretrained {target}")


def model_folder(path: str | os.PathLike) -> epath.Path:
    """Returns the folder that holds the model: `path` itself, or a workdir's `hf/`.

    Raises:
      UsageError: There is no model; the message says what was looked for.
    """
    path = epath.Path(path)
    if not path.exists():
        raise UsageError(
            f"no folder {str(path)!r} (looked for {path / CONFIG} with {path / WEIGHTS}, and for "
            f"{path / 'hf' / CONFIG}, as training leaves it)"
        )
    for folder in (path / "hf", path):
        if (folder / CONFIG).exists() and weights_exist(folder):
            return folder
    if (path / "checkpoints").exists() or (path / "metrics.jsonl").exists():
        raise UsageError(
            f"{path} is the workdir of a run that has not finished: it has no {path / 'hf'} yet. "
            "Run the same training command again; it continues where it was and writes that "
            "folder at its end"
        )
    names = sorted(child.name for child in path.iterdir()) if path.is_dir() else ["no folder"]
    message = (
        f"{path} holds no model: looked for {CONFIG} with {WEIGHTS} (or {WEIGHTS}.index.json and "
        f"its shards), there and in {path / 'hf'}; found {_listed(names)}"
    )
    if any(name.endswith((".bin", ".msgpack", ".h5")) for name in names):
        message += (
            ". Weights in other formats become safetensors by loading them with transformers and "
            "calling save_pretrained"
        )
    raise UsageError(message)


class _Tensors:
    """A file's tensors under the names that every class shares."""

    def __init__(self, files: WeightFiles):
        self.files = files
        self.names = {canonical(name): name for name in files.shapes}
        # Files made by hand may hold the output layer's bias under its second name alone.
        for alias, name in _ALIASES.items():
            if alias in self.names and name not in self.names:
                self.names[name] = self.names.pop(alias)

    def has(self, part: str) -> bool:
        return any(name.startswith(f"{part}.") for name in self.names)

    def read(self, name: str) -> np.ndarray:
        return self.files.read(self.names[canonical(name)])

    def check(self, wanted: list[Leaf], folder: pathlib.Path, model_class: type) -> None:
        """Raises a UsageError that lists every tensor that does not fit."""
        shapes = {canonical(name): leaf.tensor_shape for leaf in wanted for name in leaf.names}
        present = [name for name in shapes if name in self.names]
        if not present:
            raise UsageError(
                f"no tensor in {folder} is a {model_class.__name__}'s: it holds "
                f"{_listed(sorted(self.files.shapes))}, and not {_listed(sorted(shapes))}"
            )
        missing = [name for name in shapes if name not in self.names]
        if (
            missing
            and all(name.startswith("lm_head.") for name in missing)
            and (not self.has("lm_head"))
        ):
            raise UsageError(
                f"{folder} has no masked-LM head (no lm_head.* tensors): it cannot be loaded as "
                f"{model_class.__name__}. Load its encoder with model_class=RobertaModel"
            )
        wrong = []
        for name in present:
            original = self.names[name]
            shape, kind = self.files.shapes[original], self.files.types[original]
            if shape != shapes[name]:
                wrong.append(f"{original} (file {list(shape)}, config {list(shapes[name])})")
            elif kind not in ("F64", "F32", "F16", "BF16"):
                wrong.append(f"{original} (of type {kind}; only floating types are read)")
        left = [self.names[name] for name in self.names if self._is_left_over(name, shapes)]
        problems = []
        for title, names in (("missing", missing), ("left over", left), ("unfit", wrong)):
            if names:
                problems.append(f"  {title} ({len(names)}): {_listed(sorted(names))}")
        if problems:
            raise UsageError(
                f"the tensors in {folder} are not those of {model_class.__name__} as "
                f"{CONFIG} describes it:\n" + "\n".join(problems)
            )

    def _is_left_over(self, name: str, wanted: dict[str, tuple[int, ...]]) -> bool:
        if name in wanted or name in _BUFFERS:
            return False
        if name in _ALIASES and _ALIASES[name] in wanted:
            # Equal to the tensor that it repeats, or the model is another one (an untied decoder).
            return not np.array_equal(self.read(name), self.read(_ALIASES[name]))
        part = name.split(".")[0]
        return part not in _OPTIONAL_PARTS or any(key.startswith(f"{part}.") for key in wanted)


def _read_settings(folder: pathlib.Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise UsageError(f"{folder / CONFIG} is no model's config ({error})") from None
    return settings


def _default_class(settings: dict[str, Any], tensors: _Tensors, folder: pathlib.Path) -> type:
    names = settings.get("architectures") or []
    if not names:
        return RobertaForMaskedLM if tensors.has("lm_head") else RobertaModel
    # XLM-R and CamemBERT are RoBERTa under another class name.
    name = names[0].replace("XLMRoberta", "Roberta").replace("Camembert", "Roberta")
    if name not in _CLASSES:
        raise UsageError(
            f"{folder} holds a {names[0]}, which cannot be loaded; these can: "
            f"{', '.join(_CLASSES)}. Pass model_class=RobertaModel to load its encoder alone"
        )
    return _CLASSES[name]


def _build(model_class, config, execution, tensors: _Tensors) -> nn.Module:
    if model_class is RobertaModel:
        return RobertaModel(config, execution, add_pooling_layer=tensors.has("pooler"))
    return model_class(config, execution)


def _parameter_shapes(model: nn.Module) -> dict[str, Any]:
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return nn.meta.unbox(shapes["params"])


def _read_leaf(leaf: Leaf, tensors: _Tensors, dtype: Any) -> np.ndarray:
    """Reads one leaf's tensors, each straight into its place."""
    array = np.empty(leaf.value.shape, jnp.dtype(dtype))
    for i, name in enumerate(leaf.names):
        tensor = tensors.read(name)
        array[i if leaf.stacked else ...] = tensor.T if leaf.transposed else tensor
    return array


def _host_tensors(ours: Iterable[Leaf]) -> Iterator[np.ndarray]:
    """Yields every PyTorch tensor; one leaf at a time is fetched from the devices."""
    for leaf in ours:
        value = leaf.value
        if isinstance(value, jax.Array) and not (
            value.is_fully_addressable or value.is_fully_replicated
        ):
            value = multihost_utils.process_allgather(value, tiled=True)
        value = np.asarray(value)
        for tensor in value if leaf.stacked else [value]:
            yield tensor.T if leaf.transposed else tensor


def _check_params(ours: list[Leaf], model: nn.Module) -> None:
    wanted = {
        name: leaf.tensor_shape for leaf in leaves(_parameter_shapes(model)) for name in leaf.names
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
            f"'params', and the model that it was made with): {_listed(problems)}"
        )


def _check_replaceable(target: epath.Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file; choose another name for the model's folder")
    ours = {CONFIG, WEIGHTS, *_TOKENIZER_FILES}
    foreign = sorted(child.name for child in target.iterdir() if child.name not in ours)
    if foreign:
        raise UsageError(
            f"{target} holds other files ({_listed(foreign)}) and would be replaced whole; choose "
            "another folder or move them"
        )


def _copy_tokenizer(source: epath.Path, folder: pathlib.Path) -> None:
    for name in _TOKENIZER_FILES:
        if (source / name).exists():
            (source / name).copy(folder / name)


def _listed(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
