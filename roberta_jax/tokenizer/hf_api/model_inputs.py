"""Makes model inputs from ids instead of texts: special tokens, truncation and padding.

`prepare_for_model` and `pad` do to lists of ids what a call does to texts. They are for users who
store ids and make batches of them later.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer

from roberta_jax.tokenizer import templates
from roberta_jax.tokenizer.encoding import TruncationAndPadding
from roberta_jax.tokenizer.hf_api.batch_encoding import BatchEncoding, array_library
from roberta_jax.tokenizer.hf_api.call_arguments import truncation_strategy as read_strategy

_SPECIAL_TOKENS_MASK, _ATTENTION_MASK = "special_tokens_mask", "attention_mask"


class ModelInputsMixin:
    """HF's methods that work on ids.

    It relies on these attributes of the tokenizer:

    Attributes:
      backend: the `tokenizers` pipeline, which has the template.
      model_max_length: the model's number of positions.
      truncation_side: "right" or "left".
      model_input_names: the columns that are returned by default; the first one is padded with
        `pad_token_id`.
      pad_token_id, pad_token_type_id: what rows are padded with.
      all_special_ids: ids of the special tokens.
      _truncation_and_padding, _returns, _warn, _warn_if_too_long: methods of `CallMixin`.
    """

    backend: Tokenizer
    model_max_length: int
    truncation_side: str
    model_input_names: list[str]
    _warn: Callable[[str], None]

    # Special tokens

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Returns the number of special tokens that a call adds to one text, or to a pair."""
        return self.backend.num_special_tokens_to_add(pair)

    @property
    def max_len_single_sentence(self) -> int:
        """The number of ids of one text that fit into the model."""
        return self.model_max_length - self.num_special_tokens_to_add(False)

    @property
    def max_len_sentences_pair(self) -> int:
        """The number of ids of a pair that fit into the model."""
        return self.model_max_length - self.num_special_tokens_to_add(True)

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Adds special tokens as a call does: `<s> A </s>`, or `<s> A </s></s> B </s>`."""
        return self._apply_template(token_ids_0, token_ids_1)[0]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Returns the type ids of `build_inputs_with_special_tokens`; RoBERTa's are zeros."""
        return self._apply_template(token_ids_0, token_ids_1)[1]

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Returns 1 for each special token and 0 for the other ids.

        Args:
          token_ids_0: the ids of a text, or of a row with special tokens.
          token_ids_1: the ids of the second text of a pair.
          already_has_special_tokens: True returns the mask of `token_ids_0`, by `all_special_ids`;
            False returns that of `build_inputs_with_special_tokens`.

        Raises:
          ValueError: `token_ids_1` is given for a row with special tokens.
        """
        if not already_has_special_tokens:
            return self._apply_template(token_ids_0, token_ids_1)[2]
        if token_ids_1 is not None:
            raise ValueError(
                "pass no token_ids_1 with already_has_special_tokens=True: token_ids_0 is the row"
            )
        special_ids = set(self.all_special_ids)
        return [int(i in special_ids) for i in token_ids_0]

    def _apply_template(self, ids, pair_ids) -> tuple[list[int], list[int], list[int]]:
        """Returns ids with special tokens, type ids, and the special tokens mask."""
        pair_ids = None if pair_ids is None else list(pair_ids)
        return templates.read(self.backend).apply(list(ids), pair_ids)

    # Truncation

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Removes ids from one or two texts, at `truncation_side`.

        A text that would become empty is not truncated; a warning is logged instead.

        Args:
          ids: the ids of a text, without special tokens.
          pair_ids: the ids of the second text.
          num_tokens_to_remove: the number of ids to remove.
          truncation_strategy: "only_first", "only_second", or "longest_first", which removes ids
            from the longer text until both are equally long and then from both in turn.
          stride: the number of remaining ids that the third list contains, too.

        Returns:
          The remaining ids of each text, and the removed ids together with `stride` ids beside
          them. The third list is empty for pairs and "longest_first".

        Raises:
          ValueError: an unknown strategy.
        """
        if truncation_strategy is None:
            truncation_strategy = "longest_first"
        strategy = read_strategy(truncation_strategy)
        if num_tokens_to_remove <= 0 or strategy is None:
            return ids, pair_ids, []
        if strategy == "longest_first" and pair_ids is not None:
            from_first, from_second = _split_removal(len(ids), len(pair_ids), num_tokens_to_remove)
            return self._truncate(ids, from_first), self._truncate(pair_ids, from_second), []
        if strategy == "only_second" and pair_ids is None:
            return ids, pair_ids, []
        text = pair_ids if strategy == "only_second" else ids
        if len(text) <= num_tokens_to_remove:
            self._warn(
                f"cannot remove {num_tokens_to_remove} ids from a text of {len(text)}, so nothing "
                "is truncated: raise max_length, or use truncation='longest_first'"
            )
            return ids, pair_ids, []
        window = min(len(text), stride + num_tokens_to_remove)
        overflow = text[-window:] if self.truncation_side == "right" else text[:window]
        text = self._truncate(text, num_tokens_to_remove)
        return (ids, text, overflow) if strategy == "only_second" else (text, pair_ids, overflow)

    def _truncate(self, ids: list[int], count: int) -> list[int]:
        return ids[: max(0, len(ids) - count)] if self.truncation_side == "right" else ids[count:]

    # Rows and batches

    def prepare_for_model(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        prepend_batch_axis: bool = False,
    ) -> BatchEncoding:
        """Returns what a call returns for a text or pair, given its ids.

        The arguments that are not listed here are those of a call.

        Args:
          ids: the ids of a text, without special tokens.
          pair_ids: the ids of the second text.
          return_overflowing_tokens: also return "overflowing_tokens", the removed ids, and
            "num_truncated_tokens", how many there are (negative: how many more would fit).
          prepend_batch_axis: return arrays as a batch of one row.

        Raises:
          ValueError: arguments that a call does not accept either, or overflowing tokens of a pair
            with "longest_first".
        """
        how = self._truncation_and_padding(
            padding, truncation, max_length, stride, pad_to_multiple_of, padding_side, verbose
        )
        if return_token_type_ids and not add_special_tokens:
            raise ValueError("return_token_type_ids=True needs add_special_tokens=True")
        if return_overflowing_tokens and pair_ids is not None and how.truncation == "longest_first":
            raise ValueError(
                "return_overflowing_tokens for a pair needs truncation='only_first' or "
                "'only_second', because 'longest_first' removes ids from both texts"
            )
        length = len(ids) + len(pair_ids or ())
        if add_special_tokens:
            length += self.num_special_tokens_to_add(pair_ids is not None)
        columns, overflow = {}, []
        if how.truncation and how.max_length and length > how.max_length:
            ids, pair_ids, overflow = self.truncate_sequences(
                ids, pair_ids, length - how.max_length, how.truncation, stride
            )
        if return_overflowing_tokens:
            columns["overflowing_tokens"] = overflow
            columns["num_truncated_tokens"] = length - (how.max_length or 0)
        if add_special_tokens:
            row, type_ids, special_tokens_mask = self._apply_template(ids, pair_ids)
        else:
            row = [*ids, *(pair_ids or ())]
            type_ids, special_tokens_mask = [0] * len(row), [0] * len(row)
        columns["input_ids"] = row
        if self._returns(return_token_type_ids, "token_type_ids"):
            columns["token_type_ids"] = type_ids
        if return_special_tokens_mask:
            columns[_SPECIAL_TOKENS_MASK] = special_tokens_mask
        with_attention_mask = self._returns(return_attention_mask, _ATTENTION_MASK)
        if max_length is None and verbose:
            self._warn_if_too_long([row])
        if row:
            self._pad_row(columns, how, with_attention_mask)
        elif with_attention_mask:  # as in HF, an empty row is not padded
            columns[_ATTENTION_MASK] = []
        if return_length:
            columns["length"] = len(columns["input_ids"])
        return BatchEncoding(
            columns, tensor_type=return_tensors, prepend_batch_axis=prepend_batch_axis
        )

    def pad(
        self,
        encoded_inputs: Mapping | Sequence[Mapping],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pads rows that are already encoded, to make a batch of them.

        The columns "input_ids", "attention_mask", "token_type_ids" and "special_tokens_mask" are
        padded. Other columns are returned as they are.

        Args:
          encoded_inputs: what a call returned; or a list of such, one per row, which is what the
            `collate_fn` of a data loader gets. Rows are lists or arrays.
          return_attention_mask: make an attention mask if there is none, and pad it. None does so
            if it is one of `model_input_names`.
          padding, max_length, pad_to_multiple_of, padding_side, return_tensors, verbose: as in a
            call.

        Raises:
          ValueError: there are no "input_ids", columns differ in length, or an argument has an
            unknown value.
        """
        if isinstance(encoded_inputs, list | tuple) and encoded_inputs:
            names = encoded_inputs[0]
            encoded_inputs = {name: [row[name] for row in encoded_inputs] for name in names}
        main = self.model_input_names[0]
        if main not in encoded_inputs:
            raise ValueError(
                f"there is no {main!r} to pad in {list(encoded_inputs)}: pass what a call of the "
                "tokenizer returned, or a list of that"
            )
        columns = dict(encoded_inputs)
        if columns[main] is None or len(columns[main]) == 0:
            return BatchEncoding(columns | ({_ATTENTION_MASK: []} if return_attention_mask else {}))
        sample = columns[main][0]
        if return_tensors is None:
            return_tensors = array_library(sample) or array_library(columns[main])
        columns = {name: _to_lists(column) for name, column in columns.items()}
        with_attention_mask = self._returns(return_attention_mask, _ATTENTION_MASK)
        how = self._truncation_and_padding(
            padding, False, max_length, 0, pad_to_multiple_of, padding_side, verbose
        )
        rows = columns[main]
        if not isinstance(rows[0], list):
            self._pad_row(columns, how, with_attention_mask)
            return BatchEncoding(columns, tensor_type=return_tensors)
        uneven = [name for name, column in columns.items() if len(column) != len(rows)]
        if uneven:
            raise ValueError(
                f"{main} has {len(rows)} rows, but these columns have another number: "
                f"{', '.join(uneven)}"
            )
        if how.padding == "longest":
            longest = max(map(len, rows))
            how = dataclasses.replace(how, padding="max_length", max_length=longest)
        padded = []
        for i in range(len(rows)):
            padded.append({name: column[i] for name, column in columns.items()})
            self._pad_row(padded[-1], how, with_attention_mask)
        return BatchEncoding(
            {name: [row[name] for row in padded] for name in padded[0]}, tensor_type=return_tensors
        )

    def _pad_row(self, columns: dict, how: TruncationAndPadding, with_attention_mask: bool) -> None:
        """Pads the columns of one row, in place."""
        main = self.model_input_names[0]
        length = len(columns[main])
        if with_attention_mask and _ATTENTION_MASK not in columns:
            columns[_ATTENTION_MASK] = [1] * length
        if how.padding is None:
            return
        target = length if how.padding == "longest" else how.max_length
        if how.pad_to_multiple_of:
            target += -target % how.pad_to_multiple_of
        values = {
            main: self.pad_token_id,
            "token_type_ids": self.pad_token_type_id,
            _SPECIAL_TOKENS_MASK: 1,
        }
        if with_attention_mask:
            values[_ATTENTION_MASK] = 0
        for name, value in values.items():
            if name in columns:
                row, padding = columns[name], [value] * (target - length)
                columns[name] = row + padding if how.padding_side == "right" else padding + row


def _split_removal(first: int, second: int, count: int) -> tuple[int, int]:
    """Returns how many of `count` ids "longest_first" removes from each of two texts.

    Args:
      first, second: the lengths of the texts.
      count: the number of ids to remove.
    """
    from_longer = min(abs(first - second), count)
    rest = count - from_longer
    if first > second:
        return from_longer + rest // 2, rest - rest // 2
    return rest // 2, from_longer + rest - rest // 2


def _to_lists(column):
    """Returns a column with its arrays converted to lists."""
    if array_library(column):
        return column.tolist() if hasattr(column, "tolist") else np.asarray(column).tolist()
    is_nested = isinstance(column, list | tuple) and len(column) > 0
    if is_nested and (isinstance(column[0], list | tuple) or array_library(column[0])):
        return [_to_lists(item) for item in column]
    return column
