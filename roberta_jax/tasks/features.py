"""Encoded examples of variable length, and batches of them with as little padding as possible.

A row is what takes part in a batch as a whole: an example, or a window of one (question answering).
It consists of one sequence of tokens, or of one for each choice.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Features:
    """The rows of a split. All arrays are on the host.

    Attributes:
      tokens: int32 [T], the tokens of all sequences one after the other, special tokens included.
      starts: int64 [S + 1], sequence s has the tokens [starts[s], starts[s + 1]).
      choices: C, sequences per row: row r has the sequences [r * C, (r + 1) * C). 1 except for
        multiple choice.
      example: int32 [R], the number of the example that a row belongs to.
      columns: name -> array [R, ...], one entry per row, such as labels.
      token_columns: name -> array [T], one entry per token, such as the labels of tokens.
      skipped: what examples were left out of and why, in words that follow "left out" -> how many.
      host_arrays: name -> array of any shape, which predictions need and no batch holds, such as
        the characters that tokens cover. They belong to all rows together.
      notes: what else the user should know, such as that inputs were cut -> how many.
    """

    tokens: np.ndarray
    starts: np.ndarray
    choices: int
    example: np.ndarray
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    token_columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    host_arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return len(self.example)

    @property
    def row_lengths(self) -> np.ndarray:
        """int64 [R], tokens of the longest sequence of each row."""
        return np.diff(self.starts).reshape(-1, self.choices).max(1, initial=0)

    def gather(
        self, rows: np.ndarray, length: int, fill: Mapping[str, Any], pad_id: int
    ) -> dict[str, np.ndarray]:
        """The arrays of some rows, padded to a length.

        Args:
          rows: int64 [B], rows; -1 for one that only fills up the batch.
          length: L, tokens per sequence; at least that of the longest row.
          fill: name of a column -> its value where there is no row or token.
          pad_id: the token of padding.

        Returns:
          `input_ids` int32 and `attention_mask` int32, [B, L], or [B, C, L] with choices; each
          column [B, ...]; each token column [B, L]. A row that fills up the batch has one token,
          so that its attention is not empty.
        """
        present = rows >= 0
        sequences = np.maximum(rows, 0)[:, None] * self.choices + np.arange(self.choices)
        begin = self.starts[sequences][..., None]
        lengths = (self.starts[sequences + 1] - self.starts[sequences])[..., None]
        lengths = np.where(present[:, None, None], lengths, 1)
        offsets = np.arange(length)
        inside = offsets < lengths
        index = np.where(inside, begin + offsets, 0)
        shape = (len(rows), self.choices, length) if self.choices > 1 else (len(rows), length)

        def spread(values: np.ndarray, empty: Any, where: np.ndarray) -> np.ndarray:
            picked = values[index] if len(values) else np.zeros(index.shape, values.dtype)
            return np.where(where, picked, np.asarray(empty, values.dtype)).reshape(shape)

        batch = {
            "input_ids": spread(self.tokens, pad_id, inside).astype(np.int32),
            "attention_mask": inside.astype(np.int32).reshape(shape),
        }
        real = inside & present[:, None, None]
        for name, values in self.token_columns.items():
            batch[name] = spread(values, fill[name], real)
        for name, values in self.columns.items():
            picked = values[np.maximum(rows, 0)]
            where = present.reshape(-1, *([1] * (values.ndim - 1)))
            batch[name] = np.where(where, picked, np.asarray(fill[name], values.dtype))
        return batch


def flattened(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32 [T], starts int64 [S + 1]) of a list of sequences."""
    starts = np.zeros(len(sequences) + 1, np.int64)
    np.cumsum([len(each) for each in sequences], out=starts[1:])
    tokens = np.empty(starts[-1], np.int32)
    for number, each in enumerate(sequences):
        tokens[starts[number] : starts[number + 1]] = each
    return tokens, starts
