"""A model's initial parameters, and their shapes without computing them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from roberta_jax.modeling.heads import RobertaForMultipleChoice


def parameter_values(model: nn.Module, key: jax.Array) -> dict[str, Any]:
    """Initializes a model's parameters: a nested dictionary of arrays, without metadata boxes."""
    ids = jnp.zeros((1, 1, 1) if isinstance(model, RobertaForMultipleChoice) else (1, 1), jnp.int32)
    return nn.meta.unbox(model.init(key, ids)["params"])


def parameter_shapes(model: nn.Module) -> dict[str, Any]:
    """The same tree with a `jax.ShapeDtypeStruct` for each array; nothing is computed."""
    return jax.eval_shape(lambda key: parameter_values(model, key), jax.random.key(0))
