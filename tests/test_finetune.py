"""Whole fine-tuning runs: every kind of task, resuming, results, and what transformers loads."""

import csv
import json
import pathlib
import shutil

import numpy as np
import pytest

from roberta_jax import from_pretrained
from roberta_jax.errors import UsageError
from roberta_jax.finetune import finetune
from roberta_jax.finetuning.evaluate_task import evaluate_task
from roberta_jax.finetuning.finished import open_finished
from roberta_jax.predict import predict
from roberta_jax.training import preemption
from roberta_jax.training.metrics import read_metrics
from tests.support import finetuning


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model to start from, files of tasks, and a cache."""
    folder = tmp_path_factory.mktemp("finetune")
    finetuning.write_model(folder / "model")
    finetuning.write_rte(folder / "RTE")
    finetuning.write_csv(folder / "train.csv", range(80))
    finetuning.write_csv(folder / "new.csv", range(200, 230))
    return folder


def config_of(folder, task="csv", **changes):
    data = (
        # After so many epochs it has learnt with six seeds and two versions of jax.
        {"data.train": str(folder / "train.csv"), "data.validation": "0.25", "train.epochs": 8.0}
        if task == "csv"
        else {"data.folder": str(folder / "RTE")}
    )
    return finetuning.small_run(task, folder / "model", folder / "cache", **data | changes)


@pytest.fixture(scope="module")
def finished(folder):
    """A finished run on a csv file; (workdir, result)."""
    workdir = folder / "finished"
    return workdir, finetune(config_of(folder), workdir, command="the command")


def model_bytes(workdir):
    return (pathlib.Path(workdir) / "hf" / "model.safetensors").read_bytes()


def reproducible_metrics(workdir):
    varying = ("tokens_per_second", "mfu")
    return [
        {key: value for key, value in record.items() if key not in varying}
        for record in read_metrics(workdir)
    ]


def test_a_run_learns_and_writes_its_results(finished):
    workdir, result = finished
    assert result.finished
    assert result.metrics["eval_accuracy"] >= 0.9  # one word of each text decides the label
    results = json.loads((workdir / "results.json").read_text())
    scores = results["splits"]["validation"]
    assert scores["scores"]["accuracy"] == pytest.approx(result.metrics["eval_accuracy"])
    assert scores["baseline"]["accuracy"] < 0.8
    assert "the command" in (workdir / "results.md").read_text()
    lines = (workdir / "predictions" / "validation.jsonl").read_text().splitlines()
    assert len(lines) == scores["examples"]
    card = (workdir / "hf" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "the command" in card
    config = json.loads((workdir / "hf" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert config["problem_type"] == "single_label_classification"
    assert config["architectures"] == ["RobertaForSequenceClassification"]


def test_a_finished_run_is_not_repeated(finished, folder, capsys):
    workdir, result = finished
    before = model_bytes(workdir)
    again = finetune(config_of(folder), workdir)
    assert (again.start, again.metrics) == (result.step, result.metrics)
    assert model_bytes(workdir) == before
    assert "The model is in" in capsys.readouterr().out


def test_a_deleted_export_is_written_again_with_its_card(finished, folder, tmp_path):
    workdir, result = finished
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "hf")
    (tmp_path / "run" / "task.json").unlink()
    again = finetune(config_of(folder), tmp_path / "run", command="the command")
    assert again.metrics == result.metrics
    for name in ("hf/model.safetensors", "hf/config.json", "hf/README.md", "task.json"):
        data = (tmp_path / "run" / name).read_bytes()
        # The card's example has the path of the workdir.
        data = data.replace(bytes(tmp_path / "run"), bytes(workdir))
        assert data == (workdir / name).read_bytes()
    assert reproducible_metrics(tmp_path / "run") == reproducible_metrics(workdir)


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: None,
        lambda values: [],
        lambda values: {},
        lambda values: values | {"task": "unknown"},
        lambda values: values | {"task": ["csv"]},
        lambda values: values | {"model_labels": ["good", "bad"]},
        lambda values: values | {"labels": ["good", "fair"]},
        lambda values: values | {"labels": None},
        lambda values: values | {"label_scale": "one"},
        lambda values: values | {"formatting": {"max_length": "24"}},
        lambda values: values | {"formatting": {"max_length": 4000}},
        lambda values: values | {"formatting": {"length": 24}},
        lambda values: values | {"columns": {"kind": "classification"}},
        lambda values: values | {"columns": values["columns"] | {"kind": "other"}},
        lambda values: values | {"columns": values["columns"] | {"text": None}},
    ],
)
def test_a_damaged_record_of_the_task(finished, tmp_path, damage):
    workdir, _ = finished
    shutil.copytree(workdir / "hf", tmp_path / "run" / "hf")
    values = json.loads((workdir / "task.json").read_text())
    (tmp_path / "run" / "task.json").write_text(json.dumps(damage(values)))
    with pytest.raises(UsageError, match=r"task\.json is damaged, or of another version .*hf/"):
        open_finished(tmp_path / "run")
    (tmp_path / "run" / "task.json").write_text('{"task": "csv"')
    with pytest.raises(UsageError, match=r"task\.json is damaged"):
        open_finished(tmp_path / "run")


def test_another_config_is_refused(finished, folder):
    with pytest.raises(UsageError, match=r"optimizer\.learning_rate"):
        finetune(config_of(folder, **{"optimizer.learning_rate": 1e-4}), finished[0])


def test_evaluation_reproduces_the_scores(finished):
    workdir, result = finished
    _, evaluated = evaluate_task(workdir)
    assert evaluated.scores["accuracy"] == pytest.approx(result.metrics["eval_accuracy"])
    assert evaluated.loss == pytest.approx(result.metrics["eval_loss"], rel=1e-5)
    _, of_train = evaluate_task(workdir, "train")
    assert len(of_train.examples) + len(evaluated.examples) == 80


def test_other_validation_examples_are_noticed(finished, folder, tmp_path):
    """The share that is held out follows from the file, which may have changed."""
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["train"] = str(finetuning.write_csv(tmp_path / "other.csv", range(40)))
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="are no longer those of the run"):
        evaluate_task(workdir)
    _, evaluated = evaluate_task(workdir, file=str(folder / "new.csv"))
    assert len(evaluated.examples) == 30


def test_numbered_labels_and_a_model_with_another_order(finished, folder, tmp_path):
    """The numbers in a file count `data.labels`; the ids of the model are its own."""
    lines = ["text,label"]
    for text, label in map(finetuning.sentence, range(300, 340)):
        lines.append(f"{text},{('good', 'bad').index(label)}")
    (tmp_path / "numbers.csv").write_text("\n".join(lines) + "\n")
    changes = {
        "init_from": str(finished[0]),
        "data.train": str(tmp_path / "numbers.csv"),
        "data.labels": ("good", "bad"),
        "train.epochs": 1.0,
        "optimizer.learning_rate": 1e-6,
    }
    result = finetune(config_of(folder, **changes), tmp_path / "run")
    assert result.metrics["eval_accuracy"] >= 0.8  # of the head that was taken over
    config = json.loads((tmp_path / "run" / "hf" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    for file in (None, str(tmp_path / "numbers.csv")):
        _, evaluated = evaluate_task(tmp_path / "run", file=file)
        assert evaluated.scores["accuracy"] >= 0.8


def test_a_head_for_other_labels_is_renewed(finished, folder, tmp_path, capsys):
    """As many labels, with other names: nothing of the head can be used."""
    changes = {"init_from": str(finished[0]), "train.epochs": 0.2, "optimizer.learning_rate": 0.0}
    finetune(config_of(folder, "rte", **changes), tmp_path / "run")
    assert "is for other labels: it starts from random values" in capsys.readouterr().out
    (_, before), (_, after) = (from_pretrained(path) for path in (finished[0], tmp_path / "run"))
    np.testing.assert_array_equal(
        before["roberta"]["embeddings"]["word_embeddings"]["embedding"],
        after["roberta"]["embeddings"]["word_embeddings"]["embedding"],
    )
    for layer in ("dense", "out_proj"):
        kernels = [params["classifier"][layer]["kernel"] for params in (before, after)]
        assert not np.allclose(*kernels)


def test_evaluation_of_official_files_of_a_run(folder, tmp_path):
    """With a share to validate on, and with files in place of the official ones."""
    changes = {"data.validation": "0.25", "train.epochs": 0.2}
    result = finetune(config_of(folder, "rte", **changes), tmp_path / "share")
    _, evaluated = evaluate_task(tmp_path / "share")
    assert evaluated.scores["accuracy"] == pytest.approx(result.metrics["eval_accuracy"])
    results = json.loads((tmp_path / "share" / "results.json").read_text())
    of_run = results["splits"]["validation"]["baseline"]
    assert evaluated.baseline == pytest.approx(of_run)
    files = {split: str(folder / "RTE" / f"{name}.tsv") for split, name in _RTE_FILES.items()}
    changes = {f"data.{split}": file for split, file in files.items()}
    config = config_of(folder, "rte", **changes, **{"train.epochs": 0.2, "data.folder": None})
    result = finetune(config, tmp_path / "files")
    _, evaluated = evaluate_task(tmp_path / "files")
    assert evaluated.scores["accuracy"] == pytest.approx(result.metrics["eval_accuracy"])


_RTE_FILES = {"train": "train", "validation": "dev"}


def test_a_finished_run_needs_no_data(folder, tmp_path):
    data = finetuning.write_csv(tmp_path / "some.csv", range(40))
    config = config_of(folder, **{"data.train": str(data), "train.epochs": 0.2})
    first = finetune(config, tmp_path / "run")
    data.unlink()
    assert finetune(config, tmp_path / "run").metrics == first.metrics


def test_predictions_for_a_file(finished, folder, tmp_path):
    workdir, _ = finished
    assert predict(workdir, folder / "new.csv", tmp_path / "out.csv") == 30
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    correct = sum(row["prediction"] == row["label"] for row in rows)
    assert correct >= 26
    for row in rows:
        scores = [float(row["score_bad"]), float(row["score_good"])]
        assert sum(scores) == pytest.approx(1)
        assert row["prediction"] == ("bad", "good")[int(np.argmax(scores))]


def test_predictions_continue_an_interrupted_file(finished, folder, tmp_path, monkeypatch):
    from roberta_jax import predict as command
    from roberta_jax.finetuning import finished as opening

    workdir, _ = finished
    predict(workdir, folder / "new.csv", tmp_path / "whole.csv")
    monkeypatch.setattr(command, "_BLOCK", 8)
    predictions = opening.FinishedModel.predictions
    calls = []

    def interrupted(self, examples):
        calls.append(len(examples))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predictions(self, examples)

    monkeypatch.setattr(opening.FinishedModel, "predictions", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(workdir, folder / "new.csv", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    predict(workdir, folder / "new.csv", tmp_path / "out.csv")
    assert calls == [8, 8, 8, 8, 6]  # the first two blocks are not repeated
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_the_exported_model_gives_the_predictions(finished):
    """Loaded by itself, from the folder."""
    from roberta_jax import RobertaTokenizer

    workdir, _ = finished
    model, params = from_pretrained(workdir)
    tokenizer = RobertaTokenizer.from_pretrained(workdir / "hf")
    lines = (workdir / "predictions" / "validation.jsonl").read_text().splitlines()
    with open(workdir.parent / "train.csv", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    for line in map(json.loads, lines):
        batch = tokenizer(texts[int(line["id"])], return_tensors="np")
        logits = model.apply({"params": params}, batch["input_ids"], batch["attention_mask"]).logits
        probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum()
        assert line["scores"]["good"] == pytest.approx(float(probabilities[1]), abs=1e-5)


def test_official_files_with_a_submission(folder, tmp_path):
    result = finetune(config_of(folder, "rte", **{"train.epochs": 1.0}), tmp_path / "run")
    assert result.finished
    submission = (tmp_path / "run" / "submission" / "RTE.tsv").read_text().splitlines()
    assert submission[0] == "index\tprediction"
    assert len(submission) == 11
    assert {line.split("\t")[1] for line in submission[1:]} <= {"entailment", "not_entailment"}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"adapt.lora_rank": 2}, marks=pytest.mark.slow),
        pytest.param({"adapt.layer_decay": 0.8, "adapt.frozen_layers": 1}, marks=pytest.mark.slow),
        {"adapt.reinit_layers": 1, "execution.scan_layers": False},
    ],
    ids=["lora", "frozen", "reinit"],
)
def test_adaptations(folder, tmp_path, changes):
    result = finetune(config_of(folder, **changes, **{"train.epochs": 2.0}), tmp_path / "run")
    _, evaluated = evaluate_task(tmp_path / "run")
    assert evaluated.scores["accuracy"] == pytest.approx(result.metrics["eval_accuracy"])
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists() == (
        "adapt.lora_rank" in changes
    )


def test_a_run_ends_early(folder, tmp_path):
    config = config_of(folder, **{"train.epochs": 50.0, "train.patience": 2})
    result = finetune(config, tmp_path / "run")
    assert result.finished
    assert result.metrics["stopped_early"] == 1.0
    assert result.step < 8 * 50
    _, evaluated = evaluate_task(tmp_path / "run")
    assert evaluated.scores["accuracy"] == pytest.approx(result.metrics["eval_accuracy"])
    again = finetune(config, tmp_path / "run")
    assert again.metrics == result.metrics


def test_stops_between_steps_change_no_bit(folder, tmp_path, monkeypatch):
    import contextlib

    # Dropout and accumulation, so that the random state matters.
    changes = {
        "model.hidden_dropout_prob": 0.1,
        "train.per_device_batch_size": 4,
        "train.checkpoint_every": 3,
        "train.epochs": 3.0,
    }
    config = config_of(folder, **changes)
    expected = finetune(config, tmp_path / "uninterrupted")
    numbers_of_polls = iter([4, 3, 9, 2, 1, 10_000])

    def stop_requests(*_):
        polls, allowed = 0, next(numbers_of_polls)

        def should_stop():
            nonlocal polls
            polls += 1
            return polls > allowed

        return contextlib.nullcontext(preemption.StopRequests(should_stop))

    monkeypatch.setattr(preemption, "stop_requests", stop_requests)
    stops = 0
    while not (result := finetune(config, tmp_path / "interrupted")).finished:
        stops += 1
    assert stops >= 3
    assert result.metrics == expected.metrics
    assert model_bytes(tmp_path / "interrupted") == model_bytes(tmp_path / "uninterrupted")
    assert reproducible_metrics(tmp_path / "interrupted") == reproducible_metrics(
        tmp_path / "uninterrupted"
    )
    for file in ("validation.jsonl",):
        first, second = (
            (tmp_path / run / "predictions" / file).read_bytes()
            for run in ("interrupted", "uninterrupted")
        )
        assert first == second
