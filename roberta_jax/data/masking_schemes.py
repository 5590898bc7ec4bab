"""Masking schemes: which tokens of a row are predicted.

A scheme chooses units (single tokens, words or spans of words) and lists their tokens. To add one,
write a function that maps a `MaskingContext` to `ChosenTokens` and give it a row in `SCHEMES`.

Tokens are chosen without replacement, for all rows at once: each token gets a random sort key, and
the tokens with the smallest keys are taken. The low bits of a key hold the token's position, so the
sorted keys identify the tokens and no index array is needed. Words and spans are ordered by the
keys of their first tokens.

Letters in array names: B rows, L positions in a row, M inputs in a row, K slots for masked
positions, W words.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from roberta_jax.data import hashing, word_spans

_SHIFT = np.uint64(32)  # probabilities and random numbers are integers out of 2^32


class ChosenTokens(NamedTuple):
    """The tokens that a scheme chose.

    Attributes:
      positions_BK: int32, positions in the row, ascending; 0 in unused slots, which come last.
      units_BK: int32, the position of the first token of each token's unit. All tokens of a unit
        are masked, replaced or left unchanged together.
      used_BK: bool, False in unused slots.
    """

    positions_BK: np.ndarray
    units_BK: np.ndarray
    used_BK: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class MaskingContext:
    """The rows that a scheme chooses from, and the randomness to choose with.

    Attributes:
      masking: The options, a `masking.Masking`.
      num_slots: K.
      ids_BL: int32, token ids before masking. A scheme must not change them.
      lengths_BM: int64, number of tokens of each of a row's inputs, 0 for inputs that do not exist.
      order_B: uint64, one random key per row; `sort_keys` is made from it.
      rounding_B: uint64, one random key per row; `counts` is made from it.
      scheme_B: uint64, one random key per row, for random choices that only one scheme makes. Pass
        it to `hashing.hash32`, or derive several independent keys with `hashing.fold`.
      is_special: bool [vocab_size], True for the ids of special tokens.
      word_starts: bool [vocab_size], True for tokens that start a word. None if the scheme's row in
        `SCHEMES` has `needs_word_starts=False`.
    """

    masking: Any
    num_slots: int
    ids_BL: np.ndarray
    lengths_BM: np.ndarray
    order_B: np.ndarray
    rounding_B: np.ndarray
    scheme_B: np.ndarray
    is_special: np.ndarray
    word_starts: np.ndarray | None

    @functools.cached_property
    def positions_L(self) -> np.ndarray:
        """uint32 [L]: 0, 1, ..., L - 1."""
        return np.arange(self.ids_BL.shape[1], dtype=np.uint32)

    @functools.cached_property
    def position_mask(self) -> np.uint32:
        """Bit mask of the low bits of a sort key, which hold the position."""
        return np.uint32((1 << max(1, (self.ids_BL.shape[1] - 1).bit_length())) - 1)

    def sort_keys(self) -> np.ndarray:
        """uint32 [B, L]: a random number for each token, with its position in the low bits."""
        keys_BL = hashing.hash32(self.order_B, self.positions_L)
        keys_BL &= ~self.position_mask
        keys_BL |= self.positions_L
        return keys_BL

    def maskable(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds the tokens that may be chosen.

        Returns:
          (inputs int64 [B, L], see `input_numbers`; maskable bool [B, L]; number of maskable tokens
          of each input int64 [B, M]).
        """
        num_rows, max_inputs = self.lengths_BM.shape
        inputs_BL = input_numbers(self.lengths_BM, self.ids_BL.shape[1])
        maskable_BL = inputs_BL < max_inputs
        if not self.masking.mask_special_tokens:
            maskable_BL &= ~self.is_special[self.ids_BL]
        groups = np.arange(num_rows)[:, None] * max_inputs + inputs_BL
        maskable_BM = np.bincount(groups[maskable_BL], minlength=self.lengths_BM.size)
        return inputs_BL, maskable_BL, maskable_BM.reshape(num_rows, max_inputs)

    def counts(self, maskable_BM: np.ndarray) -> np.ndarray:
        """Draws the number of tokens to predict in each input: floor(rate * n + U[0, 1)).

        The arithmetic is exact, so the counts of a row never add up to more than K.

        Args:
          maskable_BM: int64, the number n of maskable tokens of each input.

        Returns:
          int64 [B, M].

        Raises:
          RuntimeError: A row needs more than K slots, because its inputs are longer than the row.
        """
        max_inputs = maskable_BM.shape[1]
        noise_BM = hashing.hash32(self.rounding_B, np.arange(max_inputs, dtype=np.uint32))
        scaled_BM = maskable_BM.astype(np.uint64) * np.uint64(fixed_point(self.masking.rate))
        counts_BM = ((scaled_BM + noise_BM) >> _SHIFT).astype(np.int64)
        if counts_BM.sum(axis=1).max(initial=0) > self.num_slots:
            raise RuntimeError(
                f"a row of {self.ids_BL.shape[1]} tokens would have more than {self.num_slots} "
                f"masked positions: its inputs hold up to {maskable_BM.sum(axis=1).max()} tokens"
            )
        return counts_BM


