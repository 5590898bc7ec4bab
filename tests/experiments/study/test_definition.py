"""Studies and their points: configs, workdir names, checks."""

import pytest

from experiments.study.definition import Study
from roberta_jax.dotted_keys import flatten
from roberta_jax.errors import UsageError
from roberta_jax.pretraining.config_keys import MAY_CHANGE
from tests.support import texts


def study(settings, **parts):
    defaults = {"columns": {"perplexity": "eval_perplexity"}, "base": texts.small_config("", "")}
    return Study(name="some", question="Why?", settings=settings, **(defaults | parts))


def names(study):
    return [point.name for point in study.points()]


def test_a_point_has_the_base_config_with_the_changes_of_its_setting_and_its_seed():
    mixture = ({"source": "files", "files": "a", "weight": 2.0},)
    changes = {"data.mixture": mixture, "optimizer.clip_norm": 1, "data.max_tokens": 5}
    example = study({"all": changes, "nothing": {}}, seeds=(3, 7))
    assert [str(point) for point in example.points()] == [
        "all, seed 3",
        "nothing, seed 3",
        "all, seed 7",
        "nothing, seed 7",
    ]
    base = flatten(example.base)
    for point in example.points():
        config = point.config()
        assert config.is_locked
        expected = base | ({} if point.setting == "nothing" else changes) | {"seed": point.seed}
        assert flatten(config) == expected
    assert flatten(example.base) == base


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"masking.rte": 0.2},
            r"some, odd, seed 0: unknown config key 'masking.rte': .* masking.rate",
        ),
        ({"steps": 2}, "did you mean train.steps"),
        ({"masking": 2}, "the keys are masking.dupe_factor, "),
        ({"data.duplicates": 5}, r"'data.duplicates': it was renamed, use data.dupe_factor\."),
        ({"masking.rate": "much"}, r"odd, seed 0: masking.rate takes a value like 0.15 \(float\)"),
        ({"train.steps": 2.5}, "train.steps takes a value like 12"),
        ({"train.steps": True}, "not True"),
        ({"data.mixture": "x"}, "data.mixture takes"),
        ({"data.max_tokens": "x"}, "data.max_tokens takes"),
    ],
)
def test_a_wrong_change_is_reported_with_the_study_and_the_setting(changes, message):
    with pytest.raises(UsageError, match=message):
        study({"odd": changes}).points()[0].config()


def test_the_name_changes_with_each_value_that_affects_the_results():
    base = study({"DOC-SENTENCES (a/b)": {}}, seeds=(4,))
    (name,) = names(base)
    assert name.startswith("doc-sentences-a-b-seed4-")
    assert names(study({"DOC-SENTENCES (a/b)": {}}, seeds=(4,))) == [name]
    others = {
        "seed": 5,
        "train.steps": 13,
        "schedule.decay_steps": 14,
        "seq_len": 17,
        "data.files": "other",
        "data.mixture": ({},),
    }
    digests = {name[-8:]}
    for key, value in others.items():
        changes = {key: value} if key != "seed" else {}
        seeds = (value,) if key == "seed" else (4,)
        digests.add(names(study({"DOC-SENTENCES (a/b)": changes}, seeds=seeds))[0][-8:])
    assert len(digests) == 1 + len(others)


def test_the_name_does_not_change_with_what_a_run_may_change():
    plain, values = study({"one": {}}), flatten(texts.small_config("", ""))
    keys = [key for key in values if any(key.startswith(each) for each in MAY_CHANGE)]
    keys = [key for key in keys if key not in ("train.steps", "schedule.decay_steps")]
    assert {"mesh.fsdp", "data.cache_dir", "train.log_every"} <= set(keys)
    for key in keys:
        other = {str: "numpy", tuple: (("embed", None),), bool: not values[key]}
        value = other.get(type(values[key]), 7)
        assert names(plain) == names(study({"one": {key: value}})), key


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"settings": {}}, "at least one setting"),
        ({"seeds": (1, 1)}, "each once"),
        ({"paper": {"two": {}}}, "'two', which is not a setting"),
        ({"paper": {"one": {"MNLI": 3}}}, "'MNLI', which is not a column"),
        ({"evaluations": {"mnli": ["finetune"]}}, "'mnli' has no argument with {output}"),
        ({"settings": {"a b": {}, "A-B": {}}}, "the same folder name"),
    ],
)
def test_contradictory_parts_of_a_study_are_errors(parts, message):
    with pytest.raises(UsageError, match=message):
        study(**({"settings": {"one": {}}} | parts))
