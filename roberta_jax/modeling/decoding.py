"""What every search for a continuation shares: checks, the cache, and one step of the model.

Array names carry their shape: B batch, L length of the prompts, T length of prompt and continuation
together, S length of the encoder's output, D hidden width, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from roberta_jax.modeling.config import RobertaConfig


class Context(NamedTuple):
    """Arrays that the model reads at every step.

    Attributes:
      mask_BT: bool, False at the padding of the prompts. New tokens need no mask: the causal mask
        hides them until they exist.
      positions_BT: int32. They count from `pad_token_id + 1` at the first token that is not
        padding, so an input gets the same continuation alone and in a padded batch.
      encoder_states_BSD, encoder_mask_BS: for a model with cross-attention, else None.
    """

    mask_BT: jax.Array
    positions_BT: jax.Array
    encoder_states_BSD: jax.Array | None
    encoder_mask_BS: jax.Array | None


def init_cache(model: nn.Module, batch_size: int, max_length: int) -> dict[str, Any]:
    """Creates an empty cache of keys and values, for `model.apply(…, mutable=["cache"])`.

    Args:
      model: a decoder (`config.is_decoder`), with or without a head.
      batch_size: B.
      max_length: the size of the cache: the maximum length of prompt and continuation together.

    Returns:
      The "cache" collection: zeros, in the dtype of the model's computation.

    Raises:
      ValueError: the model is not a decoder, or has fewer positions than `max_length`.
    """
    if not model.config.is_decoder:
        raise ValueError("a cache needs a decoder: set is_decoder=True in the model's config")
    ids = jnp.zeros((batch_size, max_length), jnp.int32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: model.init({"params": key}, ids, init_cache=True))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes["cache"])


def take_cache_rows(cache: dict[str, Any], rows: jax.Array) -> dict[str, Any]:
    """A cache whose row i is that of index `rows[i]`.

    Args:
      cache: keys and values of [B, T, H, K], or of [layers, B, T, H, K], and their lengths.
      rows: int [N].

    Returns:
      The same with N in the place of B.
    """

    def take(x):
        return x if x.ndim < 4 else jnp.take(x, rows, axis=x.ndim - 4)

    return jax.tree.map(take, cache)


def check_prompts(
    config: RobertaConfig,
    input_ids: jax.Array,
    attention_mask: jax.Array | None,
    max_new_tokens: int,
) -> jax.Array:
    """Checks the prompts.

    Returns:
      bool [B, L], False at padding. If `attention_mask` is None, pad tokens are padding.

    Raises:
      ValueError: the model is not a decoder or has too few positions, or a prompt is padded on the
        right. The last cannot be checked under `jit`.
    """
    if not config.is_decoder:
        raise ValueError("generation needs a decoder: set is_decoder=True in the model's config")
    if input_ids.ndim != 2 or input_ids.shape[1] < 1:
        raise ValueError(f"input_ids must be (batch, length), not {tuple(input_ids.shape)}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    total = input_ids.shape[1] + max_new_tokens
    if total > config.max_length:
        raise ValueError(
            f"a prompt of {input_ids.shape[1]} tokens and {max_new_tokens} new ones are {total}, "
            f"but this model has positions for {config.max_length}; shorten the prompt or lower "
            "max_new_tokens"
        )
    if attention_mask is None:
        attention_mask = input_ids != config.pad_token_id
    attention_mask = jnp.asarray(attention_mask) != 0
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}"
        )
    if not isinstance(attention_mask, jax.core.Tracer) and not bool(attention_mask[:, -1].all()):
        raise ValueError("a prompt ends in padding: pad on the left (padding_side='left')")
    return attention_mask


def new_context(
    config: RobertaConfig,
    mask_BL: jax.Array,
    max_new_tokens: int,
    encoder_states_BSD: jax.Array | None,
    encoder_mask_BS: jax.Array | None,
) -> Context:
    """The context of prompts with this mask; see `Context`."""
    mask_BT = jnp.pad(mask_BL, ((0, 0), (0, max_new_tokens)), constant_values=True)
    positions_BT = config.pad_token_id + jnp.cumsum(mask_BT, axis=1)
    positions_BT = jnp.where(mask_BT, positions_BT, config.pad_token_id)
    return Context(mask_BT, positions_BT, encoder_states_BSD, encoder_mask_BS)


def predict(
    model: nn.Module, params: Any, context: Context, cache: Any, ids: jax.Array, start: Any
) -> tuple[jax.Array, Any]:
    """Runs the model on the next tokens of each input.

    Args:
      model: a causal language model.
      params: its parameters.
      context: the arrays of the whole inputs.
      cache: keys and values of the tokens before these.
      ids: int32 [B, N], the tokens.
      start: the index of the first of them.

    Returns:
      (float32 [B, V] logits of the token after these, the cache with these tokens).
    """
    positions = jax.lax.dynamic_slice_in_dim(context.positions_BT, start, ids.shape[1], axis=1)
    output, updated = model.apply(
        {"params": params, "cache": cache},
        ids,
        context.mask_BT,
        position_ids=positions,
        encoder_hidden_states=context.encoder_states_BSD,
        encoder_attention_mask=context.encoder_mask_BS,
        mutable=["cache"],
    )
    return output.logits[:, -1], updated["cache"]
