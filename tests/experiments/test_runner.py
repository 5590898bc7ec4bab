"""How a sweep handles its processes; they train nothing here (see tests/support/fake_worker.py)."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments import runner
from experiments.runner import Runner
from experiments.study import Study
from tests.support import processes, texts

OK = ["0.1"]  # seconds of work


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
    """A study whose points do what they are told, and the runner of it."""

    def __init__(self, out, doing, evaluations=None, **how):
        self.out, self.study = out, study_of(doing, evaluations)
        self.points = {point.setting: point for point in self.study.points()}
        plan = {
            str(number): {
                "workdir": str(point.workdir(out)),
                "steps": point.config().train.steps,
                "doing": doing[point.setting],
            }
            for number, point in enumerate(self.study.points())
        }
        out.mkdir(exist_ok=True)
        (out / "plan.json").write_text(json.dumps(plan))
        self.runner = Runner(["fake"], out, **{"patience": 0.3, **how})

    def run(self):
        outcome = self.runner.run(self.study.points())
        names = {point.name: setting for setting, point in self.points.items()}
        lists = vars(outcome)
        return outcome.status, {
            key: [names[name] for name in each] for key, each in lists.items() if each
        }

    def workdir(self, setting):
        return pathlib.Path(self.points[setting].workdir(self.out))

    def starts(self, setting):
        path = self.workdir(setting) / "starts.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    def make(doing, evaluations=None, **how):
        return Sweep(tmp_path, doing, evaluations, **how)

    monkeypatch.setattr(runner, "WORKER", "tests.support.fake_worker")
    monkeypatch.setenv("PYTHONPATH", str(processes.ROOT))
    monkeypatch.setenv("FAKE_RUNS", str(tmp_path / "plan.json"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return make


@contextlib.contextmanager
def locked(folder):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def when(condition, then, timeout=20):
    """Does something in a thread, as soon as the condition holds."""

    def watch():
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                return
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_runs_each_point_once_and_no_finished_one_again(sweep, capsys):
    doing = dict.fromkeys("abcd", OK)
    first = sweep(doing)
    assert first.run() == (0, {"finished": list("abcd")})
    said = capsys.readouterr().out
    assert said.count("started") == said.count("finished") == 4
    assert "finished a, seed 0, in 0:00:00: perplexity 5.5\n" in said
    assert "4/4 points, 48/48 steps" in said
    assert sweep(doing).run() == (0, {"finished": list("abcd")})
    assert "started" not in capsys.readouterr().out
    assert [len(first.starts(each)) for each in "abcd"] == [1, 1, 1, 1]
    caches = {start["cache"] for each in "abcd" for start in first.starts(each)}
    assert caches == {str(first.out / ".jax_cache")}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_so_many_at_a_time_each_on_cores_of_its_own(count, sweep):
    many = sweep({each: ["0.4"] for each in "abcdef"}, processes=count)
    many.run()
    starts = sorted((many.starts(each)[0] for each in "abcdef"), key=lambda start: start["at"])
    for before, after in zip(starts, starts[count:], strict=False):
        assert after["at"] >= before["at"] + 0.4
    every = sorted(os.sched_getaffinity(0))
    cores = [start["cores"] for start in starts[:count]]
    if count == 1:
        assert cores == [every]
    elif count <= len(every):
        assert sorted(core for share in cores for core in share) == every
    else:
        assert all(len(share) == 1 for share in cores)


def test_a_failure_is_told_and_the_others_go_on(sweep, capsys):
    failing = sweep({"a": OK, "b": ["fail"], "c": OK})
    assert failing.run() == (1, {"finished": ["a", "c"], "failed": ["b"]})
    said = capsys.readouterr().out
    log = failing.workdir("b") / "log.txt"
    assert f"failed b, seed 0 (status 1); the end of {log}:" in said
    assert "    line 29\n    error: so it must be\n" in said
    assert "line 15\n" not in said  # the end of it, not all
    assert len(failing.starts("b")) == 1
    # The log grows; the next failure shows its own end.
    sweep({"a": OK, "b": ["fail"], "c": OK}).run()
    assert log.read_text().count("so it must be") == 2


def test_a_usage_error_is_shown_whatever_follows_it(sweep, capsys):
    assert sweep({"a": ["refuse"]}).run() == (1, {"failed": ["a"]})
    said = capsys.readouterr().out
    assert "log.txt:\n    error: the corpus is too small\n    noise 0\n" in said


@pytest.mark.parametrize("how", ["die", "stop"])
def test_what_a_signal_ended_is_tried_twice_more(how, sweep, capsys):
    dying = sweep({"twice": [how, how, *OK], "always": [how]})
    assert dying.run() == (1, {"finished": ["twice"], "failed": ["always"]})
    assert [len(dying.starts(each)) for each in ("twice", "always")] == [3, 3]
    name = {"die": "SIGKILL", "stop": "a request to stop"}[how]
    assert f"twice, seed 0 was ended by {name}; it goes on" in capsys.readouterr().out


def test_a_point_in_use_is_running_elsewhere(sweep, capsys):
    held = sweep({"a": OK, "b": OK})
    with locked(held.workdir("a")):
        assert held.run() == (0, {"finished": ["b"], "elsewhere": ["a"]})
    assert held.starts("a") == []
    assert "a, seed 0 is running elsewhere" in capsys.readouterr().out
    # So it is while its evaluations run.
    held = sweep({"a": OK})
    with locked(held.workdir("a") / "evaluations"):
        assert held.run() == (0, {"elsewhere": ["a"]})


def test_a_point_is_taken_when_it_is_let_go(sweep):
    held = sweep({"a": OK, "b": ["busy", *OK]}, patience=20)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(held.workdir("a")))
        letting = when(lambda: len(held.starts("b")) == 2, stack.close)
        assert held.run() == (0, {"finished": ["b", "a"]})
        letting.join()


def test_what_another_sweep_finished_meanwhile_is_not_begun(sweep, capsys):
    held = sweep({"a": OK}, patience=20)
    other = sweep({"a": OK})
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(held.workdir("a")))

        def finish():
            plan = json.loads((held.out / "plan.json").read_text())["0"]
            (held.workdir("a") / "hf").mkdir()
            (held.workdir("a") / "hf" / "config.json").write_text("{}")
            record = {"step": plan["steps"], "eval_perplexity": 5.5, "finished": 1.0}
            (held.workdir("a") / "metrics.jsonl").write_text(json.dumps(record))
            stack.close()

        finishing = when(lambda: held.workdir("a").exists(), lambda: (time.sleep(0.3), finish()))
        assert held.run() == (0, {"finished": ["a"]})
        finishing.join()
    assert other.starts("a") == []
    assert "finished elsewhere" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_the_processes(number, sweep, capfd):
    before = signal.getsignal(signal.SIGINT)
    stopped = sweep({"a": ["wait"], "b": OK})
    waits = stopped.workdir("a") / "waits"
    asking = when(waits.exists, lambda: os.kill(os.getpid(), number))
    assert stopped.run() == (1, {"left": ["b", "a"]})
    asking.join()
    assert "saved" in (stopped.workdir("a") / "log.txt").read_text()
    assert stopped.starts("b") == []
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_request_ends_everything_at_once(sweep):
    stopped = sweep({"a": ["wait"]})
    waits = stopped.workdir("a") / "waits"

    def twice():
        # The process is made deaf, as in a long computation.
        pid = stopped.starts("a")[0]["pid"]
        os.kill(pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    asking = when(waits.exists, twice)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    asking.join()
    with pytest.raises(ProcessLookupError):
        os.kill(stopped.starts("a")[0]["pid"], 0)


def test_evaluations_follow_once_each(sweep, capsys):
    write = "import json, sys; json.dump({'score': float(sys.argv[2])}, open(sys.argv[1], 'w'))"
    commands = {
        "exam": ("{python}", "-c", write, "{output}", "0.5"),
        "second": (
            "{python}",
            "-c",
            write + "; print(sys.argv)",
            "{output}",
            "1{seed}",
            "{workdir}",
        ),
    }
    made = sweep({"a": OK, "b": OK}, commands)
    assert made.run() == (0, {"finished": ["a", "b"]})
    assert "finished a, seed 0, in 0:00:0" in capsys.readouterr().out
    for each in "ab":
        folder = made.workdir(each) / "evaluations"
        assert json.loads((folder / "exam.json").read_text()) == {"score": 0.5}
        assert json.loads((folder / "second.json").read_text()) == {"score": 10.0}
        assert not list(folder.glob("*.tmp"))
        assert str(made.workdir(each)) in (made.workdir(each) / "log.txt").read_text()
    # One that is missing is made again, and it alone; nothing is trained.
    (made.workdir("a") / "evaluations" / "second.json").unlink()
    before = (made.workdir("a") / "evaluations" / "exam.json").stat().st_mtime_ns
    assert sweep({"a": OK, "b": OK}, commands).run() == (0, {"finished": ["b", "a"]})
    said = capsys.readouterr().out
    assert "started a, seed 0, evaluation second" in said
    assert said.count("started") == 1
    assert (made.workdir("a") / "evaluations" / "exam.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit(3)", "(status 3)"),
        ("pass", "is to hold a JSON object of numbers"),
        ("import sys; open(sys.argv[1], 'w').write('[]')", "is to hold a JSON object of numbers"),
        (None, "cannot run no-such-command"),
    ],
)
def test_an_evaluation_that_fails_is_told(code, said, sweep, capsys):
    start = ("no-such-command",) if code is None else ("{python}", "-c", code)
    failing = sweep({"a": OK, "b": OK}, {"exam": (*start, "{output}")})
    assert failing.run() == (1, {"failed": ["a", "b"]})
    out = capsys.readouterr().out
    assert "failed a, seed 0, evaluation exam (status" in out
    assert said in out
    assert not list(failing.workdir("a").glob("evaluations/*.json"))


def test_an_evaluation_that_was_killed_is_begun_anew(sweep):
    once = (
        "import os, pathlib, sys\n"
        "out, mark = sys.argv[1], pathlib.Path(sys.argv[2]) / 'mark'\n"
        "open(out, 'a').write('{\"score\": 1}')\n"
        "if not mark.exists():\n"
        "    mark.touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = sweep({"a": OK}, {"exam": ("{python}", "-c", once, "{output}", "{workdir}")})
    assert killed.run() == (0, {"finished": ["a"]})
    text = (killed.workdir("a") / "evaluations" / "exam.json").read_text()
    assert text == '{"score": 1}'  # not twice in one file
    assert len(killed.starts("a")) == 1


def test_the_time_left_counts_tokens(sweep, monkeypatch):
    half = sweep({"a": OK, "b": OK})
    jobs = [
        runner.Job(point, number, point.name, 10, 100)
        for number, point in enumerate(half.study.points())
    ]
    half.runner._jobs, half.runner._tokens_at_start = jobs, 2000
    monkeypatch.setattr(time, "monotonic", lambda: 50.0)
    half.runner._started = 0.0
    assert half.runner._standing() == "0/2 points, 0/200 steps, 0:00:50 so far"
    jobs[0].step = 50
    assert half.runner._standing().endswith("50/200 steps, 0:00:50 so far, about 0:02:30 left")


def run_alone(out, which):
    """For a process: the runner with points that wait, or with an evaluation that does."""
    os.environ |= {
        "FAKE_RUNS": f"{out}/plan.json",
        "PYTHONPATH": str(processes.ROOT),
    }
    runner.WORKER = "tests.support.fake_worker"
    sleep = "import os, sys, time; open(sys.argv[2], 'w').write(str(os.getpid())); time.sleep(60)"
    mark = f"{out}/evaluating"
    commands = {"exam": ("{python}", "-c", sleep, "{output}", mark)}
    doing = {"a": ["wait"]} if which == "train" else {"a": OK}
    Sweep(pathlib.Path(out), doing, commands if which == "evaluate" else None).run()


@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="Linux ends orphans")
@pytest.mark.parametrize("which", ["train", "evaluate"])
def test_nothing_runs_on_when_the_runner_is_killed(which, tmp_path):
    process = subprocess.Popen(
        processes.command(__name__, "run_alone", str(tmp_path), which),
        env=processes.environment(),
    )
    found = None
    end = time.monotonic() + 60
    while found is None and time.monotonic() < end:
        time.sleep(0.05)
        waiting = list(tmp_path.glob("*/waits"))
        if which == "train" and waiting:
            found = json.loads((waiting[0].parent / "starts.jsonl").read_text())["pid"]
        elif which == "evaluate" and (tmp_path / "evaluating").exists():
            found = int((tmp_path / "evaluating").read_text() or 0) or None
    assert found
    process.kill()
    process.wait()
    while pathlib.Path(f"/proc/{found}").exists():
        state = pathlib.Path(f"/proc/{found}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":  # ended; nobody has asked how
            break
        assert time.monotonic() < end
        time.sleep(0.05)
    if which == "train":
        assert "saved" in next(tmp_path.glob("*/log.txt")).read_text()


def test_an_orphan_from_its_first_moment_ends():
    # No process is its own parent.
    code = "import os; from experiments import worker; worker.end_with(os.getpid()); print('on')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=processes.ROOT)
    assert (found.returncode, found.stdout) == (1, b"")


def test_outcomes_have_their_status():
    nothing = runner.Outcome([], [], [], [])
    assert nothing.status == dataclasses.replace(nothing, finished=["a"], elsewhere=["b"]).status
    assert nothing.status == 0
    assert dataclasses.replace(nothing, failed=["a"]).status == 1
    assert dataclasses.replace(nothing, left=["a"]).status == 1
