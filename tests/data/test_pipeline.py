"""Tests that batches depend on the step alone, and of epochs, evaluation and threads."""

import collections
import gc
import importlib.util
import itertools
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.data import hashing, pipeline
from roberta_jax.data.batches import DTYPES
from roberta_jax.data.packing.index import FORMATS, PAIR_FORMATS, PairOptions
from roberta_jax.data.pipeline import eval_batches, eval_rows, rows_at, train_batches
from roberta_jax.data.row_order import FULL
from roberta_jax.errors import UsageError
from tests.support.toy_corpus import make_dataset, make_store

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
ENGINES = [
    "numpy",
    pytest.param(
        "tf", marks=pytest.mark.skipif(not HAS_TENSORFLOW, reason="TensorFlow is not installed")
    ),
]
BATCH = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    dataset = make_dataset(make_store(tmp_path_factory.mktemp("store")), seq_len=32)
    assert dataset.num_rows % BATCH  # so that some batches span two epochs
    return dataset


class Recorder:
    """A fake dataset whose batches contain the requested rows and epochs."""

    row_order = FULL

    def __init__(self, num_rows, fail_at=None, delay=0.0, epoch_ends=None):
        self.num_rows, self._fail_at, self._delay = num_rows, fail_at, delay
        self.epoch_ends = np.array(epoch_ends or (num_rows,))
        self.num_batches = 0

    def __call__(self, rows, epochs):
        time.sleep(self._delay)
        self.num_batches += 1
        if self._fail_at is not None and self.num_batches > self._fail_at:
            raise ZeroDivisionError("cannot build this batch")
        return {name: np.stack([rows, epochs]).astype(dtype) for name, dtype in DTYPES.items()}


def train(dataset, start, stop, **options):
    options = {"engine": "numpy", "batch_size": BATCH, "seed": 3, **options}
    return list(train_batches(dataset, start_step=start, stop_step=stop, **options))


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert list(a) == list(b)
        for key in a:
            assert a[key].dtype == b[key].dtype
            assert np.array_equal(a[key], b[key])


