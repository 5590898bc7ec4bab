"""Beam search with a causal language model, in one compiled loop with a cache.

Each input has K live beams, the most likely continuations that have not ended, and K finished
continuations, the best so far. A step extends the live beams by every token, and takes the best
(1 + E) K extensions as candidates, of which at least K have not ended. Those become the live beams.
A candidate that has ended is finished if it is one of the best K, and at the last step every
candidate has ended. These are the rules of `generate` in transformers' PyTorch classes.

Array names carry their shape: B batch, K beams, N = B K rows of the model, C candidates, L length
of the prompts, T length of prompt and continuation together, E ids that end an input, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from roberta_jax.modeling.decoding import (
    check_prompts,
    init_cache,
    new_context,
    predict,
    take_cache_rows,
)
from roberta_jax.modeling.heads import RobertaForCausalLM
from roberta_jax.modeling.next_token import (
    MASKED_SCORE,
    NO_RULES,
    TokenRules,
    apply_rules,
    check_token_ids,
    end_ids,
    is_one_of,
)


@dataclasses.dataclass(frozen=True)
class Beams:
    """Options of beam search.

    Attributes:
      num_beams: number of live beams for each input.
      length_penalty: a finished continuation of n tokens has the score `log p / n**length_penalty`.
        Since log-probabilities are negative, larger values favor longer continuations.
      early_stopping: when the search for an input stops. True: as soon as `num_beams`
        continuations are finished. False: when, besides, each of them has at least the score that
        the best live beam would have if it ended now. "never": as False, but for a live beam of
        the maximum length if `length_penalty` is positive.
      num_return_sequences: number of continuations to return for each input.

    Raises:
      ValueError: a value is out of range.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1

    def __post_init__(self):
        if self.num_beams < 1:
            raise ValueError(f"num_beams must be at least 1, not {self.num_beams}")
        if not abs(self.length_penalty) < float("inf"):
            raise ValueError(f"length_penalty must be finite, not {self.length_penalty}")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(
                f'early_stopping must be True, False or "never", not {self.early_stopping!r}'
            )
        if not 1 <= self.num_return_sequences <= self.num_beams:
            raise ValueError(
                f"num_return_sequences must be from 1 to num_beams ({self.num_beams}), not "
                f"{self.num_return_sequences}"
            )


class BeamSearchOutput(NamedTuple):
    """The best continuations of each input, the best first. R is `num_return_sequences`.

    Attributes:
      sequences: int32 [B, R, T], prompts and continuations, up to and including the token that
        ends them, then padding.
      scores: float32 [B, R], the sum of the log-probabilities of the continuation's tokens, after
        the token rules, divided by its number of tokens to the power of `length_penalty`. -inf
        marks a row without a continuation: fewer are possible.
    """

    sequences: jax.Array
    scores: jax.Array


def beam_search(
    model: RobertaForCausalLM,
    params: Any,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    *,
    max_new_tokens: int = 20,
    beams: Beams = Beams(),
    rules: TokenRules = NO_RULES,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    min_new_tokens: int = 0,
    encoder_hidden_states: jax.Array | None = None,
    encoder_attention_mask: jax.Array | None = None,
) -> BeamSearchOutput:
    """Continues prompts by beam search. Compiles once for each combination of shapes and options.

    An input gets the same continuations alone and in a padded batch.

    Args:
      beams: the options of the search.
      model, params, input_ids, attention_mask, max_new_tokens, rules, eos_token_id, pad_token_id,
        min_new_tokens, encoder_hidden_states, encoder_attention_mask: see `generation.generate`.
        The rules apply to log-probabilities, which are not normalized again.

    Raises:
      ValueError: see `generation.generate`.
    """
    config = model.config
    mask_BL = check_prompts(config, input_ids, attention_mask, max_new_tokens)
    check_token_ids(rules, config.vocab_size)
    return _beam_search(
        model,
        max_new_tokens,
        beams,
        rules,
        params,
        jnp.asarray(input_ids, jnp.int32),
        mask_BL,
        end_ids(config.eos_token_id if eos_token_id is None else eos_token_id),
        config.pad_token_id if pad_token_id is None else pad_token_id,
        min_new_tokens,
        encoder_hidden_states,
        encoder_attention_mask,
    )


