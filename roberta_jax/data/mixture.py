"""Several corpora as one: rows of each, as often as their weights say.

An epoch of the mixture has n_i rows of corpus i, its weight times its number of rows (rounded).
Where the weight is not 1, an epoch of the mixture ends in the midst of one of the corpus: the rows
of each corpus are numbered on through all epochs of the mixture, so that none is seen a second time
before all of that corpus have been seen once, and a batch is still a function of the step alone.

Letters in array names: B rows of a batch.
"""

import copy
from collections.abc import Sequence

import numpy as np

from roberta_jax.data import hashing
from roberta_jax.data.batches import PackedDataset, empty_aligned
from roberta_jax.data.pipeline import rows_at

_STREAM = 0x6D697875  # keeps the corpora's orders and masks apart from one another


class Mixture:
    """Makes batches of several corpora; takes the place of a `PackedDataset`.

    Args:
      datasets: the corpora's, of one length, one format and one tokenizer.
      weights: how often a row of each is seen for once that it is there.
      seed: of the orders and the masks.

    Attributes: as `PackedDataset`'s; rows are those of an epoch of the mixture.
    """

    def __init__(self, datasets: Sequence[PackedDataset], weights: Sequence[float], seed: int):
        self._makers = [dataset.with_seed(_seed(seed, i)) for i, dataset in enumerate(datasets)]
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
        shares = [dataset.padding_share for dataset in datasets]
        self.padding_share = float(np.average(shares, weights=sizes))

    def with_seed(self, seed: int) -> "Mixture":
        """The same mixture with other masks; which rows it holds does not change."""
        other = copy.copy(self)
        other._makers = [
            dataset.with_seed(_seed(seed, i)) for i, dataset in enumerate(self._makers)
        ]
        return other

    def sources(self, rows: np.ndarray) -> np.ndarray:
        """int64 [B]: the number of the corpus that each row comes from."""
        return np.searchsorted(self._ends, rows, side="right")

    def __call__(self, rows: np.ndarray, epochs: np.ndarray) -> dict[str, np.ndarray]:
        """Makes the masked batch of some rows; see `PackedDataset.__call__`."""
        return self._make(rows, epochs, lambda dataset, rows, epochs: dataset(rows, epochs))

    def assemble(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Makes rows of the first epoch before masking; see `PackedDataset.assemble`."""
        return self._make(
            rows, np.zeros_like(rows), lambda dataset, rows, _: dataset.assemble(rows)
        )

    def _make(self, rows, epochs, make):
        rows_B = np.asarray(rows, np.int64)
        epochs_B = np.broadcast_to(epochs, rows_B.shape)
        if len(rows_B) and not 0 <= rows_B.min() <= rows_B.max() < self.num_rows:
            raise IndexError(f"row numbers must lie in [0, {self.num_rows})")
        sources_B = self.sources(rows_B)
        batch: dict[str, np.ndarray] = {}
        # An empty batch still has its arrays.
        for source in np.unique(sources_B) if len(rows_B) else [0]:
            mine = sources_B == source
            dataset = self._makers[source]
            start = self._ends[source - 1] if source else 0
            size = self._ends[source] - start
            positions = epochs_B[mine] * size + rows_B[mine] - start
            found = make(
                dataset, *rows_at(positions, dataset.epoch_ends, _seed(self._seed, source))
            )
            for name, values in found.items():
                if name not in batch:
                    batch[name] = empty_aligned((len(rows_B), values.shape[1]), values.dtype)
                batch[name][mine] = values
        return batch


def _seed(seed: int, source: int) -> int:
    return int(hashing.fold(_STREAM, seed, source)[0])
