"""Model inputs: position ids, attention masks, and checks of the arguments.

Array names carry their shape: B batch, L length, S number of keys (L, or the size of the cache), D
hidden width.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from roberta_jax.kernels.masks import Segments
from roberta_jax.modeling.config import RobertaConfig


def positions_from_ids(
    input_ids: jax.Array,
    pad_token_id: int,
    segment_ids: jax.Array | None = None,
    past_length: jax.Array | int = 0,
) -> jax.Array:
    """RoBERTa's position ids: `pad_token_id` at padding, and from `pad_token_id + 1` elsewhere.

    As fairseq's `make_positions`: p = cumsum(ids != pad) * (ids != pad) + pad. With `segment_ids`
    the positions restart at each new segment.

    Args:
      input_ids: int [B, L].
      pad_token_id: the id of `<pad>`.
      segment_ids: int [B, L] or None.
      past_length: number of tokens in the cache, which precede these.

    Returns:
      int32 [B, L].
    """
    not_padding = (input_ids != pad_token_id).astype(jnp.int32)
    count = jnp.cumsum(not_padding, axis=-1) + past_length
    if segment_ids is not None:
        is_start = jnp.diff(segment_ids, axis=-1, prepend=segment_ids[:, :1]) != 0
        count_before = jax.lax.cummax(jnp.where(is_start, count - not_padding, 0), axis=1)
        count = count - count_before
    return count * not_padding + pad_token_id


def segments_from(
    attention_mask: jax.Array | None, segment_ids: jax.Array | None
) -> Segments | None:
    """Which keys a query may attend to, or None for all.

    A query may attend to a key if `attention_mask` is not 0 there. With `segment_ids`, query and
    key must also have the same segment id, and it must not be 0 (padding).

    Args:
      attention_mask: [B, S], or None.
      segment_ids: int [B, L], or None; the keys are the queries' tokens.
    """
    if segment_ids is None:
        if attention_mask is None:
            return None
        return Segments(None, (attention_mask != 0).astype(jnp.int32))
    keys = segment_ids
    if attention_mask is not None:
        keys = jnp.where(attention_mask != 0, segment_ids, 0)
    return Segments(segment_ids, keys)


def causal_mask(length: int, num_keys: int, past_length: jax.Array | int = 0) -> jax.Array:
    """bool [1, 1, L, S]: query i, at index `past_length` + i, may attend to keys up to that index.

    Args:
      length: L, the number of queries.
      num_keys: S.
      past_length: number of tokens in the cache, which precede the queries.
    """
    query_index = past_length + jnp.arange(length)[:, None]
    return (query_index >= jnp.arange(num_keys))[None, None]


def check_inputs(
    config: RobertaConfig,
    *,
    input_ids: jax.Array | None,
    attention_mask: jax.Array | None,
    token_type_ids: jax.Array | None,
    position_ids: jax.Array | None,
    segment_ids: jax.Array | None,
    inputs_embeds: jax.Array | None,
    cache_size: int | None = None,
) -> None:
    """Checks the arguments of `RobertaModel.__call__`.

    Raises:
      ValueError: a shape is wrong, the input is too long, or an id is out of range. Ids cannot be
        checked under `jit`.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give either input_ids or inputs_embeds, and not both")
    if input_ids is not None:
        shape = input_ids.shape
        if len(shape) != 2:
            raise shape_error("input_ids", shape, "(batch, length)")
    else:
        *shape, width = inputs_embeds.shape
        shape = tuple(shape)
        if len(shape) != 2 or width != config.hidden_size:
            expected = f"(batch, length, {config.hidden_size})"
            raise shape_error("inputs_embeds", inputs_embeds.shape, expected)
    if shape[1] > config.max_length:
        raise ValueError(
            f"input of {shape[1]} tokens, but this model has positions for {config.max_length} "
            f"(max_position_embeddings {config.max_position_embeddings}, of which the first "
            f"{config.pad_token_id + 1} are reserved); truncate the input"
        )
    if cache_size is not None:
        if segment_ids is not None:
            raise ValueError("segment_ids cannot be used with a cache")
        if shape[1] > cache_size:
            raise ValueError(f"input of {shape[1]} tokens, but the cache holds {cache_size}")
        if attention_mask is not None and attention_mask.shape != (shape[0], cache_size):
            expected = f"that of the cache, ({shape[0]}, {cache_size})"
            raise shape_error("attention_mask", attention_mask.shape, expected)
    for name, value in (
        ("attention_mask", attention_mask if cache_size is None else None),
        ("token_type_ids", token_type_ids),
        ("position_ids", position_ids),
        ("segment_ids", segment_ids),
    ):
        if value is None or value.shape == shape:
            continue
        # One row of positions or token types may serve the whole batch.
        broadcasts = name in ("position_ids", "token_type_ids") and value.shape == (1, shape[1])
        if not broadcasts:
            raise shape_error(name, value.shape, f"that of the input, {shape}")
    for name, ids, rows in (
        ("input_ids", input_ids, config.vocab_size),
        ("token_type_ids", token_type_ids, config.type_vocab_size),
        ("position_ids", position_ids, config.max_position_embeddings),
    ):
        if ids is not None:
            check_range(name, ids, rows)


def check_range(name: str, ids: jax.Array, rows: int) -> None:
    """Raises a ValueError for ids outside [0, rows). Under `jit` they cannot be checked."""
    if isinstance(ids, jax.core.Tracer):
        return
    ids = np.asarray(ids)
    if ids.size and (ids.min() < 0 or ids.max() >= rows):
        raise ValueError(
            f"{name} must lie in [0, {rows}), but they span [{ids.min()}, {ids.max()}]"
        )


def check_encoder_states(
    config: RobertaConfig,
    batch: int,
    encoder_hidden_states: jax.Array | None,
    encoder_attention_mask: jax.Array | None,
) -> None:
    """Checks the inputs of the cross-attention.

    Raises:
      ValueError: the model has no cross-attention, or a shape is wrong.
    """
    if encoder_hidden_states is None:
        if encoder_attention_mask is not None:
            raise ValueError("encoder_attention_mask needs encoder_hidden_states")
        return
    if not config.add_cross_attention:
        raise ValueError(
            "encoder_hidden_states need a model with cross-attention: set is_decoder=True and "
            "add_cross_attention=True in its config"
        )
    shape = encoder_hidden_states.shape
    if len(shape) != 3 or shape[0] != batch or shape[2] != config.hidden_size:
        raise shape_error(
            "encoder_hidden_states", shape, f"({batch}, length, {config.hidden_size})"
        )
    if encoder_attention_mask is not None and encoder_attention_mask.shape != shape[:2]:
        raise shape_error("encoder_attention_mask", encoder_attention_mask.shape, f"{shape[:2]}")


def shape_error(name: str, shape: Sequence[int], expected: str) -> ValueError:
    """Returns the error for the argument `name`, which has the wrong shape."""
    return ValueError(f"{name} has shape {tuple(shape)}; it must be {expected}")
