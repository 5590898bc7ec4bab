"""Masking after fairseq: chooses the tokens of a row to predict, and replaces them.

In each input, int(rate * L + U[0, 1)) of its L tokens are chosen without replacement. Of those, 80%
become `<mask>`, 10% become a random token and 10% stay unchanged (fairseq,
`mask_tokens_dataset.py`). The random token can be any id but the first four, so `<mask>` and the
original token can be drawn too. `<s>` and `</s>` count among the L tokens and may be chosen, as in
fairseq, unless `mask_special_tokens` is False, as in Hugging Face's collator.

`masking_schemes` defines which tokens are chosen: single tokens, whole words or spans.

Letters in array names: B rows, L positions in a row, M inputs in a row, K slots for masked
positions.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from roberta_jax.data import hashing
from roberta_jax.data.masking_schemes import SCHEMES, MaskingContext, fixed_point
from roberta_jax.errors import UsageError

FIRST_DRAWABLE_ID = 4  # fairseq's four special symbols are never drawn as a random replacement
_SLOT_MULTIPLE = 8  # K is a multiple of this, which accelerators compute with faster
_SHIFT = np.uint64(32)  # probabilities and random numbers are integers out of 2^32


@dataclasses.dataclass(frozen=True)
class Masking:
    """Masking options; the defaults are the paper's.

    Attributes:
      rate: Fraction of an input's tokens that are predicted, in (0, 1).
      mask_replace_prob: Fraction of the predicted tokens that become `<mask>`.
      random_replace_prob: Fraction of the predicted tokens that become a random token. The others
        stay unchanged.
      scheme: The unit that is chosen and then masked, replaced or left unchanged as a whole:
        "token", "whole_word" or "span" (consecutive words).
      mask_special_tokens: Whether `<s>` and `</s>` may be chosen (fairseq: yes, Hugging Face: no).
      geometric_p: Parameter of the geometric distribution of a span's length in words.
      max_span_length: Maximum length of a span in words. The probabilities of the lengths up to it
        are scaled to add up to 1.
      dupe_factor: None for dynamic masking, which masks a row differently in each epoch. An integer
        n for static masking with n masks per row, which the epochs use in turn. (The paper uses 10,
        as BERT's data were duplicated 10 times. If sentence pairs are also sampled 10 times, each
        sample has one mask.)
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
                f"--config.masking.rate is {self.rate}, but it must lie between 0 and 1: it is the "
                "fraction of tokens that are predicted, such as --config.masking.rate=0.15"
            )
        for name in ("max_span_length", "dupe_factor"):
            value = getattr(self, name)
            if not isinstance(value, int) and not (value is None and name == "dupe_factor"):
                raise UsageError(
                    f"--config.masking.{name} is {value!r}, but it must be a whole number from 1"
                )
        for name in ("mask_replace_prob", "random_replace_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(
                    f"--config.masking.{name} is {getattr(self, name)}, but it must be a number "
                    "from 0 to 1: it is a fraction of the predicted tokens"
                )
        if self.mask_replace_prob + self.random_replace_prob > 1 + 1e-9:
            raise UsageError(
                f"--config.masking.mask_replace_prob={self.mask_replace_prob} and "
                f"--config.masking.random_replace_prob={self.random_replace_prob} add up to "
                f"{self.mask_replace_prob + self.random_replace_prob:g}, but together they are at "
                "most 1: lower one of them"
            )
        if self.scheme not in SCHEMES:
            raise UsageError(
                f"--config.masking.scheme is {self.scheme!r}, which is unknown: use one of "
                f"{', '.join(SCHEMES)}"
            )
        if not 0 < self.geometric_p <= 1:
            raise UsageError(
                f"--config.masking.geometric_p is {self.geometric_p}, but it must be above 0 and "
                "at most 1: it is the probability that a span ends after a word, such as "
                "--config.masking.geometric_p=0.2"
            )
        if self.max_span_length < 1:
            raise UsageError(
                f"--config.masking.max_span_length is {self.max_span_length}, but a span has at "
                "least one word: use a number from 1, such as --config.masking.max_span_length=10"
            )
        if self.dupe_factor is not None and self.dupe_factor < 1:
            raise UsageError(
                f"--config.masking.dupe_factor is {self.dupe_factor}, but a row has at least one "
                "mask: use a number from 1, such as --config.masking.dupe_factor=10, or leave it "
                "unset for a new mask in each epoch"
            )

    @property
    def needs_word_starts(self) -> bool:
        """Whether the scheme needs to know which tokens start a word (see `Masker`)."""
        return SCHEMES[self.scheme].needs_word_starts


