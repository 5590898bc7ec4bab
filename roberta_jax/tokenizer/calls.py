"""Reading the arguments of a tokenizer's call: what is one input, what to truncate and pad to."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from roberta_jax.tokenizer.backend import replace_surrogates

Text = str | tuple[str, str]

_PADDINGS = {False: None, True: "longest", "longest": "longest", "max_length": "max_length"}
_TRUNCATIONS = {
    False: None,
    True: "longest_first",
    "longest_first": "longest_first",
    "only_first": "only_first",
    "only_second": "only_second",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one call truncates and pads; None stands for "not at all"."""

    truncate: str | None  # "longest_first", "only_first" or "only_second"
    pad: str | None  # "longest" or "max_length"
    max_length: int | None  # in ids, special ones included
    pad_to_multiple_of: int | None

    @classmethod
    def of(
        cls,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        pad_to_multiple_of: int | None,
        model_max_length: int,
    ) -> "Plan":
        """Understands HF's options; the rules for None are HF's too.

        Raises:
          ValueError: an unknown option, or a length that is not the multiple asked for.
        """
        if padding not in _PADDINGS:
            raise ValueError(
                f"padding must be True, False, 'longest' or 'max_length', not {padding!r}"
            )
        if truncation is None:
            truncation = max_length is not None and padding is False
        if truncation not in _TRUNCATIONS:
            raise ValueError(
                "truncation must be True, False, 'longest_first', 'only_first' or 'only_second', "
                f"not {truncation!r}"
            )
        pad, truncate = _PADDINGS[padding], _TRUNCATIONS[truncation]
        if max_length is None and (truncate or pad == "max_length"):
            max_length = model_max_length
        if truncate and pad and pad_to_multiple_of and max_length % pad_to_multiple_of:
            raise ValueError(
                f"rows truncated to {max_length} ids cannot be padded to a multiple of "
                f"{pad_to_multiple_of}: make max_length such a multiple"
            )
        return cls(truncate, pad, max_length, pad_to_multiple_of)


NOTHING = Plan(truncate=None, pad=None, max_length=None, pad_to_multiple_of=None)


def as_batch(text, text_pair) -> tuple[bool, list[Text]]:
    """Whether one input was given, and the inputs as a list of texts and pairs."""
    if isinstance(text, str):
        if text_pair is not None and not isinstance(text_pair, str):
            raise TypeError(
                f"text is one string, so text_pair must be too, not {type(text_pair).__name__}"
            )
        return True, [text if text_pair is None else (text, text_pair)]
    if not isinstance(text, list | tuple):
        raise TypeError(f"text must be a string or a list, not {type(text).__name__}")
    if text_pair is None:
        return False, [tuple(item) if isinstance(item, list) else item for item in text]
    if isinstance(text_pair, str) or len(text_pair) != len(text):
        raise ValueError(
            f"text is a batch of {len(text)}, so text_pair must be a list of {len(text)} texts"
        )
    return False, list(zip(text, text_pair, strict=True))


def checked(item: Text) -> Text:
    """A text or pair with lone surrogates replaced.

    Raises:
      TypeError: it is neither.
    """
    if isinstance(item, str):
        return replace_surrogates(item)
    if isinstance(item, tuple) and len(item) == 2 and all(isinstance(t, str) for t in item):
        return replace_surrogates(item[0]), replace_surrogates(item[1])
    raise TypeError(f"each text must be a string or a pair of strings, not {item!r}")


def as_array(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """int64 [batch, length].

    Raises:
      ValueError: rows differ in length.
    """
    if len({len(row) for row in rows}) > 1:
        raise ValueError(
            "rows of unequal length make no array: pass padding=True, and truncation=True if some "
            "are too long"
        )
    return np.array(rows, dtype=np.int64)
