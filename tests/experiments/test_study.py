"""Studies: their settings, their points' configs and names, and how they are found."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import study_files
from experiments.study import Study, product, read_evaluations, zipped
from experiments.study_files import load_study
from roberta_jax.cli import flatten
from roberta_jax.errors import UsageError
from roberta_jax.pretrain import MAY_CHANGE
from tests.support import fake_runs, processes, texts

TOY = str(processes.ROOT / "tests" / "support" / "toy_study.py")


def study(settings, **parts):
    defaults = {"columns": {"perplexity": "eval_perplexity"}, "base": texts.small_config("", "")}
    return Study(name="some", question="Why?", settings=settings, **(defaults | parts))


def names(study):
    return [point.name for point in study.points()]


def test_a_point_is_the_base_with_its_settings_changes_and_its_seed():
    mixture = ({"source": "files", "files": "a", "weight": 2.0},)
    changes = {"data.mixture": mixture, "optimizer.clip_norm": 1, "data.max_tokens": 5}
    made = study({"all": changes, "nothing": {}}, seeds=(3, 7))
    assert [str(point) for point in made.points()] == [
        "all, seed 3",
        "nothing, seed 3",
        "all, seed 7",
        "nothing, seed 7",
    ]
    base = flatten(made.base)
    for point in made.points():
        config = point.config()
        assert config.is_locked
        expected = base | ({} if point.setting == "nothing" else changes) | {"seed": point.seed}
        assert flatten(config) == expected
    assert flatten(made.base) == base


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"masking.rte": 0.2},
            r"some, odd, seed 0: unknown config key 'masking.rte': .* masking.rate",
        ),
        ({"steps": 2}, "did you mean train.steps"),
        ({"masking": 2}, "the keys are masking.dupe_factor, "),
        ({"masking.rate": "much"}, r"odd, seed 0: masking.rate takes a value like 0.15 \(float\)"),
        ({"train.steps": 2.5}, "train.steps takes a value like 12"),
        ({"train.steps": True}, "not True"),
        ({"data.mixture": "x"}, "data.mixture takes"),
        ({"data.max_tokens": "x"}, "data.max_tokens takes"),
    ],
)
def test_a_wrong_setting_is_told_with_study_and_setting(changes, said):
    with pytest.raises(UsageError, match=said):
        study({"odd": changes}).points()[0].config()


def test_the_name_follows_what_decides_the_results():
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
        changed = {key: value} if key != "seed" else {}
        seeds = (value,) if key == "seed" else (4,)
        digests.add(names(study({"DOC-SENTENCES (a/b)": changed}, seeds=seeds))[0][-8:])
    assert len(digests) == 1 + len(others)


def test_what_a_run_may_change_does_not_change_its_name():
    plain, keys = study({"one": {}}), flatten(texts.small_config("", ""))
    free = [key for key in keys if any(key.startswith(each) for each in MAY_CHANGE)]
    free = [key for key in free if key not in ("train.steps", "schedule.decay_steps")]
    assert {"mesh.fsdp", "data.cache_dir", "train.log_every"} <= set(free)
    for key in free:
        value = "numpy" if isinstance(keys[key], str) else 7
        assert names(plain) == names(study({"one": {key: value}})), key


@given(
    st.dictionaries(
        st.sampled_from(["train.steps", "train.batch_size", "seq_len"]),
        st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
        min_size=1,
    )
)
def test_product_has_each_combination_once_and_zipped_the_columns(values):
    settings = product(values)
    size = 1
    for each in values.values():
        size *= len(each)
    assert len(settings) == len({json.dumps(each) for each in settings.values()}) == size
    for name, changes in settings.items():
        assert list(changes) == list(values)
        assert all(changes[key] in values[key] for key in values)
        assert name == ", ".join(f"{key.split('.')[-1]}={changes[key]}" for key in values)
    if len({len(each) for each in values.values()}) == 1:
        rows = list(zipped(values).values())
        assert {key: [row[key] for row in rows] for key in values} == values
    else:
        with pytest.raises(UsageError, match="as many values"):
            zipped(values)


def test_names_of_settings_keep_the_whole_key_where_the_last_part_is_not_enough():
    assert list(product({"train.batch_size": [1], "eval.batch_size": [2]})) == [
        "train.batch_size=1, eval.batch_size=2"
    ]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"settings": {}}, "at least one setting"),
        ({"seeds": (1, 1)}, "each once"),
        ({"paper": {"two": {}}}, "'two', which is not a setting"),
        ({"paper": {"one": {"MNLI": 3}}}, "'MNLI', which is not a column"),
        ({"evaluations": {"mnli": ["finetune"]}}, "'mnli' has no argument with {output}"),
        ({"settings": {"a b": {}, "A-B": {}}}, "same folder's name"),
    ],
)
def test_parts_that_do_not_fit_are_told(parts, said):
    with pytest.raises(UsageError, match=said):
        study(**({"settings": {"one": {}}} | parts))


def test_load_study_finds_by_name_prefix_and_path(tmp_path, monkeypatch):
    monkeypatch.setattr(study_files, "STUDIES", tmp_path)
    for stem in ("table1_masking", "table1_units", "table2_formats", "_shared"):
        text = (processes.ROOT / "tests" / "support" / "toy_study.py").read_text()
        (tmp_path / f"{stem}.py").write_text(text.replace('name="toy"', f'name="{stem}"'))
    assert load_study("table2").name == "table2_formats"
    assert load_study("table2:evaluated").origin == "table2_formats:evaluated"
    assert load_study("table1_units").origin == "table1_units:quick"
    assert load_study(str(tmp_path / "_shared.py")).name == "_shared"
    for name, said in (
        ("table1", "any of several studies: there are table1_masking, table1_units in"),
        ("table3", "no study 'table3': there are table1_masking, table1_units, table2_formats in"),
        ("", "no study ''"),
        ("_shared", "no study '_shared'"),
        ("nowhere/table.py:quick", "no file nowhere/table.py"),
        ("table2:paper", "has the forms quick, evaluated, wrong, failing, no 'paper'"),
    ):
        with pytest.raises(UsageError, match=said):
            load_study(name)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UsageError, match="is no study: it has no get_study and no FORMS"):
        load_study("empty")


def test_seeds_and_changes_of_the_command_line_reach_every_point():
    changes = (
        "data.files=some/*.txt", "masking.rate=0.25", "optimizer.bias_correction=false",
        "data.max_tokens=1000", "eval.max_rows=none", "execution.remat=none",
        "data.mixture=[{'source': 'files', 'weight': 2}]",
    )  # fmt: skip
    loaded = load_study(TOY, changes, seeds=[5, 6, 7])
    assert len(loaded.points()) == 6
    assert {point.seed for point in loaded.points()} == {5, 6, 7}
    for point in loaded.points():
        config = point.config()
        assert config.data.files == "some/*.txt"
        assert config.masking.rate == 0.25
        assert config.optimizer.bias_correction is False
        assert config.data.max_tokens == 1000
        assert config.eval.max_rows is None
        assert config.execution.remat == "none"  # a word there, not nothing
        assert config.data.mixture == ({"source": "files", "weight": 2},)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.warmup=3", "unknown config key"),
        ("data.fils=x", "did you mean data.files"),
        ("seq_len", "write --set=KEY=VALUE"),
        ("seq_len=long", "seq_len takes a value like 16"),
        ("data.mixture=[", "data.mixture takes"),
        ("train.steps=9", r"train.steps is what the study toy compares \(in LARGE \(2x\)\)"),
    ],
)
def test_a_wrong_change_is_told(change, said):
    with pytest.raises(UsageError, match=said):
        load_study(TOY, [change])


def test_progress_of_a_point(tmp_path):
    small, large = load_study(f"{TOY}:evaluated", seeds=[0]).points()
    assert str(small.progress(tmp_path)) == "not begun"
    fake_runs.begin(small, tmp_path, 6)
    progress = small.progress(tmp_path)
    assert (progress.step, progress.steps, progress.finished) == (6, 12, False)
    assert str(progress) == "step 6/12"

    workdir = fake_runs.finish(large, tmp_path, perplexity=9.0)
    progress = large.progress(tmp_path)
    assert progress.metrics["eval_perplexity"] == 9.0
    assert progress.missing == ("measured",)
    assert not progress.finished
    (workdir / "evaluations").mkdir()
    (workdir / "evaluations" / "measured.json").write_text('{"records": 5, "on": "dev"}')
    progress = large.progress(tmp_path)
    assert progress.finished
    assert progress.metrics["measured.records"] == 5.0
    assert "measured.on" not in progress.metrics

    # More steps are another point, so nothing goes on by mistake.
    longer = dataclasses.replace(
        small.study, settings={"LARGE (2x)": {"train.steps": 99}}, paper={}
    )
    assert str(longer.points()[0].progress(tmp_path)) == "not begun"


@pytest.mark.parametrize("text", ["", "[1]", '{"accuracy": "high"}', "{"])
def test_an_evaluation_that_is_none_is_told(text, tmp_path):
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "mnli.json").write_text(text)
    with pytest.raises(UsageError, match="mnli.json: .*Delete it"):
        read_evaluations(tmp_path)
