"""Rows of single documents, and batches of them."""

import itertools

import numpy as np
import pytest

from roberta_jax.data.batches import PackedDataset
from roberta_jax.data.masking import Masking
from roberta_jax.data.packing.index import load_or_pack
from roberta_jax.data.row_lengths import choose_lengths
from roberta_jax.data.store.token_store import write_store
from roberta_jax.errors import UsageError
from roberta_jax.language_modeling.documents import Document
from roberta_jax.language_modeling.rows import MAX_BUCKETS, batches, make_rows
from tests.support import language_models

MAX_LENGTH = 32


@pytest.fixture(scope="module")
def rows():
    return make_rows(language_models.documents(), language_models.tokenizer(), MAX_LENGTH)


def tokens_of(rows, row):
    return rows.inputs(np.array([row]), rows.max_length)["input_ids"][0, : rows.lengths[row]]


def test_a_row_has_whole_sentences_of_one_document(rows):
    tokenizer = language_models.tokenizer()
    of_rows = [tokens_of(rows, row) for row in range(rows.num_rows)]
    for number, document in enumerate(language_models.documents()):
        ids = [tokenizer.encode(each)[1:] for each in document.sentences]  # each ends in </s>
        mine = [of_rows[row] for row in np.flatnonzero(rows.document == number)]
        assert all(row[0] == tokenizer.bos_token_id and len(row) <= MAX_LENGTH for row in mine)
        joined = np.concatenate([row[1:] for row in mine])
        assert joined.tolist() == list(itertools.chain.from_iterable(ids))
        assert rows.text_tokens[number] == sum(len(each) - 1 for each in ids)
        if max(map(len, ids)) < MAX_LENGTH:
            assert all(row[-1] == tokenizer.eos_token_id for row in mine)
    assert max(rows.lengths[rows.document == 3]) == MAX_LENGTH  # a sentence that is cut
    assert rows.number_in_document[rows.document == 3].tolist() == list(
        range(sum(rows.document == 3))
    )


def test_the_rows_are_the_inputs_of_doc_sentences(rows, tmp_path):
    """Those of the pretraining format, which share rows there."""
    tokenizer = language_models.tokenizer()
    ids = [
        [tokenizer.encode(sentence, add_special_tokens=False) for sentence in document.sentences]
        for document in language_models.documents()
    ]
    store = write_store(tmp_path, ids, len(tokenizer), tokenizer.eos_token_id)
    dataset = PackedDataset(
        store,
        load_or_pack(store, "doc_sentences", MAX_LENGTH),
        Masking(),
        seed=0,
        vocab_size=len(tokenizer),
        bos_id=tokenizer.bos_token_id,
        pad_id=tokenizer.pad_token_id,
        mask_id=tokenizer.mask_token_id,
        special_ids=tokenizer.all_special_ids,
    )
    batch = dataset.assemble(np.arange(dataset.num_rows))
    inputs = [
        tuple(ids[segments == number].tolist())
        for ids, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True)
        for number in range(1, segments.max() + 1)
    ]
    mine = [tuple(tokens_of(rows, row).tolist()) for row in range(rows.num_rows)]
    assert sorted(inputs) == sorted(mine)


def test_inputs_are_padded(rows):
    batch = rows.inputs(np.array([1, 0]), MAX_LENGTH)
    lengths = rows.lengths[[1, 0]]
    inside = np.arange(MAX_LENGTH) < lengths[:, None]
    np.testing.assert_array_equal(batch["attention_mask"], inside)
    assert (batch["input_ids"][~inside] == rows.pad_id).all()
    assert (batch["position_ids"][~inside] == rows.pad_id).all()
    assert batch["position_ids"][0, :3].tolist() == [rows.pad_id + n for n in (1, 2, 3)]
    assert all(array.dtype == np.int32 for array in batch.values())


def test_text_positions_are_those_without_special_tokens(rows):
    row_N, position_N = rows.text_positions(np.array([2, 0]))
    expected = [
        (row, position)
        for row in (2, 0)
        for position, token in enumerate(tokens_of(rows, row))
        if token not in (rows.bos_id, rows.eos_id)
    ]
    assert list(zip(row_N.tolist(), position_N.tolist(), strict=True)) == expected
    every, _ = rows.text_positions(np.arange(rows.num_rows))
    assert len(every) == rows.text_tokens.sum()


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("tokens", [64, 1000])
def test_batches_have_each_item_once_in_few_shapes(multiple, tokens):
    lengths = np.random.default_rng(0).integers(2, 65, 101)
    buckets = choose_lengths(lengths, MAX_BUCKETS, 64)
    shapes, items = set(), []
    for batch, length in batches(lengths, buckets, tokens, multiple):
        shapes.add((len(batch), length))
        real = batch[batch >= 0]
        assert len(batch) % multiple == 0
        assert len(batch) * length <= max(tokens, multiple * length)
        assert len(real)
        assert (lengths[real] <= length).all()
        items += real.tolist()
    assert sorted(items) == list(range(101))
    assert len(shapes) == len({length for _, length in shapes}) <= 6


def test_text_without_tokens_and_rows_without_room():
    tokenizer = language_models.tokenizer()
    with pytest.raises(UsageError, match="--max_length=1 leaves no room"):
        make_rows(language_models.documents(), tokenizer, 1)
    with pytest.raises(UsageError, match="has no tokens"):
        make_rows([Document("a#1", ("",))], tokenizer, 16)
