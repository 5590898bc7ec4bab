"""LoRA adapters in the format of the library peft, and the layout of their parameters.

An adapted model's parameters are its own and a tree under `lora`, which has for each adapted kernel
W [in, out], stacked or not, a pair A [in, rank] and B [rank, out] in place of the kernel:

    roberta/encoder/layer/attention/self/query/kernel              [layers, in, out]
    lora/roberta/encoder/layer/attention/self/query/lora_A/kernel  [layers, in, rank]
    lora/roberta/encoder/layer/attention/self/query/lora_B/kernel  [layers, rank, out]

peft's folder holds `adapter_config.json`, and `adapter_model.safetensors` with the transposes of A
and B by layer and the parts of the model that are trained in full (`modules_to_save`). It does not
hold the base model.
"""

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util
from jax.experimental import multihost_utils

from roberta_jax.errors import NotFoundError, UsageError, listed
from roberta_jax.storage import atomic
from roberta_jax.storage.reading import parse_json, read_text
from roberta_jax.weights.config_file import to_json
from roberta_jax.weights.finite import check_before_saving
from roberta_jax.weights.formats.safetensors import TensorSpec, read_weights, write_safetensors
from roberta_jax.weights.names import Leaf, Params, leaves, split_leaves
from roberta_jax.weights.save import on_host
from roberta_jax.weights.tensors import LazyTensor

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"

_FILES = (CONFIG_NAME, WEIGHTS_NAME)

Path = tuple[str, ...]  # of a leaf in a tree

LORA = "lora"  # key of the adapter in the tree of parameters

# The linear maps of a layer, by their PyTorch names within it.
MODULES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)

# The parts outside the encoder that are trained in full: those that pretraining does not train.
MODULES_TO_SAVE = ("classifier", "pooler", "qa_outputs")

_PREFIX = "base_model.model."

_TASK_TYPES = {
    "RobertaForSequenceClassification": "SEQ_CLS",
    "RobertaForTokenClassification": "TOKEN_CLS",
    "RobertaForQuestionAnswering": "QUESTION_ANS",
}

# Settings of peft that change what an adapter computes -> their values here. Only the first are
# written, which all releases of peft know; the others have these values by default.
_WRITTEN = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False}
_PLAIN = _WRITTEN | {
    "lora_bias": False,
    "use_dora": False,
    "use_rslora": False,
    "alpha_pattern": {},
    "rank_pattern": {},
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter that was read from peft's files.

    Attributes:
      params: the parameters of the adapted model: the base model's with `lora`, and with the parts
        that the adapter was trained with, such as the classifier. NumPy arrays.
      rank: of A and B.
      alpha: the merged kernel is W + alpha / rank * A @ B.
      targets: names of the adapted modules, as in `MODULES`.
    """

    params: dict[str, Any]
    rank: int
    alpha: float
    targets: tuple[str, ...]


def adapted_modules(targets: Collection[str]) -> list[str]:
    """The members of `MODULES` that peft's `target_modules` name.

    A target names the modules that equal it or end in it after a dot: "query" is
    "attention.self.query", and "output.dense" is that module and "attention.output.dense".
    """
    return [
        module
        for module in MODULES
        if any(module == target or module.endswith(f".{target}") for target in targets)
    ]


def target_kernels(params: Params, modules: Collection[str]) -> dict[Path, Any]:
    """Finds the kernels of some modules in the encoder's layers.

    Args:
      params: a nested dictionary with the parameters, stacked or unstacked, boxed or not.
      modules: members of `MODULES`.

    Returns:
      Path of each kernel -> the kernel.
    """
    return {
        path: leaf
        for path, leaf in traverse_util.flatten_dict(dict(params)).items()
        if path[-1] == "kernel" and module_name(path) in modules
    }


def factor_paths(kernel: Path) -> tuple[Path, Path]:
    """The paths of A and B below `lora`, given that of the kernel."""
    module = kernel[:-1]
    return (*module, "lora_A", "kernel"), (*module, "lora_B", "kernel")


def factor_shapes(kernel: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of A and B, given that of the kernel [in, out] or [layers, in, out]."""
    *layers, inputs, outputs = kernel
    return (*layers, inputs, rank), (*layers, rank, outputs)


def is_trained_in_full(path: Path) -> bool:
    """Whether a parameter belongs to one of `MODULES_TO_SAVE`, by its path in the tree."""
    return path[path[0] == "roberta"] in MODULES_TO_SAVE


def save_adapter(
    path: str | os.PathLike,
    model: nn.Module,
    params: Params,
    *,
    alpha: float,
    targets: Collection[str],
    base_model: str | None = None,
) -> None:
    """Writes an adapter as `peft.PeftModel.from_pretrained(base, path)` loads it.

    The folder is written under a temporary name and renamed. With several processes, all of them
    must call this function; the first one writes.

    Args:
      path: the folder to write. It is replaced if it holds nothing but an adapter.
      model: the model without adapter.
      params: the parameters of the adapted model, stacked or unstacked.
      alpha, targets: those that the adapter was trained with.
      base_model: the folder or hub id of the base model, for `adapter_config.json`.

    Raises:
      UsageError: the parameters have no adapter or are not finite, the folder holds other files, or
        it cannot be written.
    """
    target = epath.Path(path)
    if not params.get(LORA):
        raise UsageError(
            "these parameters have no LoRA adapter that could be saved: save the model itself with "
            "save_pretrained"
        )
    flat = traverse_util.flatten_dict(dict(params))
    in_full = {path: leaf for path, leaf in flat.items() if is_trained_in_full(path)}
    saved = [*leaves(params[LORA]), *leaves(traverse_util.unflatten_dict(in_full))]
    config = {
        **_WRITTEN,
        "r": next(each.tensor_shape[0] for each in saved if each.path[-2] == "lora_A"),
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
        # "dense" would name a module of the language model's head as well.
        "target_modules": adapted_modules(targets) if "lm_head" in params else [*targets],
        "modules_to_save": [n for n in MODULES_TO_SAVE if any(n in path for path in in_full)]
        or None,
        "task_type": _TASK_TYPES.get(type(model).__name__),
        "base_model_name_or_path": base_model,
    }
    arrays = [_host_array(leaf) for leaf in saved]  # gathered by all processes
    if jax.process_index() == 0:
        atomic.check_replaceable(target, lambda name: name in _FILES)
        specs = [
            TensorSpec(f"{_PREFIX}{name}", leaf.tensor_shape, np.dtype(np.float32))
            for leaf in saved
            for name in leaf.names
        ]
        with (
            atomic.unchanged_on_error(target),
            atomic.replace_folder(target, last=CONFIG_NAME) as folder,
        ):
            tensors = (tensor for _, tensor in split_leaves(saved, arrays))
            write_safetensors(folder / WEIGHTS_NAME, specs, tensors)
            (folder / CONFIG_NAME).write_text(to_json(config), encoding="utf-8")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"save_adapter {target}")


