"""The head of next-sentence prediction, in a file of its own beside the model's weights.

`model.safetensors` holds the masked language model alone, so that no other program meets weights
that it does not expect. The pooler and the classifier lie in `nsp_head.safetensors` under the names
that they have in BERT, as Hugging Face writes them; class 0 says that the second text follows.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from roberta_jax.errors import UsageError

FILE = "nsp_head.safetensors"
NAMES = {
    "bert.pooler.dense.weight": ("pooler", "kernel"),
    "bert.pooler.dense.bias": ("pooler", "bias"),
    "cls.seq_relationship.weight": ("classifier", "kernel"),
    "cls.seq_relationship.bias": ("classifier", "bias"),
}


def head_tensors(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of the file: kernels are transposed, as PyTorch has them."""
    return {
        name: np.ascontiguousarray(np.asarray(params[module][leaf]).T)
        for name, (module, leaf) in NAMES.items()
    }


def read_head(folder: pathlib.Path, hidden_size: int) -> dict[str, dict[str, np.ndarray]] | None:
    """The head's parameters, float32, or None where the folder has no such file.

    Raises:
      UsageError: the file is damaged or holds a head of another width.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        tensors = safetensors.numpy.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise UsageError(f"{path} cannot be read: {error}. Delete it to begin a new head") from None
    shapes = {"pooler": (hidden_size, hidden_size), "classifier": (2, hidden_size)}
    params: dict[str, dict[str, np.ndarray]] = {module: {} for module in shapes}
    for name, (module, leaf) in NAMES.items():
        wanted = shapes[module] if leaf == "kernel" else shapes[module][:1]
        found = tensors[name].shape if name in tensors else None
        if found != wanted:
            raise UsageError(
                f"{path}: {name} should have shape {wanted}, but it has {found}. Delete the file "
                "to begin a new head"
            )
        params[module][leaf] = np.asarray(tensors[name], np.float32).T
    return params
