"""Tests of the inputs and rows of all formats, with random documents and real text."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.pretrain import get_config
from roberta_jax.data.packing.formats import FORMATS, MAX_INPUTS, PairOptions
from roberta_jax.data.packing.index import PAIR_FORMATS, load_or_pack
from roberta_jax.data.store import build, layout
from roberta_jax.data.store.token_store import write_store
from roberta_jax.data.text import corpus
from roberta_jax.pretraining.text import prepare
from roberta_jax.pretraining.text_spec import read_text_spec
from tests.support import plain_packing

documents = st.lists(
    st.lists(st.lists(st.integers(4, 99), min_size=1, max_size=20), min_size=1, max_size=8),
    min_size=2,
    max_size=10,
)
options = st.builds(
    PairOptions,
    dupe_factor=st.integers(1, 3),
    short_seq_prob=st.sampled_from([0.0, 0.1, 1.0]),
    num_separators=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**40),
)


def documents_of(shard):
    """The lengths of each document's lines, without the blank one."""
    lengths = np.diff(shard.sentence_ends, prepend=0)
    stops = np.searchsorted(shard.sentence_ends, shard.document_ends)
    starts = np.append(0, stops[:-1] + 1)
    return [lengths[i:j].tolist() for i, j in zip(starts, stops, strict=True)]


def ends_of(store):
    """(line_ends, document_ends) of all shards, in global positions."""
    return tuple(
        np.concatenate([getattr(shard, name) + shard.start for shard in store.shards])
        for name in ("sentence_ends", "document_ends")
    )


def check_rows(store, packed, specials):
    """Checks that each input is in one row, and that rows fit and do not cross shards."""
    inputs, rows = packed.inputs, packed.rows
    lengths = inputs["a_len"].astype(np.int64) + inputs["b_len"] + specials
    assert rows[0] == 0
    assert rows[-1] == len(inputs)
    assert packed.duplicate_ends[-1] == packed.num_rows == len(rows) - 1
    per_row = np.diff(rows)
    assert per_row.min() >= 1
    assert per_row.max() <= packed.max_inputs <= MAX_INPUTS
    filled = np.add.reduceat(lengths, rows[:-1])
    assert filled.max() <= packed.seq_len
    assert filled.sum() == packed.num_tokens
    assert packed.padding_share == pytest.approx(1 - filled.mean() / packed.seq_len)
    parts = [inputs["a_start"], inputs["a_start"] + inputs["a_len"] - 1]
    if packed.num_separators:
        parts += [inputs["b_start"], inputs["b_start"] + inputs["b_len"] - 1]
    shards = np.searchsorted(store.shard_starts, np.stack(parts), side="right")
    assert (shards == shards[0]).all()
    assert (shards[0] == np.repeat(shards[0][rows[:-1]], per_row)).all()


def times_used(store, inputs):
    """The number of inputs that contain each token of the store."""
    change = np.zeros(store.num_tokens + 1, np.int64)
    np.add.at(change, inputs["a_start"], 1)
    np.add.at(change, inputs["a_start"] + inputs["a_len"], -1)
    return np.cumsum(change)[:-1]


def check_single(store, packed, format):
    """Checks inputs against the reference; blank lines are used only in FULL-SENTENCES."""
    assert not packed.inputs["b_len"].any()
    assert (packed.inputs["next_label"] == -1).all()
    expected = np.ones(store.num_tokens, np.int64)
    document_ends = ends_of(store)[1]
    if format != "full_sentences":
        expected[document_ends - 1] = 0
        first = np.searchsorted(document_ends, packed.inputs["a_start"], side="right")
        last = packed.inputs["a_start"] + packed.inputs["a_len"] - 1
        assert (np.searchsorted(document_ends, last, side="right") == first).all()
    assert np.array_equal(times_used(store, packed.inputs), expected)
    rule = getattr(plain_packing, format)
    expected_inputs = set()
    for shard in store.shards:
        lines = documents_of(shard)
        if format == "full_sentences":
            lines = [length for document in lines for length in [*document, 1]]
        expected_inputs |= {
            (shard.start + i, length) for i, length in rule(lines, packed.seq_len - 1)
        }
    inputs = packed.inputs[["a_start", "a_len"]].tolist()
    assert len(inputs) == len(expected_inputs)
    assert set(inputs) == expected_inputs


