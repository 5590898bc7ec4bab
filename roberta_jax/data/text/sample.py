"""A sample of a corpus for training a tokenizer: sentences of training documents.

From a corpus that is larger than the sample, pieces of about 1 MB are taken at equal distances over
the whole corpus. The same corpus always gives the same sentences, for any number of processes.

Which pieces are taken depends on the size of the whole text. A corpus is therefore read twice, once
to measure it and once to take the pieces, except where it fits into memory or consists of files
without compression, whose sizes are known. Compressed files are measured in parallel, one in each
process.
"""

import collections
import itertools
from collections.abc import Iterator

from roberta_jax.data.executors import open_executor, usable_cores
from roberta_jax.data.text.corpus import Corpus, Piece, grouped, is_heldout
from roberta_jax.data.text.sentences import split_sentences

# Text up to this size is kept in memory while it is measured, and not read a second time.
_KEPT_BYTES = 1 << 27
_TASK_BYTES = 1 << 20  # text that a process splits into sentences at a time


def training_sentences(
    corpus: Corpus,
    *,
    sample_bytes: int,
    validation_fraction: float,
    sentences: str,
    language: str,
    workers: int | None = None,
) -> Iterator[str]:
    """Yields sentences of training documents, from about `sample_bytes` of text at most.

    Args:
      corpus: The text.
      sample_bytes: Size of the sample in bytes of the corpus (with its JSON syntax, for example).
      validation_fraction: Fraction of the documents that are held out, which are left out.
      sentences: "split" or "lines", see `split_sentences`.
      language: The language code, for "split".
      workers: Number of processes. None uses one for each core.

    Raises:
      UsageError: The text cannot be read.
    """
    workers = workers or usable_cores()
    split = _Splitter(corpus, validation_fraction, sentences, language)
    groups = grouped(_sampled_pieces(corpus, sample_bytes, workers), _TASK_BYTES)
    first = list(itertools.islice(groups, 4))
    if len(first) < 4:
        workers = 1  # starting processes takes longer
    pending: collections.deque = collections.deque()
    with open_executor(split, workers) as executor:
        for group in itertools.chain(first, groups):
            pending.append(executor.submit(group))
            while len(pending) > executor.max_pending:  # in the order of the text
                yield from executor.result(pending.popleft())
        while pending:
            yield from executor.result(pending.popleft())


def _sampled_pieces(corpus: Corpus, sample_bytes: int, workers: int) -> Iterator[Piece]:
    total, kept = _measure(corpus, workers)
    budget = min(total, sample_bytes)
    for number, piece in enumerate(corpus.pieces() if kept is None else kept):
        if (number + 1) * budget // total != number * budget // total:
            yield piece


def _measure(corpus: Corpus, workers: int) -> tuple[int, list[Piece] | None]:
    """The number of bytes of a corpus, and its pieces if it is small."""
    total = corpus.num_bytes()
    if total is not None:
        return total, None
    kept: list[Piece] = []
    total = 0
    for piece in corpus.pieces():
        total += len(piece.data)
        kept.append(piece)
        if total > _KEPT_BYTES:
            break
    else:
        return total, kept
    del kept
    parts = corpus.parts()
    if len(parts) < 2:
        workers = 1
    with open_executor(_num_bytes, workers) as executor:
        pending: collections.deque = collections.deque()
        total = 0
        for part in parts:
            pending.append(executor.submit(part))
            while len(pending) > executor.max_pending:
                total += executor.result(pending.popleft())
        return total + sum(executor.result(future) for future in pending), None


def _num_bytes(corpus: Corpus) -> int:
    known = corpus.num_bytes()
    return sum(len(piece.data) for piece in corpus.pieces()) if known is None else known


class _Splitter:
    """Splits pieces into the sentences of their training documents; can be pickled."""

    def __init__(self, corpus: Corpus, validation_fraction: float, sentences: str, language: str):
        self._corpus, self._fraction = corpus, validation_fraction
        self._sentences, self._language = sentences, language

    def __call__(self, pieces: list[Piece]) -> list[str]:
        counts: collections.Counter = collections.Counter()
        return [
            sentence
            for piece in pieces
            for text in self._corpus.documents(piece, counts)
            if not is_heldout(text, self._fraction)
            for sentence in split_sentences(text, self._sentences, self._language)
        ]
