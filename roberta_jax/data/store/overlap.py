"""Measures how much of each held-out document also occurs in the training text.

A document that was copied, or changed in a few places, can have one version in the training text
and another one held out; the model then is scored on text that it has seen. The overlap of a
document is the fraction of its shingles (runs of 13 tokens, sentence ends left out) that occur
anywhere in the training text. Brown et al. (2020, arXiv 2005.14165, appendix C) find test text in
training text by runs of 13 words.

The held-out shingles are in memory (some 50 bytes per held-out token while they are sorted); the
training text is streamed.

Letters in array names: T tokens, D documents, S shingles.
"""

import concurrent.futures
from collections.abc import Callable, Iterator, Sequence

import numpy as np

SHINGLE_LENGTH = 13
"""Tokens in a shingle."""

_CHUNK = 1 << 20  # tokens that are hashed at a time, some 30 MB of temporary arrays
_BASE = 0xD6E8FEB86659FD93  # odd, so that multiplying loses no bit


def overlap_with_training(
    training_shards: Sequence[Callable[[], np.ndarray]],
    heldout_documents: Sequence[np.ndarray],
    eos_id: int,
    workers: int = 1,
) -> np.ndarray:
    """Returns the overlap of each held-out document with the training text.

    Args:
      training_shards: functions that return the tokens of a shard, integers [T]. Only as many are
        open at a time as there are workers. They are read in chunks, so they may be memory-mapped.
      heldout_documents: the tokens of each document, integers [T].
      eos_id: the id of `</s>`, which is left out, because the same text can be split into sentences
        in different ways.
      workers: number of threads, each of which reads a shard at a time.

    Returns:
      float64 [D], from 0 to 1. It is 0 for a document of fewer than 13 tokens.
    """
    per_document = [_shingles(_without(ids, eos_id)) for ids in heldout_documents]
    if not per_document:
        return np.zeros(0)
    heldout_S, shingle_of = np.unique(np.concatenate(per_document), return_inverse=True)
    occurs_S = np.zeros(len(heldout_S), bool)
    if len(heldout_S):
        search = _Search(heldout_S)

        def mark(open_shard: Callable[[], np.ndarray]) -> None:
            for ids in _chunks(open_shard(), eos_id):
                occurs_S[search(ids)] = True  # never back to False, so threads need no lock

        with concurrent.futures.ThreadPoolExecutor(workers) as threads:
            list(threads.map(mark, training_shards))  # raises what a thread raised

    sizes_D = np.array([len(shingles) for shingles in per_document])
    document_of = np.repeat(np.arange(len(sizes_D)), sizes_D)
    counts_D = np.bincount(document_of, weights=occurs_S[shingle_of], minlength=len(sizes_D))
    return counts_D / np.maximum(sizes_D, 1)


class _Search:
    """Finds which of the sorted hashes occur in a chunk of training text.

    Binary search in a large array is slow, so most hashes are ruled out first by a table that is
    indexed with their upper bits.
    """

    def __init__(self, sorted_S: np.ndarray):
        bits = max(16, min(30, int(len(sorted_S) * 8).bit_length()))
        self._sorted_S = sorted_S
        self._shift = np.uint64(64 - bits)
        self._may_occur = np.zeros(1 << bits, bool)
        self._may_occur[sorted_S >> self._shift] = True

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Returns the indices into `sorted_S` of the shingles of `ids` that it holds."""
        hashes = _shingles(ids)
        hashes = hashes[self._may_occur[hashes >> self._shift]]
        indices = np.searchsorted(self._sorted_S, hashes)
        indices[indices == len(self._sorted_S)] = 0
        return indices[self._sorted_S[indices] == hashes]


def _chunks(tokens: np.ndarray, eos_id: int) -> Iterator[np.ndarray]:
    """Yields the tokens without `</s>`, such that each shingle is in one chunk."""
    previous = np.zeros(0, tokens.dtype)
    for start in range(0, len(tokens), _CHUNK):
        ids = np.concatenate([previous, _without(tokens[start : start + _CHUNK], eos_id)])
        previous = ids[max(0, len(ids) - SHINGLE_LENGTH + 1) :]
        yield ids


def _without(ids_T: np.ndarray, eos_id: int) -> np.ndarray:
    ids_T = np.asarray(ids_T)
    return ids_T[ids_T != eos_id]


def _shingles(ids_T: np.ndarray) -> np.ndarray:
    """The hash of each run of SHINGLE_LENGTH tokens: uint64 [T - SHINGLE_LENGTH + 1], or empty.

    This is the polynomial hash of the mixed ids modulo 2**64. It is built by doubling the length of
    the runs, which takes five passes over the array instead of thirteen.
    """
    if len(ids_T) < SHINGLE_LENGTH:
        return np.zeros(0, np.uint64)
    mixed = (ids_T.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    hashes, length = mixed, 1
    for bit in f"{SHINGLE_LENGTH:b}"[1:]:
        factor = np.uint64(pow(_BASE, length, 1 << 64))
        hashes = hashes[:-length] * factor + hashes[length:]
        length *= 2
        if bit == "1":
            hashes = hashes[:-1] * np.uint64(_BASE) + mixed[length:]
            length += 1
    return hashes
