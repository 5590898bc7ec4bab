"""Reading the arguments of a tokenizer's call: what is one input, what to truncate and pad to."""

import dataclasses
import warnings
from collections.abc import Callable

from roberta_jax.tokenizer.backend import replace_surrogates

Text = str | tuple[str, str]
# transformers writes int(1e30) for a longest length that is not known, and takes this for one.
UNKNOWN_LENGTH = 10**20

_PADDINGS = {
    False: None,
    True: "longest",
    "longest": "longest",
    "max_length": "max_length",
    "do_not_pad": None,
}
_TRUNCATIONS = {
    False: None,
    True: "longest_first",
    "longest_first": "longest_first",
    "only_first": "only_first",
    "only_second": "only_second",
    "do_not_truncate": None,
}
SIDES = ("right", "left")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one call truncates and pads; None stands for "not at all"."""

    truncate: str | None = None  # "longest_first", "only_first" or "only_second"
    pad: str | None = None  # "longest" or "max_length"
    max_length: int | None = None  # in ids, special ones included
    stride: int = 0  # ids that a row of overflow repeats
    pad_to_multiple_of: int | None = None
    padding_side: str = "right"
    truncation_side: str = "right"

    @classmethod
    def of(
        cls,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        pad_to_multiple_of: int | None,
        model_max_length: int,
        *,
        stride: int = 0,
        padding_side: str = "right",
        truncation_side: str = "right",
        warn: Callable[[str], None] = warnings.warn,
    ) -> "Plan":
        """Understands HF's options; the rules for None are HF's too.

        Args:
          warn: called with what the options leave out or add silently.

        Raises:
          ValueError: an unknown option, or a length that is not the multiple asked for.
        """
        # transformers' enums of the names are strings with another hash.
        padding, truncation = (getattr(x, "value", x) for x in (padding, truncation))
        if padding not in _PADDINGS:
            raise ValueError(
                "padding must be True, False, 'longest', 'max_length' or 'do_not_pad', not "
                f"{padding!r}"
            )
        for name, side in (("padding_side", padding_side), ("truncation_side", truncation_side)):
            if side not in SIDES:
                raise ValueError(f"{name} must be 'right' or 'left', not {side!r}")
        if stride < 0:
            raise ValueError(f"stride must be 0 or more, not {stride}")
        if truncation is None:
            truncation = max_length is not None and padding is False
            if truncation:
                warn(
                    "max_length without truncation truncates: pass truncation=True, or the name "
                    "of a strategy, to say so"
                )
        if truncation not in _TRUNCATIONS:
            raise ValueError(
                "truncation must be True, False, 'longest_first', 'only_first', 'only_second' or "
                f"'do_not_truncate', not {truncation!r}"
            )
        pad, truncate = _PADDINGS[padding], _TRUNCATIONS[truncation]
        if max_length is not None and pad == "longest" and not truncate:
            warn("max_length has no effect with padding=True and no truncation")
        if max_length is None and (truncate or pad == "max_length"):
            if model_max_length > UNKNOWN_LENGTH:
                warn("nothing is truncated or padded to max_length, as no longest length is known")
                truncate, pad = None, None if pad == "max_length" else pad
            else:
                max_length = model_max_length
        if truncate and pad and pad_to_multiple_of and max_length % pad_to_multiple_of:
            raise ValueError(
                f"rows truncated to {max_length} ids cannot be padded to a multiple of "
                f"{pad_to_multiple_of}: make max_length such a multiple"
            )
        return cls(
            truncate, pad, max_length, stride, pad_to_multiple_of, padding_side, truncation_side
        )

    def check_room(self, specials: int) -> None:
        """Raises ValueError if a truncated row cannot hold its special tokens and the stride.

        Otherwise the library would cut nothing, or break off with a trace on the console.
        """
        if not self.truncate:
            return
        room = self.max_length - specials
        if room < 0:
            raise ValueError(
                f"max_length={self.max_length} has no room for the {specials} special tokens"
            )
        if self.stride and self.stride >= room:
            raise ValueError(
                f"stride={self.stride} must be less than the {room} ids of text that "
                f"max_length={self.max_length} leaves: each row has to bring something new"
            )


NOTHING = Plan()


def as_batch(text, text_pair, is_split_into_words: bool = False) -> tuple[bool, list]:
    """Whether one input was given, and the inputs as a list of texts and pairs.

    One text whose second text is empty is a text alone, as in HF; in a batch it is a pair.

    Args:
      text: a string, or a list of strings or pairs; with `is_split_into_words` a list of words, or
        a list of such lists or pairs of such lists.
      text_pair: None, or what goes with it.

    Raises:
      TypeError: neither a string nor a list where there must be.
      ValueError: two batches of unequal length.
    """
    if is_split_into_words:
        return _as_batch_of_words(text, text_pair)
    if isinstance(text, str):
        if text_pair is not None and not isinstance(text_pair, str):
            raise TypeError(
                f"text is one string, so text_pair must be too, not {type(text_pair).__name__}"
            )
        return True, [(text, text_pair) if text_pair else text]
    if not isinstance(text, list | tuple):
        raise TypeError(f"text must be a string or a list, not {type(text).__name__}")
    if text_pair is None:
        return False, [tuple(item) if isinstance(item, list) else item for item in text]
    return False, _zipped(text, text_pair)


def _as_batch_of_words(text, text_pair) -> tuple[bool, list]:
    if not isinstance(text, list | tuple):
        raise TypeError(
            "with is_split_into_words, text must be a list of words or a list of such lists, not "
            f"{type(text).__name__}"
        )
    if not text or not isinstance(text[0], list | tuple):
        return True, [(list(text), list(text_pair)) if text_pair else list(text)]
    if text_pair is not None:
        return False, _zipped(text, text_pair)
    return False, [
        tuple(map(list, item)) if item and isinstance(item[0], list | tuple) else list(item)
        for item in text
    ]


def _zipped(text, text_pair) -> list:
    if not isinstance(text_pair, list | tuple) or len(text_pair) != len(text):
        raise ValueError(
            f"text is a batch of {len(text)}, so text_pair must be a list of {len(text)} texts"
        )
    return list(zip(text, text_pair, strict=True))


def checked(item: Text, is_split_into_words: bool = False):
    """A text or pair with lone surrogates replaced.

    Raises:
      TypeError: it is neither.
    """
    is_text = _is_words if is_split_into_words else _is_string
    if is_text(item):
        return _replaced(item)
    if isinstance(item, tuple) and len(item) == 2 and all(map(is_text, item)):
        return _replaced(item[0]), _replaced(item[1])
    what = "list of words" if is_split_into_words else "string"
    raise TypeError(f"each text must be a {what} or a pair of {what}s, not {item!r}")


def _is_string(item) -> bool:
    return isinstance(item, str)


def _is_words(item) -> bool:
    return isinstance(item, list) and all(map(_is_string, item))


def _replaced(text: str | list[str]) -> str | list[str]:
    if isinstance(text, str):
        return replace_surrogates(text)
    return [replace_surrogates(word) for word in text]
