"""Fine-tuning a finished model on a task, as an evaluation of a sweep does."""

import json
import math
import signal
import subprocess
import sys
import types

import pytest

from experiments import downstream
from tests.support import finetuning, processes

RUN = {"validation.accuracy": 70.0, "validation_mismatched.accuracy": 60.0, "score": 70.0}


def scores(*values):
    return [{**RUN, "validation.accuracy": each, "score": each} for each in values]


@pytest.fixture
def runs(monkeypatch):
    """The (config, workdir) of all runs of a `finetune` that writes results at once."""
    started = []

    def finetune(config, workdir):
        started.append((config, workdir))
        # The larger rate is better, but with one seed.
        accuracy = config.optimizer.learning_rate * 1e4 + config.seed / 100
        split = {"scores": {"accuracy": accuracy}, "baseline": {"accuracy": 0.5}}
        results = {"metrics": ["accuracy"], "kind": "classification"}
        for name in ("hf", "checkpoints", "predictions"):
            (workdir / name).mkdir(parents=True)
        (workdir / "results.json").write_text(
            json.dumps({**results, "splits": {"validation": split}})
        )
        return types.SimpleNamespace(finished=True)

    monkeypatch.setattr("roberta_jax.finetune.finetune", finetune)
    return started


def run(tmp_path, *arguments):
    output = tmp_path / "rte.json"
    downstream.main(
        ["rte", f"--model={tmp_path / 'model'}", "--data=glue", f"--output={output}", *arguments]
    )
    return json.loads(output.read_text())


def test_the_best_combination_has_the_highest_median():
    found = downstream.medians(
        {(1e-5, 16): scores(70.0, 71.0, 99.0), (2e-5, 32): scores(10.0, 72.0, 73.0)}
    )
    assert found == {
        "accuracy": 72.0,
        "validation_mismatched.accuracy": 60.0,
        "score": 72.0,
        "learning_rate": 2e-5,
        "batch_size": 32,
        "seeds": 3,
    }


def test_scores_that_are_not_finite_are_never_the_best():
    found = downstream.medians({(1.0, 16): scores(math.nan, 99.0), (2e-5, 16): scores(1.0, 2.0)})
    assert (found["learning_rate"], found["score"]) == (2e-5, 1.5)
    assert "score" not in downstream.medians({(1.0, 16): scores(math.nan)})


def test_every_seed_is_trained_with_every_combination(runs, tmp_path):
    found = run(tmp_path, "--seeds=3", "--rates=1e-5,2e-5", "--set=train.epochs=2")
    assert len(runs) == 6
    assert {(c.seed, c.optimizer.learning_rate) for c, _ in runs} == {
        (seed, rate) for seed in range(3) for rate in (1e-5, 2e-5)
    }
    for config, workdir in runs:
        assert config.init_from == str(tmp_path / "model")
        assert (config.data.folder, config.train.epochs, config.train.batch_size) == ("glue", 2, 16)
        assert workdir.parent == tmp_path / "model" / "finetune" / "rte"
    assert len({workdir for _, workdir in runs}) == 6
    assert (found["learning_rate"], found["seeds"]) == (2e-5, 3)
    assert found["accuracy"] == pytest.approx(21.0)
    assert found["majority"] == 50.0


def test_finished_runs_are_not_repeated_and_keep_no_model(runs, tmp_path):
    found = run(tmp_path, "--seeds=2")
    assert run(tmp_path, "--seeds=3") | {"seeds": 2} != found
    assert [config.seed for config, _ in runs] == [0, 1, 2]
    for _, workdir in runs:
        names = {path.name for path in workdir.iterdir()}
        assert names == {"predictions", "results.json", ".scores.json"}


def test_models_are_kept_on_request(runs, tmp_path):
    run(tmp_path, "--keep")
    ((_, workdir),) = runs
    assert (workdir / "hf").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=0"], "give the number of seeds"),
        (["--seeds=1,2"], "give the number of seeds"),
        (["--rates=fast"], "give numbers above 0, such as 1e-5,2e-5"),
        (["--batch_sizes=16,-1"], "give numbers above 0, such as 16,32"),
        (["--set=train.epoch=3"], "did you mean train.epochs"),
    ],
)
def test_wrong_arguments_are_errors(arguments, message, tmp_path, capsys, runs):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not runs


def test_files_of_ones_own_are_not_a_task(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        downstream.main(["csv", "--model=m", f"--output={tmp_path / 'o'}"])
    assert stop.value.code == 2
    assert "python -m roberta_jax.finetune" in capsys.readouterr().err


def test_a_run_that_was_told_to_stop_ends_the_process_by_the_signal(tmp_path):
    """The runner of a sweep then starts the evaluation again, and does not call it failed."""
    code = f"""
import signal, types
import roberta_jax.finetune
from experiments import downstream
stopped = types.SimpleNamespace(finished=False, signal=signal.SIGTERM)
roberta_jax.finetune.finetune = lambda config, workdir: stopped
downstream.main(["rte", "--model={tmp_path}", "--output={tmp_path / "rte.json"}"])
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=processes.ROOT, capture_output=True)
    assert process.returncode == -15, process.stderr
    assert not (tmp_path / "rte.json").exists()


@pytest.mark.slow
def test_an_interrupted_evaluation_continues_and_gives_the_same_scores(tmp_path):
    finetuning.write_model(tmp_path / "model")
    finetuning.write_rte(tmp_path / "RTE")

    def start(name):
        arguments = [f"--model={tmp_path / 'model'}", f"--out={tmp_path / name}"]
        arguments += [f"--data={tmp_path}", f"--output={tmp_path / name}.json", "--seeds=2"]
        changes = {"train.epochs": "none", "train.steps": 40, "train.log_every": 2}
        changes |= {"train.checkpoint_every": 4, "optimizer.learning_rate": 3e-3}
        changes |= {"data.cache_dir": tmp_path / "cache", "format.max_length": 24}
        arguments += [f"--set={key}={value}" for key, value in changes.items()]
        command = [sys.executable, "-u", "-m", "experiments.downstream", "rte", *arguments]
        return subprocess.Popen(command, cwd=processes.ROOT, stdout=subprocess.PIPE, text=True)

    straight = start("straight")
    straight.communicate()
    assert straight.returncode == 0
    interrupted = start("interrupted")
    for line in interrupted.stdout:
        if line.startswith("step 8/40"):
            interrupted.send_signal(signal.SIGTERM)
            break
    interrupted.communicate()
    assert interrupted.returncode == -signal.SIGTERM
    assert not (tmp_path / "interrupted.json").exists()
    again = start("interrupted")
    output, _ = again.communicate()
    assert again.returncode == 0
    assert "Continuing from the checkpoint of step" in output
    results = [(tmp_path / f"{name}.json").read_text() for name in ("straight", "interrupted")]
    assert results[0] == results[1]
    for seed in (0, 1):
        runs = [
            next(tmp_path.glob(f"{name}/finetune/rte/*-seed{seed}/predictions/validation.jsonl"))
            for name in ("straight", "interrupted")
        ]
        assert runs[0].read_bytes() == runs[1].read_bytes()
