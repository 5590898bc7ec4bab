"""Reads the arguments of a tokenizer's call: the inputs, truncation and padding.

The accepted values, and what None means, are the same as in Hugging Face's tokenizers.
"""

from collections.abc import Callable

from roberta_jax.tokenizer.encoding import TruncationAndPadding
from roberta_jax.tokenizer.options import UNKNOWN_LENGTH, check_side

Text = str | tuple[str, str]

_PADDING_STRATEGIES = {
    False: None,
    True: "longest",
    "longest": "longest",
    "max_length": "max_length",
    "do_not_pad": None,
}
_TRUNCATION_STRATEGIES = {
    False: None,
    True: "longest_first",
    "longest_first": "longest_first",
    "only_first": "only_first",
    "only_second": "only_second",
    "do_not_truncate": None,
}


def padding_strategy(padding: bool | str) -> str | None:
    """Returns "longest", "max_length", or None for no padding.

    Raises:
      ValueError: an unknown value.
    """
    padding = getattr(padding, "value", padding)  # a member of transformers' enum
    if padding not in _PADDING_STRATEGIES:
        raise ValueError(
            f"padding must be True, False, 'longest', 'max_length' or 'do_not_pad', not {padding!r}"
        )
    return _PADDING_STRATEGIES[padding]


def truncation_strategy(truncation: bool | str) -> str | None:
    """Returns "longest_first", "only_first", "only_second", or None for no truncation.

    Raises:
      ValueError: an unknown value.
    """
    truncation = getattr(truncation, "value", truncation)  # a member of transformers' enum
    if truncation not in _TRUNCATION_STRATEGIES:
        raise ValueError(
            "truncation must be True, False, 'longest_first', 'only_first', 'only_second' or "
            f"'do_not_truncate', not {truncation!r}"
        )
    return _TRUNCATION_STRATEGIES[truncation]


def truncation_and_padding(
    padding: bool | str,
    truncation: bool | str | None,
    max_length: int | None,
    *,
    stride: int,
    pad_to_multiple_of: int | None,
    padding_side: str,
    truncation_side: str,
    model_max_length: int,
    warn: Callable[[str], None],
) -> TruncationAndPadding:
    """Reads the arguments of a call that say how to truncate and pad.

    Args:
      padding, truncation, max_length, stride, pad_to_multiple_of: as in a call.
      padding_side, truncation_side: "right" or "left".
      model_max_length: `max_length` where the call does not give one; above 10^20 it is unknown.
      warn: called with a message for arguments that have no effect or an unexpected one.

    Raises:
      ValueError: an unknown value, or a `max_length` that is not a multiple of
        `pad_to_multiple_of`.
    """
    pad = padding_strategy(padding)
    check_side("padding_side", padding_side)
    check_side("truncation_side", truncation_side)
    if stride < 0:
        raise ValueError(f"stride must be 0 or more, not {stride}")
    if truncation is None:
        truncation = max_length is not None and padding is False
        if truncation:
            warn(
                "max_length without truncation truncates: pass truncation=True, or the name of a "
                "strategy, to say so"
            )
    truncate = truncation_strategy(truncation)
    if max_length is not None and pad == "longest" and not truncate:
        warn("max_length has no effect with padding=True and no truncation")
    if max_length is None and (truncate or pad == "max_length"):
        if model_max_length > UNKNOWN_LENGTH:
            warn("model_max_length is not known: nothing is truncated or padded to max_length")
            truncate, pad = None, None if pad == "max_length" else pad
        else:
            max_length = model_max_length
    if truncate and pad and pad_to_multiple_of and max_length % pad_to_multiple_of:
        raise ValueError(
            f"rows truncated to {max_length} ids cannot be padded to a multiple of "
            f"{pad_to_multiple_of}: make max_length such a multiple"
        )
    return TruncationAndPadding(
        truncation=truncate,
        padding=pad,
        max_length=max_length,
        stride=stride,
        pad_to_multiple_of=pad_to_multiple_of,
        padding_side=padding_side,
        truncation_side=truncation_side,
    )


def as_batch(text, text_pair, is_split_into_words: bool = False) -> tuple[bool, list]:
    """Turns the inputs of a call into a list of texts and pairs of texts.

    As in HF, an empty `text_pair` beside a single text counts as none, but makes a pair in a batch.

    Args:
      text: a string, or a list of strings or pairs. With `is_split_into_words`, a list of words, or
        a list of such lists or of pairs of such lists.
      text_pair: None, or the second texts, in the same form.

    Returns:
      Whether a single input was given, and the list of inputs.

    Raises:
      TypeError: an argument is neither a string nor a list.
      ValueError: `text` and `text_pair` differ in length.
    """
    if is_split_into_words:
        return _as_batch_of_words(text, text_pair)
    if isinstance(text, str):
        if text_pair is not None and not isinstance(text_pair, str):
            raise TypeError(
                f"text is a string, so text_pair must be a string, not {type(text_pair).__name__}"
            )
        return True, [(text, text_pair) if text_pair else text]
    if not isinstance(text, list | tuple):
        raise TypeError(f"text must be a string or a list, not {type(text).__name__}")
    if text_pair is None:
        return False, [tuple(item) if isinstance(item, list) else item for item in text]
    return False, _zip_pairs(text, text_pair)


def _as_batch_of_words(text, text_pair) -> tuple[bool, list]:
    if not isinstance(text, list | tuple):
        raise TypeError(
            "with is_split_into_words, text must be a list of words or a list of such lists, not "
            f"{type(text).__name__}"
        )
    if not text or not isinstance(text[0], list | tuple):
        return True, [(list(text), list(text_pair)) if text_pair else list(text)]
    if text_pair is not None:
        return False, _zip_pairs(text, text_pair)
    return False, [
        tuple(map(list, item)) if item and isinstance(item[0], list | tuple) else list(item)
        for item in text
    ]


def _zip_pairs(text, text_pair) -> list[tuple]:
    if not isinstance(text_pair, list | tuple) or len(text_pair) != len(text):
        raise ValueError(
            f"text is a batch of {len(text)}, so text_pair must be a list of {len(text)} texts"
        )
    return list(zip(text, text_pair, strict=True))
