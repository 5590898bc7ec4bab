"""The rows to train on and to evaluate on, and their batches."""

import json

import jax
import numpy as np
import pytest

from roberta_jax.data.batches import PackedDataset
from roberta_jax.data.mixture import Mixture
from roberta_jax.data.pipeline import eval_batches, rows_at
from roberta_jax.data.row_order import WindowedOrder
from roberta_jax.errors import UsageError
from roberta_jax.pretraining.datasets import (
    device_eval_batches,
    device_train_batches,
    model_inputs,
    training_dataset,
    validation_datasets,
)
from roberta_jax.pretraining.spec import read_spec
from roberta_jax.pretraining.text import prepare
from tests.support import texts, toy_corpus
from tests.support.messages import one_screen

PAIRS = {
    "data.format": "segment_pair",
    "data.dupe_factor": 3,
    "objective.next_sentence": True,
    "model.type_vocab_size": 2,
}


@pytest.fixture(scope="module")
def prepared(small_config):
    return prepare(read_spec(small_config()).text, progress=False)


def read_and_prepare(config):
    spec = read_spec(config)
    return spec, prepare(spec.text, progress=False)


# Training.


def test_the_training_set_follows_the_config(small_config, prepared):
    spec = read_spec(small_config())
    dataset = training_dataset(spec, prepared, token_types=False)
    assert (dataset.seq_len, dataset.max_inputs, dataset.vocab_size) == (16, 1, 320)
    assert len(dataset.epoch_ends) == 1
    spec = read_spec(small_config(**PAIRS, seq_len=48))
    pairs = training_dataset(spec, prepared, token_types=True)
    assert pairs.seq_len == 48
    assert len(pairs.epoch_ends) == 3
    batch = pairs(np.arange(4), np.zeros(4, np.int64))
    assert {"token_type_ids", "next_sentence_labels"} <= batch.keys()
    assert "token_type_ids" not in training_dataset(spec, prepared, token_types=False)(
        np.arange(4), np.zeros(4, np.int64)
    )


def num_tokens(dataset):
    """The tokens of the text, without the `<s>` that starts each input."""
    batch = dataset.assemble(np.arange(dataset.num_rows))
    return np.count_nonzero(batch["segment_ids"]) - dataset.num_rows


def test_max_tokens_limits_the_training_set_alone(small_config, prepared):
    spec = read_spec(small_config(**{"data.max_tokens": 500}))
    limited = training_dataset(spec, prepared, token_types=False)
    everything = training_dataset(read_spec(small_config()), prepared, token_types=False)
    assert 0 < num_tokens(limited) <= 500 < num_tokens(everything)
    sets = [
        validation_datasets(read_spec(small_config(**changes)), prepared, token_types=False)
        for changes in ({}, {"data.max_tokens": 500})
    ]
    assert sets[0]["full"].num_rows == sets[1]["full"].num_rows


def test_further_corpora_are_mixed_by_weight(small_config, tmp_path):
    other = texts.write_corpus(tmp_path / "other.jsonl", count=40)
    num_rows = []
    for weight in (1.0, 2.0, 3.0):
        mixture = ({"files": str(other), "weight": weight, "max_tokens": 500},)
        spec, prepared = read_and_prepare(small_config(**{"data.mixture": mixture}))
        dataset = training_dataset(spec, prepared, token_types=False)
        assert isinstance(dataset, Mixture)
        num_rows.append(dataset.num_rows)
    # Each unit of weight adds the rows of the second corpus once more.
    assert num_rows[2] - num_rows[1] == num_rows[1] - num_rows[0] > 0
    assert isinstance(validation_datasets(spec, prepared, token_types=False)["full"], PackedDataset)


def test_training_batches_depend_on_the_step_alone(small_config, prepared):
    spec = read_spec(small_config(**{"train.steps": 6}))
    dataset = training_dataset(spec, prepared, token_types=False)
    batches = list(device_train_batches(spec, dataset, 0))
    assert len(batches) == 6
    later = list(device_train_batches(spec, dataset, 4))
    jax.tree.map(np.testing.assert_array_equal, batches[4:], later)
    assert batches[0]["input_ids"].shape == (8, 16)


def test_a_corpus_smaller_than_a_batch_is_refused(small_config, tmp_path):
    corpus = texts.write_corpus(tmp_path / "short.jsonl", count=4)
    changes = {"data.files": str(corpus), "train.batch_size": 512, "data.validation_fraction": 0.0}
    spec, prepared = read_and_prepare(small_config(**changes))
    with pytest.raises(
        UsageError, match=r"fewer than one batch.*train\.batch_size=512.*or less"
    ) as error:
        training_dataset(spec, prepared, token_types=False)
    one_screen(error.value)


# Validation.


def test_validation_sets_do_not_depend_on_the_training(small_config, prepared):
    """Neither on its format nor on its masking, seed or batch size."""
    batches = []
    for changes in (
        PAIRS,
        {"data.format": "doc_sentences", "masking.scheme": "span", "masking.rate": 0.4},
        {"masking.dupe_factor": 10, "seed": 7, "train.batch_size": 2},
    ):
        config = small_config(**{**changes, "seq_len": 48, "eval.short_inputs": True})
        spec = read_spec(config)
        datasets = validation_datasets(spec, prepared, token_types=False)
        batches.append(
            [
                list(eval_batches(datasets[name], batch_size=8, seed=0, engine="numpy"))
                for name in ("full", "short")
            ]
        )
    assert all(batches[0])
    for other in batches[1:]:
        jax.tree.map(np.testing.assert_array_equal, batches[0], other)


