"""Generation with a causal language model: one compiled loop over a cache of keys and values.

Array names carry their shape: B inputs, L tokens of a prompt, T tokens of prompt and continuation,
V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from roberta_jax.modeling.heads import RobertaForCausalLM

_NEVER = -1e30  # a logit whose probability is 0


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      do_sample: False takes the likeliest token; True draws one, as the others say.
      temperature: the logits are divided by it.
      top_k: only the k likeliest are drawn from (and those as likely as the k-th); 0 is all.
      top_p: only the likeliest whose probabilities add up to p are drawn from, the one that reaches
        p included (Holtzman et al. 2020); 1 is all. After `top_k`.

    Raises:
      ValueError: a value out of its range.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(
                f"temperature must be positive, not {self.temperature}; for the likeliest token "
                "use do_sample=False"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, not {self.top_k}; 0 is no limit")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}; 1 is no limit")


def filter_logits(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Divides by the temperature, and makes what `top_k` and `top_p` leave out impossible."""
    logits_BV = logits_BV.astype(jnp.float32) / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        least_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, _NEVER, logits_BV)
    if sampling.top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
        # A token stays if those before it have not reached p; so the first always does.
        before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
        least_B1 = jnp.min(
            jnp.where(before_BV < sampling.top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True
        )
        logits_BV = jnp.where(logits_BV < least_B1, _NEVER, logits_BV)
    return logits_BV


def init_cache(model: nn.Module, batch_size: int, max_length: int) -> dict[str, Any]:
    """An empty cache of keys and values, for `model.apply(…, mutable=["cache"])`.

    Args:
      model: a decoder (`config.is_decoder`), with or without a head.
      batch_size: B.
      max_length: tokens that it holds, prompt and continuation together.

    Returns:
      The collection "cache": zeros, in the type that the model computes in.

    Raises:
      ValueError: no decoder, or more tokens than it has positions for.
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
    """Continues prompts; compiled once for each shape and way of sampling.

    Positions start at `pad_token_id + 1` at a prompt's first real token, whether or not there is
    padding on its left, so that an input gets the same continuation alone and in a batch.

    Args:
      model: with `config.is_decoder`.
      params: its parameters.
      input_ids: int [B, L], the prompts; shorter ones padded on the left.
      attention_mask: int or bool [B, L], 0 at padding. None takes the pad token for padding.
      max_new_tokens: how many tokens to add.
      sampling: how to choose them.
      key: a JAX random key, for `sampling.do_sample`.
      eos_token_id: ends an input; None is the config's, -1 is none. What follows is padding.
      min_new_tokens: tokens before which no input ends.
      encoder_hidden_states, encoder_attention_mask: for a model with cross-attention.

    Returns:
      int32 [B, L + max_new_tokens]: the prompts, their continuations with `<eos>`, and padding.

    Raises:
      ValueError: no decoder, more tokens than positions, padding on the right, or sampling without
        a key.
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
            f"but this model has positions for {config.max_length}; shorten either"
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
        min_new_tokens,
        sampling,
        config.eos_token_id if eos_token_id is None else eos_token_id,
        params,
        jnp.asarray(input_ids, jnp.int32),
        attention_mask,
        jax.random.key(0) if key is None else key,
        encoder_hidden_states,
        encoder_attention_mask,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _generate(
    model, steps, least, sampling, eos, params, ids_BL, mask_BL, key, memory, memory_mask
):
    config = model.config
    batch, length = ids_BL.shape
    ids_BT = jnp.pad(ids_BL, ((0, 0), (0, steps)), constant_values=config.pad_token_id)
    # Later places are masked by causality alone.
    mask_BT = jnp.pad(mask_BL, ((0, 0), (0, steps)), constant_values=True)
    positions_BT = config.pad_token_id + jnp.cumsum(mask_BT, axis=1)
    positions_BT = jnp.where(mask_BT, positions_BT, config.pad_token_id)

    def predict(cache, ids, positions):
        output, updated = model.apply(
            {"params": params, "cache": cache},
            ids,
            mask_BT,
            position_ids=positions,
            encoder_hidden_states=memory,
            encoder_attention_mask=memory_mask,
            mutable=["cache"],
        )
        return output.logits[:, -1], updated["cache"]

    def choose(logits_BV, step):
        # <eos> is out of the question at first.
        words = jnp.arange(logits_BV.shape[-1])
        logits_BV = jnp.where((words == eos) & (step < least), _NEVER, logits_BV)
        if not sampling.do_sample:
            return jnp.argmax(logits_BV, axis=-1)
        chosen = filter_logits(logits_BV, sampling)
        return jax.random.categorical(jax.random.fold_in(key, step), chosen, axis=-1)

    def unfinished(carry):
        step, _, _, _, ended_B = carry
        return (step < steps) & ~jnp.all(ended_B)

    def add_token(carry):
        step, ids_BT, cache, logits_BV, ended_B = carry
        token_B = jnp.where(ended_B, config.pad_token_id, choose(logits_BV, step))
        ids_BT = jax.lax.dynamic_update_slice(ids_BT, token_B[:, None], (0, length + step))
        positions = jax.lax.dynamic_slice_in_dim(positions_BT, length + step, 1, axis=1)
        logits_BV, cache = predict(cache, token_B[:, None], positions)
        return step + 1, ids_BT, cache, logits_BV, ended_B | (token_B == eos)

    logits_BV, cache = predict(
        init_cache(model, batch, length + steps), ids_BL, positions_BT[:, :length]
    )
    start = (0, ids_BT, cache, logits_BV, jnp.zeros(batch, bool))
    return jax.lax.while_loop(unfinished, add_token, start)[1]
