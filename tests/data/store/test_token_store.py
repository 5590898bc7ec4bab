"""Tests of token stores: layout, damage, and views of the first documents."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.data.packing import index as packing
from roberta_jax.data.store import digests
from roberta_jax.data.store.digests import CHECKED
from roberta_jax.data.store.layout import ARRAYS
from roberta_jax.data.store.token_store import TokenStore, write_store
from roberta_jax.errors import UsageError
from tests.support import toy_corpus

EOS = 2
DOCUMENTS = [[[10, 11], [12]], [[13, 14, 15]], [[16], [17], [18, 19]]]


def test_layout_is_that_of_fairseq(tmp_path):
    store = write_store(tmp_path, DOCUMENTS, vocab_size=100)
    (shard,) = store.shards
    assert shard.tokens.tolist() == [
        *(10, 11, EOS, 12, EOS, EOS),
        *(13, 14, 15, EOS, EOS),
        *(16, EOS, 17, EOS, 18, 19, EOS, EOS),
    ]
    assert shard.sentence_ends.tolist() == [3, 5, 6, 10, 11, 13, 15, 18, 19]
    assert shard.document_ends.tolist() == [6, 11, 19]
    assert (store.num_tokens, store.num_sentences, store.num_documents) == (19, 9, 3)
    assert store.vocab_size == 100
    assert store.eos_id == EOS


def test_shards_hold_whole_documents_and_are_bounded(tmp_path):
    rng = np.random.default_rng(0)
    documents = [
        [list(range(10, 10 + length)) for length in rng.integers(1, 9, rng.integers(1, 6))]
        for _ in range(50)
    ]
    one = write_store(tmp_path / "one", documents, vocab_size=100)
    many = write_store(tmp_path / "many", documents, vocab_size=100, shard_tokens=60)
    assert len(one.shards) == 1
    assert len(many.shards) > 10
    assert all(shard.num_tokens <= 60 for shard in many.shards)
    for shard in many.shards:
        assert shard.document_ends[-1] == shard.sentence_ends[-1] == shard.num_tokens
    np.testing.assert_array_equal(
        np.concatenate([shard.tokens for shard in many.shards]), one.shards[0].tokens
    )
    for ends in ("sentence_ends", "document_ends"):
        shifted = [getattr(shard, ends) + shard.start for shard in many.shards]
        np.testing.assert_array_equal(np.concatenate(shifted), getattr(one.shards[0], ends))
    assert many.shard_starts.tolist() == [s.start for s in many.shards] + [one.num_tokens]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(65536, np.uint16), (65537, np.uint32), (250002, np.uint32)]
)
def test_dtype_follows_the_vocabulary(tmp_path, vocab_size, dtype):
    store = write_store(tmp_path, [[[vocab_size - 1]]], vocab_size)
    assert store.dtype == dtype
    assert store.shards[0].tokens.dtype == dtype
    assert store.shards[0].tokens.tolist() == [vocab_size - 1, EOS, EOS]


def test_empty_store_opens(tmp_path):
    store = write_store(tmp_path, [], vocab_size=100)
    assert store.num_tokens == 0
    assert store.shards == ()
    assert store.shard_starts.tolist() == [0]


def test_arrays_are_memory_mapped_and_read_only(tmp_path):
    shard = write_store(tmp_path, DOCUMENTS, vocab_size=100).shards[0]
    assert isinstance(shard.tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        shard.tokens[0] = 1


def test_pickles_hold_no_tokens(tmp_path):
    store = write_store(tmp_path, [[[10] * 100_000]], vocab_size=100)
    assert store.shards[0].tokens[0] == 10
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert pickle.loads(data).num_tokens == store.num_tokens


def test_files_are_plain_npy_and_deterministic(tmp_path):
    write_store(tmp_path / "a", DOCUMENTS, vocab_size=100)
    write_store(tmp_path / "b", DOCUMENTS, vocab_size=100)
    names = sorted(path.name for path in (tmp_path / "a").iterdir() if path.name != CHECKED)
    assert names == sorted(["index.json", *(f"00000.{array}.npy" for array in ARRAYS)])
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_missing_store(tmp_path):
    with pytest.raises(UsageError, match=r"holds no token store.*roberta_jax\.prepare"):
        TokenStore.open(tmp_path)


def make_documents(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        [rng.integers(4, 100, rng.integers(1, 20)).tolist() for _ in range(rng.integers(1, 8))]
        for _ in range(count)
    ]


def contents(store):
    return [
        [getattr(shard, name).tolist() for name in ARRAYS] + [shard.start] for shard in store.shards
    ]


@given(
    st.integers(0, 12),
    st.integers(1, 400),
    st.integers(1, 1200),
    st.integers(0, 2**30),
)
@settings(max_examples=100, deadline=None)
def test_a_view_equals_a_store_of_the_first_documents(
    tmp_path_factory, count, shard_tokens, max_tokens, seed
):
    documents = make_documents(count, seed)
    folder = tmp_path_factory.mktemp("store")
    store = write_store(folder / "all", documents, 100, shard_tokens=shard_tokens)
    sizes = np.cumsum([sum(map(len, lines)) + len(lines) + 1 for lines in documents])
    num_documents = int((sizes <= max_tokens).sum())
    num_documents = max(num_documents, 1) if documents else 0
    expected = write_store(
        folder / "few", documents[:num_documents], 100, shard_tokens=shard_tokens
    )
    view = store.first(max_tokens)
    assert contents(view) == contents(expected)
    for name in ("num_tokens", "num_sentences", "num_documents", "vocab_size", "eos_id"):
        assert getattr(view, name) == getattr(expected, name)
    assert view.shard_starts.tolist() == expected.shard_starts.tolist()
    # Views can be pickled, verified and narrowed further.
    again = pickle.loads(pickle.dumps(view))
    assert contents(again) == contents(view)
    view.verify()
    assert contents(store.first(10**9)) == contents(store)
    assert contents(store.first(10**9).first(max_tokens)) == contents(view)
    assert contents(view.first(max_tokens)) == contents(view)


def test_a_view_has_its_own_packing_index(tmp_path):
    documents = make_documents(60)
    store = write_store(tmp_path / "all", documents, 100, shard_tokens=700)
    view = store.first(store.num_tokens // 2)
    assert 1 < len(view.shards) < len(store.shards)
    few = write_store(tmp_path / "few", documents[: view.num_documents], 100, shard_tokens=700)
    for format in packing.FORMATS:
        whole, index, expected_index = (
            packing.load_or_pack(x, format, 32) for x in (store, view, few)
        )
        assert index.num_rows == expected_index.num_rows < whole.num_rows
        assert np.array_equal(index.inputs, expected_index.inputs)
        assert np.array_equal(index.rows, expected_index.rows)
        assert index.duplicate_ends == expected_index.duplicate_ends
        assert index.padding_share == expected_index.padding_share
        assert np.array_equal(packing.load_or_pack(store, format, 32).inputs, whole.inputs)
        rows = np.arange(index.num_rows)
        actual = toy_corpus.make_dataset(view, packed=index)(rows, rows)
        expected = toy_corpus.make_dataset(few, packed=expected_index)(rows, rows)
        for name in expected:
            assert np.array_equal(actual[name], expected[name])
    # A view of all documents uses the index of the store.
    number = len(list((store.folder / "packed").iterdir()))
    packing.load_or_pack(store.first(store.num_tokens), "full_sentences", 32)
    assert len(list((store.folder / "packed").iterdir())) == number


@pytest.mark.parametrize("damage", ["missing", "short", "long"])
@pytest.mark.parametrize("array", ARRAYS)
def test_missing_or_resized_file(tmp_path, damage, array):
    write_store(tmp_path, DOCUMENTS, vocab_size=100)
    path = tmp_path / f"00000.{array}.npy"
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UsageError, match=rf"00000\.{array}\.npy.*Delete that folder"):
        TokenStore.open(tmp_path)


def flip_a_bit(path, place=-3):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("remembered", [True, False])
@pytest.mark.parametrize("array", ARRAYS)
def test_a_flipped_bit_is_detected(tmp_path, array, remembered):
    write_store(tmp_path, DOCUMENTS, vocab_size=100).verify()
    if not remembered:
        (tmp_path / CHECKED).unlink()
    path = tmp_path / f"00000.{array}.npy"
    flip_a_bit(path)
    for _ in range(2):
        with pytest.raises(UsageError, match=rf"contents of 00000\.{array}\.npy have changed"):
            TokenStore.open(tmp_path)
    flip_a_bit(path)
    TokenStore.open(tmp_path).verify()


def test_verify_reads_all_files(tmp_path, monkeypatch):
    store = write_store(tmp_path, DOCUMENTS, vocab_size=100)
    flip_a_bit(tmp_path / "00000.tokens.npy")
    # As after damage by the disk: no write, so nothing that `stat` could show.
    monkeypatch.setattr(digests, "_read_remembered", lambda folder: Anything())
    TokenStore.open(tmp_path)
    with pytest.raises(UsageError, match=r"contents of 00000\.tokens\.npy have changed"):
        store.verify()


class Anything(dict):
    """Remembers every file, in any state."""

    def get(self, name, default=None):
        return Equal()


class Equal:
    __hash__ = None

    def __eq__(self, other):
        return True


def test_ids_beyond_the_vocabulary_are_refused(tmp_path):
    """As in a store that another program made: its hashes are right."""
    with pytest.raises(UsageError, match=r"00000\.tokens\.npy holds the id 99, .* has 98 ids"):
        write_store(tmp_path, [[[5, 99]], [[97]]], vocab_size=98)


@pytest.mark.parametrize(
    "change",
    [
        {"num_tokens": 20},
        {"vocab_size": "many"},
        {"shards": []},
        {"shards": [{}]},
        {"shards": None},
        {"version": 99},
        {"format": "a list"},
    ],
)
@pytest.mark.parametrize("sealed", [True, False])
def test_an_index_with_other_contents_is_refused(tmp_path, change, sealed):
    """Also one of an earlier version, which has no hash of its own."""
    write_store(tmp_path, DOCUMENTS, vocab_size=100)
    path = tmp_path / "index.json"
    index = json.loads(path.read_text()) | change
    if not sealed:
        del index["blake2b"]
    path.write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"Delete that folder"):
        TokenStore.open(tmp_path)


def test_an_index_without_a_hash_is_read(tmp_path):
    store = write_store(tmp_path, DOCUMENTS, vocab_size=100)
    path = tmp_path / "index.json"
    index = json.loads(path.read_text())
    assert index.pop("blake2b")
    path.write_text(json.dumps(index))
    assert TokenStore.open(tmp_path).index == store.index


@pytest.mark.parametrize("change", ["text", "version", "format"])
def test_damaged_index(tmp_path, change):
    write_store(tmp_path, DOCUMENTS, vocab_size=100)
    path = tmp_path / "index.json"
    index = json.loads(path.read_text())
    if change == "text":
        path.write_text(path.read_text()[:-20])
    elif change == "version":
        path.write_text(json.dumps(index | {"version": 99}))
    else:
        path.write_text(json.dumps([1, 2]))
    with pytest.raises(UsageError, match="Delete that folder"):
        TokenStore.open(tmp_path)
