"""Tests of batches: rows against plain Python, purity, pinned values."""

import concurrent.futures
import pickle
import zlib

import numpy as np
import pytest

from roberta_jax.data import batches
from roberta_jax.data.batches import DTYPES
from roberta_jax.data.packing import index as packing
from roberta_jax.errors import UsageError
from tests.support import toy_corpus
from tests.support.toy_corpus import BOS, EOS, MASK, PAD, make_dataset, make_store, share_rows

FORMATS = ("one input", "shared")
SINGLE = {name for name in DTYPES if "token_type" not in name and "next_sentence" not in name}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def datasets(store):
    return {
        "one input": make_dataset(store, 32),
        "shared": make_dataset(store, packed=share_rows(store, 48), rate=0.3),
    }


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def expected_row(store, packed, row):
    """(ids, segments, positions) of a row, one token at a time."""
    tokens = np.concatenate([shard.tokens for shard in store.shards])
    ids, segments, positions = [], [], []
    for number, i in enumerate(range(packed.rows[row], packed.rows[row + 1]), 1):
        start, length = packed.inputs["a_start"][i], packed.inputs["a_len"][i]
        ids += [BOS, *tokens[start : start + length].tolist()]
        segments += [number] * (length + 1)
        positions += range(2, length + 3)
    padding = packed.seq_len - len(ids)
    return ids + [PAD] * padding, segments + [0] * padding, positions + [PAD] * padding


@pytest.mark.parametrize("format", FORMATS)
def test_rows_match_the_index(store, datasets, format):
    dataset = datasets[format]
    packed = share_rows(store, 48) if format == "shared" else None
    packed = packed or packing.load_or_pack(store, "full_sentences", 32)
    assert len(store.shards) > 3
    batch = dataset.assemble(np.arange(dataset.num_rows))
    assert list(batch) == ["input_ids", "segment_ids", "position_ids"]
    for row in range(dataset.num_rows):
        actual = tuple(array[row].tolist() for array in batch.values())
        assert actual == expected_row(store, packed, row)


def test_all_rows_together_are_the_corpus(store):
    dataset = make_dataset(store, 64)
    ids = dataset.assemble(np.arange(dataset.num_rows))["input_ids"]
    text = ids[(ids != BOS) & (ids != PAD)]
    assert np.array_equal(text, np.concatenate([shard.tokens for shard in store.shards]))


def test_shards_shorter_than_a_row(tmp_path):
    store = make_store(tmp_path, num_documents=5, shard_tokens=1)  # one document per shard
    dataset = make_dataset(store, 512)
    ids = dataset.assemble(np.arange(dataset.num_rows)[::-1])["input_ids"]
    assert dataset.num_rows == 5
    assert [row[row != PAD][1:].tolist() for row in ids[::-1]] == [
        shard.tokens.tolist() for shard in store.shards
    ]


def test_wide_ids(tmp_path):
    """Ids of a vocabulary over 65536 are stored as uint32."""
    store = toy_corpus.token_store.write_store(tmp_path, [[[70_000, 5], [99_998]]], 100_000)
    packed = packing.load_or_pack(store, "full_sentences", 8)
    dataset = batches.PackedDataset(
        store,
        packed,
        batches.Masking(),
        0,
        vocab_size=100_000,
        bos_id=0,
        pad_id=1,
        mask_id=99_999,
        special_ids=[0, 1, 2, 3, 99_999],
    )
    ids = dataset.assemble(np.array([0]))["input_ids"]
    assert ids.tolist() == [[0, 70_000, 5, 2, 99_998, 2, 2, 1]]


