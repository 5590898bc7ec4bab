"""The points of a study as tasks of a Ray cluster of this machine."""

import os
import signal
import sys
import threading
import time

import pytest

from experiments import sweep
from experiments.running import ray_runner
from experiments.running.ray_runner import RayRunner
from roberta_jax.errors import UsageError
from tests.support import processes, texts, toy_study

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.slow  # a cluster takes seconds to start

# In place of `experiments.sweep`: writes what a finished run has, or what a test asks for.
PROGRAM = """
import json, os, pathlib, signal, sys, time
options = dict(each.lstrip("-").split("=", 1) for each in sys.argv[1:] if each.startswith("--"))
workdir = pathlib.Path(options["out"], options["point"])
workdir.mkdir(parents=True, exist_ok=True)
action = (workdir.parent / "action").read_text()
starts = workdir / "starts"
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
if action == "fail":
    print("no such corpus")
    sys.exit(1)
if action == "lose" and starts.read_text() == "x":
    os.kill(os.getppid(), signal.SIGKILL)  # the worker of Ray, as if its node were lost
if action == "wait":
    signal.signal(signal.SIGTERM, lambda *_: ((workdir / "saved").touch(), sys.exit(143)))
    (workdir / "ready").touch()
    time.sleep(60)
records = [{"step": 1, "loss": 5.0}, {"step": int(os.environ.get("STEPS", 12)), "finished": 1.0}]
(workdir / "metrics.jsonl").write_text("".join(json.dumps(each) + "\\n" for each in records))
(workdir / "hf").mkdir(exist_ok=True)
(workdir / "hf" / "config.json").write_text("{}")
"""


@pytest.fixture(scope="module")
def cluster():
    ray.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def study(tmp_path, monkeypatch, cluster):
    """Returns a function that runs the toy study's points with the program above."""
    monkeypatch.setattr(ray_runner, "SWEEP", [sys.executable, "-c", PROGRAM])
    monkeypatch.setattr(ray_runner, "POLL_SECONDS", 0.1)
    points = toy_study.get_study("quick").points()
    points = [each for each in points if each.config().train.steps == 12]

    def run(action, **options):
        (tmp_path / "action").write_text(action)
        runner = RayRunner([toy_study.PATH], str(tmp_path), **options)
        return runner, runner.run(points), points

    return run


def test_points_that_finish_are_not_run_again(study, tmp_path, capsys):
    _, outcome, points = study("finish")
    assert sorted(outcome.finished) == sorted(point.name for point in points)
    assert not outcome.failed
    _, outcome, _ = study("fail")
    assert sorted(outcome.finished) == sorted(point.name for point in points)
    assert "2 of 2 points were finished before" in capsys.readouterr().out


def test_a_point_that_fails_says_why(study, capsys):
    _, outcome, points = study("fail")
    assert len(outcome.failed) == len(points)
    assert "status 1; the end of its output:\n    no such corpus" in capsys.readouterr().out


def test_a_point_whose_worker_is_lost_is_started_again(study, tmp_path):
    _, outcome, points = study("lose")
    assert len(outcome.finished) == len(points)
    assert [(tmp_path / point.name / "starts").read_text() for point in points] == ["xx", "xx"]


def test_points_that_are_stopped_save_and_are_left(study, tmp_path):
    def interrupt():
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*/ready"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    runner, outcome, points = study("wait")
    thread.join()
    assert runner.stop_signal == signal.SIGTERM
    assert sorted(outcome.left) == sorted(point.name for point in points)
    assert len(list(tmp_path.glob("*/saved"))) == 2


def test_a_point_that_no_node_has_room_for_is_an_error(study):
    with pytest.raises(
        UsageError, match="has --cpus_per_point=3 and --gpus_per_point=0: a node has"
    ):
        study("finish", cpus=3)


def test_without_ray_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'roberta_jax\[ray\]'"):
        RayRunner([], "out")


def test_a_study_is_trained_on_a_cluster(tmp_path, monkeypatch, capsys, cluster):
    texts.write_corpus(tmp_path / "corpus.jsonl")
    monkeypatch.setenv("PYTHONPATH", str(processes.ROOT))
    arguments = [
        f"{toy_study.PATH}:evaluated",
        f"--set=data.files={tmp_path / 'corpus.jsonl'}",
        f"--set=data.cache_dir={tmp_path / 'cache'}",
        "--seeds=0",
        f"--out={tmp_path / 'runs'}",
        "--runner=ray",
    ]
    with pytest.raises(SystemExit) as error:
        sweep.main(arguments)
    printed = capsys.readouterr().out
    assert error.value.code == 0, printed
    assert "finished: 2\n" in printed
    assert len(list((tmp_path / "runs").glob("*/evaluations/measured.json"))) == 2
