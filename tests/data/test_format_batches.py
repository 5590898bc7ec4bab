"""Tests of batches of every format against plain Python, and of their dynamic and static masks."""

import collections
import itertools
import math
import pickle

import numpy as np
import pytest

from roberta_jax.data import batches
from roberta_jax.data.batches import DTYPES
from roberta_jax.data.masking import SCHEMES
from roberta_jax.data.packing import index as packing
from roberta_jax.data.packing.index import FORMATS, PAIR_FORMATS, PairOptions
from roberta_jax.data.pipeline import rows_at
from roberta_jax.data.store.token_store import write_store
from tests.support.toy_corpus import BOS, EOS, MASK, PAD, VOCAB, make_dataset, make_store

SEQ_LEN = 64


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), num_documents=60)


def expected_row(store, packed, row):
    """The expected arrays of a row, built one token at a time."""
    tokens = np.concatenate([shard.tokens for shard in store.shards]).tolist()
    arrays = collections.defaultdict(list)
    for number, i in enumerate(range(packed.rows[row], packed.rows[row + 1]), 1):
        a_start, a_len, b_start, b_len, label = packed.inputs[i].tolist()
        first = [BOS, *tokens[a_start : a_start + a_len]]
        second = []
        if packed.num_separators:
            assert min(a_len, b_len) >= 1
            first.append(EOS)
            second = [*tokens[b_start : b_start + b_len], EOS]
            if packed.num_separators == 2:
                second.insert(0, EOS)
        arrays["next_sentence_positions"].append(len(arrays["input_ids"]))
        arrays["next_sentence_labels"].append(label)
        arrays["input_ids"] += first + second
        arrays["token_type_ids"] += [0] * len(first) + [1] * len(second)
        arrays["segment_ids"] += [number] * len(first + second)
        arrays["position_ids"] += range(PAD + 1, PAD + 1 + len(first + second))
    padding = packed.seq_len - len(arrays["input_ids"])
    for name, filler in (
        ("input_ids", PAD),
        ("position_ids", PAD),
        ("segment_ids", 0),
        ("token_type_ids", 0),
    ):
        arrays[name] += [filler] * padding
    arrays["next_sentence_weights"] = [1.0] * len(arrays["next_sentence_labels"])
    for name in ("positions", "labels", "weights"):
        used = arrays[f"next_sentence_{name}"]
        used += [0] * (packed.max_inputs - len(used))
    return arrays