def test_validation_text_that_is_trained_on_is_refused(small_config, tmp_path):
    """Each document is a part of a longer one, so all held-out text is in the training text."""
    documents = texts.documents(60)
    lines = [*documents, "\n\n".join(documents)]
    corpus = tmp_path / "copies.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in lines))
    spec, prepared = read_and_prepare(small_config(**{"data.files": str(corpus)}))
    assert prepared.heldout.num_documents == 0
    assert prepared.train.index["counts"]["overlapping"] > 0
    with pytest.raises(UsageError, match=r"validation_max_overlap=0\.5.*nothing to eval") as error:
        validation_datasets(spec, prepared, token_types=False)
    one_screen(error.value)
    changes = {"data.files": str(corpus), "data.validation_max_overlap": 1.0}
    spec, prepared = read_and_prepare(small_config(**changes))
    assert validation_datasets(spec, prepared, token_types=False)["full"].num_rows > 0


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, {"full"}),
        ({"eval.short_inputs": True}, {"full", "short"}),
        ({**PAIRS, "seq_len": 48}, {"full", "pairs"}),
    ],
)
def test_names_of_the_validation_sets(small_config, prepared, changes, names):
    spec = read_spec(small_config(**changes))
    datasets = validation_datasets(spec, prepared, token_types=False)
    assert datasets.keys() == names
    assert all(len(dataset.epoch_ends) == 1 for dataset in datasets.values())


def test_each_validation_row_is_scored_once(small_config, prepared):
    """Rows that fill up the last batch have no weight."""
    spec = read_spec(small_config())
    dataset = validation_datasets(spec, prepared, token_types=False)["full"]

    def scored(**evaluation):
        changes = {f"eval.{key}": value for key, value in evaluation.items()}
        batches = list(device_eval_batches(read_spec(small_config(**changes)), dataset))
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    single = scored(batch_size=1)
    assert len(single["input_ids"]) == dataset.num_rows
    batch_size = next(n for n in (3, 7) if dataset.num_rows % n)
    filled = scored(batch_size=batch_size)
    assert len(filled["input_ids"]) > dataset.num_rows
    for name, rows in single.items():
        np.testing.assert_array_equal(filled[name][: dataset.num_rows], rows)
    assert not filled["masked_weights"][dataset.num_rows :].any()
    limited = scored(batch_size=4, max_rows=2)
    assert limited["masked_weights"][:2].any()
    assert not limited["masked_weights"][2:].any()


def test_without_held_out_text_there_are_no_validation_sets(small_config):
    spec, prepared = read_and_prepare(small_config(**{"data.validation_fraction": 0.0}))
    assert validation_datasets(spec, prepared, token_types=False) == {}


def test_a_fraction_that_holds_out_no_document_is_refused(small_config):
    spec, prepared = read_and_prepare(small_config(**{"data.validation_fraction": 1e-9}))
    with pytest.raises(UsageError, match=r"data\.validation_fraction.*Raise it") as error:
        validation_datasets(spec, prepared, token_types=False)
    one_screen(error.value)


# The arrays that the model takes.


@pytest.mark.parametrize("max_inputs", [1, 3])
def test_model_inputs_mask_padding_or_separate_inputs(tmp_path, max_inputs):
    """One input per row needs an attention mask, and several need segment ids."""
    store = toy_corpus.make_store(tmp_path)
    packed = toy_corpus.share_rows(store, 48, max_inputs)
    batch = toy_corpus.make_dataset(store, packed=packed).assemble(np.arange(8))
    assert batch["segment_ids"].max() == max_inputs
    segment_ids = batch["segment_ids"].copy()
    arrays = model_inputs(batch, max_inputs)
    name, other = ("attention_mask", "segment_ids")[:: 1 if max_inputs == 1 else -1]
    assert other not in arrays
    np.testing.assert_array_equal(arrays[name], segment_ids)
    assert arrays.keys() - {name} == batch.keys() - {"segment_ids"}
    assert "segment_ids" in batch  # the argument is not changed


def test_the_windowed_order_has_the_same_rows_in_another_order(small_config, prepared):
    changes = {
        "data.order": "windowed",
        "data.order_block_tokens": 64,
        "data.order_window_blocks": 2,
        "data.order_streams": 2,
    }
    rows = {}
    for name, chosen in (("full", {}), ("windowed", changes)):
        spec = read_spec(small_config(**chosen))
        dataset = training_dataset(spec, prepared, token_types=False)
        positions = np.arange(dataset.num_rows)
        rows[name] = rows_at(positions, dataset.epoch_ends, spec.training.seed, dataset.row_order)[
            0
        ]
    assert sorted(rows["full"]) == sorted(rows["windowed"]) == list(range(len(rows["full"])))
    assert spec.row_order == WindowedOrder(4, 2, streams=2, stream_rows=4)
    # The first rows of each stream are from a window of 2 or 3 blocks of 4 rows.
    assert len(set(rows["windowed"][:4] // 4)) <= 3
