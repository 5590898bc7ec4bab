"""From files to rows: splits, labels, the cache of encoded examples."""

import dataclasses

import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.finetuning import prepare as preparing
from roberta_jax.finetuning.prepare import digest, prepare
from roberta_jax.finetuning.spec import read_spec
from tests.support import finetuning


def test_the_splits_of_official_files(run_config, rte):
    prepared = prepare(read_spec(run_config("rte", **{"data.folder": str(rte)})))
    assert [s.name for s in (prepared.train, prepared.validation, *prepared.more)] == [
        "train",
        "validation",
        "test",
    ]
    assert prepared.kind.labels == ("entailment", "not_entailment")
    assert prepared.train.features.num_rows == len(prepared.train.examples) == 48
    assert prepared.train.features.row_lengths.max() <= 24
    assert (prepared.more[0].features.columns["labels"] == -100).all()
    assert prepared.columns is None


def test_own_files_with_a_share_to_validate_on(run_config, tmp_path):
    file = finetuning.write_csv(tmp_path / "a.csv", range(60))
    config = run_config("csv", **{"data.train": str(file), "data.validation": "0.25"})
    prepared = prepare(read_spec(config))
    texts = [{e.text_a for e in split.examples} for split in (prepared.train, prepared.validation)]
    assert not texts[0] & texts[1]
    assert len(prepared.train.examples) + len(prepared.validation.examples) == 60
    assert 8 <= len(prepared.validation.examples) <= 22
    assert prepared.kind.labels == ("bad", "good")
    assert "label: label" in prepared.notes[0]
    assert prepared.columns.text == "text"


def test_labels_in_the_order_that_the_config_gives(run_config, tmp_path):
    file = finetuning.write_csv(tmp_path / "a.csv", range(30))
    options = {"data.train": str(file), "data.validation": "0.25"}
    spec = read_spec(run_config("csv", **options, **{"data.labels": ("good", "bad")}))
    prepared = prepare(spec)
    assert prepared.kind.labels == ("good", "bad")
    first = prepared.train.examples[0]
    assert prepared.train.features.columns["labels"][0] == ("good", "bad").index(first.label)
    with pytest.raises(UsageError, match="bad"):
        prepare(read_spec(run_config("csv", **options, **{"data.labels": ("good", "fair")})))


def test_labels_in_the_order_of_the_model(run_config, rte):
    spec = read_spec(run_config("rte", **{"data.folder": str(rte)}))
    named = spec.model.replace(
        num_labels=2, id2label={0: "NOT_ENTAILMENT", 1: "ENTAILMENT"}, label2id=None
    )
    prepared = prepare(dataclasses.replace(spec, model=named))
    assert prepared.kind.labels == ("not_entailment", "entailment")
    assert prepared.kind.config_changes()["id2label"] == {0: "not_entailment", 1: "entailment"}


def test_a_sample_does_not_depend_on_the_seed_of_the_run(run_config, rte):
    options = {"data.folder": str(rte), "data.max_train_examples": 10}
    samples = [
        prepare(read_spec(run_config("rte", **options, seed=seed))).train.examples
        for seed in (0, 1)
    ]
    assert samples[0] == samples[1]
    assert len(samples[0]) == 10
    larger = prepare(read_spec(run_config("rte", **options | {"data.max_train_examples": 20})))
    assert set(samples[0]) < set(larger.train.examples)


@pytest.mark.parametrize("task", ["rte", "squad", "tokens"])
def test_encoded_examples_are_kept(run_config, rte, tmp_path, monkeypatch, task):
    """Also after damage, which is noticed. Every array of every kind is as it was encoded."""
    from roberta_jax.tasks.examples import QuestionExample, TokenExample
    from roberta_jax.tasks.kinds import kind_class
    from roberta_jax.tasks.task import Formatting
    from tests.support.kinds import make_kind
    from tests.support.small_tokenizer import small_tokenizer

    formatting = Formatting(max_length=24, doc_stride=4, max_query_length=6)
    if task == "rte":
        prepared = prepare(read_spec(run_config("rte", **{"data.folder": str(rte)})))
        kind, examples = prepared.kind, prepared.train.examples
    elif task == "squad":
        kind = make_kind("question_answering", formatting=formatting)
        context = "one two three four five six seven eight nine ten eleven twelve"
        examples = [QuestionExample("a", "which one?", context, ("four",), (14,))]
    else:
        kind = make_kind("tokens", ("O", "B-X"), formatting=formatting)
        examples = [TokenExample("a", ("one", "", "two"), ("O", "O", "B-X"))]
    calls = []
    encode = kind_class(kind.task.kind).encode

    def counting(self, *arguments):
        calls.append(1)
        return encode(self, *arguments)

    monkeypatch.setattr(type(kind), "encode", counting)
    first, again = (
        preparing.encoded(kind, examples, small_tokenizer(), tmp_path) for _ in range(2)
    )
    assert len(calls) == 1
    assert digest(first) == digest(again)
    assert dict(first.skipped) == dict(again.skipped)
    assert dict(first.notes) == dict(again.notes)
    assert bool(first.notes) == (task != "squad")  # long texts, a word without a token
    for group in ("columns", "token_columns", "host_arrays"):
        assert getattr(first, group).keys() == getattr(again, group).keys()
    (file,) = (tmp_path / "features").iterdir()
    data = bytearray(file.read_bytes())
    for damaged in (data[: len(data) // 2], b"", bytes(len(data)), _with_a_changed_bit(data)):
        file.write_bytes(damaged)
        assert digest(preparing.encoded(kind, examples, small_tokenizer(), tmp_path)) == digest(
            first
        )
    assert len(calls) >= 4


def _with_a_changed_bit(data):
    changed = bytearray(data)
    changed[len(data) // 3] ^= 1
    return bytes(changed)


def test_what_was_encoded_otherwise_has_another_name(run_config, rte, tmp_path):
    base = {"data.folder": str(rte), "data.cache_dir": str(tmp_path)}
    for changes in ({}, {"format.max_length": 20}, {"format.separators": 1}, {}):
        prepare(read_spec(run_config("rte", **base, **changes)))
    assert len(list((tmp_path / "features").iterdir())) == 9  # three formats of three splits


def test_a_digest_covers_every_array(run_config, rte):
    features = prepare(read_spec(run_config("rte", **{"data.folder": str(rte)}))).train.features
    labels = features.columns["labels"].copy()
    labels[3] = 1 - labels[3]
    changed = dataclasses.replace(features, columns={**features.columns, "labels": labels})
    assert digest(changed) != digest(features)
    assert digest(dataclasses.replace(features, tokens=features.tokens + 1)) != digest(features)
    np.testing.assert_array_equal(features.example, np.arange(48))


def test_a_cache_that_cannot_be_written(run_config, rte, tmp_path):
    (tmp_path / "cache").write_text("a file")
    options = {"data.folder": str(rte), "data.cache_dir": str(tmp_path / "cache")}
    with pytest.raises(UsageError, match=r"cannot write .*--config\.data\.cache_dir"):
        prepare(read_spec(run_config("rte", **options)))
