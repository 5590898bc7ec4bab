"""How a model is computed: precision, layer scanning, rematerialisation, kernels.

These options change speed and memory only. The same weights give the same results, to rounding,
under all of them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from roberta_jax.kernels import attention, layer_norm
from roberta_jax.kernels.dispatch import AUTO

# The `checkpoint_name` of the products of dense layers with a gradient of their own.
PRODUCT = "dense_product"

# The `jax.checkpoint` policy of each value of `Execution.remat`; "none" uses no checkpoint.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(attention.RESIDUALS, PRODUCT),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a model is computed; see the module's docstring.

    Attributes:
      dtype: dtype of activations and matrix products (`bfloat16` on accelerators). Parameters,
        softmax, LayerNorm, logits and losses are always float32.
      scan_layers: whether to stack the parameters of the blocks, each leaf with a leading `layers`
        axis, and scan over them. The compile time then does not grow with depth. Otherwise the
        blocks are named "0", "1", … as in Hugging Face's Flax classes.
      scan_unroll: number of blocks per scan iteration. Must divide the number of layers or exceed
        it. -1 is all blocks: then there is no loop. What is kept for the backward pass need not be
        copied into and out of arrays of all layers, and compiling takes longer.
      remat: what the backward pass recomputes instead of storing. "none": nothing. "dots":
        everything but the results of matrix products. "full": everything inside a block.
      attention: the attention kernel, one of `kernels.attention.CHOICES`. "auto": the fused one of
        the accelerator, `pallas_tpu` or `pallas_gpu`, for what it can compute, and "xla" for the
        rest. "xla" stores no attention probabilities for the backward pass. "reference" is the
        plain definition. Relative position embeddings always use "reference".
      layer_norm: the kernel of dropout, residual and LayerNorm at the end of a sub-layer, one of
        `kernels.layer_norm.CHOICES`. "auto": that of the accelerator where there is one, and "xla"
        otherwise.

    Raises:
      ValueError: a value is out of range or unknown.
    """

    dtype: Any = jnp.float32
    scan_layers: bool = True
    scan_unroll: int = 1
    remat: str = "dots"
    attention: str = AUTO
    layer_norm: str = AUTO

    def __post_init__(self):
        try:
            is_float = jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating)
        except TypeError:
            is_float = False
        if not is_float:
            raise ValueError(f"dtype must be a floating-point type, not {self.dtype!r}")
        if not isinstance(self.scan_layers, bool):
            raise ValueError(f"scan_layers must be True or False, not {self.scan_layers!r}")
        unroll = self.scan_unroll
        is_whole = isinstance(unroll, int) and not isinstance(unroll, bool)
        if not is_whole or (unroll < 1 and unroll != -1):
            raise ValueError(
                f"scan_unroll must be a whole number of at least 1, or -1 for all, not {unroll!r}"
            )
        for name, known in (
            ("remat", REMAT_POLICIES),
            ("attention", attention.CHOICES),
            ("layer_norm", layer_norm.CHOICES),
        ):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(sorted(known))}")


def has_loop(execution: Execution, layers: int) -> bool:
    """Whether the program of so many blocks has a loop over them."""
    return execution.scan_layers and 1 <= execution.scan_unroll < layers


def for_inference(dtype: Any = jnp.float32) -> Execution:
    """How a model is computed that is not trained.

    On CPUs the blocks are not stacked: a scan copies the parameters of each block before it
    computes it, which short texts notice.

    Args:
      dtype: see `Execution`.
    """
    return Execution(dtype=dtype, scan_layers=jax.default_backend() != "cpu")
