"""Putting rows together from ids: special tokens, truncation and padding without any text.

What `prepare_for_model` and `pad` do to lists of ids is what a call does to texts; they serve those
who keep ids and make batches of them later.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from roberta_jax.tokenizer import templates
from roberta_jax.tokenizer.calls import Plan
from roberta_jax.tokenizer.encoding import BatchEncoding

# What padding is in each column; labels and the like are left as they are.
_SPECIAL, _ATTENDED = "special_tokens_mask", "attention_mask"


class Assembly:
    """The part of the tokenizer that works on ids."""

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a call puts around one text, or around a pair."""
        return self.backend.num_special_tokens_to_add(pair)

    @property
    def max_len_single_sentence(self) -> int:
        """The most ids of one text that fit the model."""
        return self.model_max_length - self.num_special_tokens_to_add(False)

    @property
    def max_len_sentences_pair(self) -> int:
        """The most ids of a pair that fit the model."""
        return self.model_max_length - self.num_special_tokens_to_add(True)

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Ids with special tokens: `<s> A </s>`, or `<s> A </s></s> B </s>`, as a call has them."""
        return self._filled(token_ids_0, token_ids_1)[0]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Type ids of what `build_inputs_with_special_tokens` makes: zeros, in RoBERTa."""
        return self._filled(token_ids_0, token_ids_1)[1]

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for each special token and 0 for the others.

        Args:
          token_ids_0: ids of a text; or of a whole row, with `already_has_special_tokens`.
          token_ids_1: ids of the second text of a pair.
          already_has_special_tokens: False for the mask of what `build_inputs_with_special_tokens`
            makes of the ids; True for that of the ids themselves, by `all_special_ids`.

        Raises:
          ValueError: a second list beside a whole row.
        """
        if not already_has_special_tokens:
            return self._filled(token_ids_0, token_ids_1)[2]
        if token_ids_1 is not None:
            raise ValueError("a row that has its special tokens is one list: give no token_ids_1")
        special = set(self.all_special_ids)
        return [int(i in special) for i in token_ids_0]

    def _filled(self, ids, pair_ids) -> tuple[list[int], list[int], list[int]]:
        template = templates.read(self.backend)
        return template(list(ids), None if pair_ids is None else list(pair_ids))

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Takes ids off one or two texts, at `truncation_side`.

        A text that would have none left is not cut, and a warning says so.

        Args:
          ids: ids of the text, without special tokens.
          pair_ids: ids of the second one.
          num_tokens_to_remove: how many are to go.
          truncation_strategy: "only_first", "only_second", or "longest_first": off the longer one
            until both are as long, then off both in turn.
          stride: how many of the kept ids the third list repeats.

        Returns:
          The ids kept of each, and those taken off with `stride` ids beside them; the last list is
          empty for pairs under "longest_first".

        Raises:
          ValueError: an unknown strategy.
        """
        strategy = Plan.of(False, truncation_strategy, 1, None, 1).truncate
        if num_tokens_to_remove <= 0 or strategy is None:
            return ids, pair_ids, []
        if strategy == "longest_first" and pair_ids is not None:
            from_first, from_second = _shares(len(ids), len(pair_ids), num_tokens_to_remove)
            return self._cut(ids, from_first), self._cut(pair_ids, from_second), []
        if strategy == "only_second" and pair_ids is None:
            return ids, pair_ids, []
        cut = pair_ids if strategy == "only_second" else ids
        if len(cut) <= num_tokens_to_remove:
            self._warn(
                f"{num_tokens_to_remove} ids cannot be taken off a text of {len(cut)}: nothing is "
                "truncated. Raise max_length, or use truncation='longest_first'"
            )
            return ids, pair_ids, []
        window = min(len(cut), stride + num_tokens_to_remove)
        overflow = cut[-window:] if self.truncation_side == "right" else cut[:window]
        cut = self._cut(cut, num_tokens_to_remove)
        return (ids, cut, overflow) if strategy == "only_second" else (cut, pair_ids, overflow)

    def _cut(self, ids: list[int], count: int) -> list[int]:
        return ids[: max(0, len(ids) - count)] if self.truncation_side == "right" else ids[count:]

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
        """What a call returns for a text or pair, from its ids; the options are those of a call.

        Args:
          ids: ids of the text, without special tokens.
          pair_ids: ids of the second one.
          return_overflowing_tokens: also "overflowing_tokens", the ids taken off, and
            "num_truncated_tokens", how many they are (below 0: how many more would fit).
          prepend_batch_axis: make arrays a batch of one.

        Raises:
          ValueError: options that a call does not take either, or overflow of a pair under
            "longest_first".
        """
        plan = self._plan(
            padding, truncation, max_length, stride, pad_to_multiple_of, padding_side, verbose
        )
        if return_token_type_ids and not add_special_tokens:
            raise ValueError("type ids go with special tokens: pass add_special_tokens=True")
        if return_overflowing_tokens and pair_ids is not None and plan.truncate == "longest_first":
            raise ValueError(
                "overflow of a pair needs truncation='only_first' or 'only_second': under "
                "'longest_first' ids go from both"
            )
        length = len(ids) + len(pair_ids or ())
        if add_special_tokens:
            length += self.num_special_tokens_to_add(pair_ids is not None)
        columns, overflow = {}, []
        if plan.truncate and plan.max_length and length > plan.max_length:
            ids, pair_ids, overflow = self.truncate_sequences(
                ids, pair_ids, length - plan.max_length, plan.truncate, stride
            )
        if return_overflowing_tokens:
            columns["overflowing_tokens"] = overflow
            columns["num_truncated_tokens"] = length - (plan.max_length or 0)
        if add_special_tokens:
            row, types, special = self._filled(ids, pair_ids)
        else:
            row = [*ids, *(pair_ids or ())]
            types, special = [0] * len(row), [0] * len(row)
        columns["input_ids"] = row
        if self._wanted(return_token_type_ids, "token_type_ids"):
            columns["token_type_ids"] = types
        if return_special_tokens_mask:
            columns[_SPECIAL] = special
        attended = self._wanted(return_attention_mask, _ATTENDED)
        if max_length is None and verbose:
            self._warn_if_too_long([row])
        if row:  # HF leaves a row of nothing as it is
            self._pad_row(columns, plan, attended)
        elif attended:
            columns[_ATTENDED] = []
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
        """Pads rows that were encoded before, to make a batch of them.

        "input_ids", "attention_mask", "token_type_ids" and "special_tokens_mask" are padded, other
        columns left as they are.

        Args:
          encoded_inputs: what a call returned; or a list of such, one a row, as a data loader's
            `collate_fn` gets it. Rows are lists or arrays.
          return_attention_mask: make an attention mask where there is none, and pad it; None does
            if it is one of `model_input_names`.
          padding, max_length, pad_to_multiple_of, padding_side, return_tensors, verbose: as in a
            call.

        Raises:
          ValueError: no "input_ids", columns of unequal length, or an unknown option.
        """
        if isinstance(encoded_inputs, list | tuple) and encoded_inputs:
            first = encoded_inputs[0]
            encoded_inputs = {name: [row[name] for row in encoded_inputs] for name in first}
        main = self.model_input_names[0]
        if main not in encoded_inputs:
            raise ValueError(
                f"there is no {main!r} to pad in {list(encoded_inputs)}: give what a call of the "
                "tokenizer returned, or a list of that"
            )
        columns = dict(encoded_inputs)
        if columns[main] is None or len(columns[main]) == 0:
            return BatchEncoding(columns | ({_ATTENDED: []} if return_attention_mask else {}))
        sample = columns[main][0]
        if return_tensors is None and (_is_array(sample) or _is_array(columns[main])):
            return_tensors = "jax" if type(sample).__module__.startswith("jax") else "np"
        columns = {name: _as_lists(column) for name, column in columns.items()}
        attended = self._wanted(return_attention_mask, _ATTENDED)
        plan = self._plan(padding, False, max_length, 0, pad_to_multiple_of, padding_side, verbose)
        rows = columns[main]
        if not isinstance(rows[0], list):
            self._pad_row(columns, plan, attended)
            return BatchEncoding(columns, tensor_type=return_tensors)
        uneven = [name for name, column in columns.items() if len(column) != len(rows)]
        if uneven:
            raise ValueError(f"{main} has {len(rows)} rows, but {', '.join(uneven)} has not")
        if plan.pad == "longest":
            plan = self._plan(
                "max_length",
                False,
                max(map(len, rows)),
                0,
                pad_to_multiple_of,
                padding_side,
                verbose,
            )
        padded = []
        for i in range(len(rows)):
            padded.append({name: column[i] for name, column in columns.items()})
            self._pad_row(padded[-1], plan, attended)
        return BatchEncoding(
            {name: [row[name] for row in padded] for name in padded[0]}, tensor_type=return_tensors
        )

    def _pad_row(self, columns: dict, plan: Plan, attended: bool) -> None:
        """Pads the columns of one row, in place."""
        main = self.model_input_names[0]
        length = len(columns[main])
        if attended and _ATTENDED not in columns:
            columns[_ATTENDED] = [1] * length
        if plan.pad is None:
            return
        target = length if plan.pad == "longest" else plan.max_length
        if plan.pad_to_multiple_of:
            target += -target % plan.pad_to_multiple_of
        fillers = {main: self.pad_token_id, "token_type_ids": self.pad_token_type_id, _SPECIAL: 1}
        for name, value in (fillers | ({_ATTENDED: 0} if attended else {})).items():
            if name in columns:
                filler = [value] * (target - length)
                row = columns[name]
                columns[name] = row + filler if plan.padding_side == "right" else filler + row


def _shares(first: int, second: int, count: int) -> tuple[int, int]:
    """How many of `count` ids go from each of two texts, "longest_first"."""
    lead = min(abs(first - second), count)
    rest = count - lead
    if first > second:
        return lead + rest // 2, rest - rest // 2
    return rest // 2, lead + rest - rest // 2


def _is_array(value) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _as_lists(column):
    if _is_array(column):
        return np.asarray(column).tolist()
    nested = isinstance(column, list | tuple) and len(column) > 0
    if nested and (isinstance(column[0], list | tuple) or _is_array(column[0])):
        return [_as_lists(item) for item in column]
    return column