def load_adapter(path: str | os.PathLike, params: Params) -> Adapter:
    """Reads an adapter that `save_adapter` or peft wrote.

    Args:
      path: its folder.
      params: the parameters of the base model with the head of the task, stacked or unstacked, as
        `weights.load.load_pretrained` returns them. They are not changed.

    Raises:
      NotFoundError: there is no adapter.
      UsageError: a file is damaged, the adapter needs what is not implemented here, or its tensors
        are not those of an adapter of this model.
    """
    folder = epath.Path(path)
    if not all((folder / name).exists() for name in _FILES):
        raise NotFoundError(
            f"{folder} holds no LoRA adapter: looked for {' and '.join(_FILES)}, which peft's "
            "save_pretrained writes"
        )
    with atomic.local_copy(folder, _FILES) as local:
        rank, alpha = _read_config(local / CONFIG_NAME)
        tensors = {
            name.removeprefix(_PREFIX): tensor
            for name, tensor in read_weights(local / WEIGHTS_NAME).tensors.items()
        }
        modules = [each for each in MODULES if any(f".{each}.lora_A." in name for name in tensors)]
        expected = {}
        for kernel_path, kernel in target_kernels(params, modules).items():
            shapes = factor_shapes(kernel.shape, rank)
            for each, shape in zip(factor_paths(kernel_path), shapes, strict=True):
                expected[LORA, *each] = jax.ShapeDtypeStruct(shape, np.float32)
        flat = traverse_util.flatten_dict(dict(params))
        expected |= {path: leaf for path, leaf in flat.items() if is_trained_in_full(path)}
        lora = traverse_util.unflatten_dict(expected)
        in_full = leaves({key: lora[key] for key in lora if key != LORA})
        factors = leaves(lora.get(LORA, {}))
        _check_tensors(tensors, [*factors, *in_full], folder / WEIGHTS_NAME)
        new = {(LORA, *leaf.path): _assembled(leaf, tensors) for leaf in factors}
        new |= {leaf.path: _assembled(leaf, tensors) for leaf in in_full}
    return Adapter(traverse_util.unflatten_dict(flat | new), rank, alpha, tuple(modules))


def module_name(path: Path) -> str | None:
    """The PyTorch name of the module within its layer, of a parameter in one of the layers."""
    if "layer" not in path:
        return None
    below = path[path.index("layer") + 1 : -1]
    return ".".join(below[1:] if below and below[0].isdecimal() else below)


def _host_array(leaf: Leaf) -> np.ndarray:
    array = np.asarray(on_host(leaf.value), np.float32)
    check_before_saving(leaf.names[0], array)
    return array


def _read_config(file: pathlib.Path) -> tuple[int, float]:
    """(rank, alpha) of an `adapter_config.json`."""
    try:
        config = parse_json(read_text(file))
        rank, alpha = config["r"], config["lora_alpha"]
        if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
            raise ValueError(f"it has r={rank!r} and lora_alpha={alpha!r}")
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is not an adapter's config ({error})") from None
    other = [
        f"{name}={config[name]!r}"
        for name, plain in _PLAIN.items()
        if name in config and (config[name] or plain) != plain
    ]
    if other:
        raise UsageError(
            f"{file} has {listed(other)}: only plain LoRA is implemented here. Merge the adapter "
            "into its model with peft's merge_and_unload, and load that model"
        )
    return rank, float(alpha)


def _check_tensors(
    tensors: Mapping[str, LazyTensor], expected: Sequence[Leaf], file: os.PathLike
) -> None:
    shapes = {name: leaf.tensor_shape for leaf in expected for name in leaf.names}
    problems = [f"{name} is missing" for name in shapes if name not in tensors]
    problems += [f"{name} is not the model's" for name in tensors if name not in shapes]
    problems += [
        f"{name} has shape {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems or not tensors:
        raise UsageError(
            f"{file} is not an adapter of this model: {listed(problems) or 'it is empty'}. Load "
            "the base model and the class of model that it was trained with"
        )


def _assembled(leaf: Leaf, tensors: Mapping[str, LazyTensor]) -> np.ndarray:
    parts = [tensors[name].read().astype(np.float32) for name in leaf.names]
    parts = [part.T if leaf.transposed else part for part in parts]
    return np.stack(parts) if leaf.stacked else np.ascontiguousarray(parts[0])
