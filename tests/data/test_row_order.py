"""Tests of the orders of rows: permutations of each epoch, and whole blocks in windows."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.data import hashing
from roberta_jax.data.mixture import Mixture
from roberta_jax.data.pipeline import rows_at, train_batches
from roberta_jax.data.row_order import FULL, WindowedOrder
from tests.support.toy_corpus import make_dataset, make_store

orders = st.builds(
    WindowedOrder,
    block_rows=st.integers(1, 40),
    window_blocks=st.integers(1, 8),
    streams=st.integers(1, 6),
    stream_rows=st.integers(1, 9),
)


@given(orders, st.integers(1, 500), st.integers(0, 2**40), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_each_epoch_has_every_row_once(order, size, seed, epoch):
    rows = order(np.arange(size), size, seed, np.full(size, epoch))
    assert rows.dtype == np.int64
    assert np.array_equal(np.sort(rows), np.arange(size))


@given(orders, st.integers(1, 300), st.integers(0, 2**40), st.data())
@settings(max_examples=100, deadline=None)
def test_a_row_depends_on_its_place_alone(order, size, seed, data):
    """So a run resumes at any step, and any part of a batch can be computed by itself."""
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    epochs = np.array(data.draw(st.lists(st.integers(0, 9), min_size=20, max_size=20)))
    together = order(index, size, seed, epochs[: len(index)])
    alone = [
        int(order(np.array([i]), size, seed, np.array([epoch]))[0])
        for i, epoch in zip(index, epochs, strict=False)
    ]
    assert together.tolist() == alone


@given(orders, st.integers(1, 500), st.integers(0, 2**40), st.integers(0, 99), st.data())
@settings(max_examples=100, deadline=None)
def test_a_row_is_from_the_window_of_its_place(order, size, seed, epoch, data):
    place = data.draw(st.integers(0, size - 1))
    blocks = order.window_blocks_at(place, size, seed, epoch).tolist()
    num_blocks = -(-size // order.block_rows)
    assert len(set(blocks)) == len(blocks)
    assert min(order.window_blocks, num_blocks) <= len(blocks) < 2 * order.window_blocks or (
        len(blocks) == num_blocks
    )
    places = order.in_streams(np.arange(size), size)
    row = order(np.flatnonzero(places == place), size, seed, np.array([epoch]))
    assert int(row[0]) // order.block_rows in blocks


def test_windows_go_through_the_blocks_once():
    """The rows of a window are all rows of its blocks, and no other window reads those."""
    order = WindowedOrder(block_rows=10, window_blocks=4)
    size, seed, epoch = 1003, 5, 2
    rows = order(np.arange(size), size, seed, np.full(size, epoch))
    place, seen = 0, []
    while place < size:
        blocks = order.window_blocks_at(place, size, seed, epoch)
        window_rows = sum(min(10, size - 10 * block) for block in blocks)
        assert set(rows[place : place + window_rows] // 10) == set(blocks)
        seen += blocks.tolist()
        place += window_rows
    assert place == size
    assert sorted(seen) == list(range(101))
    assert seen != sorted(seen)


def test_orders_of_epochs_and_seeds_differ():
    order = WindowedOrder(block_rows=8, window_blocks=4, streams=2, stream_rows=4)
    index = np.arange(1000)
    variants = [
        order(index, 1000, seed, np.full(1000, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    for number, rows in enumerate(variants):
        assert abs(np.corrcoef(rows, index)[0, 1]) < 0.3
        assert (rows == variants[number - 1]).mean() < 0.02
    # The short last block is not always in the same window.
    places = {
        int(np.flatnonzero(order(index[:997], 997, 0, np.full(997, e)) == 996)[0]) // 100
        for e in range(30)
    }
    assert len(places) > 5


def test_rows_of_a_window_are_in_a_uniform_order():
    """Over many epochs each row of a corpus of one window comes to each place equally often."""
    order = WindowedOrder(block_rows=4, window_blocks=5)
    epochs = np.arange(6000)
    counts = np.zeros((18, 18))
    for place in range(18):
        rows = order(np.full(len(epochs), place), 18, 7, epochs)
        counts[place] = np.bincount(rows, minlength=18)
    expected = len(epochs) / 18
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = 17 * 17
    assert abs(chi_square - freedom) < 6 * np.sqrt(2 * freedom)


def test_a_host_reads_only_the_blocks_of_its_streams():
    """With as many hosts as streams, each of them reads one block in so many at a time."""
    batch, streams, size, seed = 32, 4, 64_000, 3
    order = WindowedOrder(40, 5, streams, batch // streams)
    blocks = collections.defaultdict(set)
    for step in range(100):
        rows = order(step * batch + np.arange(batch), size, seed, np.zeros(batch, np.int64))
        for host, part in enumerate(np.split(rows, streams)):
            blocks[host] |= set((part // 40).tolist())
    for host in range(streams):
        # 800 rows of 100 steps are 4 windows of 5 blocks; one more may be begun at each end.
        assert len(blocks[host]) <= 30
        assert not any(blocks[host] & blocks[other] for other in range(streams) if other != host)


def test_the_blocks_that_training_reads_at_a_time_are_few():
    order = WindowedOrder(block_rows=50, window_blocks=6, streams=2, stream_rows=16)
    full, windowed = [], []
    for step in range(40):
        positions = step * 32 + np.arange(32)
        full += (rows_at(positions, np.array([30_000]), 0)[0] // 50).tolist()
        windowed += (rows_at(positions, np.array([30_000]), 0, order)[0] // 50).tolist()
    assert len(set(full)) > 450
    assert len(set(windowed)) <= 2 * 6 * (40 * 16 // 300 + 2)


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_batches_are_the_same_for_any_number_of_hosts_and_any_start(tmp_path, num_hosts):
    order = WindowedOrder(block_rows=3, window_blocks=2, streams=4, stream_rows=2)
    dataset = make_dataset(make_store(tmp_path), row_order=order)

    def batches(start, **options):
        return list(
            train_batches(
                dataset,
                batch_size=8,
                seed=3,
                start_step=start,
                stop_step=60,
                engine="numpy",
                **options,
            )
        )

    whole = batches(0)
    assert 2 * dataset.num_rows < 60 * 8
    parts = [batches(7, local_rows=part) for part in np.split(np.arange(8), num_hosts)]
    for step, expected in enumerate(whole[7:]):
        for name, values in expected.items():
            joined = np.concatenate([part[step][name] for part in parts])
            assert np.array_equal(joined, values)
    full = make_dataset(make_store(tmp_path / "full"))
    ids = next(train_batches(full, batch_size=8, seed=3, start_step=0, engine="numpy"))["input_ids"]
    assert not np.array_equal(ids, whole[0]["input_ids"])


class Rows:
    """A fake dataset whose batches hold the rows and epochs."""

    seq_len, vocab_size, max_inputs, num_slots, padding_share = 8, 9, 1, 1, 0.0

    def __init__(self, num_rows, order):
        self.num_rows, self.row_order, self.epoch_ends = num_rows, order, np.array([num_rows])

    def with_seed(self, seed):
        return self

    def __call__(self, rows, epochs):
        return {"rows": rows[:, None], "epochs": epochs[:, None]}


@given(
    st.lists(st.integers(1, 120), min_size=1, max_size=4),
    st.lists(st.sampled_from([0.3, 1.0, 2.5]), min_size=4, max_size=4),
    orders,
    st.integers(0, 50),
)
@settings(max_examples=80, deadline=None)
def test_a_mixture_in_windows_is_a_permutation_of_each_epoch(sizes, weights, order, epoch):
    mixture = Mixture([Rows(size, order) for size in sizes], weights[: len(sizes)], seed=1)
    n = mixture.num_rows
    rows = mixture.row_order(np.arange(n), n, 1, np.full(n, epoch))
    assert np.array_equal(np.sort(rows), np.arange(n))


def test_a_mixture_in_windows_keeps_proportions_and_reads_few_blocks():
    order = WindowedOrder(block_rows=20, window_blocks=5, streams=2, stream_rows=10)
    sizes, batch = (10_000, 5_000, 2_000), 20
    mixture = Mixture([Rows(size, order) for size in sizes], (1, 1, 2), seed=4)
    seen, blocks = [], [set() for _ in sizes]
    for step in range(100):  # 2,000 of 19,000 rows
        positions = step * batch + np.arange(batch)
        rows, epochs = rows_at(positions, mixture.epoch_ends, 4, mixture.row_order)
        sources = mixture.sources(rows)
        seen += sources.tolist()
        made = mixture(rows, epochs)["rows"][:, 0]
        for source in range(3):
            blocks[source] |= set((made[sources == source] // 20).tolist())
    shares = np.bincount(seen, minlength=3) / len(seen)
    np.testing.assert_allclose(shares, np.array([10, 5, 4]) / 19, atol=0.02)
    for size, read in zip(sizes, blocks, strict=True):
        # A tenth of the rows, in up to two windows more for each of two streams.
        assert len(read) <= 0.25 * size / 20 + 4 * 5
    full = Mixture([Rows(size, FULL) for size in sizes], (1, 1, 2), seed=4)
    made = full(*rows_at(np.arange(2000), full.epoch_ends, 4, full.row_order))["rows"]
    assert len(np.unique(made // 20)) > 400


def test_a_mixture_in_full_order_is_as_before():
    full = Mixture([Rows(30, FULL), Rows(20, FULL)], (1, 1), seed=4)
    rows, _ = rows_at(np.arange(50), full.epoch_ends, 4, full.row_order)
    assert np.array_equal(rows, hashing.permute(np.arange(50), 50, 4, 0))