def choose_tokens(context: MaskingContext) -> ChosenTokens:
    """Chooses single tokens: exactly the drawn count of each input."""
    keys_BL = context.sort_keys()
    rank = _rank_one_input if context.lengths_BM.shape[1] == 1 else _rank_many_inputs
    keys_BN, chosen_BN = rank(context, keys_BL)

    # Sort the chosen tokens by position and put them into K columns; other slots hold `fill`.
    fill = context.position_mask + np.uint32(1)
    keys_BN &= context.position_mask
    np.copyto(keys_BN, fill, where=~chosen_BN)
    keys_BN.sort(axis=1)
    num_slots = context.num_slots
    missing = max(0, num_slots - keys_BN.shape[1])
    keys_BK = np.pad(keys_BN[:, :num_slots], ((0, 0), (0, missing)), constant_values=fill)
    used_BK = keys_BK < fill
    positions_BK = np.where(used_BK, keys_BK, 0).astype(np.int32)
    return ChosenTokens(positions_BK, positions_BK, used_BK)


def choose_whole_words(context: MaskingContext) -> ChosenTokens:
    """Chooses words in random order while they fit into their input's count.

    Words longer than the count are left out beforehand: if such a word came first, its input would
    have nothing to predict.
    """
    words, _, counts_BM = _words(context)
    candidates = words.where(words.lengths <= np.take(counts_BM, words.groups))
    return _choose_units(context, candidates, counts_BM, truncate=False)


def choose_spans(context: MaskingContext) -> ChosenTokens:
    """Chooses spans of words in random order until their input's count is met.

    The spans are those of SpanBERT (Joshi et al. 2020, section 3.1): consecutive words, their
    number drawn from a geometric distribution. SpanBERT draws a start for each span and draws again
    if that place is taken. Here an input is first divided into consecutive spans, and some of them
    are then chosen. As in SpanBERT, the last chosen span is truncated to the count.
    """
    words, breaks_W, counts_BM = _words(context)
    noise_BL = hashing.hash32(context.scheme_B, context.positions_L)
    lengths_W = word_spans.span_lengths(
        context.masking.geometric_p,
        context.masking.max_span_length,
        np.take(noise_BL, words.starts),
        breaks_W,
    )
    spans = word_spans.join_words(words, breaks_W, lengths_W)
    return _choose_units(context, spans, counts_BM, truncate=True)


class Scheme(NamedTuple):
    """One value of `--config.masking.scheme`.

    Attributes:
      choose: Chooses the tokens to predict.
      needs_word_starts: Whether `choose` reads `MaskingContext.word_starts`.
    """

    choose: Callable[[MaskingContext], ChosenTokens]
    needs_word_starts: bool = True


