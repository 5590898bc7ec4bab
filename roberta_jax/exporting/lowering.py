"""Lowers a model to a program for any batch size and length, which all export formats contain."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import export

# In the order of Hugging Face's outputs.
_OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")


def serving_function(
    model: nn.Module,
) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
    """The function that is exported: (params, inputs by name) -> outputs by name."""

    def call(params: Any, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        output = model.apply({"params": params}, **inputs)
        outputs = {name: getattr(output, name, None) for name in _OUTPUTS}
        return {name: value for name, value in outputs.items() if value is not None}

    return call


def input_names(model: nn.Module) -> list[str]:
    """The inputs of the exported program: int32 arrays, all of the same shape."""
    names = ["input_ids", "attention_mask"]
    return [*names, "token_type_ids"] if model.config.type_vocab_size > 1 else names


def input_axes(model: nn.Module) -> list[str]:
    """The names of the axes of each input."""
    choices = ["choices"] if type(model).__name__ == "RobertaForMultipleChoice" else []
    return ["batch", *choices, "length"]


def lower(model: nn.Module, params: Any, platforms: Sequence[str]) -> export.Exported:
    """Lowers `serving_function(model)` with symbolic sizes of the inputs' axes.

    Args:
      model: The model.
      params: Its parameters, or anything with their shapes and types.
      platforms: What the program is to run on, such as ["cpu", "tpu"].
    """
    sizes = export.symbolic_shape(
        ", ".join(input_axes(model)), constraints=[f"length <= {model.config.max_length}"]
    )
    inputs = {name: jax.ShapeDtypeStruct(sizes, jnp.int32) for name in input_names(model)}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    return export.export(jax.jit(serving_function(model)), platforms=list(platforms))(
        shapes, inputs
    )
