"""The choice of the next token: rules that exclude or force tokens, and sampling.

Array names carry their shape: B rows (inputs or beams), T tokens of prompt and continuation, S
starts of n-grams, W bad words, E ids that end an input, V vocabulary.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

MASKED_SCORE = -1e30  # its probability is exactly 0


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
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be positive, not {self.temperature}; for the most likely token "
                "use do_sample=False"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, not {self.top_k}; 0 means no limit")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}; 1 means no limit")


MOST_LIKELY = Sampling()


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
        logits_BV = jnp.where(logits_BV < threshold_B1, MASKED_SCORE, logits_BV)
    if sampling.top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
        # A token stays if the more likely ones sum to less than p, so the first always stays.
        sum_before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
        threshold_B1 = jnp.min(
            jnp.where(sum_before_BV < sampling.top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True
        )
        logits_BV = jnp.where(logits_BV < threshold_B1, MASKED_SCORE, logits_BV)
    return logits_BV


@dataclasses.dataclass(frozen=True)
class TokenRules:
    """Rules that change the scores of the next token before it is chosen.

    Steps are numbered from 0, the first new token. The rules apply in the order of the attributes,
    so that a forced token is chosen whatever the others say. Padding of a prompt counts neither as
    a token nor as part of an n-gram.

    Attributes:
      repetition_penalty: divides positive scores and multiplies negative ones of the tokens that
        the prompt or the continuation contains (Keskar et al. 2019). 1 changes nothing.
      no_repeat_ngram_size: n-grams of this size occur once in prompt and continuation. 0 allows
        all repetitions.
      bad_words_ids: sequences of tokens that the continuation may not complete.
      suppress_tokens: tokens that are never generated.
      begin_suppress_tokens: tokens that are not generated at `begin_step`.
      begin_step: see there.
      processors: functions (int32 [B, T] sequences, [B, V] scores, scalar number of tokens so far)
        -> [B, V] scores, as the logits processors of transformers' Flax `generate`. They must be
        hashable; another object compiles again.
      forced_tokens: pairs of a step and the token that is generated there. Its score is 0.

    Raises:
      ValueError: a value is out of range.
    """

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    begin_step: int = 0
    processors: tuple[Callable[[jax.Array, jax.Array, jax.Array], jax.Array], ...] = ()
    forced_tokens: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"repetition_penalty must be positive, not {self.repetition_penalty}; 1 means none"
            )
        if self.no_repeat_ngram_size < 0:
            raise ValueError(
                f"no_repeat_ngram_size must be at least 0, not {self.no_repeat_ngram_size}; 0 "
                "allows all repetitions"
            )
        if not all(self.bad_words_ids):
            raise ValueError("bad_words_ids holds an empty list; each must name at least one token")
        if any(step < 0 for step, _ in self.forced_tokens):
            raise ValueError(f"forced_tokens {self.forced_tokens} name a step before the first")

    def token_ids(self) -> set[int]:
        """Every token that a rule names."""
        forced = (token for _, token in self.forced_tokens)
        return {*itertools.chain(*self.bad_words_ids), *self.suppress_tokens, *forced} | set(
            self.begin_suppress_tokens
        )


NO_RULES = TokenRules()


def check_token_ids(rules: TokenRules, vocab_size: int) -> None:
    """Raises ValueError if a rule names a token that is not in the vocabulary."""
    unknown = sorted(token for token in rules.token_ids() if not 0 <= token < vocab_size)
    if unknown:
        raise ValueError(
            f"a rule for the next token names {unknown[0]}, but the ids of this model are 0 to "
            f"{vocab_size - 1}"
        )


def end_ids(eos_token_id: int | Sequence[int]) -> jax.Array:
    """The ids that end an input, int32 [E]."""
    return jnp.atleast_1d(jnp.asarray(eos_token_id, jnp.int32))


def is_one_of(ids: jax.Array, ids_E: jax.Array) -> jax.Array:
    """Whether each of `ids` is in `ids_E`: bool, of the shape of `ids`."""
    return (ids[..., None] == ids_E).any(-1)


def apply_rules(
    scores_BV: jax.Array,
    rules: TokenRules,
    *,
    ids_BT: jax.Array,
    mask_BT: jax.Array,
    prompt_length: int,
    step: jax.Array,
    end_ids_E: jax.Array,
    min_new_tokens: jax.Array,
) -> jax.Array:
    """Changes the scores of the next token by `rules`, and masks early ends.

    Args:
      scores_BV: logits or log-probabilities, of any floating dtype.
      rules: static.
      ids_BT: int32. Tokens of index `prompt_length` + `step` and later do not exist yet.
      mask_BT: bool, False at padding.
      prompt_length: tokens of the prompts, padding included.
      step: int32 scalar, the number of tokens generated so far.
      end_ids_E: int32, the tokens that end an input.
      min_new_tokens: int32 scalar; before this step no input may end.

    Returns:
      [B, V] scores. Those of excluded tokens are -1e30.
    """
    length = prompt_length + step
    vocab_size = scores_BV.shape[-1]
    all_ids_V = jnp.arange(vocab_size)
    exists_BT = mask_BT & (jnp.arange(ids_BT.shape[1]) < length)

    if rules.repetition_penalty != 1:
        seen_BV = _marked(vocab_size, ids_BT, exists_BT)
        penalty = rules.repetition_penalty
        penalized_BV = jnp.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
        scores_BV = jnp.where(seen_BV, penalized_BV, scores_BV)
    if 0 < rules.no_repeat_ngram_size <= ids_BT.shape[1]:
        repeats_BV = _repeats_ngram(vocab_size, ids_BT, exists_BT, length, rules)
        scores_BV = jnp.where(repeats_BV, MASKED_SCORE, scores_BV)
    if rules.bad_words_ids:
        completes_BV = _completes_bad_word(vocab_size, ids_BT, exists_BT, length, rules)
        scores_BV = jnp.where(completes_BV, MASKED_SCORE, scores_BV)
    is_early_end_V = is_one_of(all_ids_V, end_ids_E) & (step < min_new_tokens)
    scores_BV = jnp.where(is_early_end_V, MASKED_SCORE, scores_BV)
    if rules.suppress_tokens:
        suppressed_V = np.isin(np.arange(vocab_size), rules.suppress_tokens)
        scores_BV = jnp.where(suppressed_V, MASKED_SCORE, scores_BV)
    if rules.begin_suppress_tokens:
        suppressed_V = np.isin(np.arange(vocab_size), rules.begin_suppress_tokens)
        suppressed_V = suppressed_V & (step == rules.begin_step)
        scores_BV = jnp.where(suppressed_V, MASKED_SCORE, scores_BV)
    for processor in rules.processors:
        scores_BV = processor(ids_BT, scores_BV, length)
    if rules.forced_tokens:
        token_at_step = np.full(max(step for step, _ in rules.forced_tokens) + 2, -1)
        for forced_step, token in rules.forced_tokens:
            token_at_step[forced_step] = token
        # The last entry, -1, also stands for all later steps.
        forced = jnp.asarray(token_at_step)[jnp.minimum(step, len(token_at_step) - 1)]
        forced_V = jnp.where(all_ids_V == forced, 0, MASKED_SCORE)
        scores_BV = jnp.where(forced >= 0, forced_V, scores_BV)
    return scores_BV


def _marked(vocab_size, ids, is_marked):
    """bool [B, V], True at the ids of each row for which `is_marked` is True."""
    rows = jnp.arange(ids.shape[0])[:, None]
    ids = jnp.where(is_marked, ids, vocab_size)  # outside of the array, so dropped
    return jnp.zeros((ids.shape[0], vocab_size), bool).at[rows, ids].set(True, mode="drop")


def _repeats_ngram(vocab_size, ids_BT, exists_BT, length, rules):
    """bool [B, V]: tokens that would repeat an n-gram, together with the last n-1 tokens."""
    size = rules.no_repeat_ngram_size
    batch, total_length = ids_BT.shape
    starts = total_length - size + 1
    last = jax.lax.dynamic_slice_in_dim(ids_BT, length - (size - 1), size - 1, axis=1)
    matches_BS = jnp.ones((batch, starts), bool)
    for i in range(size):
        matches_BS &= exists_BT[:, i : i + starts]
        if i < size - 1:
            matches_BS &= ids_BT[:, i : i + starts] == last[:, i : i + 1]
    return _marked(vocab_size, ids_BT[:, size - 1 :], matches_BS)


def _completes_bad_word(vocab_size, ids_BT, exists_BT, length, rules):
    """bool [B, V]: tokens that would complete one of `bad_words_ids`."""
    batch, total_length = ids_BT.shape
    completes_BV = jnp.zeros((batch, vocab_size), bool)
    for size, words in itertools.groupby(sorted(rules.bad_words_ids, key=len), key=len):
        words = np.array(list(words), np.int32)
        matches_BW = jnp.ones((batch, len(words)), bool)
        if size > total_length:
            continue
        if size > 1:
            start = length - (size - 1)
            last = jax.lax.dynamic_slice_in_dim(ids_BT, start, size - 1, axis=1)
            # Before the first token there is none, where the slice above would start at it.
            exists = jax.lax.dynamic_slice_in_dim(exists_BT, start, size - 1, axis=1)
            has_tokens_B = exists.all(axis=1) & (start >= 0)
            matches_BW = (last[:, None] == words[:, :-1]).all(-1) & has_tokens_B[:, None]
        last_ids_BW = jnp.broadcast_to(words[:, -1], matches_BW.shape)
        completes_BV |= _marked(vocab_size, last_ids_BW, matches_BW)
    return completes_BV
