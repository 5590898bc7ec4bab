"""From row numbers to a batch: gather the tokens, put `<s>` in front, pad, mask.

A batch is a pure function of (rows, epochs): a row's mask is a hash of the seed, the epoch, the
row's number and the position in the row, so it depends on neither the step, the batch's size nor
the host, and any host can make any part of any batch. Everything is done for many rows at once;
there is no loop over tokens, and none over rows where a row is one slice of the store.

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
"""A batch's arrays, in order: [B, L], then [B, K] from `masked_`, [B, M] from `next_sentence_`."""
_UNMASKED = ("input_ids", "segment_ids", "position_ids", "token_type_ids")
_MASKED = ("masked_positions", "masked_labels", "masked_weights")
_MASK_STREAM = 0x6D61736B  # keeps masks apart from every other use of the same seed
_ALIGNMENT = 64  # bytes
_CHUNK_TOKENS = 1 << 17  # rows are made a few at a time, so that the work stays in the cache


class PackedDataset:
    """Makes batches of a packed corpus. May be called from several threads at once.

    Args:
      store: the tokens.
      packed: which of them make which row.
      masking: what is masked and how.
      seed: of the masks.
      vocab_size: ids of the tokenizer; at least the store's.
      bos_id: `<s>`, put in front of each input.
      pad_id: `<pad>`, also the position of padding; real positions follow it.
      mask_id: `<mask>`.
      special_ids: the special tokens' ids.
      word_starts: bool [vocab_size], True where a token starts a word; for masking words and spans.
      token_types: whether batches of pairs say which tokens belong to the second text.
      next_sentence: whether they say which pairs follow each other.

    Attributes:
      num_rows: rows in the corpus, of all duplicates.
      epoch_ends: of each epoch, in a cycle of as many as there are duplicates, the row after its
        last; its first row is the one after the epoch before.
      seq_len: L.
      max_inputs: M.
      num_slots: K.
      padding_share: share of the positions that hold padding.
      vocab_size: as given.

    Raises:
      UsageError: the store holds ids beyond vocab_size, words or spans without `word_starts`, or
        `next_sentence` without pairs.
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
    ):
        if store.vocab_size > vocab_size:
            raise UsageError(
                f"{store.folder} was made with a tokenizer of {store.vocab_size} ids, but this one "
                f"has {vocab_size}: prepare the text again with the tokenizer in use"
            )
        if next_sentence and not packed.num_separators:
            raise UsageError(
                "objective.next_sentence needs pairs: set data.format to segment_pair or "
                "sentence_pair, or objective.next_sentence to False"
            )
        self._store, self._packed, self._seed = store, packed, seed
        self._bos_id, self._pad_id, self._eos_id = bos_id, pad_id, store.eos_id
        self._copies = masking.dupe_factor
        self.vocab_size = vocab_size
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
        """The same dataset with other masks."""
        other = copy.copy(self)
        other._seed = seed
        return other

    def __call__(self, rows: np.ndarray, epochs: np.ndarray) -> dict[str, np.ndarray]:
        """Makes the masked batch of some rows.

        Args:
          rows: int64 [B], row numbers in [0, num_rows), in any order.
          epochs: int64 [B], the epoch that each row is seen in.

        Returns:
          What `assemble` returns, with input_ids masked, and
          masked_positions int32 [B, K]: positions in the row, ascending, 0 in unused slots;
          masked_labels int32 [B, K]: the tokens that stood there, pad_id in unused slots;
          masked_weights float32 [B, K]: 1, or 0 in unused slots;
          with `next_sentence` also next_sentence_positions int32 [B, M]: the inputs' first tokens;
          next_sentence_labels int32 [B, M]: 0 where b follows a, 1 where it is random;
          next_sentence_weights float32 [B, M]: 1, or 0 in unused slots (position and label 0).
        """
        if self._copies is not None:
            epochs = np.asarray(epochs) % self._copies
        return self._make(rows, hashing.fold(_MASK_STREAM, self._seed, epochs, rows))

    def assemble(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Makes rows as they are before masking.

        Returns:
          input_ids int32 [B, L]: each input's `<s>` and tokens, then padding;
          segment_ids int32 [B, L]: 0 for padding, else which of the row's inputs, from 1;
          position_ids int32 [B, L]: pad_id for padding, else from pad_id + 1 in each input;
          with `token_types`, for pairs, token_type_ids int32 [B, L]: 1 from the second text's own
          `</s>` in front of it on (with one separator from its first token on), else 0.
        """
        return self._make(rows, None)

    def _make(self, rows_B, keys_B):
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
            part = slice(start, start + step)
            arrays = {name: array[part] for name, array in batch.items()}
            lengths_BM = self._assemble(rows_B[part], arrays)
            if keys_B is not None:
                masked = self._masker(keys_B[part], arrays["input_ids"], lengths_BM)
                for name, values in zip(_MASKED, masked, strict=True):
                    arrays[name][:] = values
        return batch

    def _assemble(self, rows_B, arrays) -> np.ndarray:
        """Fills a part of a batch; returns the inputs' lengths with their specials, [B, M]."""
        if self.max_inputs == 1 and not self._packed.num_separators:
            return self._assemble_one_input(rows_B, arrays)
        return self._assemble_many_inputs(rows_B, arrays)

    def _assemble_one_input(self, rows_B, arrays):
        ids_BL, segments_BL, positions_BL = (arrays[name] for name in _UNMASKED[:3])
        inputs_B = self._packed.inputs[self._packed.rows[rows_B]]
        lengths_B1 = inputs_B["a_len"][:, None] + 1
        ids_BL[:, 0] = self._bos_id
        self._gather(inputs_B["a_start"], ids_BL[:, 1:])
        places_L = np.arange(self.seq_len, dtype=np.int32)
        padding_BL = places_L >= lengths_B1
        np.copyto(ids_BL, self._pad_id, where=padding_BL)
        np.logical_not(padding_BL, out=segments_BL, casting="unsafe")
        positions_BL[:] = places_L + (self._pad_id + 1)
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

        def of_input(values_BM):  # for each position the value of its input
            return np.take_along_axis(values_BM, numbers_BL, axis=1)

        begins_BM = np.cumsum(lengths_BM, axis=1) - lengths_BM
        places_BL = np.arange(self.seq_len) - of_input(begins_BM)
        sources_BL = of_input(inputs_BM["a_start"]) + np.maximum(places_BL - 1, 0)
        is_eos_BL = None
        if packed.num_separators:
            # Place 0 is `<s>`, then a, the `</s>`s between, b, and one more `</s>`.
            in_b_BL = places_BL - of_input(a_len_BM) - (1 + packed.num_separators)
            sources_BL = np.where(
                in_b_BL >= 0, of_input(inputs_BM["b_start"]) + in_b_BL, sources_BL
            )
            after_b_BL = in_b_BL == of_input(inputs_BM["b_len"])
            is_eos_BL = (in_b_BL < 0) & (in_b_BL >= -packed.num_separators) | after_b_BL
            if self._token_types:
                # With two separators the second is b's own.
                arrays["token_type_ids"][:] = ~padding_BL & (in_b_BL >= 1 - packed.num_separators)
        # Where no token of the text will stand, any of the row's shard can be read.
        nowhere_BL = padding_BL if is_eos_BL is None else padding_BL | is_eos_BL
        sources_BL = np.where(nowhere_BL, inputs_BM["a_start"][:, :1], sources_BL)
        for mine, shard in self._by_shard(sources_BL[:, 0]):
            ids_BL[mine] = np.take(shard.tokens, sources_BL[mine] - shard.start)
        np.copyto(ids_BL, self._bos_id, where=places_BL == 0)
        if is_eos_BL is not None:
            np.copyto(ids_BL, self._eos_id, where=is_eos_BL)
        np.copyto(ids_BL, self._pad_id, where=padding_BL)
        arrays["segment_ids"][:] = np.where(padding_BL, 0, numbers_BL + 1)
        arrays["position_ids"][:] = np.where(padding_BL, self._pad_id, places_BL + self._pad_id + 1)
        if "next_sentence_positions" in arrays:
            arrays["next_sentence_positions"][:] = np.where(present_BM, begins_BM, 0)
            arrays["next_sentence_labels"][:] = np.where(present_BM, inputs_BM["next_label"], 0)
            arrays["next_sentence_weights"][:] = present_BM
        return lengths_BM

    def _gather(self, starts_B: np.ndarray, out_BN: np.ndarray) -> None:
        """Copies N tokens from each global position; past its shard's end a row stays as it was."""
        width = out_BN.shape[1]
        for mine, shard in self._by_shard(starts_B):
            starts = starts_B[mine] - shard.start
            inside = starts + width <= shard.num_tokens
            if inside.any():
                # Row i of the windows is tokens[i:i + N], without a copy: picking rows copies each
                # as one block.
                windows = sliding_window_view(shard.tokens, width)
                out_BN[mine[inside]] = windows[starts[inside]]
            for row, start in zip(mine[~inside], starts[~inside], strict=True):
                out_BN[row, : shard.num_tokens - start] = shard.tokens[start:]

    def _by_shard(self, positions_B: np.ndarray) -> Iterator[tuple[np.ndarray, Shard]]:
        """(which of the rows, their shard) for each shard that the global positions lie in."""
        shards_B = np.searchsorted(self._store.shard_starts, positions_B, side="right") - 1
        for number in np.unique(shards_B):
            yield np.flatnonzero(shards_B == number), self._store.shards[number]


def empty_aligned(shape: tuple[int, ...], dtype) -> np.ndarray:
    """np.empty at an address that TensorFlow, and JAX on the CPU, can take over without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
