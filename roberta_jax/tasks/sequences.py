"""Texts to tokens, and the special tokens around one text and between the texts of a pair.

The tokens are cut here and not by the tokenizer: that keeps what it cuts off as further rows, and
for a pair of long texts all combinations of both, which takes minutes and gigabytes.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from roberta_jax.errors import UsageError

if TYPE_CHECKING:
    from roberta_jax.tokenizer import RobertaTokenizer

_TEXTS_AT_ONCE = 4096  # the tokenizer's results take far more memory than the tokens


@dataclasses.dataclass(frozen=True)
class Frame:
    """The special tokens of sequences: `<s> A </s>`, and `<s> A </s></s> B </s>`.

    Attributes:
      start: before the text, or the first text.
      end: behind the text.
      pair_start, between, pair_end: before, between and behind the texts of a pair.
    """

    start: list[int]
    end: list[int]
    pair_start: list[int]
    between: list[int]
    pair_end: list[int]

    def one(self, tokens: Sequence[int]) -> list[int]:
        """The sequence of one text."""
        return [*self.start, *tokens, *self.end]

    def two(self, first: Sequence[int], second: Sequence[int]) -> list[int]:
        """The sequence of a pair."""
        return [*self.pair_start, *first, *self.between, *second, *self.pair_end]

    def room(self, max_length: int) -> int:
        """Tokens of text in a sequence of one text. Raises a UsageError if there is no room."""
        return _room(max_length, len(self.one([])))

    def pair_room(self, max_length: int) -> int:
        """Tokens of text in a sequence of a pair. Raises a UsageError if there is no room."""
        return _room(max_length, len(self.two([], [])))


def _room(max_length: int, special: int) -> int:
    if max_length <= special:
        raise UsageError(
            f"--config.format.max_length={max_length} leaves no room for text beside the {special} "
            f"special tokens of an input. Use at least {special + 1}, better 128."
        )
    return max_length - special


def frame_of(tokenizer: "RobertaTokenizer", separators: int) -> Frame:
    """The special tokens of a tokenizer.

    Args:
      tokenizer: the model's.
      separators: tokens between the texts of a pair; the tokenizer's, if it has fewer.
    """
    single = tokenizer.build_inputs_with_special_tokens([-1])
    pair = tokenizer.build_inputs_with_special_tokens([-1], [-2])
    at, first, second = single.index(-1), pair.index(-1), pair.index(-2)
    return Frame(
        single[:at],
        single[at + 1 :],
        pair[:first],
        pair[first + 1 : second][:separators],
        pair[second + 1 :],
    )


def tokens_of_texts(texts: Iterable[str], tokenizer: "RobertaTokenizer") -> dict[str, list[int]]:
    """Text -> its tokens, without special tokens around it. Each text is encoded once.

    Special tokens that a text spells out, such as "</s>", are encoded as any other text.
    """
    unique = list(dict.fromkeys(texts))
    tokens: dict[str, list[int]] = {}
    for begin in range(0, len(unique), _TEXTS_AT_ONCE):
        part = unique[begin : begin + _TEXTS_AT_ONCE]
        encoded = tokenizer(
            part,
            add_special_tokens=False,
            split_special_tokens=True,
            truncation=False,
            return_attention_mask=False,
            verbose=False,
        )
        tokens.update(zip(part, encoded["input_ids"], strict=True))
    return tokens


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text of a pair to keep, from its start.

    The longer text loses tokens until both fit, or until it is as long as the other one; then both
    lose the same. This is `longest_first` of Hugging Face's tokenizers.

    Args:
      first, second: tokens of each text.
      room: tokens of both together at most.
    """
    shorter = min(first, second, room // 2)
    longer = min(max(first, second), room - shorter)
    return (longer, shorter) if first > second else (shorter, longer)
