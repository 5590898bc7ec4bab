"""Encodes texts with a pipeline, and decodes ids.

A `tokenizers` pipeline takes truncation, padding and the treatment of special tokens as settings,
not as arguments. `encode_batch` makes these settings, encodes, and resets them. The caller holds a
lock meanwhile, so that threads that share a pipeline do not see each other's settings.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from tokenizers import Encoding, Tokenizer

from roberta_jax.tokenizer import pipeline
from roberta_jax.tokenizer.surrogates import replace_surrogates

Words = list[str]
Input = str | tuple[str, str] | Words | tuple[Words, Words]

# What `clean_up` replaces, in HF's order.
_CLEAN_UPS = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TruncationAndPadding:
    """How rows of ids are truncated and padded."""

    truncation: str | None  # "longest_first", "only_first" or "only_second"; None: not truncated
    padding: str | None  # "longest" or "max_length"; None: not padded
    max_length: int | None  # in ids, including special tokens
    stride: int  # how many ids consecutive overflowing rows share
    pad_to_multiple_of: int | None
    padding_side: str  # "right" or "left"
    truncation_side: str  # "right" or "left"

    def check_max_length(self, num_special_tokens: int) -> None:
        """Checks that a truncated row has room for its special tokens and the stride.

        `tokenizers` would not truncate such a row, or would print a stack trace.

        Raises:
          ValueError: there is no room for the special tokens, or none for more than `stride` ids.
        """
        if not self.truncation:
            return
        room = self.max_length - num_special_tokens
        if room < 0:
            raise ValueError(
                f"max_length={self.max_length} has no room for the {num_special_tokens} special "
                "tokens"
            )
        if self.stride and self.stride >= room:
            raise ValueError(
                f"stride={self.stride} must be less than the {room} ids of text that fit into "
                f"max_length={self.max_length}, so that each row has new ids"
            )


def encode_batch(
    backend: Tokenizer,
    inputs: Sequence[Input],
    how: TruncationAndPadding,
    *,
    padding_token: tuple[str | None, int | None, int],
    add_special_tokens: bool,
    split_special_tokens: bool,
    is_split_into_words: bool,
    add_prefix_space: bool | None,
    trim_offsets: bool,
    is_byte_level: bool,
) -> list[Encoding]:
    """Encodes texts, pairs of texts, lists of words or pairs of lists of words.

    The settings of the pipeline change during the call, so the caller has to hold a lock.

    Args:
      backend: the pipeline.
      inputs: one item per row.
      how: truncation and padding.
      padding_token: the token, its id and its type id.
      add_special_tokens: apply the pipeline's template.
      split_special_tokens: encode special tokens in the text as plain text.
      is_split_into_words: the inputs are lists of words.
      add_prefix_space: for byte-level pipelines, encode each text as if it started with a space;
        None keeps the pipeline's setting.
      trim_offsets: the pipeline's setting.
      is_byte_level: whether the pipeline is RoBERTa's own.

    Raises:
      TypeError: an input is not text.
      ValueError: an input cannot be truncated as requested, or words are given to a byte-level
        pipeline that does not add a space before each.
    """
    if not is_byte_level:
        add_prefix_space = None
    with (
        _prefix_space(backend, add_prefix_space, trim_offsets),
        _settings(backend, how, padding_token, split_special_tokens),
    ):
        if is_split_into_words and is_byte_level and not backend.pre_tokenizer.add_prefix_space:
            raise ValueError(
                "words can only be encoded with a space before each: load the tokenizer with "
                "add_prefix_space=True, or pass add_prefix_space=True to the call"
            )
        try:
            return _encode(backend, inputs, add_special_tokens, is_split_into_words)
        except TypeError:  # a lone surrogate, or something that is not text
            inputs = [_checked(item, is_split_into_words) for item in inputs]
            return _encode(backend, inputs, add_special_tokens, is_split_into_words)


@contextlib.contextmanager
def _settings(
    backend: Tokenizer,
    how: TruncationAndPadding,
    padding_token: tuple[str | None, int | None, int],
    split_special_tokens: bool,
) -> Iterator[None]:
    """Makes the settings of one call, and resets them."""
    try:
        backend.encode_special_tokens = split_special_tokens
        if how.truncation:
            backend.enable_truncation(
                how.max_length,
                stride=how.stride,
                strategy=how.truncation,
                direction=how.truncation_side,
            )
        if how.padding:
            token, token_id, type_id = padding_token
            backend.enable_padding(
                direction=how.padding_side,
                pad_id=token_id,
                pad_type_id=type_id,
                pad_token=token,
                length=how.max_length if how.padding == "max_length" else None,
                pad_to_multiple_of=how.pad_to_multiple_of,
            )
        yield
    finally:
        backend.encode_special_tokens = False
        backend.no_truncation()
        backend.no_padding()


@contextlib.contextmanager
def _prefix_space(
    backend: Tokenizer, add_prefix_space: bool | None, trim_offsets: bool
) -> Iterator[None]:
    """Changes `add_prefix_space` of a byte-level pipeline for one call; None changes nothing."""
    if add_prefix_space is None or add_prefix_space == backend.pre_tokenizer.add_prefix_space:
        yield
        return
    before = backend.pre_tokenizer.add_prefix_space
    pipeline.set_prefix_space(backend, add_prefix_space, trim_offsets)
    try:
        yield
    finally:
        pipeline.set_prefix_space(backend, before, trim_offsets)


def _encode(
    backend: Tokenizer,
    inputs: Sequence[Input],
    add_special_tokens: bool,
    is_split_into_words: bool,
) -> list[Encoding]:
    """Calls `encode_batch` of the pipeline and turns its errors into `ValueError`s."""
    try:
        return backend.encode_batch(
            inputs, add_special_tokens=add_special_tokens, is_pretokenized=is_split_into_words
        )
    except TypeError:
        raise
    except Exception as error:  # the library raises no narrower class
        if "Truncation error" not in str(error):
            raise
        raise ValueError(
            "cannot truncate to max_length: the text that this truncation strategy may cut is too "
            "short. Raise max_length, or use truncation='longest_first'"
        ) from error
    except BaseException as error:  # failed assertions of the library are not `Exception`s
        if type(error).__name__ != "PanicException" or "stride" not in str(error):
            raise
        raise ValueError(
            "stride must be less than the number of ids that truncation leaves of the text: lower "
            "stride, or raise max_length"
        ) from error


def _checked(item: Input, is_split_into_words: bool) -> Input:
    """Returns an input with lone surrogates replaced.

    Raises:
      TypeError: it is neither a text nor a pair of texts.
    """
    is_text = _is_words if is_split_into_words else _is_string
    if is_text(item):
        return _without_surrogates(item)
    if isinstance(item, tuple) and len(item) == 2 and all(map(is_text, item)):
        return _without_surrogates(item[0]), _without_surrogates(item[1])
    kind = "list of words" if is_split_into_words else "string"
    raise TypeError(f"each text must be a {kind} or a pair of {kind}s, not {item!r}")


def _is_string(item) -> bool:
    return isinstance(item, str)


def _is_words(item) -> bool:
    return isinstance(item, list) and all(map(_is_string, item))


def _without_surrogates(text: str | Words) -> str | Words:
    if isinstance(text, str):
        return replace_surrogates(text)
    return [replace_surrogates(word) for word in text]


def decode(
    backend: Tokenizer, token_ids: int | Iterable[int], *, num_ids: int, skip_special_tokens: bool
) -> str:
    """Returns the text of ids; bytes that are not valid UTF-8 become U+FFFD.

    Args:
      backend: the pipeline.
      token_ids: a list or array [length], or one id.
      num_ids: the size of the vocabulary with added tokens, which the pipeline is slow to count.
      skip_special_tokens: leave special tokens out.

    Raises:
      ValueError: an id is not in the vocabulary, or `token_ids` has more than one row.
    """
    ids = np.atleast_1d(np.asarray(token_ids, dtype=np.int64))
    if ids.ndim > 1:
        raise ValueError(f"decode takes one row, not an array {list(ids.shape)}: use batch_decode")
    ids = ids.tolist()
    if ids and not 0 <= min(ids) <= max(ids) < num_ids:
        unknown = [i for i in ids if i < 0 or backend.id_to_token(i) is None]
        if unknown:
            raise ValueError(
                f"cannot decode the id {unknown[0]}: ids must be in the range 0 to {num_ids - 1}"
            )
    return backend.decode(ids, skip_special_tokens=skip_special_tokens)


def clean_up(text: str) -> str:
    """Returns a text without the spaces before punctuation and English contractions."""
    for spaced, joined in _CLEAN_UPS:
        text = text.replace(spaced, joined)
    return text
