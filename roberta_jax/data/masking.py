"""Masking after fairseq: which tokens of a row are hidden, and by what.

For each input, int(rate * L + U[0, 1)) of its L tokens (`<s>` included) are chosen without
replacement; of those, 80% become `<mask>`, 10% a random token, 10% stay (fairseq,
`mask_tokens_dataset.py`). The random token may be anything but the first four ids, so `<mask>`
and even the original can be drawn. `<s>` and `</s>` are maskable, as in fairseq, unless
`mask_special_tokens` is False, as in Hugging Face's collator.

Choosing without replacement, for all rows at once: give each token a random key and take the
tokens with the smallest keys. The position sits in the key's low bits, so the sorted keys say
which tokens they are and no index array is carried along. Words and spans go by their first
tokens' keys. Spans are SpanBERT's (Joshi et al. 2020, section 3.1): some words in a row, their
number from a geometric distribution. SpanBERT draws a place for each and draws again where it is
taken; here an input is laid out in consecutive spans first, of which some are then taken.

Letters in array names: B rows, L positions in a row, M inputs in a row, K slots for masked
positions.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from roberta_jax.data import hashing, word_spans
from roberta_jax.errors import UsageError

SCHEMES = ("token", "whole_word", "span")
FIRST_DRAWABLE_ID = 4  # fairseq's four special symbols are never drawn as a random replacement
_SLOT_MULTIPLE = 8  # of K, for the accelerator's sake
_SHIFT = np.uint64(32)  # shares and random numbers are integers out of 2^32


@dataclasses.dataclass(frozen=True)
class Masking:
    """What is masked and how; the defaults are the paper's.

    Attributes:
      rate: share of an input's tokens that are predicted, in (0, 1).
      mask_replace_prob: share of those that become `<mask>`.
      random_replace_prob: share of those that become a random token; the rest stay as they are.
      scheme: what is chosen, and then hidden, redrawn or kept as a whole: "token"; "whole_word"; or
        "span", some words in a row, of which the last one chosen is cut so that the count is met.
      mask_special_tokens: whether `<s>` and `</s>` may be chosen (fairseq: yes, Hugging Face: no).
      geometric_p: parameter of the geometric distribution of a span's length in words, and
      max_span_length: where that is truncated, the shares of the lengths up to it scaled up to 1.
      dupe_factor: None masks a row anew in every epoch; n makes n masks of a row and takes them in
        turn, one an epoch (the paper's static masking: 10, as BERT's data were duplicated; where
        pairs are sampled 10 times, too, that is one mask for each sample).
    """

    rate: float = 0.15
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    scheme: str = "token"
    mask_special_tokens: bool = True
    geometric_p: float = 0.2
    max_span_length: int = 10
    dupe_factor: int | None = None

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise UsageError(
                f"masking.rate is {self.rate}, but it is the share of tokens that are predicted: "
                "give a number between 0 and 1, such as 0.15"
            )
        for name in ("mask_replace_prob", "random_replace_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(
                    f"masking.{name} is {getattr(self, name)}, but it is a share of the predicted "
                    "tokens: give a number from 0 to 1"
                )
        if self.mask_replace_prob + self.random_replace_prob > 1 + 1e-9:
            raise UsageError(
                f"masking.mask_replace_prob + masking.random_replace_prob is "
                f"{self.mask_replace_prob + self.random_replace_prob:g}, but together they are at "
                "most 1"
            )
        if self.scheme not in SCHEMES:
            raise UsageError(
                f"masking.scheme is {self.scheme!r}, which is unknown: use one of "
                f"{', '.join(SCHEMES)}"
            )
        if not 0 < self.geometric_p <= 1:
            raise UsageError(
                f"masking.geometric_p is {self.geometric_p}, but it is the probability that a span "
                "ends after a word: give a number above 0, at most 1, such as 0.2"
            )
        if self.max_span_length < 1:
            raise UsageError(
                f"masking.max_span_length is {self.max_span_length}, but a span has at least one "
                "word: give a number from 1, such as 10"
            )
        if self.dupe_factor is not None and self.dupe_factor < 1:
            raise UsageError(
                f"masking.dupe_factor is {self.dupe_factor}, but a row has at least one mask: give "
                "a number from 1, such as 10, or None for a new mask in every epoch"
            )


def num_slots(seq_len: int, rate: float, max_inputs: int) -> int:
    """K: how many masked positions a row can have, rounded up to a multiple of 8.

    Each of the row's inputs rounds rate * L up at most once, so floor(rate * seq_len) + max_inputs
    always suffices.
    """
    most = ((_fixed_point(rate) * seq_len) >> 32) + max_inputs
    return -(-most // _SLOT_MULTIPLE) * _SLOT_MULTIPLE


def input_numbers(lengths_BM: np.ndarray, seq_len: int) -> np.ndarray:
    """int64 [B, L]: which input, from 0, lies at each position of a row; M where none does."""
    num_rows, max_inputs = lengths_BM.shape
    padding_B = seq_len - lengths_BM.sum(axis=1)
    numbers = np.tile(np.arange(max_inputs + 1), num_rows)
    return np.repeat(numbers, np.column_stack([lengths_BM, padding_B]).reshape(-1)).reshape(
        num_rows, seq_len
    )


class Masker:
    """Masks rows of token ids; a pure function of the rows' keys.

    Args:
      masking: what is masked and how.
      seq_len: L, tokens in a row.
      max_inputs: M, the most inputs that share a row.
      vocab_size: random replacements are drawn from [4, vocab_size).
      mask_id: id of `<mask>`.
      pad_id: label of unused slots.
      special_ids: ids that `mask_special_tokens=False` protects; each is a word of its own.
      word_starts: bool [vocab_size], True where a token starts a word; for words and spans.

    Raises:
      UsageError: words or spans without `word_starts`, or a vocabulary of special tokens only.
    """

    def __init__(
        self,
        masking: Masking,
        *,
        seq_len: int,
        max_inputs: int,
        vocab_size: int,
        mask_id: int,
        pad_id: int,
        special_ids: Sequence[int],
        word_starts: np.ndarray | None = None,
    ):
        if vocab_size <= FIRST_DRAWABLE_ID:
            raise UsageError(
                f"a vocabulary of {vocab_size} leaves no token to draw beside the first "
                f"{FIRST_DRAWABLE_ID}, the special ones: train the tokenizer with a larger one"
            )
        if masking.scheme != "token" and (word_starts is None or len(word_starts) != vocab_size):
            raise UsageError(
                f"masking.scheme={masking.scheme!r} needs to know which tokens start a word: pass "
                f"word_starts, a table of {vocab_size} booleans (tokenizer.word_start_table())"
            )
        self.num_slots = num_slots(seq_len, masking.rate, max_inputs)
        self._masking = masking
        self._seq_len, self._max_inputs = seq_len, max_inputs
        self._vocab_size, self._mask_id, self._pad_id = vocab_size, mask_id, pad_id
        self._is_special = np.zeros(vocab_size, bool)
        self._is_special[list(special_ids)] = True
        self._word_starts = word_starts
        self._positions_L = np.arange(seq_len, dtype=np.uint32)
        # The low bits of a sorting key hold the position, the others are random.
        self._position_bits = np.uint32((1 << max(1, (seq_len - 1).bit_length())) - 1)

    def __call__(
        self, keys_B: np.ndarray, ids_BL: np.ndarray, lengths_BM: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Chooses and replaces tokens.

        Args:
          keys_B: uint64, the rows' randomness.
          ids_BL: int32, C-contiguous; **changed in place**. A row's inputs lie end to end from
            position 0, padding after the last.
          lengths_BM: int64, tokens of each of the row's inputs, 0 where there is none.

        Returns:
          (positions int32 [B, K] ascending, labels int32 [B, K], weights float32 [B, K]). Unused
          slots come last and hold position 0, label pad_id and weight 0.

        Raises:
          RuntimeError: a row would need more than K slots (its inputs are longer than the row).
        """
        # One stream of random numbers for each purpose, so that none depends on another's use.
        choice_B, rounding_B, action_B, replacement_B, span_B = np.ascontiguousarray(
            hashing.fold(keys_B[:, None], np.arange(5)).T
        )
        if self._masking.scheme == "token":
            chosen = self._choose_tokens(choice_B, rounding_B, ids_BL, lengths_BM)
        else:
            chosen = self._choose_units(choice_B, rounding_B, span_B, ids_BL, lengths_BM)
        positions_BK, units_BK, used_BK = chosen

        # Flat indices: one gather and one scatter instead of two-dimensional indexing.
        flat_ids = ids_BL.reshape(-1)
        flat_BK = positions_BK + np.arange(0, ids_BL.size, self._seq_len)[:, None]
        labels_BK = np.take(flat_ids, flat_BK)
        new_BK = self._replace(action_B, replacement_B, positions_BK, units_BK, labels_BK)
        flat_ids[flat_BK[used_BK]] = new_BK[used_BK]
        np.copyto(labels_BK, self._pad_id, where=~used_BK)
        return positions_BK, labels_BK, used_BK.astype(np.float32)

    def _replace(self, action_B, replacement_B, positions_BK, units_BK, labels_BK):
        """int32 [B, K]: what stands in place of each chosen token.

        What to do is drawn once a unit (token, word or span), a random replacement once a token.
        """
        action_BK = hashing.hash32(action_B, units_BK)
        random_BK = hashing.hash32(replacement_B, positions_BK).astype(np.uint64)
        num_drawable = np.uint64(self._vocab_size - FIRST_DRAWABLE_ID)
        random_BK = ((random_BK * num_drawable) >> _SHIFT).astype(np.int32) + FIRST_DRAWABLE_ID
        mask_below = _fixed_point(self._masking.mask_replace_prob)
        random_below = mask_below + _fixed_point(self._masking.random_replace_prob)
        new_BK = np.where(action_BK < random_below, random_BK, labels_BK)
        np.copyto(new_BK, self._mask_id, where=action_BK < mask_below)
        return new_BK

    def _counts(self, rounding_B, lengths_BM):
        """int64 [B, M]: floor(rate * L + U[0, 1)) in exact arithmetic, so that K always holds."""
        noise_BM = hashing.hash32(rounding_B, np.arange(self._max_inputs, dtype=np.uint32))
        scaled_BM = lengths_BM.astype(np.uint64) * np.uint64(_fixed_point(self._masking.rate))
        counts_BM = ((scaled_BM + noise_BM) >> _SHIFT).astype(np.int64)
        if counts_BM.sum(axis=1).max(initial=0) > self.num_slots:
            raise RuntimeError(
                f"a row of {self._seq_len} tokens would have more than {self.num_slots} masked "
                f"positions; the longest inputs of a row hold {lengths_BM.sum(axis=1).max()} tokens"
            )
        return counts_BM

    def _keys(self, choice_B):
        """uint32 [B, L]: a random number for each token, with its position in the low bits."""
        keys_BL = hashing.hash32(choice_B, self._positions_L)
        keys_BL &= ~self._position_bits
        keys_BL |= self._positions_L
        return keys_BL

    def _choose_tokens(self, choice_B, rounding_B, ids_BL, lengths_BM):
        """(positions int32, the same as units, used bool), each [B, K]."""
        keys_BL = self._keys(choice_B)
        rank = self._rank_one_input if self._max_inputs == 1 else self._rank_many_inputs
        keys_BN, chosen_BN = rank(keys_BL, rounding_B, ids_BL, lengths_BM)

        # Back to reading order: the chosen positions, ascending, then fill, in K columns.
        fill = self._position_bits + np.uint32(1)
        keys_BN &= self._position_bits
        np.copyto(keys_BN, fill, where=~chosen_BN)
        keys_BN.sort(axis=1)
        missing = max(0, self.num_slots - keys_BN.shape[1])
        keys_BK = np.pad(keys_BN[:, : self.num_slots], ((0, 0), (0, missing)), constant_values=fill)
        used_BK = keys_BK < fill
        positions_BK = np.where(used_BK, keys_BK, 0).astype(np.int32)
        return positions_BK, positions_BK, used_BK

    def _rank_one_input(self, keys_BL, rounding_B, ids_BL, lengths_B1):
        """(candidates' keys, whether chosen): only the K smallest of a row's keys are sorted."""
        usable_BL = self._positions_L < lengths_B1.astype(np.uint32)
        if not self._masking.mask_special_tokens:
            usable_BL &= ~self._is_special[ids_BL]
            lengths_B1 = usable_BL.sum(axis=1, keepdims=True)
        np.copyto(keys_BL, np.uint32(2**32 - 1), where=~usable_BL)
        num_candidates = min(self.num_slots, self._seq_len)
        keys_BL.partition(num_candidates - 1, axis=1)
        keys_BC = np.sort(keys_BL[:, :num_candidates], axis=1)
        return keys_BC, np.arange(num_candidates) < self._counts(rounding_B, lengths_B1)

    def _rank_many_inputs(self, keys_BL, rounding_B, ids_BL, lengths_BM):
        """(keys, whether chosen): as above, with a count for each input.

        The input's number goes on top of the key, so that sorting brings an input's tokens
        together; a token is chosen if its rank within the input is below the input's count.
        """
        inputs_BL, usable_BL, usable_BM = self._usable(ids_BL, lengths_BM)
        counts_BM = self._counts(rounding_B, usable_BM)
        inputs_BL[~usable_BL] = self._max_inputs
        keys_BL = (inputs_BL.astype(np.uint64) << _SHIFT) | keys_BL
        keys_BL.sort(axis=1)
        inputs_BL = (keys_BL >> _SHIFT).astype(np.int64)
        first_BM = np.cumsum(usable_BM, axis=1) - usable_BM
        limit_BM = np.pad(first_BM + counts_BM, ((0, 0), (0, 1)))  # 0 for what is not usable
        chosen_BL = self._positions_L < np.take_along_axis(limit_BM, inputs_BL, axis=1)
        return keys_BL.astype(np.uint32), chosen_BL

    def _usable(self, ids_BL, lengths_BM):
        """(`input_numbers`, may be chosen bool [B, L], how many may int64 [B, M])."""
        inputs_BL = input_numbers(lengths_BM, self._seq_len)
        usable_BL = inputs_BL < self._max_inputs
        if not self._masking.mask_special_tokens:
            usable_BL &= ~self._is_special[ids_BL]
        groups = np.arange(len(ids_BL))[:, None] * self._max_inputs + inputs_BL
        usable_BM = np.bincount(groups[usable_BL], minlength=lengths_BM.size)
        return inputs_BL, usable_BL, usable_BM.reshape(lengths_BM.shape)

    def _choose_units(self, choice_B, rounding_B, span_B, ids_BL, lengths_BM):
        """(positions int32, starts of their units int32, used bool), each [B, K].

        An input's units are taken in random order. Words stop before the one that would exceed the
        input's count; those longer than that count are left aside first: such a word, drawn early,
        would leave its input with nothing to predict. Spans are cut to the count, like SpanBERT's.
        """
        inputs_BL, usable_BL, usable_BM = self._usable(ids_BL, lengths_BM)
        counts_BM = self._counts(rounding_B, usable_BM)
        words, breaks_W = word_spans.find_words(
            ids_BL, inputs_BL, usable_BL, self._max_inputs, self._word_starts, self._is_special
        )
        cut = self._masking.scheme == "span"
        if cut:
            noise_W = np.take(hashing.hash32(span_B, self._positions_L), words.starts)
            lengths_W = word_spans.span_lengths(
                self._masking.geometric_p, self._masking.max_span_length, noise_W, breaks_W
            )
            candidates = word_spans.join_words(words, breaks_W, lengths_W)
        else:
            candidates = words.where(words.lengths <= np.take(counts_BM, words.groups))
        keys_BL = self._keys(choice_B)
        drawn = word_spans.draw(candidates, keys_BL, self._position_bits, counts_BM, cut=cut)
        return word_spans.fill_slots(drawn, *ids_BL.shape, self.num_slots)


def _fixed_point(share: float) -> int:
    """A probability as an integer out of 2^32."""
    return round(share * 2**32)