class _State(NamedTuple):
    """The state of the loop. A finished continuation that does not exist has the score -inf."""

    step: jax.Array
    live_ids_BKT: jax.Array
    live_scores_BK: jax.Array  # sums of log-probabilities, in descending order
    finished_ids_BKT: jax.Array
    finished_scores_BK: jax.Array  # with the length penalty, in descending order
    is_done_B: jax.Array
    cache: Any
    logits_NV: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _beam_search(
    model,
    max_new_tokens,
    beams,
    rules,
    params,
    ids_BL,
    mask_BL,
    end_ids_E,
    pad_token_id,
    min_new_tokens,
    encoder_states_BSD,
    encoder_mask_BS,
):
    batch, length = ids_BL.shape
    num_beams, total_length = beams.num_beams, length + max_new_tokens
    context = new_context(
        model.config, mask_BL, max_new_tokens, encoder_states_BSD, encoder_mask_BS
    )
    # The prompts are read once, then copied to the beams.
    cache = init_cache(model, batch, total_length)
    logits_BV, cache = predict(model, params, context, cache, ids_BL, 0)
    vocab_size = logits_BV.shape[-1]
    num_candidates = min((1 + len(end_ids_E)) * num_beams, num_beams * vocab_size)
    context = jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=0), context)

    def penalized(scores, num_tokens):
        return scores / jnp.float32(num_tokens) ** beams.length_penalty

    def extend(state):
        """The best candidates: (their [B, C] scores, the beams they extend, their tokens)."""
        log_probs_NV = apply_rules(
            jax.nn.log_softmax(state.logits_NV.astype(jnp.float32)),
            rules,
            ids_BT=state.live_ids_BKT.reshape(-1, total_length),
            mask_BT=context.mask_BT,
            prompt_length=length,
            step=state.step,
            end_ids_E=end_ids_E,
            min_new_tokens=min_new_tokens,
        )
        log_probs_NV = jnp.where(log_probs_NV > MASKED_SCORE / 2, log_probs_NV, -jnp.inf)
        scores = state.live_scores_BK[:, :, None] + log_probs_NV.reshape(batch, num_beams, -1)
        scores_BC, indices_BC = jax.lax.top_k(scores.reshape(batch, -1), num_candidates)
        return scores_BC, indices_BC // vocab_size, indices_BC % vocab_size

    def is_unfinished(state):
        return (state.step < max_new_tokens) & ~jnp.all(state.is_done_B)

    def add_token(state):
        step = state.step
        scores_BC, parents_BC, tokens_BC = extend(state)
        ids_BCT = _take_beams(state.live_ids_BKT, parents_BC).at[:, :, length + step].set(tokens_BC)
        has_ended_BC = is_one_of(tokens_BC, end_ids_E)

        # The finished continuations, old and new. Those of an input that is done stay.
        is_finished_BC = has_ended_BC | (step == max_new_tokens - 1)
        is_finished_BC &= (jnp.arange(num_candidates) < num_beams) & ~state.is_done_B[:, None]
        new_scores_BC = jnp.where(is_finished_BC, penalized(scores_BC, step + 1), -jnp.inf)
        finished_scores_BK, chosen_BK = jax.lax.top_k(
            jnp.concatenate([state.finished_scores_BK, new_scores_BC], axis=1), num_beams
        )
        finished_ids_BKT = _take_beams(
            jnp.concatenate([state.finished_ids_BKT, ids_BCT], axis=1), chosen_BK
        )

        live_scores_BK, chosen_BK = jax.lax.top_k(
            jnp.where(has_ended_BC, -jnp.inf, scores_BC), num_beams
        )
        live_ids_BKT = _take_beams(ids_BCT, chosen_BK)
        parents_BK, tokens_BK = (
            jnp.take_along_axis(x, chosen_BK, axis=1) for x in (parents_BC, tokens_BC)
        )
        rows = (parents_BK + num_beams * jnp.arange(batch)[:, None]).reshape(-1)
        logits_NV, cache = predict(
            model,
            params,
            context,
            take_cache_rows(state.cache, rows),
            tokens_BK.reshape(-1, 1),
            length + step,
        )

        takes_longest = beams.early_stopping == "never" and beams.length_penalty > 0
        best_length = max_new_tokens if takes_longest else step + 1
        worst_finished_B = finished_scores_BK[:, -1]
        can_improve_B = penalized(live_scores_BK[:, 0], best_length) > worst_finished_B
        if beams.early_stopping not in (False, "never"):
            can_improve_B &= worst_finished_B == -jnp.inf
        return _State(
            step + 1,
            live_ids_BKT,
            live_scores_BK,
            finished_ids_BKT,
            finished_scores_BK,
            state.is_done_B | ~can_improve_B,
            cache,
            logits_NV,
        )

    ids_BT = jnp.full((batch, total_length), pad_token_id, jnp.int32).at[:, :length].set(ids_BL)
    ids_BKT = jnp.repeat(ids_BT[:, None], num_beams, axis=1)
    nothing_BK = jnp.full((batch, num_beams), -jnp.inf)
    state = _State(
        step=jnp.int32(0),
        live_ids_BKT=ids_BKT,
        # The beams are the same, so that the others would give the candidates of the first again.
        live_scores_BK=nothing_BK.at[:, 0].set(0.0),
        finished_ids_BKT=ids_BKT,
        finished_scores_BK=nothing_BK,
        is_done_B=jnp.zeros(batch, bool),
        cache=take_cache_rows(cache, jnp.repeat(jnp.arange(batch), num_beams)),
        logits_NV=jnp.repeat(logits_BV, num_beams, axis=0),
    )
    state = jax.lax.while_loop(is_unfinished, add_token, state)
    count = beams.num_return_sequences
    return BeamSearchOutput(state.finished_ids_BKT[:, :count], state.finished_scores_BK[:, :count])


def _take_beams(x, beams):
    """x[b, beams[b, i]]: [B, K, …], int [B, C] -> [B, C, …]."""
    return jax.vmap(lambda row, indices: row[indices])(x, beams)
