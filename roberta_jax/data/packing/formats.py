"""Input formats: how the text of a shard is divided into inputs (`--config.data.format`).

To add a format, write a function that maps a `ShardText` to `INPUT` records and give it a row in
`FORMATS`. The formats are those of Liu et al. 2019, section 4.2, and single sentences.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from roberta_jax.data.packing import blocks, pairs
from roberta_jax.data.store.token_store import Shard
from roberta_jax.errors import UsageError

MAX_INPUTS = 16  # maximum number of inputs in a row, for formats whose inputs share rows
INPUT = np.dtype(
    [
        ("a_start", "<i8"),
        ("a_len", "<i4"),
        ("b_start", "<i8"),
        ("b_len", "<i4"),
        ("next_label", "i1"),
    ]
)
"""One input: two slices of the store, a and b, given by the global position of their first token
and their length. Inputs that are not pairs have no b: b_len is 0. `next_label` is BERT's label: 0
if b follows a in the text, 1 if b is random, -1 if there is no b. The slices of a pair exclude the
`</s>` that ends a and b; the slice of a single input includes it."""


@dataclasses.dataclass(frozen=True)
class PairOptions:
    """How pairs are sampled; the defaults are BERT's.

    Attributes:
      dupe_factor: Number of times the corpus is sampled, each time with other random choices.
      short_seq_prob: Fraction of the documents whose segments are shorter than would fit;
        segment_pair only.
      num_separators: Number of `</s>` between a and b: 2 as in RoBERTa, or 1.
      seed: The seed of the random choices.
    """

    dupe_factor: int = 10
    short_seq_prob: float = 0.1
    num_separators: int = 2
    seed: int = 0

    def __post_init__(self):
        if self.dupe_factor < 1:
            raise UsageError(
                f"--config.data.dupe_factor is {self.dupe_factor}, but pairs are sampled at least "
                "once: use a number from 1, such as --config.data.dupe_factor=10"
            )
        if not 0 <= self.short_seq_prob <= 1:
            raise UsageError(
                f"--config.data.short_seq_prob is {self.short_seq_prob}, but it must be a number "
                "from 0 to 1: it is a fraction of the documents"
            )
        if self.num_separators not in (1, 2):
            raise UsageError(
                f"--config.data.num_separators is {self.num_separators}, but the two texts of a "
                "pair are separated by 1 or 2 `</s>`"
            )


@dataclasses.dataclass(frozen=True)
class ShardText:
    """The text that a format divides into inputs, and the options.

    Attributes:
      shard: One shard of a token store.
      number: The number of the shard in its store.
      max_tokens: Maximum number of tokens of an input, without the special tokens that are added.
      options: How pairs are sampled.
      duplicate: The number of this sampling of the corpus, from 0; always 0 for single inputs.
    """

    shard: Shard
    number: int
    max_tokens: int
    options: PairOptions
    duplicate: int

    @property
    def line_ends(self) -> np.ndarray:
        """int64 [S], see `Shard.sentence_ends`."""
        return np.asarray(self.shard.sentence_ends)

    @property
    def document_ends(self) -> np.ndarray:
        """int64 [D], see `Shard.document_ends`."""
        return np.asarray(self.shard.document_ends)


def _full_sentences(text: ShardText) -> np.ndarray:
    return _single_inputs(*blocks.full_sentences(text.line_ends, text.max_tokens))


def _doc_sentences(text: ShardText) -> np.ndarray:
    return _single_inputs(
        *blocks.doc_sentences(text.line_ends, text.document_ends, text.max_tokens)
    )


def _sentences(text: ShardText) -> np.ndarray:
    return _single_inputs(*blocks.sentences(text.line_ends, text.document_ends, text.max_tokens))


def _segment_pair(text: ShardText) -> np.ndarray:
    return _pair_inputs(
        pairs.segment_pairs(
            text.line_ends,
            text.document_ends,
            text.max_tokens,
            text.options.short_seq_prob,
            _choices(text),
        )
    )


def _sentence_pair(text: ShardText) -> np.ndarray:
    return _pair_inputs(
        pairs.sentence_pairs(text.line_ends, text.document_ends, text.max_tokens, _choices(text))
    )


class Format(NamedTuple):
    """One value of `--config.data.format`.

    Attributes:
      make_inputs: Returns the `INPUT` records of a shard in the order of the text, with positions
        within the shard.
      is_pair: Whether inputs are pairs of texts.
      max_inputs: Maximum number of inputs in a row.
    """

    make_inputs: Callable[[ShardText], np.ndarray]
    is_pair: bool = False
    max_inputs: int = MAX_INPUTS

    def num_specials(self, options: PairOptions) -> int:
        """Number of tokens of an input outside its slices: `<s>`, and each `</s>` of a pair."""
        return 2 + options.num_separators if self.is_pair else 1


FORMATS: dict[str, Format] = {
    "full_sentences": Format(_full_sentences, max_inputs=1),
    "doc_sentences": Format(_doc_sentences),
    "sentences": Format(_sentences),
    "segment_pair": Format(_segment_pair, is_pair=True),
    "sentence_pair": Format(_sentence_pair, is_pair=True),
}


def _single_inputs(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    inputs = np.zeros(len(starts), INPUT)
    inputs["a_start"], inputs["a_len"], inputs["next_label"] = starts, lengths, -1
    return inputs


def _pair_inputs(sampled: pairs.Pairs) -> np.ndarray:
    inputs = np.zeros(len(sampled.label), INPUT)
    for field in ("a_start", "a_len", "b_start", "b_len"):
        inputs[field] = getattr(sampled, field)
    inputs["next_label"] = sampled.label
    return inputs


def _choices(text: ShardText) -> pairs.Choices:
    """The random choices of a shard's pairs; warns once if it can have no random pairs."""
    if text.shard.num_documents == 1 and not text.duplicate:
        logging.warning(
            "shard %s of %s holds a single document, so there is no other document to draw a "
            "random text from: in all its pairs the second text follows the first",
            text.shard.name,
            text.shard.folder,
        )
    return pairs.Choices(text.options.seed, text.duplicate, text.number)
