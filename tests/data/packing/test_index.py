"""Tests of the packing index: its tables, its cache on disk and its errors."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.data.packing import blocks
from roberta_jax.data.packing import index as packing
from roberta_jax.data.packing.index import PairOptions
from roberta_jax.data.store.token_store import TokenStore, write_store
from roberta_jax.errors import UsageError
from tests.support import plain_packing, processes

documents = st.lists(
    st.lists(st.lists(st.integers(4, 99), max_size=30), min_size=1, max_size=6),
    min_size=1,
    max_size=8,
)


@given(documents, st.integers(2, 24), st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_every_token_is_in_one_input(tmp_path_factory, documents, seq_len, shard_tokens):
    folder = tmp_path_factory.mktemp("store")
    store = write_store(folder, documents, vocab_size=100, shard_tokens=shard_tokens)
    packed = packing.load_or_pack(store, "full_sentences", seq_len)
    starts, lengths = packed.inputs["a_start"], packed.inputs["a_len"].astype(np.int64)
    # The inputs are contiguous from the first token to the last.
    assert starts.tolist() == [0, *np.cumsum(lengths)[:-1]]
    assert lengths.sum() == store.num_tokens
    assert lengths.min() >= 1
    assert lengths.max() <= seq_len - 1
    # No row crosses a shard.
    ends = starts + lengths
    shard_of = np.searchsorted(store.shard_starts, starts, side="right")
    assert (shard_of == np.searchsorted(store.shard_starts, ends - 1, side="right")).all()
    # Within each shard, the inputs are those of the reference.
    row_lengths = [
        length
        for shard in store.shards
        for _, length in plain_packing.full_sentences(
            np.diff(shard.sentence_ends, prepend=0), seq_len - 1
        )
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
    monkeypatch.setattr(packing, "_build", None)  # fails if called
    again = packing.load_or_pack(store, "full_sentences", 64)
    assert isinstance(again.inputs, np.memmap)
    assert np.array_equal(first.inputs, again.inputs)
    assert not again.inputs.flags.writeable


def test_length_and_version_select_the_index(store, monkeypatch):
    for seq_len in (64, 32):
        packing.load_or_pack(store, "full_sentences", seq_len)
    monkeypatch.setattr(packing, "VERSION", -1)
    packing.load_or_pack(store, "full_sentences", 32)
    assert len(os.listdir(store.folder / "packed")) == 3


def test_concurrent_builds(store):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        indices = list(
            pool.map(lambda _: packing.load_or_pack(store, "full_sentences", 16), range(16))
        )
    assert all(np.array_equal(index.inputs, indices[0].inputs) for index in indices)
    assert len(os.listdir(store.folder / "packed")) == 1  # no temporary folder is left


def test_a_failed_build_leaves_nothing(store, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(blocks, "full_sentences", fail)
    with pytest.raises(KeyboardInterrupt):
        packing.load_or_pack(store, "full_sentences", 16)
    assert os.listdir(store.folder / "packed") == []


def test_invalid_input(store, tmp_path):
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


PAIR_OPTIONS = PairOptions(dupe_factor=2)


@pytest.mark.parametrize("format", packing.FORMATS)
def test_every_format_is_cached_by_its_options(store, format, monkeypatch):
    first = packing.load_or_pack(store, format, 64, PAIR_OPTIONS)
    others = [
        PairOptions(dupe_factor=3),
        PairOptions(2, short_seq_prob=0.2),
        PairOptions(2, num_separators=1),
        PairOptions(2, seed=1),
    ]
    for options in others:
        packing.load_or_pack(store, format, 64, options)
    of_pairs = format in packing.PAIR_FORMATS
    assert len(os.listdir(store.folder / "packed")) == (5 if of_pairs else 1)
    monkeypatch.setattr(packing, "_build", None)  # fails if called
    again = packing.load_or_pack(store, format, 64, PAIR_OPTIONS)
    assert np.array_equal(first.inputs, again.inputs)
    assert np.array_equal(first.rows, again.rows)
    assert isinstance(again.rows, np.memmap)
    assert again.duplicate_ends == first.duplicate_ends
    assert again.num_separators == (2 if of_pairs else 0)


def test_corpora_without_pairs(store):
    for format in packing.PAIR_FORMATS:
        for separators in (1, 2):
            options = PairOptions(1, num_separators=separators)
            least = 4 + separators  # <s>, a, the separators, b, </s>
            packed = packing.load_or_pack(store, format, least, options)
            assert (packed.inputs["a_len"] == 1).all()
            assert (packed.inputs["b_len"] == 1).all()
            with pytest.raises(UsageError, match=f"seq_len is {least - 1}, .* at least {least}"):
                packing.load_or_pack(store, format, least - 1, options)


def test_pairs_need_a_second_document(tmp_path, caplog):
    one = write_store(tmp_path / "one", [[[5, 6], [7], [8]]], vocab_size=100)
    for format in packing.PAIR_FORMATS:
        with pytest.raises(UsageError, match=r"a single document.*more documents"):
            packing.load_or_pack(one, format, 16)
    # Each document is in a separate shard, so that there are no random texts.
    documents = [[[5, 6], [7], [8], [9]], [[5]], [[6, 7], [8]]]
    store = write_store(tmp_path / "shards", documents, vocab_size=100, shard_tokens=1)
    for format in packing.PAIR_FORMATS:
        caplog.clear()
        packed = packing.load_or_pack(store, format, 16, PairOptions(3))
        assert len(caplog.records) == 3  # one per shard, not one per duplicate
        assert "shard 00000" in caplog.text
        assert len(packed.inputs) >= 6
        assert (packed.inputs["next_label"] == 0).all()
    lone = write_store(tmp_path / "lone", [[[5]], [[6]]], vocab_size=100, shard_tokens=1)
    with pytest.raises(UsageError, match="no input in the format segment_pair"):
        packing.load_or_pack(lone, "segment_pair", 16)


def test_shards_without_pairs_have_no_rows(tmp_path):
    """A shard of one document gives one pair if it has two lines, and none if it has one."""
    store = write_store(tmp_path, [[[5], [6]], [[7]]], vocab_size=100, shard_tokens=1)
    packed = packing.load_or_pack(store, "sentence_pair", 16, PairOptions(3))
    assert packed.duplicate_ends == (1, 2, 3)
    assert packed.rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dupe_factor": 0}, r"data\.dupe_factor is 0"),
        ({"short_seq_prob": -0.1}, r"data\.short_seq_prob is -0\.1"),
        ({"short_seq_prob": 1.5}, r"data\.short_seq_prob is 1\.5"),
        ({"short_seq_prob": float("nan")}, r"data\.short_seq_prob is nan"),
        ({"num_separators": 0}, r"data\.num_separators is 0"),
        ({"num_separators": 3}, r"data\.num_separators is 3"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(UsageError, match=message):
        PairOptions(**options)


def tables(packed):
    return packed.inputs.tobytes(), packed.rows.tobytes(), packed.num_tokens, packed.duplicate_ends


def index_folder(store):
    [folder] = (store.folder / "packed").iterdir()
    return folder


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def zero_a_block(path):
    data = bytearray(path.read_bytes())
    data[20:40] = bytes(20)
    path.write_bytes(data)


DAMAGES = {
    "flipped": flip_a_bit,
    "zeroed": zero_a_block,
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: path.unlink() or path.mkdir(),
    "text": lambda path: path.write_text("no table"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["inputs.bin", "rows.bin", "index.json"])
def test_a_damaged_index_is_packed_again(store, name, damage, caplog):
    expected = tables(packing.load_or_pack(store, "sentences", 64))
    DAMAGES[damage](index_folder(store) / name)
    caplog.clear()
    assert tables(packing.load_or_pack(store, "sentences", 64)) == expected
    assert f"{name}" in caplog.text
    assert "It is packed again" in caplog.text
    caplog.clear()
    assert tables(packing.load_or_pack(store, "sentences", 64)) == expected
    assert not caplog.records


def test_an_index_in_the_place_of_another_is_packed_again(store):
    expected = tables(packing.load_or_pack(store, "sentences", 64))
    folder = index_folder(store)
    folder.rename(store.folder / "first")
    packing.load_or_pack(store, "sentences", 32)
    index_folder(store).rename(folder)
    assert tables(packing.load_or_pack(store, "sentences", 64)) == expected


def test_an_index_of_an_earlier_version_is_packed_again(store):
    """Its `index.json` has the counts alone."""
    expected = tables(packing.load_or_pack(store, "sentences", 64))
    path = index_folder(store) / "index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({k: index[k] for k in index.keys() - {"name", "files", "blake2b"}}))
    assert tables(packing.load_or_pack(store, "sentences", 64)) == expected
    assert json.loads(path.read_text()) == index


def test_temporary_folders_of_killed_processes_are_removed(store):
    """But not while another process packs an index of the same store."""
    leftover = store.folder / "packed" / "sentences-64-0123.4567.tmp"
    leftover.mkdir(parents=True)
    (leftover / "inputs.bin").write_bytes(b"12")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with packing._lock(store):
            future = pool.submit(packing.load_or_pack, store, "sentences", 64)
            with pytest.raises(TimeoutError):
                future.result(timeout=0.3)
            assert leftover.exists()
        future.result(timeout=60)
    assert not leftover.exists()


def test_remove_damaged(store):
    for seq_len in (16, 32, 64):
        packing.load_or_pack(store, "sentences", seq_len)
    assert packing.remove_damaged(store) == []
    damaged = sorted((store.folder / "packed").iterdir())[1]
    flip_a_bit(damaged / "rows.bin")
    assert packing.remove_damaged(store) == [damaged]
    assert len(os.listdir(store.folder / "packed")) == 2
    assert packing.remove_damaged(store) == []


def test_an_intact_index_may_be_read_only(store, monkeypatch):
    packing.load_or_pack(store, "sentences", 64)
    monkeypatch.setattr(packing, "_lock", None)  # fails if called
    packing.load_or_pack(store, "sentences", 64)


def pack_counting(folder: str, out: str) -> None:
    """In a process of `test_one_process_packs_and_the_others_wait`."""
    build = packing._build

    def counting(*arguments):
        time.sleep(1)
        build(*arguments)
        print("packed")

    packing._build = counting
    packed = packing.load_or_pack(TokenStore.open(folder), "sentences", 64)
    pathlib.Path(out).write_text(str(packed.num_rows))


def test_one_process_packs_and_the_others_wait(store, tmp_path):
    """As on hosts that share a cache."""
    started = [
        subprocess.Popen(
            processes.command(__name__, "pack_counting", str(store.folder), f"{tmp_path}/out{i}"),
            env=processes.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(3)
    ]
    results = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], results
    assert sorted(out for out, _ in results) == ["", "", "packed\n"]
    assert len({(tmp_path / f"out{i}").read_text() for i in range(3)}) == 1
