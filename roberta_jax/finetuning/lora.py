"""LoRA (Hu et al. 2021): low-rank updates of the encoder's kernels, which stay as they are.

The kernel W [in, out] of an adapted module becomes W + alpha / rank * A @ B, with A [in, rank] and
B [rank, out]. Trained are A, B and the task's head. The product is added to the kernel once a step
and not to the activations of each token, which costs little beside the batch. The matrix products
then see the sum in their own dtype: in bfloat16 it is rounded as trained kernels are.

`weights.adapters` describes the layout of the parameters and peft's files.
"""

import math
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from roberta_jax.training.parameter_rates import Factors
from roberta_jax.weights.adapters import (
    LORA,
    adapted_modules,
    factor_paths,
    factor_shapes,
    is_trained_in_full,
    module_name,
    target_kernels,
)


def initial_adapter(
    params: Mapping[str, Any], rank: int, targets: Collection[str], key: jax.Array
) -> dict[str, Any]:
    """Returns the tree under `lora` of a new adapter.

    As in peft, A is uniform in +-1 / sqrt(in) (`kaiming_uniform_` with a = sqrt(5), the initializer
    of torch's linear layers), and B is 0, so that the model is at first that without adapter. The
    values do not depend on whether the layers are stacked.

    Args:
      params: the model's parameters. Where they are boxed with logical axis names, A and B are too:
        each has the kernel's names for the axes that it shares with it.
      rank: of A and B.
      targets: as in `weights.adapters.adapted_modules`.
      key: of the random values.
    """
    adapter = {}
    for path, kernel in target_kernels(params, adapted_modules(targets)).items():
        value = nn.meta.unbox(kernel)
        shape_a, shape_b = factor_shapes(value.shape, rank)
        module_key = jax.random.fold_in(key, zlib.crc32(module_name(path).encode()))
        layer = next((int(name) for name in path if name.isdecimal()), None)
        if layer is None:
            a = jax.vmap(lambda i, k=module_key, shape=shape_a[1:]: _uniform(k, i, shape))(
                jnp.arange(shape_a[0])
            )
        else:
            a = _uniform(module_key, layer, shape_a)
        pair = [a, jnp.zeros(shape_b, jnp.float32)]
        if isinstance(kernel, nn.LogicallyPartitioned):
            *layers, inputs, outputs = kernel.names
            names = (*layers, inputs, None), (*layers, None, outputs)
            pair = [nn.LogicallyPartitioned(x, n) for x, n in zip(pair, names, strict=True)]
        adapter |= dict(zip(factor_paths(path), pair, strict=True))
    return traverse_util.unflatten_dict(adapter)


def _uniform(key: jax.Array, layer: int | jax.Array, shape: tuple[int, int]) -> jax.Array:
    bound = 1 / math.sqrt(shape[0])
    return jax.random.uniform(jax.random.fold_in(key, layer), shape, jnp.float32, -bound, bound)


def merge(params: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    """Returns the model's own parameters, with the adapter added to the kernels.

    Args:
      params: the parameters of the adapted model, all JAX or all NumPy arrays. Those of a model
        without adapter are returned as they are.
      alpha: see the module's docstring.
    """
    params = dict(params)
    adapter = traverse_util.flatten_dict(params.pop(LORA, {}))
    flat = traverse_util.flatten_dict(params)
    for path in flat:
        path_a, path_b = factor_paths(path)
        if path[-1] != "kernel" or path_a not in adapter:
            continue
        a, b = adapter[path_a], adapter[path_b]
        scale = np.float32(alpha / a.shape[-1])
        if isinstance(a, np.ndarray):
            product = np.matmul(a, b)
        else:  # on accelerators the default precision has 8 to 11 bits
            product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        flat[path] = flat[path] + scale * product
    return traverse_util.unflatten_dict(flat)


def factors() -> Factors:
    """1 for the adapter and the task's head, and 0 for the rest of the model."""

    def of(name: str) -> np.ndarray:
        path = tuple(name.split("/"))
        return np.float64(path[0] == LORA or is_trained_in_full(path))

    return of
