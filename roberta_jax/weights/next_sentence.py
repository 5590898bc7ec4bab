"""The next-sentence head, in a file of its own beside the model's weights.

`model.safetensors` holds the masked language model alone, so that other programs find only the
weights they expect. The pooler and the classifier of next-sentence prediction are in
`nsp_head.safetensors`, under the names that Hugging Face's BERT gives them. Class 0 means that the
second text follows the first.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from roberta_jax.errors import UsageError
from roberta_jax.weights.formats import safetensors
from roberta_jax.weights.formats.safetensors import TensorSpec
from roberta_jax.weights.names import torch_name
from roberta_jax.weights.tensors import LazyTensor

FILE = "nsp_head.safetensors"
# The key of the head's parameters in a `RobertaForPreTraining`'s tree.
PARAMS_KEY = "next_sentence"
# BERT's name of a tensor -> path in the head's parameters.
NAMES = {
    "bert.pooler.dense.weight": ("pooler", "kernel"),
    "bert.pooler.dense.bias": ("pooler", "bias"),
    "cls.seq_relationship.weight": ("classifier", "kernel"),
    "cls.seq_relationship.bias": ("classifier", "bias"),
}


def open_head(folder: pathlib.Path, hidden_size: int) -> dict[str, LazyTensor]:
    """Finds the head's tensors in a folder, without reading them.

    Returns:
      {PyTorch name of the parameter, such as "next_sentence.pooler.weight": tensor}; {} if the
      folder has no such file.

    Raises:
      UsageError: The file is damaged or holds a head of another width.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        tensors = safetensors.read_weights(path).tensors
    except UsageError as error:
        raise UsageError(f"{error}. Delete {FILE} to start with a new head") from None
    shapes = {"pooler": (hidden_size, hidden_size), "classifier": (2, hidden_size)}
    renamed = {}
    for name, (module, leaf) in NAMES.items():
        expected = shapes[module] if leaf == "kernel" else shapes[module][:1]
        shape = tensors[name].shape if name in tensors else None
        if shape != expected:
            raise UsageError(
                f"{path}: {name} should have shape {expected}, but it has {shape}. Delete the file "
                "to start with a new head"
            )
        renamed[torch_name((PARAMS_KEY, module, leaf))] = tensors[name]
    return renamed


def write_head(folder: pathlib.Path, params: Mapping[str, Any]) -> None:
    """Writes the head's parameters, arrays on the host of any floating type, which is kept."""
    tensors = {
        # Kernels are transposed, as in PyTorch; biases are not changed by it.
        name: np.ascontiguousarray(np.asarray(params[module][leaf]).T)
        for name, (module, leaf) in NAMES.items()
    }
    specs = [TensorSpec(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]
    safetensors.write_safetensors(folder / FILE, specs, tensors.values())
