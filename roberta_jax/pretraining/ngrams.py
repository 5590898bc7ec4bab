"""N-gram baselines for the held-out perplexity: a unigram and a bigram model.

A masked language model that has only learned the token frequencies has the unigram model's
perplexity; one that has learned a bag of words has about half of that. A model that uses word order
must beat the bigram model, which predicts each masked token from its true left neighbour. Both are
counted on the training rows and scored on the same targets as the masked language model.

The bigram is interpolated Kneser-Ney (Kneser and Ney 1995): with D taken off every count,

    P(w | v) = max(n(v, w) - D, 0) / n(v) + D * types(v) / n(v) * P_lower(w)

where types(v) is the number of different tokens seen after v, P_lower(w) is proportional to the
number of different tokens that w was seen after, and D = n1 / (n1 + 2 n2), where n1 and n2 are the
numbers of pairs seen once and twice (Ney et al. 1994). The bigram model always sees the unmasked
neighbour, the masked language model does not.

The first token of a row, `<s>`, has no left neighbour. Its context is an extra symbol with the id
vocab_size.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator

import numpy as np

from roberta_jax.data import hashing, pipeline
from roberta_jax.data.batches import PackedDataset
from roberta_jax.data.mixture import Mixture

_CHUNK_TOKENS = 1 << 22  # processed at a time: 32 MB for each int64 array


@dataclasses.dataclass(frozen=True)
class NgramModels:
    """Counts of tokens and of pairs of neighbours. V is the vocabulary size.

    Attributes:
      unigrams: int64 [V], how often each token occurs.
      pairs: int64 [P], the pairs seen, left * V + right, ascending; left may be V (row start).
      pair_counts: int64 [P].
    """

    unigrams: np.ndarray
    pairs: np.ndarray
    pair_counts: np.ndarray

    @classmethod
    def count(cls, dataset: PackedDataset | Mixture, max_tokens: int = 50_000_000) -> "NgramModels":
        """Counts the unmasked rows of a dataset, in a random order, up to about `max_tokens`.

        Memory is proportional to the number of different pairs among these tokens.
        """
        vocab_size = dataset.vocab_size
        unigrams = np.zeros(vocab_size, np.int64)
        pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        num_rows = min(dataset.num_rows, -(-max_tokens // dataset.seq_len))
        step = max(1, _CHUNK_TOKENS // dataset.seq_len)
        for start in range(0, num_rows, step):
            index = np.arange(start, min(start + step, num_rows))
            tokens, left = _tokens_and_left(dataset, hashing.permute(index, dataset.num_rows, 0, 0))
            is_text = tokens >= 0
            tokens, left = tokens[is_text], left[is_text]
            unigrams += np.bincount(tokens, minlength=vocab_size)
            new_pairs, new_counts = np.unique(left * vocab_size + tokens, return_counts=True)
            pairs, counts = _merge(pairs, counts, new_pairs, new_counts)
        return cls(unigrams, pairs, counts)

    @property
    def vocab_size(self) -> int:
        return len(self.unigrams)

    def perplexities(self, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """exp of the mean negative log-likelihood of all targets.

        Args:
          batches: (targets [T], their left neighbours [T]) pairs of integer arrays.

        Returns:
          {"unigram": perplexity, "bigram": perplexity}; nan where there are no targets.
        """
        unigram = _smoothed(self.unigrams)
        bigram = _Bigram(self)
        sums, total = np.zeros(2), 0
        for targets, left in batches:
            sums -= np.log(unigram[targets]).sum(), np.log(bigram(targets, left)).sum()
            total += len(targets)
        means = sums / total if total else np.full(2, math.nan)
        return dict(zip(("unigram", "bigram"), np.exp(means).tolist(), strict=True))


class _Bigram:
    """P(right | left) for arrays of pairs."""

    def __init__(self, models: NgramModels):
        vocab_size = models.vocab_size
        left, right = np.divmod(models.pairs, vocab_size)
        self._models = models
        self._num_left = np.bincount(left, models.pair_counts, vocab_size + 1)
        self._types_left = np.bincount(left, minlength=vocab_size + 1)
        self._lower = _smoothed(np.bincount(right, minlength=vocab_size))
        once, twice = ((models.pair_counts == n).sum() for n in (1, 2))
        self._discount = once / (once + 2 * twice) if once else 0.5

    def __call__(self, targets: np.ndarray, left: np.ndarray) -> np.ndarray:
        """float64 [T]."""
        pairs, counts = self._models.pairs, self._models.pair_counts
        code = left.astype(np.int64) * self._models.vocab_size + targets
        place = np.minimum(np.searchsorted(pairs, code), len(pairs) - 1)
        count = np.where(pairs[place] == code, counts[place], 0)
        seen = np.maximum(self._num_left[left], 1)  # an unseen context backs off fully
        discounted = np.maximum(count - self._discount, 0) / seen
        backoff = np.where(
            self._num_left[left] > 0, self._discount * self._types_left[left] / seen, 1
        )
        return discounted + backoff * self._lower[targets]


def ngram_perplexities(
    train_dataset: PackedDataset | Mixture,
    eval_dataset: PackedDataset,
    *,
    seed: int,
    max_rows: int | None = None,
    max_tokens: int = 50_000_000,
) -> dict[str, float]:
    """Counts on one corpus and scores the masked targets of another; see `NgramModels`.

    Args:
      train_dataset: the rows to count.
      eval_dataset: the rows to score.
      seed, max_rows: as given to `pipeline.eval_batches`, so that the targets are the same.
      max_tokens: how much of the training corpus to count.

    Returns:
      {"unigram": perplexity, "bigram": perplexity}.
    """
    models = NgramModels.count(train_dataset, max_tokens)
    return models.perplexities(eval_targets(eval_dataset, seed=seed, max_rows=max_rows))


def eval_targets(
    dataset: PackedDataset, *, seed: int, max_rows: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (targets int64 [T], their true left neighbours int64 [T]), a chunk at a time.

    Together they are the labels of weight 1 of `pipeline.eval_batches`, whose masks depend only on
    the seed and the row.
    """
    rows = pipeline.eval_rows(dataset, seed, max_rows)
    dataset = dataset.with_seed(seed)
    step = max(1, _CHUNK_TOKENS // dataset.seq_len)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        batch = dataset(part, np.zeros_like(part))
        _, left_BL = _tokens_and_left(dataset, part)
        left_BK = np.take_along_axis(left_BL, batch["masked_positions"].astype(np.int64), axis=1)
        scored_BK = batch["masked_weights"] > 0
        yield batch["masked_labels"][scored_BK].astype(np.int64), left_BK[scored_BK]


def _tokens_and_left(dataset: PackedDataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The unmasked tokens, -1 for padding, and the left neighbour of each; both int64 [B, L]."""
    batch = dataset.assemble(rows)
    tokens = batch["input_ids"].astype(np.int64)
    segments = batch["segment_ids"]
    left = np.full_like(tokens, dataset.vocab_size)
    same_input = segments[:, 1:] == segments[:, :-1]
    left[:, 1:][same_input] = tokens[:, :-1][same_input]
    tokens[segments == 0] = -1
    return tokens, left


def _merge(pairs, counts, new_pairs, new_counts):
    """Adds up two tables of ascending pairs and their counts."""
    pairs, counts = np.concatenate([pairs, new_pairs]), np.concatenate([counts, new_counts])
    order = np.argsort(pairs, kind="stable")  # linear in time: it merges the two sorted runs
    pairs, counts = pairs[order], counts[order]
    first = np.flatnonzero(np.diff(pairs, prepend=-1))
    return pairs[first], np.add.reduceat(counts, first)


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """Relative frequencies with add-one smoothing."""
    return (counts + 1) / (counts.sum() + len(counts))