@pytest.mark.parametrize("format", FORMATS)
def test_masked_batches(datasets, format):
    dataset = datasets[format]
    rows = np.arange(dataset.num_rows)
    batch, plain = dataset(rows, np.zeros_like(rows)), dataset.assemble(rows)
    assert list(batch) == [name for name in DTYPES if name in SINGLE]
    for name, array in batch.items():
        assert array.dtype == DTYPES[name]
        assert array.shape == (
            len(rows),
            dataset.num_slots if "masked" in name else dataset.seq_len,
        )
        assert array.ctypes.data % 64 == 0  # so that JAX and TensorFlow need not copy it
    for name in ("segment_ids", "position_ids"):
        assert np.array_equal(batch[name], plain[name])
    restored = batch["input_ids"].copy()
    used = batch["masked_weights"] > 0
    row, slot = np.nonzero(used)
    positions = batch["masked_positions"][row, slot]
    restored[row, positions] = batch["masked_labels"][row, slot]
    assert np.array_equal(restored, plain["input_ids"])
    assert (plain["segment_ids"][row, positions] > 0).all()
    assert (batch["input_ids"] == MASK).sum() > 0.7 * used.sum()


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_depend_on_the_rest_of_the_batch(datasets, format, monkeypatch):
    dataset = datasets[format]
    rng = np.random.default_rng(0)
    rows, epochs = rng.integers(0, dataset.num_rows, 50), rng.integers(0, 4, 50)
    whole = dataset(rows, epochs)
    for i in (0, 17, 49):
        alone = dataset(rows[i : i + 1], epochs[i : i + 1])
        assert equal(alone, {key: array[i : i + 1] for key, array in whole.items()})
    order = rng.permutation(50)
    shuffled = dataset(rows[order], epochs[order])
    assert equal(shuffled, {key: array[order] for key, array in whole.items()})
    monkeypatch.setattr(batches, "_CHUNK_TOKENS", 100)  # three rows at a time
    assert equal(dataset(rows, epochs), whole)


def test_masks_change_with_epoch_row_and_seed(store, datasets):
    dataset = datasets["one input"]
    rows = np.arange(30)
    positions = dataset(rows, np.zeros(30, int))["masked_positions"]
    others = [
        dataset(rows, np.ones(30, int))["masked_positions"],
        dataset.with_seed(6)(rows, np.zeros(30, int))["masked_positions"],
        dataset(rows + 1, np.zeros(30, int))["masked_positions"],
    ]
    for other in others:
        assert (positions == other).all(axis=1).mean() < 0.2
    assert equal(
        dataset.with_seed(6)(rows, rows),
        make_dataset(store, 32, seed=6)(rows, rows),
    )


def test_pinned_values(datasets):
    """Never change these numbers: a resumed run would get other batches."""
    checksums = {}
    for format, dataset in datasets.items():
        batch = dataset(np.arange(20), np.arange(20) // 7)
        checksums[format] = zlib.crc32(b"".join(array.tobytes() for array in batch.values()))
    assert checksums == {"one input": 1811296335, "shared": 1446267545}


@pytest.mark.parametrize("format", FORMATS)
def test_threads_and_pickles(datasets, format):
    dataset = datasets[format]
    rows = [np.arange(i, i + 20) for i in range(40)]
    expected = [dataset(r, r) for r in rows]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(lambda r: dataset(r, r), rows))
    assert all(equal(a, b) for a, b in zip(expected, actual, strict=True))
    assert equal(pickle.loads(pickle.dumps(dataset))(rows[3], rows[3]), expected[3])


def test_no_rows(datasets):
    for dataset in datasets.values():
        batch = dataset(np.zeros(0, np.int64), np.zeros(0, np.int64))
        assert batch["input_ids"].shape == (0, dataset.seq_len)
        assert batch["masked_labels"].shape == (0, dataset.num_slots)


def test_invalid_input(store, datasets):
    dataset = datasets["one input"]
    for row in (-1, dataset.num_rows):
        with pytest.raises(IndexError, match="row numbers must lie in"):
            dataset(np.array([row]), np.array([0]))
    with pytest.raises(UsageError, match="tokenizer of 120 ids, but this one has 100"):
        batches.PackedDataset(
            store,
            packing.load_or_pack(store, "full_sentences", 32),
            batches.Masking(),
            0,
            vocab_size=100,
            bos_id=BOS,
            pad_id=PAD,
            mask_id=99,
            special_ids=[BOS, PAD, EOS, 3, 99],
        )
    with pytest.raises(UsageError, match=r"objective\.next_sentence needs pairs"):
        make_dataset(store, 32, next_sentence=True)
