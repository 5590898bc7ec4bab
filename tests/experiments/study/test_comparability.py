"""Settings that cannot differ in their outcome, or whose outcomes cannot be compared."""

import pytest

from experiments.study import Study
from experiments.study.comparability import (
    effective_values,
    have_one_tokenizer,
    mask_warnings,
    warnings,
)
from tests.support import texts


def study(settings, **base):
    return Study(
        name="some",
        question="Why?",
        settings=settings,
        seeds=(0,),
        columns={"perplexity": "eval_perplexity"},
        base=texts.small_config("", "", **base),
    )


SAME = [
    ({}, {"masking.geometric_p": 0.5}),
    ({}, {"masking.max_span_length": 3}),
    ({}, {"data.dupe_factor": 5}),
    ({}, {"data.short_seq_prob": 0.5}),
    ({"data.format": "sentence_pair"}, {"data.short_seq_prob": 0.5}),
    ({}, {"data.num_separators": 1}),
    ({"tokenizer": "some/folder"}, {"new_tokenizer.vocab_size": 500}),
    ({"data.source": "builtin"}, {"data.files": "other/*.txt"}),
    ({}, {"data.tfds_name": "wikipedia"}),
    ({"init_from": "some/folder"}, {"model.hidden_size": 64}),
    ({"schedule.name": "constant"}, {"schedule.end_learning_rate": 1e-5}),
    ({}, {"schedule.decay_steps": 12}),  # the steps of the run
    ({}, {"schedule.power": 1.0}),
    ({}, {"train.log_every": 1}),
    ({}, {"eval.batch_size": 4}),
]


@pytest.mark.parametrize(("base", "change"), SAME)
def test_settings_that_differ_in_what_has_no_effect_are_a_warning(base, change):
    (warning,) = warnings(study({"one": {}, "other": change}, **base))
    assert warning.startswith("The settings 'one' and 'other' train the same model: ")


DIFFERENT = [
    ({"masking.scheme": "span"}, {"masking.geometric_p": 0.5}),
    ({"data.format": "segment_pair"}, {"data.dupe_factor": 5}),
    ({"data.format": "segment_pair"}, {"data.short_seq_prob": 0.5}),
    ({"data.format": "sentence_pair"}, {"data.num_separators": 1}),
    ({"init_from": "some/folder"}, {"model.hidden_dropout_prob": 0.3}),
    ({}, {"schedule.decay_steps": 13}),
    ({}, {"schedule.power": 2.0}),
    ({}, {"masking.rate": 0.3}),
    ({}, {"data.max_tokens": 100}),
    ({}, {"train.steps": 13}),
]


@pytest.mark.parametrize(("base", "change"), DIFFERENT)
def test_settings_that_can_differ_are_not(base, change):
    example = study({"one": {}, "other": change}, **base)
    assert warnings(example) == []
    assert have_one_tokenizer(example)


def test_a_corpus_of_a_mixture_may_be_of_tfds():
    mixture = ({"source": "tfds", "tfds_split": "train"},)
    one, other = (
        study({"one": {"data.mixture": mixture, "data.tfds_name": name}}).points()[0].config()
        for name in ("a", "b")
    )
    assert effective_values(one) != effective_values(other)


@pytest.mark.parametrize(
    "change",
    [
        {"new_tokenizer.vocab_size": 500},
        {"data.mixture": ({"files": "more.txt"},)},
        {"data.files": "other.txt"},
        {"tokenizer": "some/folder"},
        {"data.validation_fraction": 0.3},
    ],
)
def test_settings_with_other_tokenizers_cannot_be_compared_per_token(change):
    example = study({"one": {}, "other": change})
    assert not have_one_tokenizer(example)
    assert "The settings have different tokenizers" in warnings(example)[0]
    shared = study({"one": {}, "other": change}, tokenizer="some/folder")
    assert have_one_tokenizer(shared)


@pytest.mark.parametrize(
    ("change", "key"),
    [({"seq_len": 32}, "seq_len"), ({"eval.seed": 3}, "eval.seed"), ({"eval.max_rows": 9}, "max")],
)
def test_settings_that_are_scored_on_other_rows_are_a_warning(change, key):
    (warning,) = warnings(study({"one": {}, "other": change}))
    assert "not scored on the same rows" in warning
    assert key in warning


def test_static_masks_are_those_of_dynamic_masking_until_they_repeat():
    settings = {
        "dynamic": {},
        "ten": {"masking.dupe_factor": 10},
        "five": {"masking.dupe_factor": 5},
        "rate": {"masking.rate": 0.3},
    }
    example = study(settings)

    def pairs(epochs):
        messages = mask_warnings(example, dict.fromkeys(settings, epochs))
        return [tuple(message.split("'")[1::2]) for message in messages]

    everything = [("dynamic", "ten"), ("dynamic", "five"), ("ten", "five")]
    assert pairs(5.0) == everything
    assert pairs(9.0) == everything
    assert pairs(19.9) == [("dynamic", "ten")]
    assert pairs(40.0) == []
    assert mask_warnings(example, {"dynamic": 3.0}) == []
    (_, second, _) = mask_warnings(example, dict.fromkeys(settings, 8.0))
    assert "the same in the first 5 of 8 epochs" in second
    assert "the last 38% of the run" in second
