"""What a model is given: positions, masks, and the check that all of it fits.

Array names carry their shape: B inputs, L tokens an input, S keys (as many as tokens, or as a cache
holds), D hidden width.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from roberta_jax.modeling.config import RobertaConfig


def positions_from_ids(
    input_ids: jax.Array,
    pad_token_id: int,
    segment_ids: jax.Array | None = None,
    past_length: jax.Array | int = 0,
) -> jax.Array:
    """RoBERTa's position of each token: pads at `pad_token_id`, the others from the next one on.

    As fairseq's `make_positions`: p = cumsum(ids != pad) * (ids != pad) + pad. With `segment_ids`
    the count starts again wherever a new segment starts.

    Args:
      input_ids: int [B, L].
      pad_token_id: the id of `<pad>`.
      segment_ids: int [B, L] or None.
      past_length: tokens before these, which a cache holds.

    Returns:
      int32 [B, L].
    """
    real = (input_ids != pad_token_id).astype(jnp.int32)
    count = jnp.cumsum(real, axis=-1) + past_length
    if segment_ids is not None:
        starts = jnp.diff(segment_ids, axis=-1, prepend=segment_ids[:, :1]) != 0
        before = jax.lax.cummax(jnp.where(starts, count - real, 0), axis=1)
        count = count - before
    return count * real + pad_token_id


def attention_mask_from(
    attention_mask: jax.Array | None, segment_ids: jax.Array | None
) -> jax.Array | None:
    """Which query may see which key: bool [B, 1, 1 or L, S], or None where all see all.

    A key is seen where `attention_mask` is not 0 and, with `segment_ids`, where query and key are
    of the same segment and that segment is not 0 (padding).
    """
    mask = None
    if attention_mask is not None:
        mask = (attention_mask != 0)[:, None, None, :]
    if segment_ids is not None:
        query, key = segment_ids[:, None, :, None], segment_ids[:, None, None, :]
        same = (query == key) & (key != 0)
        mask = same if mask is None else mask & same
    return mask


def causal_mask(length: int, keys: int, past_length: jax.Array | int = 0) -> jax.Array:
    """bool [1, 1, L, S]: query i, which stands at `past_length` + i, sees the keys up to itself."""
    query = past_length + jnp.arange(length)[:, None]
    return (query >= jnp.arange(keys))[None, None]


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
    """Raises ValueError for inputs that do not fit; see `RobertaModel.__call__`."""
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
            wanted = f"(batch, length, {config.hidden_size})"
            raise shape_error("inputs_embeds", inputs_embeds.shape, wanted)
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
            wanted = f"that of the cache, ({shape[0]}, {cache_size})"
            raise shape_error("attention_mask", attention_mask.shape, wanted)
    for name, value in (
        ("attention_mask", attention_mask if cache_size is None else None),
        ("token_type_ids", token_type_ids),
        ("position_ids", position_ids),
        ("segment_ids", segment_ids),
    ):
        # Positions and token types may be given once for the whole batch.
        shared = name in ("position_ids", "token_type_ids") and value is not None
        if (
            value is not None
            and value.shape != shape
            and not (shared and value.shape == (1, shape[1]))
        ):
            raise shape_error(name, value.shape, f"that of the input, {shape}")
    for name, ids, rows in (
        ("input_ids", input_ids, config.vocab_size),
        ("token_type_ids", token_type_ids, config.type_vocab_size),
        ("position_ids", position_ids, config.max_position_embeddings),
    ):
        if ids is None or isinstance(ids, jax.core.Tracer):
            continue
        ids = np.asarray(ids)
        if ids.size and (ids.min() < 0 or ids.max() >= rows):
            raise ValueError(
                f"{name} must lie in [0, {rows}), but they span [{ids.min()}, {ids.max()}]"
            )


def check_memory(
    config: RobertaConfig,
    batch: int,
    encoder_hidden_states: jax.Array | None,
    encoder_attention_mask: jax.Array | None,
) -> None:
    """Raises ValueError where another model's hidden states do not fit this decoder."""
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


def shape_error(name: str, got: Sequence[int], wanted: str) -> ValueError:
    """The error for an argument of the wrong shape."""
    return ValueError(f"{name} has shape {tuple(got)}; it must be {wanted}")