@pytest.mark.parametrize(
    ("token_types", "next_sentence"), itertools.product([False, True], repeat=2)
)
@pytest.mark.parametrize("separators", [1, 2])
@pytest.mark.parametrize("format", PAIR_FORMATS)
def test_rows_of_pairs(store, format, separators, token_types, next_sentence):
    options = PairOptions(dupe_factor=2, num_separators=separators)
    packed = packing.load_or_pack(store, format, SEQ_LEN, options)
    dataset = make_dataset(
        store, packed=packed, token_types=token_types, next_sentence=next_sentence
    )
    rows = np.arange(dataset.num_rows)
    assert np.diff(packed.rows).max() > 1
    assert dataset.epoch_ends.tolist() == list(packed.duplicate_ends)
    plain, batch = dataset.assemble(rows), dataset(rows, np.zeros_like(rows))
    names = [
        name
        for name in DTYPES
        if (token_types or name != "token_type_ids")
        and (next_sentence or "next_sentence" not in name)
    ]
    assert list(batch) == names
    assert list(plain) == [name for name in names[:4] if name.endswith("_ids")]
    for name, array in batch.items():
        assert array.dtype == DTYPES[name]
        assert len(array) == len(rows)
    for row in rows[:: 1 + len(rows) // 150]:
        expected = expected_row(store, packed, row)
        for name, array in plain.items():
            assert array[row].tolist() == expected[name], name
        for name in names:
            if name in expected and name != "input_ids":
                assert batch[name][row].tolist() == expected[name], name


@pytest.mark.parametrize("format", ["doc_sentences", "sentences"])
def test_rows_of_single_inputs(store, format):
    packed = packing.load_or_pack(store, format, SEQ_LEN)
    dataset = make_dataset(store, packed=packed, token_types=True)
    plain = dataset.assemble(np.arange(dataset.num_rows))
    # Single inputs have no token types.
    assert list(plain) == ["input_ids", "segment_ids", "position_ids"]
    for row in range(dataset.num_rows):
        expected = expected_row(store, packed, row)
        for name, array in plain.items():
            assert array[row].tolist() == expected[name], name


def test_one_row_of_pairs_by_hand(tmp_path):
    store = write_store(tmp_path, [[[10, 11]], [[20]]], VOCAB)
    options = PairOptions(dupe_factor=1)
    dataset = make_dataset(
        store, 16, format="sentence_pair", pairs=options, token_types=True, next_sentence=True
    )
    batch = dataset(np.array([0]), np.array([0])) | dataset.assemble(np.array([0]))
    # Two documents of one sentence: each is paired with the other, as a random text.
    assert {name: array[0].tolist() for name, array in batch.items() if "masked" not in name} == {
        "input_ids": [0, 10, 11, 2, 2, 20, 2, 0, 20, 2, 2, 10, 11, 2, 1, 1],
        "segment_ids": [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0, 0],
        "position_ids": [2, 3, 4, 5, 6, 7, 8, 2, 3, 4, 5, 6, 7, 8, 1, 1],
        "token_type_ids": [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0],
        "next_sentence_positions": [0, 7] + [0] * 14,
        "next_sentence_labels": [1, 1] + [0] * 14,
        "next_sentence_weights": [1.0, 1.0] + [0.0] * 14,
    }


def counts_by_input(batch, max_inputs):
    """(masked tokens, tokens) of each input, [B, M]."""
    segments = batch["segment_ids"]
    row, slot = np.nonzero(batch["masked_weights"])
    masked = np.zeros((len(segments), max_inputs + 1), np.int64)
    np.add.at(masked, (row, segments[row, batch["masked_positions"][row, slot]]), 1)
    tokens = np.zeros_like(masked)
    np.add.at(tokens, (np.arange(len(segments))[:, None], segments), 1)
    assert not masked[:, 0].any()  # padding
    return masked[:, 1:], tokens[:, 1:]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("format", FORMATS)
def test_masks_of_every_format_and_scheme(store, format, scheme):
    rate = 0.15
    dataset = make_dataset(store, SEQ_LEN, format=format, scheme=scheme, rate=rate)
    by_token = make_dataset(store, SEQ_LEN, format=format, rate=rate)
    rows = np.arange(dataset.num_rows)[-600:]
    batch, plain = dataset(rows, rows), dataset.assemble(rows)
    used = batch["masked_weights"] > 0
    assert (np.diff(used.astype(int), axis=1) <= 0).all()
    row, slot = np.nonzero(used)
    positions = batch["masked_positions"][row, slot]
    restored = batch["input_ids"].copy()
    assert np.array_equal(batch["masked_labels"][row, slot], plain["input_ids"][row, positions])
    restored[row, positions] = batch["masked_labels"][row, slot]
    assert np.array_equal(restored, plain["input_ids"])
    assert used.sum(axis=1).max() <= dataset.num_slots

    # Each input rounds its count randomly, in the same way for tokens and spans. Whole words stop
    # before the count is exceeded.
    masked, tokens = counts_by_input(batch, dataset.max_inputs)
    exact = rate * tokens
    counts, _ = counts_by_input(by_token(rows, rows), dataset.max_inputs)
    assert ((counts == np.floor(exact + 1e-6)) | (counts == np.floor(exact - 1e-6) + 1)).all()
    exists = tokens > 0
    rounded_up = (counts - np.floor(exact + 1e-6))[exists]
    share = (exact - np.floor(exact + 1e-6))[exists]
    sigma = math.sqrt((share * (1 - share)).sum())
    assert abs(rounded_up.sum() - share.sum()) < 5 * sigma
    if scheme == "whole_word":
        assert (masked <= counts).all()
        assert masked.sum() > 0.7 * counts.sum()
    else:
        assert np.array_equal(masked, counts)


@pytest.mark.parametrize("rate", [0.01, 0.5, 0.95])
@pytest.mark.parametrize("format", FORMATS)
def test_every_masked_token_has_a_slot(store, format, rate):
    for scheme in SCHEMES:
        dataset = make_dataset(store, SEQ_LEN, format=format, scheme=scheme, rate=rate)
        rows = np.arange(dataset.num_rows)[:400]
        batch = dataset(rows, rows)
        masked, tokens = counts_by_input(batch, dataset.max_inputs)
        assert masked.sum() == batch["masked_weights"].sum()
        assert (masked <= np.floor(rate * tokens + 1e-6) + 1).all()


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_depend_on_the_rest_of_the_batch(store, format, monkeypatch):
    dataset = make_dataset(
        store, SEQ_LEN, format=format, token_types=True, next_sentence=format in PAIR_FORMATS
    )
    rng = np.random.default_rng(0)
    rows, epochs = rng.integers(0, dataset.num_rows, 50), rng.integers(0, 14, 50)
    whole = dataset(rows, epochs)
    order = rng.permutation(50)
    assert_equal(dataset(rows[order], epochs[order]), {k: v[order] for k, v in whole.items()})
    for i in (0, 17, 49):
        alone = dataset(rows[i : i + 1], epochs[i : i + 1])
        assert_equal(alone, {k: v[i : i + 1] for k, v in whole.items()})
    assert_equal(pickle.loads(pickle.dumps(dataset))(rows, epochs), whole)
    monkeypatch.setattr(batches, "_CHUNK_TOKENS", 200)  # three rows at a time
    assert_equal(dataset(rows, epochs), whole)
    none = dataset(rows[:0], epochs[:0])
    assert {k: v.shape[1:] for k, v in none.items()} == {k: v.shape[1:] for k, v in whole.items()}


def assert_equal(actual, expected):
    assert list(actual) == list(expected)
    for name, array in actual.items():
        assert np.array_equal(array, expected[name]), name


def masks_of(batch):
    """For each row the masked positions and the masked ids, as bytes."""
    return [
        (positions.tobytes(), ids.tobytes())
        for positions, ids in zip(batch["masked_positions"], batch["input_ids"], strict=True)
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_static_masks_repeat_and_dynamic_masks_do_not(store, scheme):
    epochs = 30
    for dupe_factor, distinct in ((10, 10), (3, 3), (1, 1), (None, epochs)):
        dataset = make_dataset(store, 256, scheme=scheme, dupe_factor=dupe_factor)
        plain = dataset.assemble(np.arange(dataset.num_rows))
        rows = np.flatnonzero(plain["segment_ids"].sum(axis=1) > 200)
        assert len(rows) > 20
        seen = [masks_of(dataset(rows, np.full(len(rows), epoch))) for epoch in range(epochs)]
        for of_row in zip(*seen, strict=True):
            assert len(set(of_row)) == distinct
            if dupe_factor:
                assert of_row[dupe_factor:] == of_row[:-dupe_factor]
    # The static masks are the first dynamic masks.
    static = make_dataset(store, 256, scheme=scheme, dupe_factor=10)
    dynamic = make_dataset(store, 256, scheme=scheme)
    assert_equal(static(rows, rows + 10), dynamic(rows, rows % 10))


def test_each_sample_of_pairs_has_one_static_mask(store):
    """As in BERT's data, where each of ten copies of the corpus has its own pairs and masks."""
    duplicates = 10
    dataset = make_dataset(
        store, SEQ_LEN, format="segment_pair", pairs=PairOptions(duplicates), dupe_factor=duplicates
    )
    rows, epochs = rows_at(np.arange(3 * dataset.num_rows), dataset.epoch_ends, seed=1)
    assert epochs.max() == 29
    seen = collections.defaultdict(list)
    for row, mask in zip(rows.tolist(), masks_of(dataset(rows, epochs)), strict=True):
        seen[row].append(mask)
    assert all(len(masks) == 3 and len(set(masks)) == 1 for masks in seen.values())
    assert len(seen) == dataset.num_rows


@pytest.mark.parametrize("scheme", SCHEMES)
def test_replacements_of_statically_masked_tokens(store, scheme):
    """80% `<mask>`, 10% random tokens, 10% unchanged, drawn once per scheme, for each scheme."""
    dataset = make_dataset(
        store, SEQ_LEN, format="segment_pair", pairs=PairOptions(50), dupe_factor=50, scheme=scheme
    )
    rows = np.arange(dataset.num_rows)
    batch = dataset(rows, np.searchsorted(dataset.epoch_ends, rows, side="right"))
    row, slot = np.nonzero(batch["masked_weights"])
    after = batch["input_ids"][row, batch["masked_positions"][row, slot]]
    before = batch["masked_labels"][row, slot]
    drawable = VOCAB - 4
    # The maximum number of tokens that share one random draw.
    tokens_per_unit = {"token": 1, "whole_word": 3, "span": 12}[scheme]
    for share, outcomes in (
        (0.8 + 0.1 / drawable, after == MASK),
        (0.1 + 0.1 / drawable, after == before),
    ):
        bound = 6 * math.sqrt(share * (1 - share) * tokens_per_unit / len(after))
        assert abs(outcomes.mean() - share) < bound < 0.03
