"""A weighted mixture of several packed corpora.

An epoch of the mixture has weight_i * num_rows_i rows (rounded) of corpus i. The rows of a corpus
are counted through all epochs of the mixture, so that each of them is seen once before any is seen
again, even if the weight is not an integer. A batch still depends on the step alone.

Letters in array names: B rows of a batch.
"""

import copy
from collections.abc import Sequence

import numpy as np

from roberta_jax.data import hashing
from roberta_jax.data.batches import PackedDataset, empty_aligned
from roberta_jax.data.pipeline import rows_at

_STREAM = 0x6D697875  # makes the row orders and masks of the corpora independent of each other


class Mixture:
    """Several datasets as one, with the interface of a `PackedDataset`.

    Args:
      datasets: One dataset per corpus, all with the same row length, format and tokenizer.
      weights: For each corpus, how many times an epoch of the mixture goes through it.
      seed: The seed of the row orders and masks.

    The corpora's `row_order` must be the same; that of the mixture follows from it.

    Attributes:
      num_rows: Number of rows in an epoch of the mixture.
      epoch_ends: int64 [1], num_rows.
      seq_len, max_inputs, num_slots, vocab_size: Those of the datasets.
      padding_share: Fraction of the positions that hold padding.
      row_order: The order in which training goes through the rows of an epoch.
    """

    def __init__(self, datasets: Sequence[PackedDataset], weights: Sequence[float], seed: int):
        self._datasets = [dataset.with_seed(_seed(seed, i)) for i, dataset in enumerate(datasets)]
        self._seed = seed
        sizes = [
            max(1, round(weight * dataset.num_rows))
            for dataset, weight in zip(datasets, weights, strict=True)
        ]
        self._ends = np.cumsum(sizes)
        self.num_rows = int(self._ends[-1])
        self.epoch_ends = self._ends[-1:]
        first = datasets[0]
        self.seq_len, self.vocab_size = first.seq_len, first.vocab_size
        self.max_inputs, self.num_slots = first.max_inputs, first.num_slots
        self.row_order = first.row_order.of_mixture(self._ends)
        self._order_of_parts = first.row_order.of_parts()
        shares = [dataset.padding_share for dataset in datasets]
        self.padding_share = float(np.average(shares, weights=sizes))

    def with_seed(self, seed: int) -> "Mixture":
        """Returns a mixture of the same rows whose masks have another seed."""
        other = copy.copy(self)
        other._datasets = [
            dataset.with_seed(_seed(seed, i)) for i, dataset in enumerate(self._datasets)
        ]
        return other

    def sources(self, rows: np.ndarray) -> np.ndarray:
        """int64 [B]: the index of each row's corpus."""
        return np.searchsorted(self._ends, rows, side="right")

    def __call__(self, rows: np.ndarray, epochs: np.ndarray) -> dict[str, np.ndarray]:
        """Builds a masked batch; see `PackedDataset.__call__`."""
        return self._build(rows, epochs, lambda dataset, rows, epochs: dataset(rows, epochs))

    def assemble(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Builds a batch of rows of the first epoch without masks; see `PackedDataset.assemble`."""
        return self._build(
            rows, np.zeros_like(rows), lambda dataset, rows, _: dataset.assemble(rows)
        )

    def _build(self, rows, epochs, build):
        """Calls build(dataset, rows, epochs) for each corpus and joins the results."""
        rows_B = np.asarray(rows, np.int64)
        epochs_B = np.broadcast_to(epochs, rows_B.shape)
        if len(rows_B) and not 0 <= rows_B.min() <= rows_B.max() < self.num_rows:
            raise IndexError(f"row numbers must lie in [0, {self.num_rows})")
        sources_B = self.sources(rows_B)
        batch: dict[str, np.ndarray] = {}
        # A batch of no rows has the same arrays, so it is built from the first corpus.
        for source in np.unique(sources_B) if len(rows_B) else [0]:
            selected_B = sources_B == source
            dataset = self._datasets[source]
            start = self._ends[source - 1] if source else 0
            size = self._ends[source] - start
            positions = epochs_B[selected_B] * size + rows_B[selected_B] - start
            order_seed = _seed(self._seed, source)
            arrays = build(
                dataset, *rows_at(positions, dataset.epoch_ends, order_seed, self._order_of_parts)
            )
            for name, values in arrays.items():
                if name not in batch:
                    batch[name] = empty_aligned((len(rows_B), values.shape[1]), values.dtype)
                batch[name][selected_B] = values
        return batch


def _seed(seed: int, source: int) -> int:
    return int(hashing.fold(_STREAM, seed, source)[0])
