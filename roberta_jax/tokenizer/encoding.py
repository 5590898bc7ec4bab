"""BatchEncoding: what a call of the tokenizer returns.

A dictionary of columns ("input_ids", "attention_mask", …) that also keeps the `Encoding` of each
row, and so can tell which characters, words and tokens belong together. Methods that take a row and
a position may be given the position alone, which then is one of row 0. Positions count from 0;
negative ones from the end.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding


class CharSpan(NamedTuple):
    """Characters `start` to `end` - 1 of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` to `end` - 1 of a row."""

    start: int
    end: int


class BatchEncoding(collections.UserDict):
    """Columns by name, also as attributes; an integer key gives the `Encoding` of that row.

    Args:
      data: the columns: lists, or arrays.
      encoding: one `tokenizers.Encoding` a row, or one for a single row; None if the columns were
        not made from text, and then only the dictionary's methods work.
      tensor_type: as `convert_to_tensors` takes it.
      prepend_batch_axis: as `convert_to_tensors` takes it.
      n_sequences: texts in each row, 1 or 2; None follows the encodings.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        encoding: Encoding | Sequence[Encoding] | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ):
        super().__init__(data)
        self._encodings = [encoding] if isinstance(encoding, Encoding) else encoding
        if n_sequences is None and self._encodings:
            n_sequences = self._encodings[0].n_sequences
        self._n_sequences = n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getitem__(self, item):
        if isinstance(item, str):
            return self.data[item]
        if self._encodings is not None:
            return self._encodings[item]
        if isinstance(item, slice):
            return {name: column[item] for name, column in self.data.items()}
        raise KeyError(f"{item!r}: there are no encodings here, so a key must be a name or a slice")

    def __getattr__(self, name: str):
        # Looked up in __dict__: while unpickling, `data` is not there yet.
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}") from None

    @property
    def encodings(self) -> list[Encoding] | None:
        return self._encodings

    @property
    def n_sequences(self) -> int | None:
        """Texts in each row: 1, or 2 for pairs; None if not known."""
        return self._n_sequences

    @property
    def is_fast(self) -> bool:
        """Whether the rows' encodings are there, which the methods below need."""
        return self._encodings is not None

    # Rows

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row, special ones included."""
        return self._row(batch_index).tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token 0 or 1, the text it is from; None for special tokens and padding."""
        return self._row(batch_index).sequence_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token the word it is from; None for special tokens and padding."""
        return self._row(batch_index).word_ids

    words = word_ids  # the name that older code uses

    # From one to the other

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int:
        """The text, 0 or 1, that a token is from; None for special tokens and padding."""
        row, token = self._row_and_position(batch_or_token_index, token_index)
        return row.token_to_sequence(token)

    def token_to_word(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """The word that a token is from; None for special tokens and padding."""
        row, token = self._row_and_position(batch_or_token_index, token_index)
        return row.token_to_word(token)

    def token_to_chars(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> CharSpan | None:
        """The characters of its text that a token stands for; None for special tokens."""
        row, token = self._row_and_position(batch_or_token_index, token_index)
        return _span(CharSpan, row.token_to_chars(token))

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word of text `sequence_index`; None if it has none in this row."""
        row, word = self._row_and_position(batch_or_word_index, word_index)
        return _span(TokenSpan, row.word_to_tokens(word, sequence_index))

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of a word of text `sequence_index`."""
        row, word = self._row_and_position(batch_or_word_index, word_index)
        return _span(CharSpan, row.word_to_chars(word, sequence_index))

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that a character of text `sequence_index` is in; None between tokens."""
        row, char = self._row_and_position(batch_or_char_index, char_index)
        return row.char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word that a character of text `sequence_index` is in; None between words."""
        row, char = self._row_and_position(batch_or_char_index, char_index)
        return row.char_to_word(char, sequence_index)

    def _row(self, batch_index: int) -> Encoding:
        if not self._encodings:
            raise ValueError(
                "this BatchEncoding was not made from text, so nothing is known of its tokens, "
                "words and characters: call the tokenizer itself"
            )
        return self._encodings[batch_index]

    def _row_and_position(self, first: int, second: int | None) -> tuple[Encoding, int]:
        row = self._row(0 if second is None else first)
        position = first if second is None else second
        return row, position + len(row) if position < 0 else position

    # Arrays

    def convert_to_tensors(
        self, tensor_type: str | None = None, prepend_batch_axis: bool = False
    ) -> "BatchEncoding":
        """Makes each column an array, in place, and returns itself.

        Args:
          tensor_type: "np" for int64, "jax" for int32 arrays; None changes nothing.
          prepend_batch_axis: put the columns in a batch of one first.

        Raises:
          ValueError: another type, or a column whose rows differ in length.
        """
        if tensor_type is None:
            return self
        convert = converter(tensor_type)
        for name, column in self.data.items():
            if prepend_batch_axis or not hasattr(column, "dtype"):
                self.data[name] = convert([column] if prepend_batch_axis else column)
        return self


def converter(tensor_type: str):
    """A function from lists of integers to arrays of a type: "np" or "jax".

    Raises:
      ValueError: another type.
    """
    tensor_type = getattr(tensor_type, "value", tensor_type)  # transformers has an enum
    if tensor_type == "np":
        return as_array
    if tensor_type == "jax":
        import jax.numpy as jnp  # not needed to tokenize

        return lambda rows: jnp.asarray(as_array(rows).astype(np.int32))
    hint = {"pt": "torch.tensor(...)", "tf": "tf.constant(...)"}.get(tensor_type)
    raise ValueError(
        f"return_tensors must be None, 'np' or 'jax', not {tensor_type!r}"
        + (f": ask for 'np' and give each array to {hint}" if hint else "")
    )


def as_array(rows: Sequence) -> np.ndarray:
    """int64 [batch, length], or of whatever depth `rows` has.

    Raises:
      ValueError: rows differ in length.
    """
    try:
        return np.array(rows, dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "rows of unequal length make no array: pass padding=True, and truncation=True if some "
            "are too long"
        ) from error


def _span(kind: type, ends: tuple[int, int] | None):
    return None if ends is None else kind(*ends)