@pytest.mark.parametrize("engine", ENGINES)
def test_every_start_step_gives_the_same_batches(dataset, engine):
    steps = 3 * dataset.num_rows // BATCH
    straight = train(dataset, 0, steps)
    assert_equal(train(dataset, 0, steps, engine=engine), straight)
    for start in (1, steps // 2, steps - 1):
        assert_equal(train(dataset, start, steps, engine=engine), straight[start:])
    assert_equal(train(dataset, 0, 6, engine=engine, workers=3, prefetch=1), straight[:6])


def test_auto_uses_an_installed_engine(dataset, monkeypatch):
    expected = train(dataset, 2, 4)
    assert_equal(train(dataset, 2, 4, engine="auto"), expected)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # makes importing it fail
    assert_equal(train(dataset, 2, 4, engine="auto"), expected)


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_parts_of_all_hosts_make_up_the_batch(dataset, num_hosts):
    expected = train(dataset, 5, 12)
    for parts in (
        np.split(np.arange(BATCH), num_hosts),
        [np.arange(host, BATCH, num_hosts) for host in range(num_hosts)],
    ):
        by_host = [train(dataset, 5, 12, local_rows=part) for part in parts]
        order = np.argsort(np.concatenate(parts))
        joined = [
            {key: np.concatenate([b[key] for b in hosts])[order] for key in hosts[0]}
            for hosts in zip(*by_host, strict=True)
        ]
        assert_equal(joined, expected)


@pytest.mark.parametrize(("num_rows", "batch_size"), [(37, 8), (5, 8), (1, 4), (64, 16)])
def test_every_epoch_contains_every_row_once(num_rows, batch_size):
    seen = collections.defaultdict(list)
    num_epochs = 4
    steps = -(-num_epochs * num_rows // batch_size)
    for batch in train(Recorder(num_rows), 0, steps, batch_size=batch_size):
        rows, epochs = batch["input_ids"]
        for row, epoch in zip(rows, epochs, strict=True):
            seen[int(epoch)].append(int(row))
    orders = [seen[epoch] for epoch in range(num_epochs)]
    assert all(sorted(order) == list(range(num_rows)) for order in orders)
    if num_rows > 5:
        assert orders[0] != orders[1]  # another order each epoch


def test_steps_are_positions_in_permuted_epochs():
    batch = train(Recorder(37), 1_000_000_007, 1_000_000_008)[0]
    positions = 1_000_000_007 * BATCH + np.arange(BATCH)
    rows, epochs = batch["input_ids"]
    assert np.array_equal(epochs, positions // 37)
    assert np.array_equal(rows, hashing.permute(positions % 37, 37, 3, positions // 37))


@given(st.integers(1, 50), st.integers(0, 2**40), st.integers(0, 2**60), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_with_one_sample_rows_at_is_a_permutation_of_each_epoch(num_rows, seed, start, count):
    positions = start + np.arange(count)
    rows, epochs = rows_at(positions, np.array([num_rows]), seed)
    assert np.array_equal(epochs, positions // num_rows)
    assert np.array_equal(rows, hashing.permute(positions % num_rows, num_rows, seed, epochs))


samples = st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any)


@given(samples, st.integers(0, 2**40), st.integers(1, 2**30))
@settings(max_examples=100, deadline=None)
def test_epochs_use_the_duplicates_in_turn(sizes, seed, cycle):
    """Each epoch has the rows of one duplicate; duplicates can differ in size or be empty."""
    epoch_ends = np.cumsum(sizes)
    num_rows = epoch_ends[-1]
    positions = cycle * num_rows + np.arange(2 * num_rows)
    rows, epochs = rows_at(positions, epoch_ends, seed)
    assert (np.diff(epochs) >= 0).all()
    for turn in range(2 * len(sizes)):
        number = turn % len(sizes)
        epoch_rows = rows[epochs == cycle * len(sizes) + turn]
        end = epoch_ends[number]
        assert sorted(epoch_rows) == list(range(end - sizes[number], end))
    for i in range(0, len(positions), 7):  # the same for single positions
        one = rows_at(positions[i : i + 1], epoch_ends, seed)
        assert (one[0][0], one[1][0]) == (rows[i], epochs[i])


def test_every_epoch_has_another_order():
    """This includes epochs of different duplicates of the same size."""
    epoch_ends = np.array([20, 40, 60])
    rows, epochs = rows_at(np.arange(4 * 60), epoch_ends, 3)
    orders = {tuple(rows[epochs == epoch] % 20) for epoch in range(12)}
    assert len(orders) == 12
    other, _ = rows_at(np.arange(4 * 60), epoch_ends, 4)
    assert not np.array_equal(other, rows)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 200])
def test_batches_can_span_duplicates(batch_size):
    dataset = Recorder(60, epoch_ends=(10, 30, 60))
    steps = -(-150 // batch_size)
    batches = train(dataset, 0, steps, batch_size=batch_size)
    joined = np.concatenate([batch["input_ids"] for batch in batches], axis=1)
    expected = rows_at(np.arange(steps * batch_size), dataset.epoch_ends, 3)
    assert np.array_equal(joined, np.stack(expected))
    for start in (1, steps // 2, steps - 1):
        assert_equal(train(dataset, start, steps, batch_size=batch_size), batches[start:])


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_the_same_for_any_start_step_and_hosts(tmp_path, format):
    is_pair = format in PAIR_FORMATS
    dataset = make_dataset(
        make_store(tmp_path),
        seq_len=32,
        format=format,
        pairs=PairOptions(3),
        token_types=True,
        next_sentence=is_pair,
    )
    steps = 2 * dataset.num_rows // BATCH
    assert len(dataset.epoch_ends) == (3 if is_pair else 1)
    straight = train(dataset, 0, steps)
    for start in (1, steps // 2, steps - 1):
        assert_equal(train(dataset, start, steps), straight[start:])
    for num_hosts in (2, 4):
        parts = np.split(np.arange(BATCH), num_hosts)
        by_host = [train(dataset, 0, steps, local_rows=part) for part in parts]
        joined = [
            {key: np.concatenate([batch[key] for batch in hosts]) for key in hosts[0]}
            for hosts in zip(*by_host, strict=True)
        ]
        assert_equal(joined, straight)
    # Half the batch size gives the same rows in twice as many batches.
    halves = train(dataset, 0, 2 * steps, batch_size=BATCH // 2)
    joined = [
        {key: np.concatenate([a[key], b[key]]) for key in a}
        for a, b in zip(halves[::2], halves[1::2], strict=True)
    ]
    assert_equal(joined, straight)


def test_evaluation_of_pairs(tmp_path):
    dataset = make_dataset(
        make_store(tmp_path),
        seq_len=32,
        format="segment_pair",
        pairs=PairOptions(1),
        next_sentence=True,
    )
    batch_size = next(size for size in range(5, 20) if dataset.num_rows % size)
    batches = list(eval_batches(dataset, batch_size=batch_size, seed=1, engine="numpy"))
    weights = np.concatenate([batch["next_sentence_weights"] for batch in batches])
    expected = dataset(eval_rows(dataset, seed=1), np.zeros(dataset.num_rows, np.int64))
    assert np.array_equal(weights[: dataset.num_rows], expected["next_sentence_weights"])
    assert len(weights) > dataset.num_rows
    assert not weights[dataset.num_rows :].any()


def test_without_a_stop_step_the_batches_never_end(dataset):
    endless = train_batches(dataset, batch_size=BATCH, seed=3, start_step=7, engine="numpy")
    assert_equal(itertools.islice(endless, 3), train(dataset, 7, 10))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch_size", [7, 16])
def test_evaluation_scores_every_row_once(dataset, engine, batch_size):
    batches = list(eval_batches(dataset, batch_size=batch_size, seed=11, engine=engine))
    assert all(len(batch["input_ids"]) == batch_size for batch in batches)
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    rows = eval_rows(dataset, seed=11)
    assert sorted(rows) == list(range(dataset.num_rows))
    expected = dataset.with_seed(11)(rows, np.zeros_like(rows))
    for key, array in expected.items():
        assert np.array_equal(joined[key][: len(rows)], array)
    assert not joined["masked_weights"][len(rows) :].any()
    assert (joined["segment_ids"][:, 0] == 1).all()  # the padding consists of real rows too


def test_evaluation_depends_only_on_its_seed(dataset):
    first = list(eval_batches(dataset, batch_size=4, seed=1, engine="numpy"))
    same = list(eval_batches(dataset.with_seed(99), batch_size=4, seed=1, engine="numpy"))
    assert_equal(first, same)
    other = list(eval_batches(dataset, batch_size=4, seed=2, engine="numpy"))
    assert not np.array_equal(first[0]["masked_positions"], other[0]["masked_positions"])


def test_evaluation_of_some_rows_on_two_hosts(dataset):
    options = {"batch_size": 4, "seed": 1, "max_rows": 10, "engine": "numpy"}
    whole = list(eval_batches(dataset, **options))
    assert len(whole) == 3
    assert [batch["masked_weights"].any(axis=1).sum() for batch in whole] == [4, 4, 2]
    halves = [
        eval_batches(dataset, **options, local_rows=part) for part in (np.array([0, 1]), [2, 3])
    ]
    joined = [
        {key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*halves, strict=True)
    ]
    assert_equal(joined, whole)


@pytest.mark.parametrize("engine", ENGINES)
def test_exceptions_are_raised_by_the_iterator(engine):
    batches = train_batches(
        Recorder(100, fail_at=3),
        batch_size=4,
        seed=0,
        start_step=0,
        stop_step=10,
        engine=engine,
        workers=1,
    )
    with pytest.raises(ZeroDivisionError, match="cannot build this batch"):
        list(batches)


def batch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("ending", ["close", "forget", "exhaust", "fail", "never start"])
def test_all_threads_end(ending):
    dataset = Recorder(100, fail_at=5 if ending == "fail" else None, delay=0.001)
    stop = 20 if ending == "exhaust" else None
    batches = train_batches(
        dataset, batch_size=4, seed=0, start_step=0, stop_step=stop, engine="numpy"
    )
    if ending != "never start":
        next(batches)
        assert batch_threads()
    if ending == "close":
        batches.close()
    elif ending == "exhaust":
        assert len(list(batches)) == 19
    elif ending == "fail":
        with pytest.raises(ZeroDivisionError):
            list(batches)
    del batches
    gc.collect()
    assert not batch_threads()


def test_at_most_prefetch_batches_are_built_ahead():
    dataset = Recorder(100)
    batches = train_batches(
        dataset, batch_size=4, seed=0, start_step=0, engine="numpy", prefetch=5, workers=2
    )
    next(batches)
    time.sleep(0.1)
    assert dataset.num_batches == 6  # the one returned and five ahead
    batches.close()


def test_invalid_input(dataset, monkeypatch):
    good = {"batch_size": 4, "seed": 0, "start_step": 0}
    with pytest.raises(UsageError, match=r"data\.engine is 'torch'.*auto, tf, numpy"):
        train_batches(dataset, **good, engine="torch")
    with pytest.raises(UsageError, match="at least one row"):
        train_batches(dataset, **{**good, "batch_size": 0})
    with pytest.raises(UsageError, match="the corpus holds no rows"):
        train_batches(Recorder(0), **good)
    with pytest.raises(UsageError, match=r"eval\.max_rows is 0"):
        eval_batches(dataset, batch_size=4, seed=0, max_rows=0)
    with pytest.raises(ValueError, match="local_rows must lie in"):
        train_batches(dataset, **good, local_rows=np.array([4]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"TensorFlow is not installed.*extra `data`"):
        train_batches(dataset, **good, engine="tf")


def test_the_numpy_engine_does_not_import_tensorflow(monkeypatch, dataset):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # makes importing it fail
    assert len(train(dataset, 0, 2)) == 2
    assert "tensorflow" not in vars(pipeline)
