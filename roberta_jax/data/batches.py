"""Builds batches from row numbers: gathers the tokens, adds `<s>`, pads and masks.

A batch is a pure function of (rows, epochs). A row's mask is a hash of the seed, the epoch, the
row number and the position in the row. It does not depend on the step, the batch size or the host,
so any host can build any part of any batch. All operations work on many rows at once.

Letters in array names: B rows, L positions in a row, M inputs in a row, K slots for masked
positions.
"""

import copy
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from roberta_jax.data import hashing
from roberta_jax.data.masking import Masker, Masking
from roberta_jax.data.masking_schemes import input_numbers
from roberta_jax.data.packing.index import PackedIndex
from roberta_jax.data.row_order import FULL, RowOrder
from roberta_jax.data.store.token_store import Shard, TokenStore
from roberta_jax.errors import UsageError

DTYPES = {
    "input_ids": np.int32,
    "segment_ids": np.int32,
    "position_ids": np.int32,
    "token_type_ids": np.int32,
    "masked_positions": np.int32,
    "masked_labels": np.int32,
    "masked_weights": np.float32,
    "next_sentence_positions": np.int32,
    "next_sentence_labels": np.int32,
    "next_sentence_weights": np.float32,
}
"""A batch's arrays and their dtypes, in order. Those named `masked_...` have shape [B, K], those
named `next_sentence_...` [B, M] and all others [B, L]."""
_UNMASKED = ("input_ids", "segment_ids", "position_ids", "token_type_ids")
_MASKED = ("masked_positions", "masked_labels", "masked_weights")
_MASK_STREAM = 0x6D61736B  # makes masks independent of other uses of the same seed
_ALIGNMENT = 64  # bytes
_CHUNK_TOKENS = 1 << 17  # rows are built a few at a time, so that the work fits the CPU's cache


