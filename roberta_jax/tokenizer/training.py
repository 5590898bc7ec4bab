"""Learning a byte-level BPE vocabulary from text.

The ids come out as RoBERTa lays them: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, the 256 bytes, the
merges in the order they were learned, and `<mask>` last.
"""

from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from roberta_jax.tokenizer import backend as backends
from roberta_jax.tokenizer.backend import BOS, EOS, MASK, PAD, UNK

# Merges learned from more text than this hardly differ, and counting takes memory and minutes.
SAMPLE_BYTES = 1_000_000_000
SMALLEST_VOCAB = 256 + 5

# The library aligns each byte of a text with its origin, at some 100 bytes of memory a byte.
_SLICE_CHARACTERS = 1 << 20


def train(
    texts: Iterable[str], *, vocab_size: int, min_frequency: int, progress: bool
) -> Tokenizer:
    """Trains on the first `SAMPLE_BYTES` of `texts`; the same texts give the same tokenizer.

    Args:
      texts: documents or sentences; read once, and no further than needed.
      vocab_size: number of ids to end with, the 5 special tokens and 256 bytes included.
      min_frequency: a pair seen fewer times than this is not merged.
      progress: show the library's progress bars.

    Raises:
      ValueError: the size is below 261, or the text has too few frequent pairs to reach it.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise ValueError(
            f"a vocabulary of {vocab_size} is too small: 5 special tokens and 256 bytes are always "
            f"there, so ask for at least {SMALLEST_VOCAB} (vocab_size; new_tokenizer.vocab_size in "
            "a config)"
        )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # <mask> comes after
        min_frequency=min_frequency,
        show_progress=progress,
        special_tokens=[BOS, PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    sample = take_bytes(texts, SAMPLE_BYTES)
    learner.train_from_iterator(_lines(sample), trainer=trainer)

    reached = learner.get_vocab_size() + 1
    if reached < vocab_size:
        raise ValueError(
            f"the text is too small for a vocabulary of {vocab_size}: it allows {reached} tokens "
            f"with pairs seen at least {min_frequency} times. Give more text, or set vocab_size "
            f"(new_tokenizer.vocab_size in a config) to {reached} or less"
        )
    vocab, merges = backends.vocab_and_merges(learner)
    vocab[MASK] = len(vocab)
    return backends.build(vocab, merges, add_prefix_space=False)


def take_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    """The first texts, about `limit` bytes of UTF-8 in all; the last one may be cut short."""
    left = limit
    for text in texts:
        text = backends.replace_surrogates(text)
        size = len(text.encode("utf-8"))
        if size >= left:
            yield text.encode("utf-8")[:left].decode("utf-8", "ignore")
            return
        left -= size
        yield text


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines, as sentences are encoded without their line ends; an overlong one in slices."""
    for text in texts:
        for line in text.splitlines():
            for start in range(0, len(line), _SLICE_CHARACTERS):
                yield line[start : start + _SLICE_CHARACTERS]
