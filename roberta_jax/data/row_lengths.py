"""Chooses the few lengths that rows of different lengths are padded to; each is compiled once."""

import numpy as np

MULTIPLE = 8  # lengths are multiples of it, which accelerators compute with faster


def choose_lengths(
    row_lengths: np.ndarray, most: int, longest: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """The lengths to pad to, such that all rows have the least padding in total.

    Args:
      row_lengths: int64 [R], tokens per row.
      most: number of lengths at most.
      longest: tokens per row that the model takes; no length exceeds it.
      weights: [R], how often each row is computed; None computes each once.

    Returns:
      int64, ascending; the last one holds the longest row. They are multiples of 8, except where
      `longest` is not. Empty without rows.
    """
    if not len(row_lengths):
        return np.array([], np.int64)
    rounded = np.minimum(-(-np.maximum(row_lengths, 1) // MULTIPLE) * MULTIPLE, longest)
    lengths, index = np.unique(rounded, return_inverse=True)
    rows = np.cumsum(np.bincount(index, weights).astype(np.float64))
    # cost[k][i]: tokens of the rows up to length i, padded to k + 1 lengths of which i is the last.
    cost = lengths * rows
    choices = []
    for _ in range(min(most, len(lengths)) - 1):
        # Behind a last but one length j < i, the rows in (j, i] are padded to i.
        table = cost[:, None] + lengths[None, :] * (rows[None, :] - rows[:, None])
        table[np.tril_indices(len(lengths))] = np.inf
        choices.append(np.where(table.min(0) < cost, table.argmin(0), -1))
        cost = np.minimum(cost, table.min(0))
    chosen, last = [len(lengths) - 1], len(lengths) - 1
    for previous in reversed(choices):
        if previous[last] >= 0:
            last = previous[last]
            chosen.append(last)
    return lengths[chosen[::-1]]
