"""Which key a query may attend to, as segments or as a bias that is added to the scores.

Array names carry their shape: B batch, Q queries, S keys, H heads.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Added to a masked score. It is low enough that the probability is exactly 0, and finite, so that a
# query whose keys are all masked gives a finite output (which nothing reads) instead of NaN.
MASKED_SCORE = -1e30


class Segments(NamedTuple):
    """A query may attend to the keys of its own segment.

    Two numbers per token, from which a fused kernel makes the mask where it uses it.

    Attributes:
      query_BQ: int32 [B, Q], or None: each query may attend to the keys of any segment but 0.
      key_BS: int32 [B, S]; no query may attend to keys of segment 0 (padding).
    """

    query_BQ: jax.Array | None
    key_BS: jax.Array

    def allowed(self) -> jax.Array:
        """The mask, bool [B, 1, 1 or Q, S]: True where a query may attend to a key."""
        key = self.key_BS[:, None, None, :]
        not_padding = key != 0
        if self.query_BQ is None:
            return not_padding
        return (self.query_BQ[:, None, :, None] == key) & not_padding


# A float32 bias is broadcastable to [B, H, Q, S].
Mask = Segments | jax.Array | None


def mask_to_bias(mask: jax.Array | None) -> jax.Array | None:
    """Converts a bool mask to a float32 bias: 0 where True, `MASKED_SCORE` where False."""
    return None if mask is None else jnp.where(mask, 0.0, MASKED_SCORE).astype(jnp.float32)


def bias_of(mask: Mask) -> jax.Array | None:
    """A mask of either form as a float32 bias."""
    return mask_to_bias(mask.allowed()) if isinstance(mask, Segments) else mask


def of_first_query(mask: Mask) -> Mask:
    """The mask of the first query alone."""
    if isinstance(mask, Segments):
        query = None if mask.query_BQ is None else mask.query_BQ[:, :1]
        return Segments(query, mask.key_BS)
    return mask if mask is None or mask.shape[2] == 1 else mask[:, :, :1]
