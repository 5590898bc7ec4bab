"""Text generation with a causal language model: one compiled loop with a cache.

Array names carry their shape: B batch, L length of the prompts, T length of prompt and continuation
together, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from roberta_jax.modeling.heads import RobertaForCausalLM

_MASKED_LOGIT = -1e30  # its probability is exactly 0


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to choose the next token.

    Attributes:
      do_sample: False takes the most likely token. True samples, with the options below.
      temperature: divides the logits.
      top_k: sample from the k most likely tokens and any as likely as the k-th. 0 means no limit.
      top_p: sample from the smallest set of most likely tokens whose probabilities sum to at least
        p (nucleus sampling, Holtzman et al. 2020). Applied after `top_k`. 1 means no limit.

    Raises:
      ValueError: a value is out of range.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(
                f"temperature must be positive, not {self.temperature}; for the most likely token "
                "use do_sample=False"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, not {self.top_k}; 0 means no limit")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}; 1 means no limit")


def filter_logits(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Applies the temperature, and masks the tokens that `top_k` and `top_p` exclude.

    Args:
      logits_BV: any floating dtype.
      sampling: `do_sample` is not read.

    Returns:
      float32 [B, V]. Excluded tokens have logits of -1e30, so a probability of exactly 0.
    """
    logits_BV = logits_BV.astype(jnp.float32) / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        threshold_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < threshold_B1, _MASKED_LOGIT, logits_BV)
    if sampling.top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
        # A token stays if the more likely ones sum to less than p, so the first always stays.
        sum_before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
        threshold_B1 = jnp.min(
            jnp.where(sum_before_BV < sampling.top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True
        )
        logits_BV = jnp.where(logits_BV < threshold_B1, _MASKED_LOGIT, logits_BV)
    return logits_BV


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


def generate(
    model: RobertaForCausalLM,
    params: Any,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    *,
    max_new_tokens: int = 20,
    sampling: Sampling = Sampling(),
    key: jax.Array | None = None,
    eos_token_id: int | None = None,
    min_new_tokens: int = 0,
    encoder_hidden_states: jax.Array | None = None,
    encoder_attention_mask: jax.Array | None = None,
) -> jax.Array:
    """Continues prompts. Compiles once for each combination of shapes and `sampling`.

    Positions count from `pad_token_id + 1` at the first token of a prompt that is not padding, so
    an input gets the same continuation alone and in a padded batch.

    Args:
      model: a model with `config.is_decoder`.
      params: its parameters.
      input_ids: int [B, L], the prompts. Pad shorter ones on the left.
      attention_mask: int or bool [B, L], 0 at padding. None treats pad tokens as padding.
      max_new_tokens: number of tokens to add.
      sampling: how to choose them.
      key: a JAX random key; needed with `sampling.do_sample`.
      eos_token_id: the token that ends an input; padding follows it. None uses
        `config.eos_token_id`, -1 lets no token end an input.
      min_new_tokens: number of new tokens before which no input may end.
      encoder_hidden_states, encoder_attention_mask: for a model with cross-attention.

    Returns:
      int32 [B, L + max_new_tokens]: prompts and continuations, up to and including the
      `eos_token_id`, then padding.

    Raises:
      ValueError: the model is not a decoder or has too few positions, a prompt is padded on the
        right, or sampling has no key.
    """
    config = model.config
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
    if sampling.do_sample and key is None:
        raise ValueError("sampling needs a key: pass key=jax.random.key(seed)")
    if attention_mask is None:
        attention_mask = input_ids != config.pad_token_id
    attention_mask = jnp.asarray(attention_mask) != 0
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}"
        )
    if not isinstance(attention_mask, jax.core.Tracer) and not bool(attention_mask[:, -1].all()):
        raise ValueError("a prompt ends in padding: pad on the left (padding_side='left')")
    return _generate(
        model,
        max_new_tokens,
        sampling,
        params,
        jnp.asarray(input_ids, jnp.int32),
        attention_mask,
        config.eos_token_id if eos_token_id is None else eos_token_id,
        min_new_tokens,
        jax.random.key(0) if key is None else key,
        encoder_hidden_states,
        encoder_attention_mask,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    model,
    max_new_tokens,
    sampling,
    params,
    ids_BL,
    mask_BL,
    eos_token_id,
    min_new_tokens,
    key,
    encoder_hidden_states,
    encoder_attention_mask,
):
    config = model.config
    batch, length = ids_BL.shape
    total_length = length + max_new_tokens
    padding = ((0, 0), (0, max_new_tokens))
    ids_BT = jnp.pad(ids_BL, padding, constant_values=config.pad_token_id)
    # New tokens need no mask: the causal mask hides them until they exist.
    mask_BT = jnp.pad(mask_BL, padding, constant_values=True)
    positions_BT = config.pad_token_id + jnp.cumsum(mask_BT, axis=1)
    positions_BT = jnp.where(mask_BT, positions_BT, config.pad_token_id)

    def predict(cache, ids, positions):
        output, updated = model.apply(
            {"params": params, "cache": cache},
            ids,
            mask_BT,
            position_ids=positions,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            mutable=["cache"],
        )
        return output.logits[:, -1], updated["cache"]

    def choose(logits_BV, step):
        is_early_eos = (jnp.arange(logits_BV.shape[-1]) == eos_token_id) & (step < min_new_tokens)
        logits_BV = jnp.where(is_early_eos, _MASKED_LOGIT, logits_BV)
        if not sampling.do_sample:
            return jnp.argmax(logits_BV, axis=-1)
        logits_BV = filter_logits(logits_BV, sampling)
        return jax.random.categorical(jax.random.fold_in(key, step), logits_BV, axis=-1)

    def is_unfinished(carry):
        step, _, _, _, ended_B = carry
        return (step < max_new_tokens) & ~jnp.all(ended_B)

    def add_token(carry):
        step, ids_BT, cache, logits_BV, ended_B = carry
        token_B = jnp.where(ended_B, config.pad_token_id, choose(logits_BV, step))
        ids_BT = jax.lax.dynamic_update_slice(ids_BT, token_B[:, None], (0, length + step))
        positions = jax.lax.dynamic_slice_in_dim(positions_BT, length + step, 1, axis=1)
        logits_BV, cache = predict(cache, token_B[:, None], positions)
        return step + 1, ids_BT, cache, logits_BV, ended_B | (token_B == eos_token_id)

    cache = init_cache(model, batch, total_length)
    logits_BV, cache = predict(cache, ids_BL, positions_BT[:, :length])
    carry = (0, ids_BT, cache, logits_BV, jnp.zeros(batch, bool))
    return jax.lax.while_loop(is_unfinished, add_token, carry)[1]
