"""Tests of mixtures: how often the rows of each corpus are seen, and that they are unchanged."""

import collections
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.data.mixture import Mixture
from roberta_jax.data.packing.index import PairOptions
from roberta_jax.data.pipeline import eval_batches, eval_rows, train_batches
from roberta_jax.data.row_order import FULL
from tests.support.toy_corpus import make_dataset, make_store

SEED = 3


class Recorder:
    """A fake dataset whose batches contain the requested rows and epochs, and the seed."""

    seq_len, vocab_size, max_inputs, num_slots = 32, 120, 1, 8
    row_order = FULL

    def __init__(self, num_rows, epoch_ends=None, padding_share=0.0, seed=None):
        self.num_rows = num_rows
        self.epoch_ends = np.array(epoch_ends or (num_rows,))
        self.padding_share, self.seed = padding_share, seed

    def with_seed(self, seed):
        return Recorder(self.num_rows, tuple(self.epoch_ends), self.padding_share, seed)

    def __call__(self, rows, epochs):
        seeds = np.full(len(rows), self.seed % 2**62)
        return {"seen": np.stack([rows, epochs, seeds], axis=1)}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    stores = [make_store(folder / str(i), 20 + 10 * i, seed=i) for i in range(3)]
    return [make_dataset(store, seq_len=32) for store in stores]


WEIGHTS = (1.0, 0.4, 2.5)


@pytest.fixture(scope="module")
def mixture(datasets):
    return Mixture(datasets, WEIGHTS, SEED)


def recorded(datasets, weights=WEIGHTS):
    """The same mixture of fake datasets."""
    return Mixture([Recorder(m.num_rows, tuple(m.epoch_ends)) for m in datasets], weights, SEED)


def assert_equal(actual, expected):
    assert list(actual) == list(expected)
    for name, array in actual.items():
        assert array.dtype == expected[name].dtype
        assert np.array_equal(array, expected[name]), name


corpora = st.lists(
    st.tuples(
        st.lists(st.integers(0, 20), min_size=1, max_size=3).filter(any),
        st.floats(0.05, 4),
    ),
    min_size=1,
    max_size=4,
)


