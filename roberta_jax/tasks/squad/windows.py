"""Passages as tokens with exact character offsets, and the windows that a model reads of them.

Offsets count characters (code points) of the passage as it is given, whatever the tokenizer does
with it. In byte-level BPE, a character may be spread over several tokens: each of them covers the
whole character. In tokenizers that normalize the text, a character that has no token of its own,
such as a combining mark, is covered by the token before. No token covers white space at its ends,
so that no span begins or ends with it, and a token that is all white space covers nothing.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from roberta_jax.tokenizer.surrogates import replace_surrogates

if TYPE_CHECKING:
    from roberta_jax.tokenizer import RobertaTokenizer

# Characters per call of the tokenizer: its encodings take about 100 bytes for each token.
_CHARACTERS_AT_ONCE = 2_000_000

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_IS_SPACE = np.array([chr(i).isspace() for i in range(0x3002)])  # U+3000 is the last white space


@dataclasses.dataclass(frozen=True)
class Passages:
    """The tokens of distinct passages, one passage after the other.

    Attributes:
      tokens: int32 [P], without special tokens.
      offsets: int32 [P, 2], the characters [start, end) of its passage that a token covers; start
        and end are equal where it covers none.
      starts: int64 [N + 1], passage i has the tokens [starts[i], starts[i + 1]).
      number: text -> i.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray
    number: dict[str, int]


def encode_passages(
    texts: Sequence[str], tokenizer: "RobertaTokenizer", prefix: str = ""
) -> Passages:
    """Encodes each distinct text once.

    Args:
      texts: the passages.
      tokenizer: the model's.
      prefix: put before each passage. Its tokens cover no character.
    """
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    tokens, offsets = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int32)]
    starts = np.zeros(len(number) + 1, np.int64)
    done = 0
    for group in _groups(list(number)):
        rows = tokenizer(
            [prefix + text for text in group],
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        for text, ids, spans in zip(group, rows["input_ids"], rows["offset_mapping"], strict=True):
            done += 1
            starts[done] = starts[done - 1] + len(ids)
            tokens.append(np.array(ids, np.int32))
            offsets.append(_offsets_in(prefix + text, spans, len(prefix)))
    return Passages(np.concatenate(tokens), np.concatenate(offsets), starts, number)


def covering(offsets: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """The first and the last of the tokens that cover characters of [start, end).

    Args:
      offsets: int [n, 2], of the tokens of one passage.
      start, end: characters of the passage.

    Returns:
      Positions in `offsets`; together the tokens cover every character of the span that any token
      covers. None if no token covers any.
    """
    present = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
    first = int(np.searchsorted(offsets[present, 1], start, side="right"))
    last = int(np.searchsorted(offsets[present, 0], end, side="left")) - 1
    if start >= end or first > last:
        return None
    return int(present[first]), int(present[last])


def window_starts(length: int, room: int, step: int) -> np.ndarray:
    """Where the windows of a passage begin, as in BERT's `run_squad.py`; int64.

    Each window has `room` tokens, the last one the rest. Windows begin `step` tokens apart, or
    `room` tokens if that is less, so that no token is left out. There is at least one window.

    Args:
      length: tokens of the passage.
      room: tokens per window at most.
      step: tokens from the start of a window to that of the next one.
    """
    step = min(step, room)
    return step * np.arange(1 + max(0, -((room - length) // step)), dtype=np.int64)


def _groups(texts: list[str]) -> Iterator[list[str]]:
    """Divides texts into groups of about `_CHARACTERS_AT_ONCE`."""
    group, size = [], 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= _CHARACTERS_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _offsets_in(text: str, spans: list[tuple[int, int]], prefix: int) -> np.ndarray:
    """Offsets in a text without its prefix, int32 [n, 2], from those that the tokenizer returns."""
    offsets = np.array(spans, np.int64).reshape(-1, 2)
    encoded = replace_surrogates(text)
    if len(encoded) != len(text):  # surrogate pairs were joined to one character each
        pairs = np.array([match.start() for match in _SURROGATE_PAIR.finditer(text)])
        joined = pairs - np.arange(len(pairs))
        offsets += np.searchsorted(joined, offsets, side="left")
    # Of each position, the next one that is not white space, and the end of the last such before.
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    is_text = np.append(~_IS_SPACE[np.minimum(codes, len(_IS_SPACE) - 1)], True)
    position = np.arange(len(text) + 1)
    following = np.minimum.accumulate(np.where(is_text, position, len(text))[::-1])[::-1]
    preceding = np.maximum.accumulate(np.where(np.roll(is_text, 1), position, 0))
    begin, end = following[offsets[:, 0]], preceding[offsets[:, 1]]
    begin = np.where(begin < end, begin, end)
    # What a normalizer has merged into the character before, such as a combining mark, has no token
    # of its own.
    covered = np.zeros(len(text) + 1, np.int64)
    np.add.at(covered, begin, 1)
    np.add.at(covered, end, -1)
    stops = (np.cumsum(covered) > 0) | ~is_text
    if not stops[:-1].all():
        stops[-1] = True
        stop = np.minimum.accumulate(np.where(stops, position, len(text))[::-1])[::-1]
        end = np.where(begin < end, stop[end], end)
    return np.maximum(np.stack([begin, end], -1) - prefix, 0).astype(np.int32)
