"""The options that a tokenizer is constructed with, such as `padding_side`: checked and saved.

They come from the constructor's arguments, from `tokenizer_config.json`, or from both.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

from roberta_jax.storage.hub import LOADING_KEYWORDS
from roberta_jax.tokenizer.special_tokens import ADDITIONAL, ATTRIBUTES

SIDES = ("right", "left")
DEFAULT_MAX_LENGTH = 512
MODEL_INPUT_NAMES = ("input_ids", "attention_mask")
# transformers writes int(1e30) as the model_max_length of a tokenizer that has none.
UNKNOWN_LENGTH = 10**20

# Options that say where the files are and how to get them. They are not saved.
_FILE_OPTIONS = LOADING_KEYWORDS | {
    "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "use_fast",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TokenizerOptions:
    """The checked options of a tokenizer."""

    name_or_path: str
    model_max_length: int
    padding_side: str
    truncation_side: str
    model_input_names: list[str]
    clean_up_tokenization_spaces: bool
    split_special_tokens: bool
    trim_offsets: bool
    add_prefix_space: bool | None  # None: as the pipeline has it; also in `other`
    single_separator_pairs: bool | None  # None: as the pipeline has it
    tokenizer_class: str | None  # the class that wrote the files
    special_tokens: dict[str, str | AddedToken]  # by attribute; only those that are given
    additional_special_tokens: list[str | AddedToken]
    added_tokens: dict[int, AddedToken]  # by id: the `added_tokens_decoder`
    other: dict[str, Any]  # all other options, saved as they are

    @classmethod
    def parse(cls, options: Mapping[str, Any], backend: Tokenizer) -> "TokenizerOptions":
        """Checks options; an option that is None counts as not given.

        Args:
          options: arguments of the constructor, or contents of `tokenizer_config.json`.
          backend: the pipeline; its settings for padding and truncation give the default sides.

        Raises:
          TypeError: a special token is neither a string nor an `AddedToken`, or
            `additional_special_tokens` is not a list.
          ValueError: a side is neither "right" nor "left".
        """
        options = {k: v for k, v in options.items() if v is not None and k not in _FILE_OPTIONS}
        padding, truncation = backend.padding or {}, backend.truncation or {}
        sides = {
            "padding_side": options.pop("padding_side", padding.get("direction", "right")),
            "truncation_side": options.pop("truncation_side", truncation.get("direction", "right")),
        }
        for name, side in sides.items():
            check_side(name, side)
        special_tokens = {name: options.pop(name) for name in ATTRIBUTES if name in options}
        additional = options.pop(ADDITIONAL, [])
        if not isinstance(additional, list | tuple):
            raise TypeError(f"{ADDITIONAL} must be a list, not {additional!r}")
        for name, token in (*special_tokens.items(), *((ADDITIONAL, t) for t in additional)):
            if not isinstance(token, str | AddedToken):
                raise TypeError(f"{name} must be a string or an AddedToken, not {token!r}")
        max_length = options.pop("max_len", DEFAULT_MAX_LENGTH)  # the older name
        return cls(
            **sides,
            name_or_path=options.pop("name_or_path", ""),
            model_max_length=options.pop("model_max_length", max_length),
            model_input_names=list(options.pop("model_input_names", MODEL_INPUT_NAMES)),
            clean_up_tokenization_spaces=bool(options.pop("clean_up_tokenization_spaces", False)),
            split_special_tokens=bool(options.pop("split_special_tokens", False)),
            trim_offsets=bool(options.pop("trim_offsets", True)),
            add_prefix_space=options.get("add_prefix_space"),
            single_separator_pairs=options.pop("single_separator_pairs", None),
            tokenizer_class=options.pop("tokenizer_class", None),
            special_tokens=special_tokens,
            additional_special_tokens=list(additional),
            added_tokens=options.pop("added_tokens_decoder", {}),
            other=options,
        )


def check_side(name: str, side: str) -> None:
    """Raises ValueError if a `padding_side` or `truncation_side` is not "right" or "left"."""
    if side not in SIDES:
        raise ValueError(f"{name} must be 'right' or 'left', not {side!r}")


def pop_model_max_length(options: dict[str, Any], path: str) -> int | None:
    """Removes `model_max_length` from the contents of a `tokenizer_config.json`, and returns it.

    Returns:
      The length in ids; None if the file does not say, or says that it is unknown.

    Raises:
      ValueError: it is not a number, or negative.
    """
    length = options.pop("max_len", None)  # the older name
    length = options.pop("model_max_length", length)
    if not isinstance(length, int | float | None) or (length is not None and not length >= 0):
        raise ValueError(f"{path!r}: model_max_length must be a number, not {length!r}")
    return None if not length or length > UNKNOWN_LENGTH else int(length)


def config_contents(tokenizer) -> dict[str, Any]:
    """Returns a tokenizer's contents of `tokenizer_config.json`, except the added tokens."""
    other = tokenizer._other_options
    config = {
        **other,
        **tokenizer.special_tokens_map,
        "model_max_length": tokenizer.model_max_length,
        "clean_up_tokenization_spaces": tokenizer.clean_up_tokenization_spaces,
        "tokenizer_class": tokenizer._file_tokenizer_class or "PreTrainedTokenizerFast",
    }
    if tokenizer.is_byte_level:
        config |= {
            "add_prefix_space": tokenizer.add_prefix_space,
            "errors": other.get("errors", "replace"),
            "tokenizer_class": "RobertaTokenizer",
            "trim_offsets": tokenizer.trim_offsets,
        }
    defaults = {
        "padding_side": "right",
        "truncation_side": "right",
        "model_input_names": list(MODEL_INPUT_NAMES),
        "split_special_tokens": False,
        "single_separator_pairs": False,
    }
    for name, default in defaults.items():
        if getattr(tokenizer, name) != default:
            config[name] = getattr(tokenizer, name)
    return config


def special_tokens_map_contents(tokenizer) -> dict[str, str | AddedToken | list[str]]:
    """Returns a tokenizer's contents of `special_tokens_map.json`.

    A token is written as an `AddedToken` if it has other than the default settings for white space.
    """
    added_tokens = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    contents = dict(tokenizer.special_tokens_map)
    for attribute, content in contents.items():
        token = None if attribute == ADDITIONAL else added_tokens.get(content)
        if token and (token.lstrip or token.rstrip or token.single_word):
            contents[attribute] = token
    return contents
