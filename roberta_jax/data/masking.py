"""Dynamic masking after fairseq: which tokens of a row are hidden, and by what.

For each input, int(rate * L + U[0, 1)) of its L tokens (`<s>` included) are chosen without
replacement; of those, 80% become `<mask>`, 10% a random token, 10% stay (fairseq,
`mask_tokens_dataset.py`). The random token may be anything but the first four ids, so `<mask>`
and even the original can be drawn. `<s>` and `</s>` are maskable, as in fairseq, unless
`specials` is False, as in Hugging Face's collator.

Choosing without replacement, for all rows at once: give each token a random key and take the
tokens with the smallest keys. The position sits in the key's low bits, so the sorted keys say
which tokens they are and no index array is carried along.

Letters in array names: B rows, L positions in a row, M inputs in a row, K slots for masked
positions.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from roberta_jax.data import hashing
from roberta_jax.errors import UsageError

FIRST_DRAWABLE_ID = 4  # fairseq's four special symbols are never drawn as a random replacement
_SLOT_MULTIPLE = 8  # of K, for the accelerator's sake
_SHIFT = np.uint64(32)  # shares and random numbers are integers out of 2^32


@dataclasses.dataclass(frozen=True)
class Masking:
    """What is masked and how; the defaults are the paper's.

    Attributes:
      rate: share of an input's tokens that are predicted, in (0, 1).
      mask_share: share of those that become `<mask>`.
      random_share: share of those that become a random token; the rest stay as they are.
      whole_word: choose words rather than tokens, and treat a word's tokens alike.
      specials: whether `<s>` and `</s>` may be chosen (fairseq: yes, Hugging Face: no).
    """

    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    whole_word: bool = False
    specials: bool = True

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise UsageError(
                f"masking.rate is {self.rate}, but it is the share of tokens that are predicted: "
                "give a number between 0 and 1, such as 0.15"
            )
        for name in ("mask_share", "random_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(
                    f"masking.{name} is {getattr(self, name)}, but it is a share of the predicted "
                    "tokens: give a number from 0 to 1"
                )
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise UsageError(
                f"masking.mask_share + masking.random_share is "
                f"{self.mask_share + self.random_share:g}, but together they are at most 1"
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
      special_ids: ids that `specials=False` protects; each is a word of its own.
      word_starts: bool [vocab_size], True where a token starts a word; for `whole_word` only.

    Raises:
      UsageError: whole words without `word_starts`, or a vocabulary of special tokens only.
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
        if masking.whole_word and (word_starts is None or len(word_starts) != vocab_size):
            raise UsageError(
                "masking.whole_word needs to know which tokens start a word: pass word_starts, "
                f"a table of {vocab_size} booleans (tokenizer.word_start_table())"
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
        choice_B, rounding_B, action_B, replacement_B = np.ascontiguousarray(
            hashing.fold(keys_B[:, None], np.arange(4)).T
        )
        choose = self._choose_words if self._masking.whole_word else self._choose_tokens
        positions_BK, units_BK, used_BK = choose(choice_B, rounding_B, ids_BL, lengths_BM)

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

        What to do is drawn once a unit (a token or a word), a random replacement once a token.
        """
        action_BK = hashing.hash32(action_B, units_BK)
        random_BK = hashing.hash32(replacement_B, positions_BK).astype(np.uint64)
        num_drawable = np.uint64(self._vocab_size - FIRST_DRAWABLE_ID)
        random_BK = ((random_BK * num_drawable) >> _SHIFT).astype(np.int32) + FIRST_DRAWABLE_ID
        mask_below = _fixed_point(self._masking.mask_share)
        random_below = mask_below + _fixed_point(self._masking.random_share)
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
        if not self._masking.specials:
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
        if not self._masking.specials:
            usable_BL &= ~self._is_special[ids_BL]
        groups = np.arange(len(ids_BL))[:, None] * self._max_inputs + inputs_BL
        usable_BM = np.bincount(groups[usable_BL], minlength=lengths_BM.size)
        return inputs_BL, usable_BL, usable_BM.reshape(lengths_BM.shape)

    def _choose_words(self, choice_B, rounding_B, ids_BL, lengths_BM):
        """(positions int32, starts of their words int32, used bool), each [B, K].

        An input's words are taken in random order until the next one would exceed the input's
        count of tokens. Words longer than that count are left aside first: such a word, drawn
        early, would leave its input with nothing to predict.
        """
        num_rows, seq_len = ids_BL.shape
        inputs_BL, usable_BL, usable_BM = self._usable(ids_BL, lengths_BM)
        counts_BM = self._counts(rounding_B, usable_BM)

        # fairseq glues a line's first word, which has no space before it, to the `</s>` in front;
        # here a special token is a word of its own, and what follows it or opens an input starts
        # another.
        special_BL = self._is_special[ids_BL]
        starts_BL = self._word_starts[ids_BL] | special_BL
        starts_BL[:, 0] = True
        starts_BL[:, 1:] |= special_BL[:, :-1] | (inputs_BL[:, 1:] != inputs_BL[:, :-1])

        # The words, W of them, in reading order: flat start, length, (row, input).
        start_W = np.flatnonzero(starts_BL)
        length_W = np.diff(start_W, append=starts_BL.size)
        length_of_start = np.zeros(starts_BL.size, np.int64)
        length_of_start[start_W] = length_W
        group_W = (start_W // seq_len) * self._max_inputs + np.take(inputs_BL, start_W)
        usable_W = np.take(usable_BL, start_W)
        start_W, length_W, group_W = (x[usable_W] for x in (start_W, length_W, group_W))
        short_W = length_W <= np.take(counts_BM, group_W)
        start_W, group_W = start_W[short_W], group_W[short_W]

        # In random order within each (row, input); then the tokens up to and with each word.
        key_W = (group_W.astype(np.uint64) << _SHIFT) | np.take(self._keys(choice_B), start_W)
        key_W.sort()
        group_W = (key_W >> _SHIFT).astype(np.int64)
        position_W = (key_W & self._position_bits).astype(np.int64)
        start_W = group_W // self._max_inputs * seq_len + position_W
        length_W = length_of_start[start_W]
        total_W = np.cumsum(length_W)
        is_first_W = np.diff(group_W, prepend=-1) != 0
        before_group_W = np.repeat(
            (total_W - length_W)[is_first_W],
            np.diff(np.flatnonzero(is_first_W), append=len(group_W)),
        )
        chosen_W = total_W - before_group_W <= np.take(counts_BM, group_W)
        start_W, length_W = start_W[chosen_W], length_W[chosen_W]

        # From words to tokens (T of them), in reading order, and to slots.
        unit_T = np.repeat(start_W, length_W)
        first_T = np.repeat(np.cumsum(length_W) - length_W, length_W)
        flat_T = unit_T + np.arange(len(unit_T)) - first_T
        order_T = np.argsort(flat_T, kind="stable")
        flat_T, unit_T = flat_T[order_T], unit_T[order_T]
        row_T = flat_T // seq_len
        slot_T = np.arange(len(row_T)) - np.searchsorted(row_T, row_T)
        positions_BK, units_BK = np.zeros((2, num_rows, self.num_slots), np.int32)
        used_BK = np.zeros((num_rows, self.num_slots), bool)
        positions_BK[row_T, slot_T] = flat_T % seq_len
        units_BK[row_T, slot_T] = unit_T % seq_len
        used_BK[row_T, slot_T] = True
        return positions_BK, units_BK, used_BK


def _fixed_point(share: float) -> int:
    """A probability as an integer out of 2^32."""
    return round(share * 2**32)
