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
from roberta_jax.data.masking import Masker, Masking, input_numbers
from roberta_jax.data.packing import PackedIndex
from roberta_jax.data.token_store import Shard, TokenStore
from roberta_jax.errors import UsageError

DTYPES = {
    "input_ids": np.int32,
    "segment_ids": np.int32,
    "position_ids": np.int32,
    "masked_positions": np.int32,
    "masked_labels": np.int32,
    "masked_weights": np.float32,
}
"""A batch's arrays, in order; the first three are [B, L], the others [B, K]."""
_MASK_STREAM = 0x6D61736B  # keeps masks apart from every other use of the same seed
_ALIGNMENT = 64  # bytes
_CHUNK_TOKENS = 1 << 17  # rows are made a few at a time, so that the work stays in the cache


class BatchMaker:
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
      word_starts: bool [vocab_size], True where a token starts a word; for whole-word masking.

    Attributes:
      num_rows: rows in the corpus.
      seq_len: L.
      num_slots: K.
      vocab_size: as given.

    Raises:
      UsageError: the store holds ids beyond vocab_size, or whole words without `word_starts`.
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
    ):
        if store.vocab_size > vocab_size:
            raise UsageError(
                f"{store.folder} was made with a tokenizer of {store.vocab_size} ids, but this one "
                f"has {vocab_size}: prepare the text again with the tokenizer in use"
            )
        self._store, self._packed, self._seed = store, packed, seed
        self._bos_id, self._pad_id = bos_id, pad_id
        self.vocab_size = vocab_size
        self.num_rows, self.seq_len = packed.num_rows, packed.seq_len
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

    def with_seed(self, seed: int) -> "BatchMaker":
        """The same maker with other masks."""
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
          masked_weights float32 [B, K]: 1, or 0 in unused slots.
        """
        return self._make(rows, hashing.fold(_MASK_STREAM, self._seed, epochs, rows))

    def assemble(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Makes rows as they are before masking.

        Returns:
          input_ids int32 [B, L]: each input's `<s>` and tokens, then padding;
          segment_ids int32 [B, L]: 0 for padding, else which of the row's inputs, from 1;
          position_ids int32 [B, L]: pad_id for padding, else from pad_id + 1 in each input.
        """
        return self._make(rows, None)

    def _make(self, rows_B, keys_B):
        num_rows, seq_len, num_slots = len(rows_B), self.seq_len, self.num_slots
        rows_B = np.asarray(rows_B, np.int64)
        if num_rows and not 0 <= rows_B.min() <= rows_B.max() < self.num_rows:
            raise IndexError(f"row numbers must lie in [0, {self.num_rows})")
        names = DTYPES if keys_B is not None else list(DTYPES)[:3]
        widths = 3 * [seq_len] + 3 * [num_slots]
        batch = {
            name: _empty_aligned((num_rows, width), DTYPES[name])
            for name, width in zip(names, widths, strict=False)
        }
        step = max(1, _CHUNK_TOKENS // seq_len)
        for start in range(0, num_rows, step):
            part = slice(start, start + step)
            arrays = [array[part] for array in batch.values()]
            lengths_BM = self._assemble(rows_B[part], *arrays[:3])
            if keys_B is not None:
                masked = self._masker(keys_B[part], arrays[0], lengths_BM)
                for array, values in zip(arrays[3:], masked, strict=True):
                    array[:] = values
        return batch

    def _assemble(self, rows_B, ids_BL, segments_BL, positions_BL) -> np.ndarray:
        """Fills the three arrays; returns the inputs' lengths with their `<s>`, int64 [B, M]."""
        if self._packed.max_inputs == 1:
            return self._assemble_one_input(rows_B, ids_BL, segments_BL, positions_BL)
        return self._assemble_many_inputs(rows_B, ids_BL, segments_BL, positions_BL)

    def _assemble_one_input(self, rows_B, ids_BL, segments_BL, positions_BL):
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

    def _assemble_many_inputs(self, rows_B, ids_BL, segments_BL, positions_BL):
        first_B, end_B = self._packed.rows[rows_B], self._packed.rows[rows_B + 1]
        index_BM = first_B[:, None] + np.arange(self._packed.max_inputs)
        present_BM = index_BM < end_B[:, None]
        inputs_BM = self._packed.inputs[np.where(present_BM, index_BM, first_B[:, None])]
        lengths_BM = np.where(present_BM, inputs_BM["a_len"].astype(np.int64) + 1, 0)

        numbers_BL = input_numbers(lengths_BM, self.seq_len)
        padding_BL = numbers_BL == self._packed.max_inputs
        np.copyto(numbers_BL, 0, where=padding_BL)
        begins_BM = np.cumsum(lengths_BM, axis=1) - lengths_BM
        places_BL = np.arange(self.seq_len) - np.take_along_axis(begins_BM, numbers_BL, axis=1)
        # Where <s> or padding will stand, any token of the row's shard can be read.
        places_in_text_BL = np.where(padding_BL, 0, np.maximum(places_BL - 1, 0))
        sources_BL = places_in_text_BL + np.take_along_axis(
            inputs_BM["a_start"], numbers_BL, axis=1
        )
        for mine, shard in self._by_shard(sources_BL[:, 0]):
            ids_BL[mine] = np.take(shard.tokens, sources_BL[mine] - shard.start)
        np.copyto(ids_BL, self._bos_id, where=places_BL == 0)
        np.copyto(ids_BL, self._pad_id, where=padding_BL)
        segments_BL[:] = np.where(padding_BL, 0, numbers_BL + 1)
        positions_BL[:] = np.where(padding_BL, self._pad_id, places_BL + (self._pad_id + 1))
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


def _empty_aligned(shape: tuple[int, ...], dtype) -> np.ndarray:
    """np.empty at an address that TensorFlow, and JAX on the CPU, can take over without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