SCHEMES: dict[str, Scheme] = {
    "token": Scheme(choose_tokens, needs_word_starts=False),
    "whole_word": Scheme(choose_whole_words),
    "span": Scheme(choose_spans),
}


def input_numbers(lengths_BM: np.ndarray, seq_len: int) -> np.ndarray:
    """int64 [B, L]: the number (from 0) of the input at each position of a row; M for padding."""
    num_rows, max_inputs = lengths_BM.shape
    padding_B = seq_len - lengths_BM.sum(axis=1)
    numbers = np.tile(np.arange(max_inputs + 1), num_rows)
    return np.repeat(numbers, np.column_stack([lengths_BM, padding_B]).reshape(-1)).reshape(
        num_rows, seq_len
    )


def fixed_point(probability: float) -> int:
    """A probability as an integer out of 2^32."""
    return round(probability * 2**32)


def _rank_one_input(context: MaskingContext, keys_BL: np.ndarray):
    """Ranks tokens where each row holds one input; only a row's K smallest keys are sorted.

    Returns:
      (sort keys uint32 [B, N], chosen bool [B, N]).
    """
    lengths_B1 = context.lengths_BM
    maskable_BL = context.positions_L < lengths_B1.astype(np.uint32)
    if not context.masking.mask_special_tokens:
        maskable_BL &= ~context.is_special[context.ids_BL]
        lengths_B1 = maskable_BL.sum(axis=1, keepdims=True)
    np.copyto(keys_BL, np.uint32(2**32 - 1), where=~maskable_BL)
    num_candidates = min(context.num_slots, keys_BL.shape[1])
    keys_BL.partition(num_candidates - 1, axis=1)
    keys_BN = np.sort(keys_BL[:, :num_candidates], axis=1)
    return keys_BN, np.arange(num_candidates) < context.counts(lengths_B1)


def _rank_many_inputs(context: MaskingContext, keys_BL: np.ndarray):
    """Like `_rank_one_input`, for rows of several inputs, each with its own count.

    The number of the input goes above the key, so that sorting groups the tokens by input. A token
    is chosen if its rank within its input is below the input's count.
    """
    inputs_BL, maskable_BL, maskable_BM = context.maskable()
    counts_BM = context.counts(maskable_BM)
    inputs_BL[~maskable_BL] = counts_BM.shape[1]
    keys_BL = (inputs_BL.astype(np.uint64) << _SHIFT) | keys_BL
    keys_BL.sort(axis=1)
    inputs_BL = (keys_BL >> _SHIFT).astype(np.int64)
    first_BM = np.cumsum(maskable_BM, axis=1) - maskable_BM
    limit_BM = np.pad(first_BM + counts_BM, ((0, 0), (0, 1)))  # 0 for tokens that are not maskable
    chosen_BL = context.positions_L < np.take_along_axis(limit_BM, inputs_BL, axis=1)
    return keys_BL.astype(np.uint32), chosen_BL


def _words(context: MaskingContext) -> tuple[word_spans.Units, np.ndarray, np.ndarray]:
    """(maskable words, breaks bool [W], see `find_words`; token counts int64 [B, M])."""
    inputs_BL, maskable_BL, maskable_BM = context.maskable()
    counts_BM = context.counts(maskable_BM)
    words, breaks_W = word_spans.find_words(
        context.ids_BL,
        inputs_BL,
        maskable_BL,
        counts_BM.shape[1],
        context.word_starts,
        context.is_special,
    )
    return words, breaks_W, counts_BM


def _choose_units(
    context: MaskingContext, units: word_spans.Units, counts_BM: np.ndarray, *, truncate: bool
) -> ChosenTokens:
    chosen = word_spans.draw(
        units, context.sort_keys(), context.position_mask, counts_BM, truncate=truncate
    )
    return ChosenTokens(*word_spans.fill_slots(chosen, *context.ids_BL.shape, context.num_slots))