def num_slots(seq_len: int, rate: float, max_inputs: int) -> int:
    """K: the maximum number of masked positions in a row, rounded up to a multiple of 8.

    Each of the row's inputs rounds rate * L up at most once, so floor(rate * seq_len) + max_inputs
    slots always suffice.
    """
    most = ((fixed_point(rate) * seq_len) >> 32) + max_inputs
    return -(-most // _SLOT_MULTIPLE) * _SLOT_MULTIPLE


class Masker:
    """Masks rows of token ids. The result depends only on the arguments of the call.

    Args:
      masking: The options.
      seq_len: L, tokens in a row.
      max_inputs: M, the maximum number of inputs in a row.
      vocab_size: Random replacements are drawn from [4, vocab_size).
      mask_id: The id of `<mask>`.
      pad_id: The label of unused slots.
      special_ids: The ids that are never chosen if `mask_special_tokens` is False. Each such token
        is a word by itself.
      word_starts: bool [vocab_size], True for tokens that start a word. Required if
        `masking.needs_word_starts`.

    Raises:
      UsageError: `word_starts` is required but missing or of the wrong length, or the vocabulary
        holds only special tokens.
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
                f"{FIRST_DRAWABLE_ID}, which are special: use a tokenizer with a larger vocabulary "
                "(--config.new_tokenizer.vocab_size=...)"
            )
        if masking.needs_word_starts and (word_starts is None or len(word_starts) != vocab_size):
            raise UsageError(
                f"--config.masking.scheme={masking.scheme!r} needs to know which tokens start a "
                f"word: pass word_starts, an array of {vocab_size} booleans "
                "(tokenizer.word_start_table())"
            )
        self.num_slots = num_slots(seq_len, masking.rate, max_inputs)
        self._masking = masking
        self._seq_len = seq_len
        self._vocab_size, self._mask_id, self._pad_id = vocab_size, mask_id, pad_id
        self._is_special = np.zeros(vocab_size, bool)
        self._is_special[list(special_ids)] = True
        self._word_starts = word_starts

    def __call__(
        self, keys_B: np.ndarray, ids_BL: np.ndarray, lengths_BM: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Chooses tokens and replaces them in `ids_BL`.

        Args:
          keys_B: uint64, one random key per row.
          ids_BL: int32, C-contiguous; **changed in place**. A row's inputs follow each other from
            position 0, and padding follows the last one.
          lengths_BM: int64, number of tokens of each of the row's inputs, 0 for inputs that do not
            exist.

        Returns:
          (positions int32 [B, K] ascending, labels int32 [B, K], weights float32 [B, K]). Unused
          slots come last and hold position 0, label pad_id and weight 0.

        Raises:
          RuntimeError: A row needs more than K slots, because its inputs are longer than the row.
        """
        # An independent random stream for each purpose.
        order_B, rounding_B, action_B, replacement_B, scheme_B = np.ascontiguousarray(
            hashing.fold(keys_B[:, None], np.arange(5)).T
        )
        context = MaskingContext(
            masking=self._masking,
            num_slots=self.num_slots,
            ids_BL=ids_BL,
            lengths_BM=lengths_BM,
            order_B=order_B,
            rounding_B=rounding_B,
            scheme_B=scheme_B,
            is_special=self._is_special,
            word_starts=self._word_starts,
        )
        positions_BK, units_BK, used_BK = SCHEMES[self._masking.scheme].choose(context)

        # Flat indices: one gather and one scatter instead of two-dimensional indexing.
        flat_ids = ids_BL.reshape(-1)
        flat_BK = positions_BK + np.arange(0, ids_BL.size, self._seq_len)[:, None]
        labels_BK = np.take(flat_ids, flat_BK)
        new_BK = self._replacements(action_B, replacement_B, positions_BK, units_BK, labels_BK)
        flat_ids[flat_BK[used_BK]] = new_BK[used_BK]
        np.copyto(labels_BK, self._pad_id, where=~used_BK)
        return positions_BK, labels_BK, used_BK.astype(np.float32)

    def _replacements(self, action_B, replacement_B, positions_BK, units_BK, labels_BK):
        """int32 [B, K]: the new id of each chosen token.

        The action is drawn once per unit (token, word or span), a random id once per token.
        """
        action_BK = hashing.hash32(action_B, units_BK)
        random_BK = hashing.hash32(replacement_B, positions_BK).astype(np.uint64)
        num_drawable = np.uint64(self._vocab_size - FIRST_DRAWABLE_ID)
        random_BK = ((random_BK * num_drawable) >> _SHIFT).astype(np.int32) + FIRST_DRAWABLE_ID
        mask_below = fixed_point(self._masking.mask_replace_prob)
        random_below = mask_below + fixed_point(self._masking.random_replace_prob)
        new_BK = np.where(action_BK < random_below, random_BK, labels_BK)
        np.copyto(new_BK, self._mask_id, where=action_BK < mask_below)
        return new_BK