@given(corpora, st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_rows_of_a_corpus_are_seen_equally_often(corpora, num_epochs):
    datasets = [Recorder(sum(sizes), tuple(np.cumsum(sizes))) for sizes, _ in corpora]
    weights = [weight for _, weight in corpora]
    mixture = Mixture(datasets, weights, SEED)
    rows = np.tile(np.arange(mixture.num_rows), num_epochs)
    epochs = np.repeat(np.arange(num_epochs), mixture.num_rows)
    seen = mixture(rows, epochs)["seen"]
    sources = mixture.sources(rows)
    for number, (dataset, weight) in enumerate(zip(datasets, weights, strict=True)):
        from_corpus = seen[sources == number]
        assert len(from_corpus) == num_epochs * max(1, round(weight * dataset.num_rows))
        counts = np.bincount(from_corpus[:, 0], minlength=dataset.num_rows)
        assert len(counts) == dataset.num_rows
        assert counts.max() - counts.min() <= 1
        # A corpus counts its own epochs, so that no row gets the same mask twice.
        times = collections.Counter(map(tuple, from_corpus[:, :2].tolist()))
        assert max(times.values()) == 1
        cycles, offset = divmod(len(from_corpus) - 1, dataset.num_rows)
        last_epoch = np.searchsorted(dataset.epoch_ends, offset, side="right")
        assert from_corpus[:, 1].max() == cycles * len(dataset.epoch_ends) + last_epoch


def test_attributes(datasets, mixture):
    sizes = [round(w * m.num_rows) for w, m in zip(WEIGHTS, datasets, strict=True)]
    assert mixture.num_rows == sum(sizes)
    assert mixture.epoch_ends.tolist() == [sum(sizes)]
    counts = np.bincount(mixture.sources(np.arange(mixture.num_rows)))
    assert counts.tolist() == sizes
    for name in ("seq_len", "vocab_size", "max_inputs", "num_slots"):
        assert getattr(mixture, name) == getattr(datasets[0], name)
    ids = mixture.assemble(np.arange(mixture.num_rows))["segment_ids"]
    assert mixture.padding_share == pytest.approx((ids == 0).mean(), abs=0.01)


def test_padding_share_is_weighted_by_rows():
    datasets = [Recorder(10, padding_share=0.1), Recorder(20, padding_share=0.4)]
    assert Mixture(datasets, [1, 1], SEED).padding_share == pytest.approx(0.3)
    assert Mixture(datasets, [2, 1], SEED).padding_share == pytest.approx(0.25)


def test_rows_equal_those_of_the_datasets(datasets, mixture):
    rng = np.random.default_rng(0)
    rows, epochs = rng.integers(0, mixture.num_rows, 200), rng.integers(0, 9, 200)
    requested = recorded(datasets)(rows, epochs)["seen"]
    batch = mixture(rows, epochs)
    assert batch["input_ids"].shape == (200, 32)
    sources = mixture.sources(rows)
    assert set(sources) == {0, 1, 2}
    for number, dataset in enumerate(datasets):
        selected = sources == number
        seed = recorded(datasets)._datasets[number].seed
        expected = dataset.with_seed(seed)(requested[selected, 0], requested[selected, 1])
        assert_equal({name: array[selected] for name, array in batch.items()}, expected)


def test_corpora_have_independent_masks_and_orders(datasets):
    """The same corpus twice: the two copies have different orders and different masks."""
    dataset = datasets[0]
    n = dataset.num_rows
    seen = recorded([dataset, dataset], (1, 1))(np.arange(2 * n), np.zeros(2 * n, int))["seen"]
    assert seen[0, 2] != seen[n, 2]
    assert sorted(seen[:n, 0]) == sorted(seen[n:, 0]) == list(range(n))
    assert (seen[:n, 0] == seen[n:, 0]).mean() < 0.1
    batch = Mixture([dataset, dataset], (1, 1), SEED)(np.arange(2 * n), np.zeros(2 * n, int))
    positions = batch["masked_positions"]
    first, second = positions[np.argsort(seen[:n, 0])], positions[n:][np.argsort(seen[n:, 0])]
    assert (first == second).all(axis=1).mean() < 0.2


def test_a_single_corpus_has_each_row_once_per_epoch(datasets):
    dataset = datasets[1]
    mixture = Mixture([dataset], [1.0], SEED)
    assert mixture.num_rows == dataset.num_rows
    plain = dataset.assemble(np.arange(dataset.num_rows))["input_ids"]
    rows = np.arange(dataset.num_rows)
    orders = []
    for epoch in range(3):
        requested = recorded([dataset], (1.0,))(rows, np.full(len(rows), epoch))["seen"]
        assert sorted(requested[:, 0]) == rows.tolist()
        assert set(requested[:, 1]) == {epoch}
        orders.append(requested[:, 0].tolist())
    assert orders[0] != orders[1] != orders[2]
    assert np.array_equal(mixture.assemble(rows)["input_ids"], plain[orders[0]])


def test_a_row_does_not_depend_on_the_rest_of_the_batch(mixture):
    rng = np.random.default_rng(1)
    rows, epochs = rng.integers(0, mixture.num_rows, 60), rng.integers(0, 9, 60)
    whole = mixture(rows, epochs)
    order = rng.permutation(60)
    assert_equal(mixture(rows[order], epochs[order]), {k: v[order] for k, v in whole.items()})
    for i in (0, 30, 59):
        alone = mixture(rows[i : i + 1], epochs[i : i + 1])
        assert_equal(alone, {k: v[i : i + 1] for k, v in whole.items()})
    assert_equal(pickle.loads(pickle.dumps(mixture))(rows, epochs), whole)
    none = mixture(rows[:0], epochs[:0])
    assert {k: v.shape[1:] for k, v in none.items()} == {k: v.shape[1:] for k, v in whole.items()}
    assert all(array.ctypes.data % 64 == 0 for array in whole.values())


def test_another_seed_gives_other_masks_of_the_same_rows(mixture):
    rows = np.arange(mixture.num_rows)
    other = mixture.with_seed(99)
    assert_equal(other.assemble(rows), mixture.assemble(rows))
    first, second = mixture(rows, rows * 0), other(rows, rows * 0)
    assert np.array_equal(first["position_ids"], second["position_ids"])
    same = (first["masked_positions"] == second["masked_positions"]).all(axis=1)
    assert same.mean() < 0.2
    assert_equal(other.with_seed(SEED)(rows, rows), mixture(rows, rows))


def test_training_batches_are_the_same_for_any_start_step_and_hosts(mixture):
    def train(start, stop, **options):
        options = {"batch_size": 8, "seed": 5, "engine": "numpy", **options}
        return list(train_batches(mixture, start_step=start, stop_step=stop, **options))

    steps = 3 * mixture.num_rows // 8
    assert mixture.num_rows % 8  # so that some batches span two epochs
    straight = train(0, steps)
    for start in (1, steps - 2):
        for actual, expected in zip(train(start, steps), straight[start:], strict=True):
            assert_equal(actual, expected)
    halves = [train(0, steps, local_rows=part) for part in np.split(np.arange(8), 2)]
    for first, second, expected in zip(*halves, straight, strict=True):
        assert_equal({k: np.concatenate([v, second[k]]) for k, v in first.items()}, expected)


def test_integer_weights_give_each_row_that_often_per_epoch(datasets):
    """With the batches of the pipeline."""
    mixture = recorded(datasets, (1, 3, 2))
    stop = 2 * mixture.num_rows
    batches = train_batches(
        mixture, batch_size=1, seed=5, start_step=0, stop_step=stop, engine="numpy", workers=1
    )
    seen = np.concatenate([batch["seen"] for batch in batches])
    seeds = [dataset.seed % 2**62 for dataset in mixture._datasets]
    for number, (dataset, weight) in enumerate(zip(datasets, (1, 3, 2), strict=True)):
        for half in np.split(seen, 2):
            counts = np.bincount(half[half[:, 2] == seeds[number], 0], minlength=dataset.num_rows)
            assert (counts == weight).all()


def test_evaluation(mixture):
    batches = list(eval_batches(mixture, batch_size=16, seed=7, engine="numpy"))
    again = list(eval_batches(mixture.with_seed(1), batch_size=16, seed=7, engine="numpy"))
    for a, b in zip(batches, again, strict=True):
        assert_equal(a, b)
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    rows = eval_rows(mixture, seed=7)
    assert sorted(rows) == list(range(mixture.num_rows))
    expected = mixture.with_seed(7)(rows, np.zeros_like(rows))
    assert_equal({name: array[: len(rows)] for name, array in joined.items()}, expected)
    assert len(joined["masked_weights"]) > len(rows)
    assert not joined["masked_weights"][len(rows) :].any()


def test_pairs_of_several_corpora(tmp_path):
    options = {"format": "segment_pair", "pairs": PairOptions(2), "next_sentence": True}
    datasets = [
        make_dataset(make_store(tmp_path / str(i), 20, seed=i), 48, token_types=True, **options)
        for i in range(2)
    ]
    mixture = Mixture(datasets, [1, 0.5], SEED)
    assert mixture.num_rows == datasets[0].num_rows + round(datasets[1].num_rows / 2)
    rows = np.arange(mixture.num_rows)
    batch = mixture(rows, rows)
    assert list(batch) == list(datasets[0](rows[:1], rows[:1]))
    assert batch["next_sentence_weights"].sum() > len(rows)
    assert batch["next_sentence_weights"].dtype == np.float32


def test_invalid_rows(mixture):
    for row in (-1, mixture.num_rows):
        with pytest.raises(IndexError, match="row numbers must lie in"):
            mixture(np.array([row]), np.array([0]))
