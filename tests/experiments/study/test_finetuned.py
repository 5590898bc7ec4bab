"""Studies of fine-tuning: their data, their scores and their points."""

import json
import math

import pytest

from experiments.study.comparability import effective_values, warnings
from experiments.study.finetuned import (
    check_has_data,
    find_data,
    per_cent,
    read_scores,
    with_data,
)
from experiments.study.loading import load_study
from roberta_jax.errors import UsageError
from tests.support import fake_runs, finetuning, toy_study, toy_transfer


@pytest.fixture
def data(tmp_path):
    """A folder with the files of RTE, those of another GLUE task and an unqualified train.tsv."""
    finetuning.write_rte(tmp_path / "data" / "glue" / "RTE")
    finetuning.write_rte(tmp_path / "data" / "glue" / "MRPC")
    (tmp_path / "data" / "ner" / "conll2003").mkdir(parents=True)
    for name in ("eng.train", "eng.testa.xz"):
        (tmp_path / "data" / "ner" / "conll2003" / name).touch()
    return tmp_path / "data"


def write_results(workdir, accuracy=0.75, kind="classification", **changes):
    split = {"scores": {"accuracy": accuracy}, "baseline": {"accuracy": 0.5}}
    results = {"metrics": ["accuracy"], "kind": kind, "splits": {"validation": split}} | changes
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.json").write_text(json.dumps(results))


def test_the_data_of_a_task_are_found_in_a_folder_of_its_name(data):
    glue = str(data / "glue")
    assert find_data("rte", str(data)) == find_data("rte", glue) == glue
    assert find_data("rte", f"{glue}/RTE") == f"{glue}/RTE"
    assert find_data("conll2003", str(data)) == str(data / "ner" / "conll2003")


def test_files_of_another_task_are_not_taken(data):
    # MRPC's folder has a train.tsv and a dev.tsv too, which QNLI's files are called as well.
    assert find_data("qnli", str(data / "glue")) is None
    assert find_data("qnli", str(data / "glue" / "MRPC")) is None
    assert find_data("wnut17", str(data)) is None
    (data / "ner" / "conll2003" / "eng.train").unlink()
    assert find_data("conll2003", str(data)) is None


def test_settings_get_the_place_of_their_examples(data):
    base = toy_transfer.get_study("quick").base
    found = with_data({"seed": 3}, base, str(data))
    assert found == {"seed": 3, "data.folder": str(data / "glue")}
    own = {"data.train": "{data}/a.tsv", "data.validation": "0.1"}
    assert with_data(own, base, str(data)) == {**own, "data.train": f"{data}/a.tsv"}
    with pytest.raises(UsageError, match=r"--data=.* has no training .* of QNLI.*QNLIv2\.zip"):
        with_data({"task": "qnli"}, base, str(data))


def test_data_that_were_not_given_are_an_error():
    base = toy_transfer.get_study("quick").base
    check_has_data(base)
    with base.unlocked():
        base.data.train = "{data}/train.tsv"
    with pytest.raises(UsageError, match=r"data\.train is \{data\}/train\.tsv, and no --data="):
        check_has_data(base)


def test_finished_points_are_fine_tuned_where_the_data_are(data):
    (data / "glue" / "MRPC").rename(data / "glue" / "SST-2")
    study = load_study("table1:tiny", data=str(data))
    assert list(study.evaluations) == ["sst2"]
    command = study.evaluations["sst2"]
    assert f"--data={data / 'glue'}" in command
    assert "--model={workdir}" in command
    assert [message.split(" of ")[-1] for message in warnings(study)] == [
        "SQuAD 2.0; its columns stay empty.",
        "MNLI; its columns stay empty.",
    ]
    # The pretraining runs are the same ones.
    without = load_study("table1:tiny")
    assert [point.name for point in study.points()] == [point.name for point in without.points()]


def test_data_without_effect_are_an_error(data):
    with pytest.raises(UsageError, match="has no effect on the study toy: it names no tasks"):
        load_study(toy_study.PATH, data=str(data))
    with pytest.raises(UsageError, match=r"none of its tasks \(SQuAD 2.0, MNLI, SST-2\) are there"):
        load_study("table1:tiny", data=str(data))
    with pytest.raises(UsageError, match="there is no such folder"):
        load_study("table1:tiny", data=str(data / "other"))


def test_scores_are_in_per_cent():
    assert per_cent(0.843, "accuracy", "classification") == pytest.approx(84.3)
    assert per_cent(90.2, "f1", "question_answering") == 90.2
    assert per_cent(0.7, "mean_squared_error", "regression") == 0.7
    assert math.isnan(per_cent(None, "pearson", "regression"))


def test_scores_of_a_run(tmp_path):
    assert read_scores(tmp_path) == {}
    write_results(tmp_path)
    assert read_scores(tmp_path) == {"validation.accuracy": 75, "score": 75, "majority": 50}
    write_results(tmp_path, splits={})
    with pytest.raises(UsageError, match=r"results\.json is damaged"):
        read_scores(tmp_path)


def test_progress_of_a_fine_tuning_run(tmp_path):
    study = load_study(toy_transfer.PATH, ["train.steps=none", "train.epochs=2"])
    point = study.points()[0]
    assert str(point.progress(tmp_path)) == "not begun"
    workdir = point.workdir(tmp_path)
    fake_runs.write_records(workdir, [{"step": 4, "loss": 0.7}])
    assert str(point.progress(tmp_path)) == "step 4"
    write_results(workdir)
    assert not point.progress(tmp_path).finished
    (workdir / "hf").mkdir()
    (workdir / "hf" / "config.json").write_text("{}")
    record = {"step": 9, "eval_accuracy": 0.75, "finished": 1.0}
    fake_runs.write_records(workdir, [{"step": 4, "loss": 0.7}, record])
    progress = point.progress(tmp_path)
    assert progress.finished
    assert (progress.step, progress.steps) == (9, 9)
    assert progress.metrics["score"] == 75


def test_the_name_of_a_point_has_what_affects_fine_tuning():
    study = load_study(toy_transfer.PATH)
    name = study.points()[0].name

    def changed(*changes):
        return load_study(toy_transfer.PATH, changes).points()[0].name

    assert changed("eval.batch_size=4", "data.cache_dir=elsewhere") == name
    for change in ("init_from=model", "train.steps=8", "data.max_train_examples=5"):
        assert changed(change) != name


def test_settings_are_compared_within_a_task():
    study = load_study("transfer:small")
    groups = study.groups()
    assert groups["CoLA"] == ["CoLA, pretrained", "CoLA, random"]
    assert len(groups) == 8
    assert sum(map(len, groups.values())) == len(study.settings)
    assert load_study("table1:tiny").groups() == {}


def test_the_settings_of_a_task_differ_in_what_they_start_from_alone():
    for form in ("small", "full", "quick"):
        study = load_study(f"transfer:{form}")
        configs = {p.setting: p.config() for p in study.points() if p.seed == 0}
        for pretrained, random in study.groups().values():
            one, other = (effective_values(configs[name]) for name in (pretrained, random))
            assert {key for key in one if one[key] != other[key]} == {"random_init"}


def test_an_unknown_key_names_the_config_of_fine_tuning():
    with pytest.raises(UsageError, match=r"configs/finetune\.py has the keys"):
        load_study(toy_transfer.PATH, ["qqqqqqqqqqqq=1"])
