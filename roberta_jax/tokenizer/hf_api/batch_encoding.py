"""BatchEncoding: what a call of the tokenizer returns.

It is a dictionary of columns ("input_ids", "attention_mask", ...). It also has the `Encoding` of
each row, which maps characters, words and tokens to each other. Methods that take a row and a
position can be called with a position only, which then refers to row 0. Negative positions count
from the end.
"""

import collections
import importlib
import types
from collections.abc import Callable, Mapping, Sequence
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
    """Columns by name, also as attributes; an integer key returns the `Encoding` of that row.

    Args:
      data: the columns: lists or arrays.
      encoding: one `tokenizers.Encoding` per row, or one for a single row. None if the columns do
        not come from text; then only the methods of a dictionary work.
      tensor_type: see `convert_to_tensors`.
      prepend_batch_axis: see `convert_to_tensors`.
      n_sequences: the number of texts per row, 1 or 2; None takes it from the encodings.
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
        raise KeyError(
            f"{item!r}: this BatchEncoding has no encodings, so a key must be a name or a slice"
        )

    def __getattr__(self, name: str):
        # Uses __dict__, because `data` does not exist yet during unpickling.
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}") from None

    @property
    def encodings(self) -> list[Encoding] | None:
        return self._encodings

    @property
    def n_sequences(self) -> int | None:
        """The number of texts per row: 1, or 2 for pairs; None if not known."""
        return self._n_sequences

    @property
    def is_fast(self) -> bool:
        """Whether the rows have encodings, which the methods below need."""
        return self._encodings is not None

    # Rows

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row, including special tokens."""
        return self._row(batch_index).tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """The text, 0 or 1, of each token; None for special tokens and padding."""
        return self._row(batch_index).sequence_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """The index of each token's word; None for special tokens and padding."""
        return self._row(batch_index).word_ids

    words = word_ids  # the older name

    # Conversion between tokens, words and characters

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int:
        """The text, 0 or 1, of a token; None for special tokens and padding."""
        row, token = self._row_and_position(batch_or_token_index, token_index)
        return row.token_to_sequence(token)

    def token_to_word(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """The index of a token's word; None for special tokens and padding."""
        row, token = self._row_and_position(batch_or_token_index, token_index)
        return row.token_to_word(token)

    def token_to_chars(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> CharSpan | None:
        """The characters of a token in its text; None for special tokens."""
        row, token = self._row_and_position(batch_or_token_index, token_index)
        return _span(CharSpan, row.token_to_chars(token))

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word of text `sequence_index`; None if the row has none."""
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
        """The token at a character of text `sequence_index`; None between tokens."""
        row, char = self._row_and_position(batch_or_char_index, char_index)
        return row.char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word at a character of text `sequence_index`; None between words."""
        row, char = self._row_and_position(batch_or_char_index, char_index)
        return row.char_to_word(char, sequence_index)

    def _row(self, batch_index: int) -> Encoding:
        if not self._encodings:
            raise ValueError(
                "this BatchEncoding was not made from text, so it cannot map tokens, words and "
                "characters to each other: call the tokenizer itself"
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
        """Converts each column to an array, in place, and returns itself.

        Args:
          tensor_type: "np" for int64 arrays, "jax" for int32 arrays, "pt" for int64 tensors of
            PyTorch, "tf" for int32 tensors of TensorFlow; None changes nothing.
          prepend_batch_axis: make the columns a batch of one row first.

        Raises:
          ValueError: an unknown `tensor_type`, or a column whose rows differ in length.
          ImportError: the library of `tensor_type` is not installed.
        """
        if tensor_type is None:
            return self
        to_array = array_converter(tensor_type)
        for name, column in self.data.items():
            if prepend_batch_axis or not hasattr(column, "dtype"):
                self.data[name] = to_array([column] if prepend_batch_axis else column)
        return self

    def to(self, device: Any, *, non_blocking: bool = False) -> "BatchEncoding":
        """Moves PyTorch tensors to a device, in place, and returns itself; other columns stay."""
        for name, column in self.data.items():
            if array_library(column) == "pt":
                self.data[name] = column.to(device=device, non_blocking=non_blocking)
        return self


def array_library(value: Any) -> str | None:
    """Returns which `tensor_type` an array or tensor is of; None if it is neither."""
    library = type(value).__module__.partition(".")[0]
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return None
    return {"jax": "jax", "jaxlib": "jax", "torch": "pt", "tensorflow": "tf"}.get(library, "np")


def array_converter(tensor_type: str) -> Callable[[Sequence], Any]:
    """Returns the function that converts lists of numbers to the arrays of a library.

    Numbers that are not integers become float64 with "np" and float32 otherwise. The library is
    imported only here, since tokenization needs none of them.

    Args:
      tensor_type: "np", "jax", "pt" or "tf"; see `BatchEncoding.convert_to_tensors`.

    Raises:
      ValueError: an unknown `tensor_type`.
      ImportError: the library is not installed.
    """
    tensor_type = getattr(tensor_type, "value", tensor_type)  # a member of transformers' enum
    if tensor_type == "np":
        return as_array
    if tensor_type == "jax":
        import jax.numpy as jnp

        return lambda rows: jnp.asarray(_as_32_bit(rows))
    if tensor_type == "pt":
        torch = _import("torch", tensor_type)
        return lambda rows: torch.from_numpy(_as_torch_array(rows))
    if tensor_type == "tf":
        tensorflow = _import("tensorflow", tensor_type)
        return lambda rows: tensorflow.constant(_as_32_bit(rows))
    raise ValueError(f"return_tensors must be None, 'np', 'jax', 'pt' or 'tf', not {tensor_type!r}")


def _import(library: str, tensor_type: str) -> types.ModuleType:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(
            f"return_tensors={tensor_type!r} needs {library}, which cannot be imported ({error}): "
            "install it, or pass return_tensors='np' or 'jax'"
        ) from error


def as_array(rows: Sequence) -> np.ndarray:
    """Returns an array [batch, length], or of as many dimensions as `rows` is nested.

    Integers and bools become int64, other numbers float64.

    Raises:
      ValueError: rows differ in length, or hold anything but numbers.
    """
    try:
        array = np.array(rows)
    except ValueError as error:
        raise ValueError(
            "rows of different lengths cannot become one array: pass padding=True, and "
            "truncation=True if some rows are too long"
        ) from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the values of an array must be numbers, not {array.dtype}: {rows!r:.80}")
    return array.astype(np.float64 if array.dtype.kind == "f" and array.size else np.int64)


def _as_32_bit(rows: Sequence) -> np.ndarray:
    """Returns `as_array(rows)` in int32 or float32."""
    array = as_array(rows)
    return array.astype(np.float32 if array.dtype == np.float64 else np.int32)


def _as_torch_array(rows: Sequence) -> np.ndarray:
    """Returns `as_array(rows)` in the dtype of `torch.tensor(rows)`: int64 or float32."""
    array = as_array(rows)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _span(kind: type, ends: tuple[int, int] | None):
    return None if ends is None else kind(*ends)
