"""How a model is computed: precision, layer scanning, rematerialisation.

These options change speed and memory only. The same weights give the same results, to rounding,
under all of them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from roberta_jax.kernels.attention import RESIDUALS

# What `jax.checkpoint` may keep, for each value of `Execution.remat` but "none".
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(RESIDUALS),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a model is computed; its results do not depend on it.

    Attributes:
      dtype: of activations and matrix products (`bfloat16` on accelerators). Parameters, softmax,
        LayerNorm, logits and loss are float32 always.
      scan_layers: stack the blocks' parameters, each leaf with a leading `layers` axis, and scan
        over them; else they are named "0", "1", … as Hugging Face's Flax classes name them.
        Scanning compiles in a time that does not grow with depth.
      scan_unroll: blocks a scan iteration holds; must divide the number of layers or exceed it.
      remat: what the backward pass computes again instead of keeping: "none"; "dots", all but the
        results of matrix products; "full", everything inside a block.
    """

    dtype: Any = jnp.float32
    scan_layers: bool = True
    scan_unroll: int = 1
    remat: str = "dots"

    def __post_init__(self):
        if not jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating):
            raise ValueError(f"dtype must be a floating-point type, not {self.dtype!r}")
        if self.scan_unroll < 1:
            raise ValueError(f"scan_unroll must be at least 1, not {self.scan_unroll}")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(
                f"unknown remat {self.remat!r}; known: {', '.join(sorted(REMAT_POLICIES))}"
            )
