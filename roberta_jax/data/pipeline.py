"""Iterators over training and evaluation batches, which are built ahead of time by threads.

Training goes through an endless sequence of rows. Position p of the sequence belongs to epoch
p // N, and each epoch contains all N rows once, in its own random order (see `row_order`). If pairs
were sampled several times, the epochs use the samples in turn. Step s takes the positions from
s * B up to, but not including, (s + 1) * B, so a batch can contain the end of one epoch and the
start of the next. There is no iterator state: a run resumes at any step by starting there. A host
builds only the rows of its own devices.

Two engines call the same function for each step and give the same bits: tf.data if TensorFlow is
installed, else a pool of threads. (NumPy releases Python's global lock in operations on large
arrays.)
"""

import collections
import concurrent.futures
import contextlib
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator

import numpy as np

from roberta_jax.data import hashing
from roberta_jax.data.batches import PackedDataset
from roberta_jax.data.row_order import FULL, RowOrder
from roberta_jax.errors import UsageError

ENGINES = ("auto", "tf", "numpy")
Batch = dict[str, np.ndarray]


def train_batches(
    dataset: PackedDataset,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int | None = None,
    local_rows: np.ndarray | None = None,
    engine: str = "auto",
    prefetch: int = 8,
    workers: int | None = None,
) -> Iterator[Batch]:
    """Iterates over the training batches from `start_step` on.

    Args:
      dataset: The rows: a `PackedDataset` or a `Mixture`.
      batch_size: B, rows in the global batch.
      seed: The seed of the row order. (The seed of the masks is the dataset's.)
      start_step: The first step.
      stop_step: The step after the last one. None never stops.
      local_rows: int64, the rows of the global batch to build, as indices in range(B). None builds
        all of them.
      engine: "tf", "numpy", or "auto", which is tf if TensorFlow is installed.
      prefetch: Maximum number of batches built ahead of time.
      workers: Number of threads. None uses half the cores, at most 8.

    Returns:
      An iterator over batches (see `PackedDataset`) of len(local_rows) rows. Its threads stop when
      it is closed or garbage-collected.

    Raises:
      UsageError: The engine is unknown or not installed, or the corpus or the batch has no rows.
    """
    local_rows = _check_rows(dataset, batch_size, local_rows)

    def build_batch(step: int) -> Batch:
        positions = step * batch_size + local_rows
        return dataset(*rows_at(positions, dataset.epoch_ends, seed, dataset.row_order))

    return build_ahead(build_batch, start_step, stop_step, engine, prefetch, workers)