class PackedDataset:
    """The rows of a packed corpus, as masked batches.

    Call it with row numbers to get a batch; several threads may do so at the same time.

    Args:
      store: The tokens.
      packed: The slices of the store that make up each row.
      masking: The masking options.
      seed: The seed of the masks.
      vocab_size: Number of ids of the tokenizer; at least the store's.
      bos_id: The id of `<s>`, which starts each input.
      pad_id: The id of `<pad>`. It is also the position id of padding; position ids of tokens start
        at pad_id + 1.
      mask_id: The id of `<mask>`.
      special_ids: The ids of all special tokens.
      word_starts: bool [vocab_size], True for tokens that start a word. Required if
        `masking.needs_word_starts`.
      token_types: Whether batches of pairs contain `token_type_ids`.
      next_sentence: Whether batches contain the labels of next-sentence prediction.
      row_order: The order in which training goes through the rows of an epoch.

    Attributes:
      num_rows: Number of rows of the corpus, duplicates included.
      epoch_ends: int64 [D], one for each of D duplicates of the corpus, which the epochs use in
        turn: epoch e has the rows from epoch_ends[e % D - 1] (0 if e % D is 0) up to, but not
        including, epoch_ends[e % D]. D is 1 unless pairs are sampled several times.
      seq_len: L.
      max_inputs: M.
      num_slots: K.
      padding_share: Fraction of the positions that hold padding.
      vocab_size: See above.
      row_order: See above.

    Raises:
      UsageError: The store was made with a larger vocabulary, `word_starts` is required but
        missing, or `next_sentence` is set for a format without pairs.
    """

    def __init__(
        self,
        store: TokenStore,
        packed: PackedIndex,
        masking: Masking,
        seed: int,
        *,
        vocab_size: int,
        bos_id: int,
        pad_id: int,
        mask_id: int,
        special_ids: Sequence[int],
        word_starts: np.ndarray | None = None,
        token_types: bool = False,
        next_sentence: bool = False,
        row_order: RowOrder = FULL,
    ):
        if store.vocab_size > vocab_size:
            raise UsageError(
                f"{store.folder} was made with a tokenizer of {store.vocab_size} ids, but this one "
                f"has {vocab_size}: prepare the text with this tokenizer "
                "(python -m roberta_jax.prepare --config=... --config.tokenizer=...)"
            )
        if next_sentence and not packed.num_separators:
            raise UsageError(
                "--config.objective.next_sentence needs pairs of texts: use "
                "--config.data.format=segment_pair or sentence_pair, or "
                "--config.objective.next_sentence=false"
            )
        self._store, self._packed, self._seed = store, packed, seed
        self._bos_id, self._pad_id, self._eos_id = bos_id, pad_id, store.eos_id
        self._num_masks = masking.dupe_factor
        self.vocab_size, self.row_order = vocab_size, row_order
        self.num_rows, self.seq_len = packed.num_rows, packed.seq_len
        self.max_inputs, self.padding_share = packed.max_inputs, packed.padding_share
        self.epoch_ends = np.array(packed.duplicate_ends or (packed.num_rows,), np.int64)
        self._token_types = token_types and packed.num_separators > 0
        self._next_sentence = next_sentence
        self._masker = Masker(
            masking,
            seq_len=packed.seq_len,
            max_inputs=packed.max_inputs,
            vocab_size=vocab_size,
            mask_id=mask_id,
            pad_id=pad_id,
            special_ids=special_ids,
            word_starts=word_starts,
        )
        self.num_slots = self._masker.num_slots
        widths = 4 * [self.seq_len] + 3 * [self.num_slots] + 3 * [self.max_inputs]
        self._widths = {
            name: width
            for name, width in zip(DTYPES, widths, strict=True)
            if (self._token_types or name != "token_type_ids")
            and (self._next_sentence or not name.startswith("next_sentence"))
        }

    def with_seed(self, seed: int) -> "PackedDataset":
        """Returns a dataset of the same rows whose masks have another seed."""
        other = copy.copy(self)
        other._seed = seed
        return other

    def __call__(self, rows: np.ndarray, epochs: np.ndarray) -> dict[str, np.ndarray]:
        """Builds a masked batch.

        Args:
          rows: int64 [B], row numbers in [0, num_rows), in any order.
          epochs: int64 [B], the epoch of each row, which selects its mask.

        Returns:
          The arrays of `assemble`, with masked input_ids, and
            masked_positions int32 [B, K]: positions in the row, ascending; 0 in unused slots.
            masked_labels int32 [B, K]: the original tokens; pad_id in unused slots.
            masked_weights float32 [B, K]: 1, or 0 in unused slots.
          With `next_sentence` also
            next_sentence_positions int32 [B, M]: position of each input's `<s>`.
            next_sentence_labels int32 [B, M]: 0 if b follows a in the text, 1 if b is random.
            next_sentence_weights float32 [B, M]: 1, or 0 in unused slots (position and label 0).

        Raises:
          IndexError: A row number is outside [0, num_rows).
        """
        if self._num_masks is not None:
            epochs = np.asarray(epochs) % self._num_masks
        return self._build(rows, hashing.fold(_MASK_STREAM, self._seed, epochs, rows))

    def assemble(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Builds a batch without masks.

        Args:
          rows: int64 [B], row numbers in [0, num_rows), in any order.

        Returns:
          input_ids int32 [B, L]: each input's `<s>` and tokens, then padding.
          segment_ids int32 [B, L]: the number of the input, from 1; 0 for padding.
          position_ids int32 [B, L]: counts from pad_id + 1 in each input; pad_id for padding.
          token_type_ids int32 [B, L], only with `token_types` and for pairs: 1 for the second text
            with its final `</s>` and, if two `</s>` separate the texts, for the second of them;
            else 0.

        Raises:
          IndexError: A row number is outside [0, num_rows).
        """
        return self._build(rows, None)

    def _build(self, rows_B, keys_B):
        """Builds a batch; `keys_B` are the rows' random keys, or None for a batch without masks."""
        num_rows, seq_len = len(rows_B), self.seq_len
        rows_B = np.asarray(rows_B, np.int64)
        if num_rows and not 0 <= rows_B.min() <= rows_B.max() < self.num_rows:
            raise IndexError(f"row numbers must lie in [0, {self.num_rows})")
        names = [name for name in self._widths if keys_B is not None or name in _UNMASKED]
        batch = {
            name: empty_aligned((num_rows, self._widths[name]), DTYPES[name]) for name in names
        }
        step = max(1, _CHUNK_TOKENS // seq_len)
        for start in range(0, num_rows, step):
            chunk = slice(start, start + step)
            arrays = {name: array[chunk] for name, array in batch.items()}
            lengths_BM = self._assemble(rows_B[chunk], arrays)
            if keys_B is not None:
                masked = self._masker(keys_B[chunk], arrays["input_ids"], lengths_BM)
                for name, values in zip(_MASKED, masked, strict=True):
                    arrays[name][:] = values
        return batch

    def _assemble(self, rows_B, arrays) -> np.ndarray:
        """Fills the arrays of a chunk of rows.

        Returns:
          int64 [B, M]: the number of tokens of each input, special tokens included.
        """
        if self.max_inputs == 1 and not self._packed.num_separators:
            return self._assemble_one_input(rows_B, arrays)
        return self._assemble_many_inputs(rows_B, arrays)

    def _assemble_one_input(self, rows_B, arrays):
        ids_BL, segments_BL, positions_BL = (arrays[name] for name in _UNMASKED[:3])
        inputs_B = self._packed.inputs[self._packed.rows[rows_B]]
        lengths_B1 = inputs_B["a_len"][:, None] + 1
        ids_BL[:, 0] = self._bos_id
        self._gather(inputs_B["a_start"], ids_BL[:, 1:])
        offsets_L = np.arange(self.seq_len, dtype=np.int32)
        padding_BL = offsets_L >= lengths_B1
        np.copyto(ids_BL, self._pad_id, where=padding_BL)
        np.logical_not(padding_BL, out=segments_BL, casting="unsafe")
        positions_BL[:] = offsets_L + (self._pad_id + 1)
        np.copyto(positions_BL, self._pad_id, where=padding_BL)
        return lengths_B1.astype(np.int64)

    def _assemble_many_inputs(self, rows_B, arrays):
        packed, ids_BL = self._packed, arrays["input_ids"]
        first_B, end_B = packed.rows[rows_B], packed.rows[rows_B + 1]
        index_BM = first_B[:, None] + np.arange(packed.max_inputs)
        present_BM = index_BM < end_B[:, None]
        inputs_BM = packed.inputs[np.where(present_BM, index_BM, first_B[:, None])]
        a_len_BM = inputs_BM["a_len"].astype(np.int64)
        specials = 2 + packed.num_separators if packed.num_separators else 1
        lengths_BM = np.where(present_BM, a_len_BM + inputs_BM["b_len"] + specials, 0)

        numbers_BL = input_numbers(lengths_BM, self.seq_len)
        padding_BL = numbers_BL == packed.max_inputs
        np.copyto(numbers_BL, 0, where=padding_BL)

        def by_position(values_BM):
            """[B, L]: the value of the input at each position."""
            return np.take_along_axis(values_BM, numbers_BL, axis=1)

        starts_BM = np.cumsum(lengths_BM, axis=1) - lengths_BM
        offsets_BL = np.arange(self.seq_len) - by_position(starts_BM)  # within the input
        sources_BL = by_position(inputs_BM["a_start"]) + np.maximum(offsets_BL - 1, 0)
        is_eos_BL = None
        if packed.num_separators:
            # An input is `<s>`, a, the separating `</s>`s, b and one more `</s>`.
            in_b_BL = offsets_BL - by_position(a_len_BM) - (1 + packed.num_separators)
            sources_BL = np.where(
                in_b_BL >= 0, by_position(inputs_BM["b_start"]) + in_b_BL, sources_BL
            )
            after_b_BL = in_b_BL == by_position(inputs_BM["b_len"])
            is_eos_BL = (in_b_BL < 0) & (in_b_BL >= -packed.num_separators) | after_b_BL
            if self._token_types:
                # The second of two separators belongs to b.
                arrays["token_type_ids"][:] = ~padding_BL & (in_b_BL >= 1 - packed.num_separators)
        # Positions that are overwritten below read any token of the row's shard.
        overwritten_BL = padding_BL if is_eos_BL is None else padding_BL | is_eos_BL
        sources_BL = np.where(overwritten_BL, inputs_BM["a_start"][:, :1], sources_BL)
        for rows, shard in self._by_shard(sources_BL[:, 0]):
            ids_BL[rows] = np.take(shard.tokens, sources_BL[rows] - shard.start)
        np.copyto(ids_BL, self._bos_id, where=offsets_BL == 0)
        if is_eos_BL is not None:
            np.copyto(ids_BL, self._eos_id, where=is_eos_BL)
        np.copyto(ids_BL, self._pad_id, where=padding_BL)
        arrays["segment_ids"][:] = np.where(padding_BL, 0, numbers_BL + 1)
        positions_BL = offsets_BL + self._pad_id + 1
        arrays["position_ids"][:] = np.where(padding_BL, self._pad_id, positions_BL)
        if "next_sentence_positions" in arrays:
            arrays["next_sentence_positions"][:] = np.where(present_BM, starts_BM, 0)
            arrays["next_sentence_labels"][:] = np.where(present_BM, inputs_BM["next_label"], 0)
            arrays["next_sentence_weights"][:] = present_BM
        return lengths_BM

    def _gather(self, starts_B: np.ndarray, out_BN: np.ndarray) -> None:
        """Copies the N tokens from each global position on; stops at the end of the shard."""
        width = out_BN.shape[1]
        for rows, shard in self._by_shard(starts_B):
            starts = starts_B[rows] - shard.start
            inside = starts + width <= shard.num_tokens
            if inside.any():
                # windows[i] is a view of tokens[i:i + N], so indexing copies each row as one block.
                windows = sliding_window_view(shard.tokens, width)
                out_BN[rows[inside]] = windows[starts[inside]]
            for row, start in zip(rows[~inside], starts[~inside], strict=True):
                out_BN[row, : shard.num_tokens - start] = shard.tokens[start:]

    def _by_shard(self, positions_B: np.ndarray) -> Iterator[tuple[np.ndarray, Shard]]:
        """Yields (indices of the rows in a shard, shard), given one global position per row."""
        shards_B = np.searchsorted(self._store.shard_starts, positions_B, side="right") - 1
        for number in np.unique(shards_B):
            yield np.flatnonzero(shards_B == number), self._store.shards[number]


def empty_aligned(shape: tuple[int, ...], dtype) -> np.ndarray:
    """np.empty, aligned so that TensorFlow and JAX on CPU can use the memory without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