def check_pairs(store, packed, format, options):
    """Checks labels, and each duplicate against the reference; returns the reference's pairs."""
    inputs = packed.inputs
    budget = packed.seq_len - 2 - options.num_separators
    fields = ("a_start", "a_len", "b_start", "b_len")
    columns = {name: inputs[name].astype(np.int64) for name in fields}
    plain_packing.assert_true_pairs(*ends_of(store), budget, **columns, label=inputs["next_label"])
    assert packed.num_separators == options.num_separators
    assert len(packed.duplicate_ends) == options.dupe_factor
    start, expected = 0, []
    for duplicate, end in enumerate(packed.duplicate_ends):
        expected_pairs = []
        for number, shard in enumerate(store.shards):
            lines = documents_of(shard)
            sampler = plain_packing.Sampler(lines, options.seed, duplicate, number)
            if format == "segment_pair":
                sampled = plain_packing.segment_pairs(
                    lines, budget, options.short_seq_prob, sampler
                )
            else:
                sampled = plain_packing.sentence_pairs(lines, budget, sampler)
            expected_pairs += [
                pair._replace(
                    a_start=pair.a_start + shard.start, b_start=pair.b_start + shard.start
                )
                for pair in sampled
            ]
        actual = inputs[packed.rows[start] : packed.rows[end]].tolist()
        assert sorted(actual) == sorted(pair[:5] for pair in expected_pairs)
        start = end
        expected.append(expected_pairs)
    return expected


@given(documents, st.integers(2, 40), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_single_inputs(tmp_path_factory, documents, seq_len, shard_tokens):
    folder = tmp_path_factory.mktemp("store")
    store = write_store(folder, documents, vocab_size=100, shard_tokens=shard_tokens)
    for format in set(FORMATS) - set(PAIR_FORMATS):
        packed = load_or_pack(store, format, seq_len)
        assert packed.num_separators == 0
        assert len(packed.duplicate_ends) == 1
        check_rows(store, packed, 1)
        check_single(store, packed, format)


@given(documents, st.integers(6, 60), st.integers(60, 300), options)
@settings(max_examples=60, deadline=None)
def test_pairs(tmp_path_factory, documents, seq_len, shard_tokens, options):
    folder = tmp_path_factory.mktemp("store")
    # At least one shard needs two documents, or there might be no pair.
    store = write_store(folder, documents, vocab_size=100, shard_tokens=shard_tokens)
    if all(len(shard.document_ends) == 1 for shard in store.shards):
        store = write_store(folder / "one", documents, vocab_size=100)
    for format in PAIR_FORMATS:
        packed = load_or_pack(store, format, seq_len, options)
        check_rows(store, packed, 2 + options.num_separators)
        check_pairs(store, packed, format, options)


@pytest.fixture(scope="module")
def real_store(real_data, tmp_path_factory):
    """The validation text of Wikipedia with RoBERTa's vocabulary, in several shards."""
    config = get_config("small")
    config.data.files = str(real_data / "pretrain" / "wiki_en.valid.jsonl.xz")
    config.data.cache_dir = str(tmp_path_factory.mktemp("cache"))
    config.data.num_workers = 1
    config.tokenizer = str(real_data / "bpe_gpt2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE_BYTES", 100_000)
        patch.setattr(build, "CHUNK_BYTES", 200_000)
        patch.setattr(layout, "SHARD_TOKENS", 100_000)
        store = prepare(read_text_spec(config), progress=False).train
    assert len(store.shards) > 3
    return store


# Upper bounds of the fraction of padding, from measurements.
PADDING = {
    "full_sentences": 0.15,
    "doc_sentences": 0.15,
    "sentences": 0.01,
    "segment_pair": 0.03,
    "sentence_pair": 0.03,
}


@pytest.mark.parametrize("format", FORMATS)
def test_real_text(real_store, format):
    options = PairOptions(dupe_factor=2)
    packed = load_or_pack(real_store, format, 128, options)
    check_rows(real_store, packed, 4 if format in PAIR_FORMATS else 1)
    assert packed.padding_share < PADDING[format]
    if format not in PAIR_FORMATS:
        check_single(real_store, packed, format)
        return
    expected = check_pairs(real_store, packed, format, options)
    labels = np.array(
        [pair.label for duplicate in expected for pair in duplicate if pair.had_choice]
    )
    assert len(labels) > 5000
    assert abs(labels.mean() - 0.5) < 5 * 0.5 / math.sqrt(len(labels))
    # More than half are random, as in BERT: no text follows the last sentence of a document, and a
    # single sentence that reaches a short target is paired with a random text.
    assert 0.49 < packed.inputs["next_label"].mean() < 0.62
    # The duplicates have few pairs in common.
    first, second = map(set, expected)
    assert len(first & second) < 0.3 * len(first)
