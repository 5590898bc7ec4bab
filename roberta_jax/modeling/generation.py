"""Text generation with a causal language model: greedy search and sampling.

One compiled loop with a cache. Beam search is in `beam_search`.

Array names carry their shape: B batch, L length of the prompts, T length of prompt and continuation
together, E ids that end an input, V vocabulary.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from roberta_jax.modeling.decoding import check_prompts, init_cache, new_context, predict
from roberta_jax.modeling.heads import RobertaForCausalLM
from roberta_jax.modeling.next_token import (
    MOST_LIKELY,
    NO_RULES,
    Sampling,
    TokenRules,
    apply_rules,
    check_token_ids,
    end_ids,
    filter_logits,
    is_one_of,
)

__all__ = ["Sampling", "TokenRules", "filter_logits", "generate", "init_cache"]


def generate(
    model: RobertaForCausalLM,
    params: Any,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    *,
    max_new_tokens: int = 20,
    sampling: Sampling = MOST_LIKELY,
    rules: TokenRules = NO_RULES,
    key: jax.Array | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    min_new_tokens: int = 0,
    encoder_hidden_states: jax.Array | None = None,
    encoder_attention_mask: jax.Array | None = None,
) -> jax.Array:
    """Continues prompts. Compiles once for each combination of shapes, `sampling` and `rules`.

    Positions count from `pad_token_id + 1` at the first token of a prompt that is not padding, so
    an input gets the same continuation alone and in a padded batch.

    Args:
      model: a model with `config.is_decoder`.
      params: its parameters.
      input_ids: int [B, L], the prompts. Pad shorter ones on the left.
      attention_mask: int or bool [B, L], 0 at padding. None treats pad tokens as padding.
      max_new_tokens: number of tokens to add.
      sampling: how to choose them.
      rules: tokens to exclude or to force.
      key: a JAX random key; needed with `sampling.do_sample`.
      eos_token_id: the token that ends an input, or several; padding follows it. None uses
        `config.eos_token_id`, -1 lets no token end an input.
      pad_token_id: the token that fills up inputs that have ended. None uses
        `config.pad_token_id`.
      min_new_tokens: number of new tokens before which no input may end.
      encoder_hidden_states, encoder_attention_mask: for a model with cross-attention.

    Returns:
      int32 [B, L + max_new_tokens]: prompts and continuations, up to and including the
      `eos_token_id`, then padding.

    Raises:
      ValueError: the model is not a decoder or has too few positions, a prompt is padded on the
        right, a rule names a token outside of the vocabulary, or sampling has no key.
    """
    config = model.config
    mask_BL = check_prompts(config, input_ids, attention_mask, max_new_tokens)
    check_token_ids(rules, config.vocab_size)
    if sampling.do_sample and key is None:
        raise ValueError("sampling needs a key: pass key=jax.random.key(seed)")
    return _generate(
        model,
        max_new_tokens,
        sampling,
        rules,
        params,
        jnp.asarray(input_ids, jnp.int32),
        mask_BL,
        end_ids(config.eos_token_id if eos_token_id is None else eos_token_id),
        config.pad_token_id if pad_token_id is None else pad_token_id,
        min_new_tokens,
        jax.random.key(0) if key is None else key,
        encoder_hidden_states,
        encoder_attention_mask,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(
    model,
    max_new_tokens,
    sampling,
    rules,
    params,
    ids_BL,
    mask_BL,
    end_ids_E,
    pad_token_id,
    min_new_tokens,
    key,
    encoder_states_BSD,
    encoder_mask_BS,
):
    batch, length = ids_BL.shape
    context = new_context(
        model.config, mask_BL, max_new_tokens, encoder_states_BSD, encoder_mask_BS
    )
    ids_BT = jnp.full(context.mask_BT.shape, pad_token_id, jnp.int32).at[:, :length].set(ids_BL)

    def choose(logits_BV, ids_BT, step):
        logits_BV = apply_rules(
            logits_BV,
            rules,
            ids_BT=ids_BT,
            mask_BT=context.mask_BT,
            prompt_length=length,
            step=step,
            end_ids_E=end_ids_E,
            min_new_tokens=min_new_tokens,
        )
        if not sampling.do_sample:
            return jnp.argmax(logits_BV, axis=-1)
        logits_BV = filter_logits(logits_BV, sampling)
        return jax.random.categorical(jax.random.fold_in(key, step), logits_BV, axis=-1)

    def is_unfinished(carry):
        step, _, _, _, ended_B = carry
        return (step < max_new_tokens) & ~jnp.all(ended_B)

    def add_token(carry):
        step, ids_BT, cache, logits_BV, ended_B = carry
        token_B = jnp.where(ended_B, pad_token_id, choose(logits_BV, ids_BT, step))
        ids_BT = jax.lax.dynamic_update_slice(ids_BT, token_B[:, None], (0, length + step))
        logits_BV, cache = predict(model, params, context, cache, token_B[:, None], length + step)
        return step + 1, ids_BT, cache, logits_BV, ended_B | is_one_of(token_B, end_ids_E)

    cache = init_cache(model, batch, context.mask_BT.shape[1])
    logits_BV, cache = predict(model, params, context, cache, ids_BL, 0)
    carry = (0, ids_BT, cache, logits_BV, jnp.zeros(batch, bool))
    return jax.lax.while_loop(is_unfinished, add_token, carry)[1]