def rows_at(
    positions: np.ndarray, epoch_ends: np.ndarray, seed: int, order: RowOrder = FULL
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows and epochs at positions of the endless sequence of training rows.

    Args:
      positions: int64 [B], from 0.
      epoch_ends: int64 [D], see `PackedDataset`: the ends of the rows of D successive epochs.
      seed: The seed of the row orders.
      order: The order of the rows in each epoch.

    Returns:
      (rows, epochs), int64 [B].
    """
    cycles, offsets = np.divmod(positions, epoch_ends[-1])
    duplicates = np.searchsorted(epoch_ends, offsets, side="right")
    epochs = cycles * len(epoch_ends) + duplicates
    rows = np.empty_like(offsets)
    for duplicate in np.unique(duplicates):
        selected = duplicates == duplicate
        start = epoch_ends[duplicate - 1] if duplicate else 0
        size = int(epoch_ends[duplicate] - start)
        index = offsets[selected] - start
        rows[selected] = start + order(index, size, seed, epochs[selected])
    return rows, epochs


def eval_batches(
    dataset: PackedDataset,
    *,
    batch_size: int,
    seed: int,
    max_rows: int | None = None,
    local_rows: np.ndarray | None = None,
    engine: str = "auto",
    prefetch: int = 4,
    workers: int | None = None,
) -> Iterator[Batch]:
    """Iterates once over all rows, with masks that depend on (seed, row) alone.

    The rows are in a random order given by the seed, so that the first `max_rows` are a random
    sample of the corpus. The last batch is padded with rows whose weights are all 0.

    Args:
      dataset: The rows. Its own seed is not used.
      batch_size: B, rows in the global batch.
      seed: The seed of the masks and the order.
      max_rows: Maximum number of rows to score. None scores all rows.
      local_rows: See `train_batches`.
      engine: See `train_batches`.
      prefetch: See `train_batches`.
      workers: See `train_batches`.

    Returns:
      An iterator over batches, see `train_batches`.

    Raises:
      UsageError: `max_rows` is less than 1, or see `train_batches`.
    """
    local_rows = _check_rows(dataset, batch_size, local_rows)
    all_rows = eval_rows(dataset, seed, max_rows)
    dataset = dataset.with_seed(seed)

    def build_batch(step: int) -> Batch:
        index = step * batch_size + local_rows
        rows = all_rows[np.minimum(index, len(all_rows) - 1)]
        batch = dataset(rows, np.zeros_like(rows))
        for name in ("masked_weights", "next_sentence_weights"):
            if name in batch:
                batch[name][index >= len(all_rows)] = 0
        return batch

    num_steps = -(-len(all_rows) // batch_size)
    return build_ahead(build_batch, 0, num_steps, engine, prefetch, workers)


def eval_rows(dataset: PackedDataset, seed: int, max_rows: int | None = None) -> np.ndarray:
    """int64 [R]: the rows of `eval_batches`, in order."""
    if max_rows is not None and max_rows < 1:
        raise UsageError(
            f"--config.eval.max_rows is {max_rows}, but at least one row must be scored: use a "
            "number from 1, or leave it unset to score all rows"
        )
    num_rows = dataset.num_rows if max_rows is None else min(max_rows, dataset.num_rows)
    return hashing.permute(np.arange(num_rows), dataset.num_rows, seed, 0)


def _check_rows(
    dataset: PackedDataset, batch_size: int, local_rows: np.ndarray | None
) -> np.ndarray:
    """Checks the sizes; returns `local_rows`, or all rows of the batch if it is None."""
    if dataset.num_rows < 1:
        raise UsageError(
            "the corpus holds no rows: name a source with some text, such as "
            "--config.data.files='text/*.txt'"
        )
    if batch_size < 1:
        raise UsageError(
            f"the batch size is {batch_size}, but a batch holds at least one row "
            "(--config.train.batch_size, --config.eval.batch_size)"
        )
    local_rows = np.arange(batch_size) if local_rows is None else np.asarray(local_rows, np.int64)
    if local_rows.size and not 0 <= local_rows.min() <= local_rows.max() < batch_size:
        raise ValueError(f"local_rows must lie in [0, {batch_size}), the rows of the global batch")
    return local_rows


def build_ahead(
    build_batch: Callable[[int], Batch],
    start: int,
    stop: int | None,
    engine: str,
    prefetch: int,
    workers: int | None,
) -> Iterator[Batch]:
    """Yields build_batch(start), build_batch(start + 1), ... in order, built ahead of time.

    Args:
      build_batch: step -> batch; it is called by several threads at a time.
      start: the first step.
      stop: the step after the last one; None never stops.
      engine, prefetch, workers: see `train_batches`.

    Raises:
      UsageError: The engine is unknown or not installed.
    """
    if engine not in ENGINES:
        raise UsageError(
            f"--config.data.engine is {engine!r}, but it must be one of {', '.join(ENGINES)}"
        )
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    if engine == "tf" and not has_tensorflow:
        raise UsageError(
            "--config.data.engine is 'tf', but TensorFlow is not installed: install the extra "
            "`data` (pip install -e '.[data]'), or use --config.data.engine=numpy, which gives the "
            "same batches"
        )
    workers = workers or _default_workers()
    prefetch = max(prefetch, workers)
    if engine == "numpy" or not has_tensorflow:
        return _run_threads(build_batch, start, stop, prefetch, workers)
    return _run_tensorflow(build_batch, start, stop, prefetch, workers)


def _default_workers() -> int:
    """Half the cores, at most 8.

    The training step needs the other cores. One thread builds some 10^8 tokens per second if the
    text is in memory. More threads help with slow disks and with word and span masking; otherwise
    they mostly wait for Python's global lock.
    """
    on_linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if on_linux else os.cpu_count() or 1
    return max(1, min(cores // 2, 8))


def _run_threads(build_batch, start, stop, prefetch, workers):
    """Builds batches in a pool of threads and yields them in the order of the steps."""
    steps = itertools.count(start) if stop is None else iter(range(start, stop))
    pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="batches")
    pending = collections.deque()
    try:
        for step in itertools.islice(steps, prefetch):
            pending.append(pool.submit(build_batch, step))
        while pending:
            batch = pending.popleft().result()  # raises the exceptions of build_batch
            pending.extend(pool.submit(build_batch, step) for step in itertools.islice(steps, 1))
            yield batch
    finally:  # also when the generator is closed or garbage-collected
        pool.shutdown(wait=True, cancel_futures=True)


def _run_tensorflow(build_batch, start, stop, prefetch, workers):
    """Maps build_batch over the step numbers with tf.data; the work itself is done by NumPy."""
    import tensorflow as tf  # lazily, because it takes seconds and half a gigabyte

    # Hide the accelerators, whose memory TensorFlow would reserve. This raises RuntimeError if the
    # caller has already used TensorFlow, which then holds them anyway.
    with contextlib.suppress(RuntimeError):
        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)

    # tf.data handles only the step numbers. The batches are passed in a dict: converting arrays to
    # tensors and back would add half of the time that building them takes.
    batches: dict[int, Batch] = {}
    errors = []  # tf.data converts exceptions to its own and loses their type

    def store_batch(step):
        try:
            batches[int(step)] = build_batch(int(step))
        except Exception as error:
            errors.append(error)
            raise
        return step

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = workers
    steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max if stop is None else stop)
    stored = steps.map(
        lambda step: tf.numpy_function(store_batch, [step], tf.int64), num_parallel_calls=workers
    )
    try:
        for step in stored.prefetch(prefetch).with_options(options).as_numpy_iterator():
            yield batches.pop(int(step))
    except tf.errors.OpError as error:
        raise errors[0] if errors else error from None
