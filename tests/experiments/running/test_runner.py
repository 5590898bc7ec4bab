"""How the runner handles its processes. They do not train: see `tests/support/fake_worker.py`."""

import contextlib
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import threading
import time
import types

import pytest

from experiments.running import jobs, runner
from experiments.running.runner import Runner
from experiments.study import Study
from tests.support import processes, texts

OK = ["0.02"]  # seconds until the run is finished


def study_of(settings, evaluations=None):
    return Study(
        name="fake",
        question="Does it end?",
        base=texts.small_config("", ""),
        settings={name: {} for name in settings},
        seeds=(0,),
        columns={"perplexity": "eval_perplexity", "score": "exam.score"},
        evaluations=evaluations or {},
    )


class Sweep:
    """A study whose processes do what the plan says, and its runner.

    `actions` maps each setting to what its first, second, ... process does; the last one repeats.
    """

    def __init__(self, out, actions, evaluations=None, **options):
        self.out, self.study = out, study_of(actions, evaluations)
        self.points = {point.setting: point for point in self.study.points()}
        self.plan = {
            point.name: {
                "workdir": str(point.workdir(out)),
                "steps": point.config().train.steps,
                "actions": actions[point.setting],
            }
            for point in self.study.points()
        }
        out.mkdir(exist_ok=True)
        (out / "plan.json").write_text(json.dumps(self.plan))
        self.runner = Runner(["fake"], out, **{"patience": 0.3, **options})

    def run(self):
        """Returns the exit status, and the settings with each outcome that occurred."""
        outcome = self.runner.run(self.study.points())
        settings = {point.name: setting for setting, point in self.points.items()}
        return outcome.status, {
            kind: [settings[name] for name in names]
            for kind, names in vars(outcome).items()
            if names
        }

    def workdir(self, setting):
        return pathlib.Path(self.points[setting].workdir(self.out))

    def starts(self, setting):
        return read_lines(self.workdir(setting) / "starts.jsonl")

    def ends(self, setting):
        return read_lines(self.workdir(setting) / "ends.jsonl")


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    def create(actions, evaluations=None, **options):
        return Sweep(tmp_path, actions, evaluations, **options)

    monkeypatch.setattr(runner, "WORKER", "tests.support.fake_worker")
    monkeypatch.setenv("PYTHONPATH", str(processes.ROOT))
    monkeypatch.setenv("FAKE_RUNS", str(tmp_path / "plan.json"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return create


@contextlib.contextmanager
def locked(folder):
    """Locks a folder as another process would."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def when(condition, action, timeout=60):
    """Waits in a thread for a condition, then calls `action`."""

    def watch():
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                return
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_runs_each_point_once_and_no_finished_one_again(sweep, capsys):
    actions = dict.fromkeys("abcd", OK)
    first = sweep(actions)
    assert first.run() == (0, {"finished": list("abcd")})
    output = capsys.readouterr().out
    assert output.count("started") == output.count("finished") == 4
    assert "finished a, seed 0, in 0:00:0" in output
    assert ": perplexity 5.5\n" in output
    assert "4/4 points, 48/48 steps" in output
    assert sweep(actions).run() == (0, {"finished": list("abcd")})
    assert "started" not in capsys.readouterr().out
    assert [len(first.starts(each)) for each in "abcd"] == [1, 1, 1, 1]
    caches = {start["cache"] for each in "abcd" for start in first.starts(each)}
    assert caches == {str(first.out / ".jax_cache")}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_runs_so_many_points_at_a_time_each_on_its_own_cores(count, sweep):
    many = sweep(dict.fromkeys("abcd", OK), processes=count)
    many.run()
    starts = sorted((many.starts(each)[0] for each in "abcd"), key=lambda start: start["at"])
    runs = [(many.starts(each)[0]["at"], many.ends(each)[0]["at"]) for each in "abcd"]
    for start, _ in runs:
        assert sum(other <= start < end for other, end in runs) <= count
    every = sorted(os.sched_getaffinity(0))
    cores = [start["cores"] for start in starts[:count]]
    if count == 1:
        assert cores == [every]
    elif count <= len(every):
        assert sorted(core for share in cores for core in share) == every
    else:
        assert all(len(share) == 1 for share in cores)


def test_a_failure_is_reported_and_the_other_points_run(sweep, capsys):
    failing = sweep({"a": OK, "b": ["fail"], "c": OK})
    assert failing.run() == (1, {"finished": ["a", "c"], "failed": ["b"]})
    output = capsys.readouterr().out
    log = failing.workdir("b") / "log.txt"
    assert f"failed b, seed 0 (status 1); the end of {log}:" in output
    assert "    line 29\n    error: the plan says fail\n" in output
    assert "line 15\n" not in output  # only the end of the log
    assert len(failing.starts("b")) == 1
    # The next process appends to the log.
    sweep({"a": OK, "b": ["fail"], "c": OK}).run()
    assert log.read_text().count("the plan says fail") == 2


def test_a_usage_error_is_shown_whatever_follows_it(sweep, capsys):
    assert sweep({"a": ["refuse"]}).run() == (1, {"failed": ["a"]})
    output = capsys.readouterr().out
    assert "log.txt:\n    error: the corpus is too small\n    noise 0\n" in output


def test_a_full_disk_is_named_in_place_of_an_incomplete_log(sweep, capsys, monkeypatch):
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(jobs.shutil, "disk_usage", lambda folder: usage)
    failing = sweep({"a": ["fail"]})
    assert failing.run() == (1, {"failed": ["a"]})
    output = capsys.readouterr().out
    assert f"(status 1): no space is left on the disk of {failing.workdir('a')}. Make" in output
    assert "the plan says fail" not in output


def test_a_workdir_that_cannot_be_written_is_a_failure_of_its_point(sweep, capsys):
    blocked = sweep({"a": OK, "b": OK, "c": OK})
    blocked.workdir("a").write_text("")  # a file in place of the folder
    assert blocked.run() == (1, {"finished": ["b", "c"], "failed": ["a"]})
    output = capsys.readouterr().out
    assert f"failed a, seed 0: cannot write {blocked.workdir('a')}: File exists" in output


def test_a_damaged_workdir_is_a_failure_of_its_point(sweep, capsys):
    damaged = sweep({"a": OK, "b": OK})
    run = damaged.runner._fill_slots

    def damage_then_fill():
        damaged.workdir("a").mkdir(exist_ok=True)
        (damaged.workdir("a") / "metrics.jsonl").write_text("[]\n")
        run()

    damaged.runner._fill_slots = damage_then_fill
    assert damaged.run() == (1, {"finished": ["b"], "failed": ["a"]})
    assert "metrics.jsonl is damaged: none of its lines is a record" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["die", "stop"])
def test_a_process_ended_by_a_signal_is_started_twice_more(action, sweep, capsys):
    dying = sweep({"twice": [action, action, *OK], "always": [action]})
    assert dying.run() == (1, {"finished": ["twice"], "failed": ["always"]})
    assert [len(dying.starts(each)) for each in ("twice", "always")] == [3, 3]
    name = {"die": "SIGKILL", "stop": "a request to stop"}[action]
    assert f"twice, seed 0 was ended by {name}; retrying" in capsys.readouterr().out


def test_a_locked_point_is_running_elsewhere(sweep, capsys):
    held = sweep({"a": OK, "b": OK})
    with locked(held.workdir("a")):
        assert held.run() == (0, {"finished": ["b"], "elsewhere": ["a"]})
    assert held.starts("a") == []
    assert "a, seed 0 is running elsewhere" in capsys.readouterr().out
    # Its evaluations have a lock of their own.
    held = sweep({"a": OK})
    with locked(held.workdir("a") / "evaluations"):
        assert held.run() == (0, {"elsewhere": ["a"]})


def test_a_point_is_started_once_its_lock_is_released(sweep):
    held = sweep({"a": OK, "b": ["busy", *OK]}, patience=60)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(held.workdir("a")))
        releasing = when(lambda: len(held.ends("b")) == 1, stack.close)
        assert held.run() == (0, {"finished": ["b", "a"]})
        releasing.join()


def test_a_point_that_another_sweep_finishes_is_not_started(sweep, capsys, monkeypatch):
    held = sweep({"a": OK}, patience=60)
    checks = []
    in_use = runner.in_use
    monkeypatch.setattr(runner, "in_use", lambda folder: checks.append(folder) or in_use(folder))
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(held.workdir("a")))

        def finish():
            (held.workdir("a") / "hf").mkdir()
            (held.workdir("a") / "hf" / "config.json").write_text("{}")
            steps = held.plan[held.points["a"].name]["steps"]
            record = {"step": steps, "eval_perplexity": 5.5, "finished": 1.0}
            (held.workdir("a") / "metrics.jsonl").write_text(json.dumps(record))
            stack.close()

        finishing = when(lambda: checks, finish)  # the runner has found it locked
        assert held.run() == (0, {"finished": ["a"]})
        finishing.join()
    assert held.starts("a") == []
    assert "finished elsewhere" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_the_processes(number, sweep, capsys):
    handler = signal.getsignal(signal.SIGINT)
    stopped = sweep({"a": ["wait"], "b": OK})
    waits = stopped.workdir("a") / "waits"
    asking = when(waits.exists, lambda: os.kill(os.getpid(), number))
    assert stopped.run() == (1, {"left": ["b", "a"]})
    asking.join()
    output = capsys.readouterr().out
    assert output.count("Stopping: waiting for 1 points to save checkpoints.") == 1
    assert "other processes" not in output
    assert "saved" in (stopped.workdir("a") / "log.txt").read_text()
    assert stopped.starts("b") == []
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_request_to_stop_kills_the_processes(sweep, capsys):
    stopped = sweep({"a": ["wait"]})
    waits = stopped.workdir("a") / "waits"
    messages = []

    def ask_twice():
        # A suspended process does not react to SIGTERM.
        os.kill(stopped.starts("a")[0]["pid"], signal.SIGSTOP)
        write = stopped.runner._display.write
        stopped.runner._display.write = lambda text: (messages.append(text), write(text))
        os.kill(os.getpid(), signal.SIGINT)
        when(lambda: messages, lambda: os.kill(os.getpid(), signal.SIGINT)).join()

    asking = when(waits.exists, ask_twice)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    asking.join()
    assert messages == [
        "Stopping: waiting for 1 points to save checkpoints. Interrupt again to stop at once."
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(stopped.starts("a")[0]["pid"], 0)


def test_evaluations_follow_once_each(sweep, capsys):
    write = "import json, sys; json.dump({'score': float(sys.argv[2])}, open(sys.argv[1], 'w'))"
    show = write + "; print(sys.argv)"
    commands = {
        "exam": ("{python}", "-c", write, "{output}", "0.5"),
        "second": ("{python}", "-c", show, "{output}", "1{seed}", "{workdir}"),
    }
    evaluated = sweep({"a": OK, "b": OK}, commands)
    assert evaluated.run() == (0, {"finished": ["a", "b"]})
    assert "finished a, seed 0, in 0:00:0" in capsys.readouterr().out
    for each in "ab":
        folder = evaluated.workdir(each) / "evaluations"
        assert json.loads((folder / "exam.json").read_text()) == {"score": 0.5}
        assert json.loads((folder / "second.json").read_text()) == {"score": 10.0}
        assert not list(folder.glob("*.tmp"))
        assert str(evaluated.workdir(each)) in (evaluated.workdir(each) / "log.txt").read_text()
    # Only an evaluation that is missing is run again, without training.
    (evaluated.workdir("a") / "evaluations" / "second.json").unlink()
    before = (evaluated.workdir("a") / "evaluations" / "exam.json").stat().st_mtime_ns
    assert sweep({"a": OK, "b": OK}, commands).run() == (0, {"finished": ["b", "a"]})
    output = capsys.readouterr().out
    assert "started a, seed 0, evaluation second" in output
    assert output.count("started") == 1
    assert (evaluated.workdir("a") / "evaluations" / "exam.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit(3)", "(status 3)"),
        ("pass", "must hold a JSON object of numbers"),
        ("import sys; open(sys.argv[1], 'w').write('[]')", "must hold a JSON object of numbers"),
        (None, "cannot run no-such-command"),
    ],
)
def test_a_failing_evaluation_is_reported_and_the_next_point_runs(code, message, sweep, capsys):
    program = ("no-such-command",) if code is None else ("{python}", "-c", code)
    failing = sweep({"a": OK, "b": OK}, {"exam": (*program, "{output}")})
    assert failing.run() == (1, {"failed": ["a", "b"]})
    output = capsys.readouterr().out
    assert "failed a, seed 0, evaluation exam (status" in output
    assert message in output
    assert not list(failing.workdir("a").glob("evaluations/*.json"))


def test_a_killed_evaluation_starts_with_an_empty_output(sweep):
    append = (
        "import os, pathlib, sys\n"
        "out, mark = sys.argv[1], pathlib.Path(sys.argv[2]) / 'mark'\n"
        "open(out, 'a').write('{\"score\": 1}')\n"
        "if not mark.exists():\n"
        "    mark.touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = sweep({"a": OK}, {"exam": ("{python}", "-c", append, "{output}", "{workdir}")})
    assert killed.run() == (0, {"finished": ["a"]})
    text = (killed.workdir("a") / "evaluations" / "exam.json").read_text()
    assert text == '{"score": 1}'
    assert len(killed.starts("a")) == 1


def run_alone(out, task):
    """Runs in a subprocess: a runner whose training, or whose evaluation, waits."""
    os.environ |= {"FAKE_RUNS": f"{out}/plan.json", "PYTHONPATH": str(processes.ROOT)}
    runner.WORKER = "tests.support.fake_worker"
    sleep = "import os, sys, time; open(sys.argv[2], 'w').write(str(os.getpid())); time.sleep(60)"
    commands = {"exam": ("{python}", "-c", sleep, "{output}", f"{out}/evaluating")}
    actions = {"a": ["wait"]} if task == "train" else {"a": OK}
    Sweep(pathlib.Path(out), actions, commands if task == "evaluate" else None).run()


@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="only Linux ends orphans")
@pytest.mark.parametrize("task", ["train", "evaluate"])
def test_the_processes_end_when_the_runner_is_killed(task, tmp_path):
    process = subprocess.Popen(
        processes.command(__name__, "run_alone", str(tmp_path), task),
        env=processes.environment(),
    )
    pid = None
    end = time.monotonic() + 60
    while pid is None and time.monotonic() < end:
        time.sleep(0.05)
        waiting = list(tmp_path.glob("*/waits"))
        if task == "train" and waiting:
            pid = json.loads((waiting[0].parent / "starts.jsonl").read_text())["pid"]
        elif task == "evaluate" and (tmp_path / "evaluating").exists():
            pid = int((tmp_path / "evaluating").read_text() or 0) or None
    assert pid
    process.kill()
    process.wait()
    while pathlib.Path(f"/proc/{pid}").exists():
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":  # it has ended, and its parent has not read its status
            break
        assert time.monotonic() < end
        time.sleep(0.05)
    if task == "train":
        assert "saved" in next(tmp_path.glob("*/log.txt")).read_text()
