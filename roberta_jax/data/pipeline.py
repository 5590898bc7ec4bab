"""From a step number to its batch, made ahead of time on the host's spare cores.

Training sees the positions p = 0, 1, 2, … of an endless sequence of rows: epoch p // N, and in
each epoch all N rows in an order of its own (where pairs were sampled several times, the epochs
take the samples in turn). Step s takes positions s * B to s * B + B - 1, so
batches straddle epochs, no row is dropped or seen twice in an epoch, and a run resumes at any
step by starting there. A host makes only the rows that its devices hold.

Two engines run the same function over the steps and give the same bits: tf.data where TensorFlow
is installed, else a pool of threads (NumPy leaves Python's lock while it works on large arrays).
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
    """The training batches from `start_step` on.

    Args:
      dataset: makes the rows.
      batch_size: B, rows in the global batch.
      seed: of the order of the rows; the masks' seed is the dataset's.
      start_step: the first step.
      stop_step: the step after the last; None goes on for ever.
      local_rows: int64, which of range(B) to make, in this order; None makes all.
      engine: "tf", "numpy", or "auto" for tf where it is installed.
      prefetch: how many batches may wait, ready or in the making.
      workers: threads; None takes half as many as there are cores, at most 8.

    Returns:
      An iterator of batches (see `PackedDataset`) with len(local_rows) rows. Closing it or letting
      it go stops its threads.

    Raises:
      UsageError: an unknown engine, tf without TensorFlow, or a corpus or batch without rows.
    """
    local_rows = _check(dataset, batch_size, local_rows)

    def make(step: int) -> Batch:
        return dataset(*rows_at(step * batch_size + local_rows, dataset.epoch_ends, seed))

    return _run(make, start_step, stop_step, engine, prefetch, workers)


def rows_at(
    positions: np.ndarray, epoch_ends: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which row stands where in the endless sequence, and in which epoch.

    Args:
      positions: int64 [B], from 0.
      epoch_ends: int64 [D]: epoch e takes, in an order of its own, the rows between the ends
        number e % D - 1 and e % D. D is 1 unless the corpus was sampled several times.
      seed: of the orders.

    Returns:
      (rows, epochs), int64 [B].
    """
    cycles, places = np.divmod(positions, epoch_ends[-1])
    parts = np.searchsorted(epoch_ends, places, side="right")
    epochs = cycles * len(epoch_ends) + parts
    rows = np.empty_like(places)
    for part in np.unique(parts):
        mine = parts == part
        start = epoch_ends[part - 1] if part else 0
        size = int(epoch_ends[part] - start)
        rows[mine] = start + hashing.permute(places[mine] - start, size, seed, epochs[mine])
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
    """Every row once, with masks that depend on (seed, row) alone.

    The rows come in a random order that is fixed by the seed, so that the first `max_rows` are a
    fair sample of the corpus. The last batch is filled up with rows whose weights are all 0.

    Args:
      dataset: makes the rows; its own seed plays no part.
      batch_size: B, rows in the global batch.
      seed: of the masks and the order.
      max_rows: score at most so many rows; None scores all.
      local_rows, engine, prefetch, workers: as for `train_batches`.

    Raises:
      UsageError: as for `train_batches`.
    """
    local_rows = _check(dataset, batch_size, local_rows)
    all_rows = eval_rows(dataset, seed, max_rows)
    dataset = dataset.with_seed(seed)

    def make(step: int) -> Batch:
        index = step * batch_size + local_rows
        rows = all_rows[np.minimum(index, len(all_rows) - 1)]
        batch = dataset(rows, np.zeros_like(rows))
        for name in ("masked_weights", "next_sentence_weights"):
            if name in batch:
                batch[name][index >= len(all_rows)] = 0
        return batch

    return _run(make, 0, -(-len(all_rows) // batch_size), engine, prefetch, workers)


def eval_rows(dataset: PackedDataset, seed: int, max_rows: int | None = None) -> np.ndarray:
    """int64 [R]: the rows that `eval_batches` scores, in its order."""
    if max_rows is not None and max_rows < 1:
        raise UsageError(f"eval.max_rows is {max_rows}, but there must be a row to score")
    num_rows = dataset.num_rows if max_rows is None else min(max_rows, dataset.num_rows)
    return hashing.permute(np.arange(num_rows), dataset.num_rows, seed, 0)


def _check(dataset: PackedDataset, batch_size: int, local_rows: np.ndarray | None) -> np.ndarray:
    """The rows to make, after looking at the sizes."""
    if dataset.num_rows < 1:
        raise UsageError("the corpus holds no rows: give data.* a source with some text")
    if batch_size < 1:
        raise UsageError(f"the batch size is {batch_size}, but a batch holds at least one row")
    local_rows = np.arange(batch_size) if local_rows is None else np.asarray(local_rows, np.int64)
    if local_rows.size and not 0 <= local_rows.min() <= local_rows.max() < batch_size:
        raise ValueError(f"local_rows must lie in [0, {batch_size}), the global batch's rows")
    return local_rows


def _run(
    make: Callable[[int], Batch],
    start: int,
    stop: int | None,
    engine: str,
    prefetch: int,
    workers: int | None,
) -> Iterator[Batch]:
    """make(start), make(start + 1), … in order, some ahead of their use."""
    if engine not in ENGINES:
        raise UsageError(f"data.engine is {engine!r}, but it must be one of {', '.join(ENGINES)}")
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    if engine == "tf" and not has_tensorflow:
        raise UsageError(
            "data.engine is 'tf', but TensorFlow is not installed: install the extra `data` "
            "(pip install -e '.[data]'), or use data.engine=numpy, which gives the same batches"
        )
    workers = workers or _default_workers()
    prefetch = max(prefetch, workers)
    if engine == "numpy" or not has_tensorflow:
        return _run_threads(make, start, stop, prefetch, workers)
    return _run_tensorflow(make, start, stop, prefetch, workers)


def _default_workers() -> int:
    """Half the cores, at most 8: the step needs the rest, and one thread makes 10^8 tokens a second
    where the text is in memory. More than one is for slow disks and for costlier masking; working
    flat out, they mostly wait for one another at Python's lock.
    """
    on_linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if on_linux else os.cpu_count() or 1
    return max(1, min(cores // 2, 8))


def _run_threads(make, start, stop, prefetch, workers):
    """A pool of threads whose results are taken in the order of the steps."""
    steps = itertools.count(start) if stop is None else iter(range(start, stop))
    pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="batches")
    pending = collections.deque()
    try:
        for step in itertools.islice(steps, prefetch):
            pending.append(pool.submit(make, step))
        while pending:
            batch = pending.popleft().result()  # raises what make raised
            pending.extend(pool.submit(make, step) for step in itertools.islice(steps, 1))
            yield batch
    finally:  # also when the consumer closes the generator or lets it go
        pool.shutdown(wait=True, cancel_futures=True)


def _run_tensorflow(make, start, stop, prefetch, workers):
    """tf.data over the step numbers, with the work done in NumPy."""
    import tensorflow as tf  # here, because it takes seconds and half a gigabyte

    # The accelerators are JAX's; TensorFlow would reserve their memory. Too late, and an error, if
    # the caller has used TensorFlow before: then it has them already.
    with contextlib.suppress(RuntimeError):
        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)

    # tf.data sees the step numbers alone. The batches themselves pass it by: turning each array
    # into a tensor and back costs half as much again as making it.
    ready: dict[int, Batch] = {}
    failures = []  # tf.data turns exceptions into its own and loses their type

    def make_ready(step):
        try:
            ready[int(step)] = make(int(step))
        except Exception as error:
            failures.append(error)
            raise
        return step

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = workers
    steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max if stop is None else stop)
    made = steps.map(
        lambda step: tf.numpy_function(make_ready, [step], tf.int64), num_parallel_calls=workers
    )
    try:
        for step in made.prefetch(prefetch).with_options(options).as_numpy_iterator():
            yield ready.pop(int(step))
    except tf.errors.OpError as error:
        raise failures[0] if failures else error from None
