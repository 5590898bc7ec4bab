"""Packing: fairseq's rule in plain Python against ours, and the index on disk."""

import concurrent.futures
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.data import packing
from roberta_jax.data.token_store import write_store
from roberta_jax.errors import UsageError


def greedy(line_lengths, block):
    """The rule as one would say it: row lengths, the lines taken one at a time."""
    rows = []
    room = 0
    for length in line_lengths:
        while length > block:  # a piece that fills a row of its own
            rows.append(block)
            room = 0
            length -= block
        if length > room:
            rows.append(0)
            room = block
        rows[-1] += length
        room -= length
    return rows


@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(1, 20))
@settings(max_examples=300, deadline=None)
def test_full_sentences_is_the_greedy_rule(line_lengths, block):
    row_ends = packing.full_sentences(np.cumsum(line_lengths), block)
    assert np.diff(row_ends, prepend=0).tolist() == greedy(line_lengths, block)


def test_full_sentences_by_hand():
    # Lines of 3, 1 (blank), 6, 12 (cut into 8 + 4), 2 and 1 tokens into rows of 8.
    row_ends = packing.full_sentences(np.cumsum([3, 1, 6, 12, 2, 1]), 8)
    assert row_ends.tolist() == [4, 10, 18, 25]


documents = st.lists(
    st.lists(st.lists(st.integers(4, 99), max_size=30), min_size=1, max_size=6),
    min_size=1,
    max_size=8,
)


@given(documents, st.integers(2, 24), st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_every_token_is_used_once(tmp_path_factory, documents, seq_len, shard_tokens):
    folder = tmp_path_factory.mktemp("store")
    store = write_store(folder, documents, vocab_size=100, shard_tokens=shard_tokens)
    packed = packing.load_or_pack(store, "full_sentences", seq_len)
    starts, lengths = packed.inputs["a_start"], packed.inputs["a_len"].astype(np.int64)
    # End to end from 0 to the last token: each is used once, in order.
    assert starts.tolist() == [0, *np.cumsum(lengths)[:-1]]
    assert lengths.sum() == store.num_tokens
    assert lengths.min() >= 1
    assert lengths.max() <= seq_len - 1
    # No row crosses a shard.
    ends = starts + lengths
    shard_of = np.searchsorted(store.shard_starts, starts, side="right")
    assert (shard_of == np.searchsorted(store.shard_starts, ends - 1, side="right")).all()
    # Within each shard, fairseq's rule.
    row_lengths = [
        length
        for shard in store.shards
        for length in greedy(np.diff(shard.sentence_ends, prepend=0), seq_len - 1)
    ]
    assert lengths.tolist() == row_lengths


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    documents = [
        [rng.integers(4, 100, rng.integers(1, 40)).tolist() for _ in range(rng.integers(1, 20))]
        for _ in range(60)
    ]
    return write_store(tmp_path / "store", documents, vocab_size=100, shard_tokens=3000)


def test_tables(store):
    packed = packing.load_or_pack(store, "full_sentences", 64)
    assert packed.max_inputs == 1
    assert packed.num_rows == len(packed.inputs)
    assert packed.rows.tolist() == list(range(packed.num_rows + 1))
    assert not packed.inputs["b_len"].any()
    assert (packed.inputs["next_label"] == -1).all()
    assert packed.num_tokens == store.num_tokens + packed.num_rows  # each row's <s>
    assert packed.padding_share == pytest.approx(
        1 - (packed.inputs["a_len"] + 1).sum() / (packed.num_rows * 64)
    )
    assert 0 < packed.padding_share < 0.4


def test_the_index_is_cached_and_mapped(store, monkeypatch):
    first = packing.load_or_pack(store, "full_sentences", 64)
    monkeypatch.setattr(packing, "_build", None)  # would fail if called
    again = packing.load_or_pack(store, "full_sentences", 64)
    assert isinstance(again.inputs, np.memmap)
    assert np.array_equal(first.inputs, again.inputs)
    assert not again.inputs.flags.writeable


def test_another_length_or_version_is_another_index(store, monkeypatch):
    for seq_len in (64, 32):
        packing.load_or_pack(store, "full_sentences", seq_len)
    monkeypatch.setattr(packing, "VERSION", -1)
    packing.load_or_pack(store, "full_sentences", 32)
    assert len(os.listdir(store.folder / "packed")) == 3


def test_builds_at_the_same_time(store):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        indices = list(
            pool.map(lambda _: packing.load_or_pack(store, "full_sentences", 16), range(16))
        )
    assert all(np.array_equal(index.inputs, indices[0].inputs) for index in indices)
    assert len(os.listdir(store.folder / "packed")) == 1  # nothing temporary is left


def test_a_failed_build_leaves_nothing(store, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "full_sentences", fail)
    with pytest.raises(KeyboardInterrupt):
        packing.load_or_pack(store, "full_sentences", 16)
    assert os.listdir(store.folder / "packed") == []


def test_bad_input(store, tmp_path):
    with pytest.raises(UsageError, match=r"data\.format is 'doc'.*full_sentences"):
        packing.load_or_pack(store, "doc", 16)
    with pytest.raises(UsageError, match="seq_len is 1"):
        packing.load_or_pack(store, "full_sentences", 1)
    empty = write_store(tmp_path / "empty", [], vocab_size=100)
    with pytest.raises(UsageError, match="holds no tokens"):
        packing.load_or_pack(empty, "full_sentences", 16)
    (store.folder / "packed").write_text("in the way")
    with pytest.raises(UsageError, match="cannot be written"):
        packing.load_or_pack(store, "full_sentences", 16)


def test_packing_is_quick():
    """10M tokens take some hundredths of a second; the bound is for a busy machine."""
    line_ends = np.cumsum(np.random.default_rng(0).geometric(1 / 25, 400_000))
    start = time.perf_counter()
    packing.full_sentences(line_ends, 511)
    assert time.perf_counter() - start < 3
