"""Learning rates by parameter: layer-wise decay and frozen parameters, around any optimizer.

The step of a parameter, weight decay included, is multiplied by a factor between 0 and 1. With the
layers numbered 0 to n - 1 from the input and a decay d, the factors of layer-wise decay are

    embeddings  d^(n+1)        layer i  d^(n-i)        all others (the head)  1

as in BEiT (Bao et al. 2022, `run_class_finetuning.py`); ULMFiT (Howard & Ruder 2018) introduced
such rates. ELECTRA's code (Clark et al. 2020, `optimization.py`) has one more power of d everywhere
but in the head: its top layer has d^2.

A factor of 0 freezes a parameter: neither gradient nor weight decay changes any of its bits. The
optimizer has no state for an array that is frozen as a whole. Of an array that stacks all layers it
has state for all of them, also where some are frozen.

Factors go by the parameter's name, so that a stacked and an unstacked model take equal steps.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

# Name of a parameter, its path joined by "/" -> its factor; float64 [layers] for an array that
# stacks the layers, [] for any other.
Factors = Callable[[str], np.ndarray]

_LAYERS = "/encoder/layer/"

# Added to a number, it changes no bit; 0.0 would turn -0.0 into 0.0.
_NO_UPDATE = -0.0


def layerwise_factors(
    num_layers: int,
    *,
    decay: float = 1.0,
    frozen_layers: int = 0,
    freeze_embeddings: bool = False,
) -> Factors:
    """Returns the factors of layer-wise decay, with the lowest layers frozen.

    Args:
      num_layers: layers of the encoder.
      decay: d in the module's docstring; 1 gives every parameter the same rate.
      frozen_layers: how many layers to freeze, those closest to the input.
      freeze_embeddings: whether to freeze the embeddings. Where a language model's output layer is
        tied to them, that is frozen as well.
    """
    layers = decay ** np.arange(num_layers, 0, -1, dtype=np.float64)
    layers[:frozen_layers] = 0
    embeddings = np.float64(0 if freeze_embeddings else decay ** (num_layers + 1))

    def factors(name: str) -> np.ndarray:
        name = f"/{name}"
        if "/embeddings/" in name:
            return embeddings
        if _LAYERS not in name:
            return np.float64(1)
        number = name.split(_LAYERS)[1].split("/")[0]
        return layers[int(number)] if number.isdecimal() else layers

    return factors


def scale_rates(
    optimizer: optax.GradientTransformation, factors: Factors
) -> optax.GradientTransformation:
    """Multiplies the updates of an optimizer by the parameters' factors.

    Clipping by the global norm counts all gradients that the optimizer gets. Those of frozen layers
    must therefore be 0, which `stop_frozen` sees to.
    """

    def trained(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if np.any(factors(_name(path))) else optax.MaskedNode(),
            tree,
            is_leaf=_is_box,
        )

    def scaled(path, param, update):
        factor = factors(_name(path))
        if not np.any(factor):
            return jnp.full_like(param, _NO_UPDATE)
        if np.all(factor == 1):
            return update
        factor = _along_layers(factor.astype(update.dtype), update)
        return jnp.where(factor == 0, _NO_UPDATE, update * factor)

    def init(params):
        return optimizer.init(trained(params))

    def update(grads, state, params=None):
        updates, state = optimizer.update(trained(grads), state, trained(params))
        # A frozen array's subtree in `updates` is empty.
        return jax.tree_util.tree_map_with_path(scaled, params, updates), state

    return optax.GradientTransformation(init, update)


def stop_frozen(params: Any, factors: Factors) -> Any:
    """Returns the parameters, of which those with factor 0 get no gradient.

    The gradients of arrays that are frozen as a whole are not computed, nor what only they need:
    with the embeddings and the lowest layers frozen, the backward pass of an unstacked model ends
    at the lowest layer that is trained. A scan over stacked layers goes through all of them.
    """

    def stopped(path, param):
        factor = factors(_name(path))
        if np.all(factor):
            return param
        constant = jax.lax.stop_gradient(param)
        return (
            jnp.where(_along_layers(factor, param), param, constant) if factor.any() else constant
        )

    return jax.tree_util.tree_map_with_path(stopped, params)


def count_trained(params: Any, factors: Factors) -> int:
    """The number of parameters whose factor is not 0, of a tree of arrays or shapes."""
    return sum(
        round(np.prod(leaf.shape, dtype=np.float64) * np.mean(factors(_name(path)) != 0))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    )


def _along_layers(factor: np.ndarray, array: jax.Array) -> np.ndarray:
    """The factor, with an axis of length 1 for each further axis of the array."""
    return factor.reshape(factor.shape + (1,) * (array.ndim - factor.ndim))


def _name(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.Partitioned)
