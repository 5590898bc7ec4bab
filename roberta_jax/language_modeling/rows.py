"""Rows of tokens for scoring: DOC-SENTENCES inputs, and batches of them with little padding.

A row is `<s>` and whole sentences of one document, each followed by `</s>`, up to the maximum
length. A sentence that is longer than a row is cut. So each row belongs to one document, as
per-document scores need.

Letters in array names: R rows, B rows of a batch, L positions in a row, T tokens, D documents.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from roberta_jax.data.packing.blocks import doc_sentences
from roberta_jax.data.store.layout import lay_out
from roberta_jax.errors import UsageError
from roberta_jax.tokenizer.bulk import BulkEncoder

if TYPE_CHECKING:
    from roberta_jax.language_modeling.documents import Document
    from roberta_jax.tokenizer import RobertaTokenizer

MAX_BUCKETS = 6  # different lengths of a row, each of which compiles a program


@dataclasses.dataclass(frozen=True)
class Rows:
    """Documents as rows of tokens.

    Attributes:
      tokens: int32 [T], the sentences of all documents, each followed by `</s>`.
      starts: int64 [R], where the tokens of a row start, without its `<s>`.
      lengths: int64 [R], tokens of a row, its `<s>` included.
      document: int64 [R], the number of the row's document, ascending.
      num_documents: D.
      max_length: tokens of the longest row that is allowed.
      bos_id, eos_id, pad_id: the ids of `<s>`, `</s>` and `<pad>`.
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    document: np.ndarray
    num_documents: int
    max_length: int
    bos_id: int
    eos_id: int
    pad_id: int

    @property
    def num_rows(self) -> int:
        return len(self.starts)

    @property
    def number_in_document(self) -> np.ndarray:
        """int64 [R]: the number of the row in its document, from 0."""
        first_D = np.searchsorted(self.document, np.arange(self.num_documents))
        return np.arange(self.num_rows) - first_D[self.document]

    @property
    def text_tokens(self) -> np.ndarray:
        """int64 [D]: tokens of each document, without special tokens."""
        ends = np.append(0, np.cumsum(self.tokens != self.eos_id))
        per_row = ends[self.starts + self.lengths - 1] - ends[self.starts]
        return np.bincount(self.document, per_row, self.num_documents).astype(np.int64)

    def text_positions(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The positions of some rows that hold text, not special tokens.

        Args:
          rows: int64, row numbers.

        Returns:
          (row numbers, positions in the row), int64, in the order of `rows` and of the text.
        """
        lengths = self.lengths[rows]
        repeated = np.repeat(rows, lengths)
        positions = np.arange(len(repeated)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        # The `<s>` at position 0 is not among the tokens.
        index = self.starts[repeated] + np.maximum(positions - 1, 0)
        is_text = (positions > 0) & (self.tokens[index] != self.eos_id)
        return repeated[is_text], positions[is_text]

    def inputs(self, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """The model's inputs for some rows, with padding.

        Args:
          rows: int64 [B], row numbers.
          length: L, at least the length of the longest of these rows.

        Returns:
          input_ids, attention_mask and position_ids, int32 [B, L], C-contiguous.
        """
        offsets = np.arange(length)
        inside = offsets < self.lengths[rows][:, None]
        index = np.where(inside, self.starts[rows][:, None] + np.maximum(offsets - 1, 0), 0)
        ids_BL = np.where(inside, self.tokens[index], self.pad_id).astype(np.int32)
        ids_BL[:, 0] = self.bos_id
        positions_BL = np.where(inside, offsets + self.pad_id + 1, self.pad_id)
        return {
            "input_ids": ids_BL,
            "attention_mask": inside.astype(np.int32),
            "position_ids": positions_BL.astype(np.int32),
        }


def make_rows(
    documents: Sequence["Document"], tokenizer: "RobertaTokenizer", max_length: int
) -> Rows:
    """Tokenizes documents and divides them into rows of at most `max_length` tokens.

    Raises:
      UsageError: `max_length` leaves no room for text, or no document has a token.
    """
    if max_length < 2:
        raise UsageError(
            f"--max_length={max_length} leaves no room for text: a row starts with <s>, so use a "
            "number from 2"
        )
    encoded = BulkEncoder(tokenizer).encode_documents([each.sentences for each in documents])
    eos_id = tokenizer.eos_token_id
    tokens, sentence_ends, document_ends = lay_out(*encoded, eos_id)
    starts, lengths = doc_sentences(sentence_ends, document_ends, max_length - 1)
    rows = Rows(
        tokens=tokens.astype(np.int32),
        starts=starts,
        lengths=lengths + 1,
        document=np.searchsorted(document_ends, starts, side="right"),
        num_documents=len(documents),
        max_length=max_length,
        bos_id=tokenizer.bos_token_id,
        eos_id=eos_id,
        pad_id=tokenizer.pad_token_id,
    )
    if not rows.text_tokens.any():
        raise UsageError("the text has no tokens: the tokenizer encodes it as nothing")
    return rows


def batches(
    lengths: np.ndarray, buckets: np.ndarray, tokens: int, multiple: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Divides items of different lengths into batches of few shapes.

    Args:
      lengths: int64 [N], tokens of each item.
      buckets: from `row_lengths.choose_lengths`.
      tokens: positions of a batch at most, unless `multiple` items have more.
      multiple: the number of items in a batch is divisible by it: the number of devices.

    Yields:
      (items int64 [B] with -1 for those that only fill up the batch, L). The batches of a length
      have the same B.
    """
    bucket_of = np.searchsorted(buckets, lengths)
    for bucket, length in enumerate(buckets.tolist()):
        members = np.flatnonzero(bucket_of == bucket)
        if not len(members):
            continue
        most = max(1, tokens // (length * multiple)) * multiple
        # As few batches as fit, all of one size, and so few rows that only fill up.
        number_of_batches = -(-len(members) // most)
        size = -(-len(members) // (number_of_batches * multiple)) * multiple
        members = np.append(members, np.full(-len(members) % size, -1))
        for batch in members.reshape(-1, size):
            yield batch, length
