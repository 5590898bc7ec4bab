"""Jobs within a time limit: what they report is kept, and none outlives its limit."""

import json
import pathlib
import subprocess
import sys
import time

import pytest

from experiments.benchmarks.accelerator import running
from experiments.benchmarks.accelerator.jobs import Job

RECORD = (
    "import json; print(json.dumps({'part': 'a', 'name': 'x', 'status': 'passed'}), flush=True)"
)


@pytest.fixture
def results(tmp_path):
    return running.Results(tmp_path / "out.json", {"minutes": 1})


def is_running(pid):
    """Whether a process exists and has not ended."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def python(program, **changes):
    return Job("jax", "the job", [sys.executable, "-c", program], **changes)


def run(results, job, seconds=600.0):
    lines = []
    running.Runner(results, seconds, lines.append).run(job)
    return lines


def test_records_are_written_as_they_come(results, tmp_path):
    program = RECORD + f"; import pathlib, time; p = pathlib.Path({str(tmp_path / 'seen')!r})\n"
    program += f"time.sleep(1); p.write_text(open({str(tmp_path / 'out.json')!r}).read())"
    lines = run(results, python(program))
    during = json.loads((tmp_path / "seen").read_text())
    assert during == json.loads((tmp_path / "out.json").read_text())
    assert during["minutes"] == 1
    assert [record["name"] for record in during["records"]] == ["x"]
    assert lines[0] == "the job ..."
    assert "done" in lines[1]


def test_a_record_replaces_the_one_of_its_name(results):
    results.add({"part": "a", "name": "x", "status": "measured", "value": 1})
    results.add({"part": "b", "name": "y", "status": "measured"})
    results.add({"part": "a", "name": "x", "status": "measured", "value": 2})
    assert [record["name"] for record in results.records()] == ["x", "y"]
    assert results.records("a")[0]["value"] == 2


def test_a_failing_job_leaves_its_records_and_says_why(results):
    run(results, python(RECORD + "; raise ValueError('out of luck')"))
    records = {record["name"]: record for record in results.records()}
    assert records["x"]["status"] == "passed"
    assert records["the job"]["status"] == "failed"
    assert "out of luck" in records["the job"]["reason"]


def test_a_job_is_skipped_if_too_little_time_is_left(results, tmp_path):
    run(results, python(f"open({str(tmp_path / 'ran')!r}, 'w')"), seconds=20)
    [record] = results.records()
    assert record["status"] == "skipped"
    assert "about 60 s needed" in record["reason"]
    assert not (tmp_path / "ran").exists()


def test_a_job_is_refused_with_its_reason(results):
    run(results, python("", refusal="it is not installed"))
    [record] = results.records()
    assert (record["status"], record["reason"]) == ("refused", "it is not installed")


def test_a_late_job_is_ended_with_its_processes(results, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "EXPECTED_SECONDS", {"jax": 0.5})
    path = tmp_path / "pid"
    program = "import subprocess, sys, time\n" + RECORD + "\n"
    program += "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    program += f"open({str(path)!r}, 'w').write(str(child.pid)); time.sleep(600)"
    start = time.monotonic()
    run(results, python(program))
    assert time.monotonic() - start < 60
    records = {record["name"]: record for record in results.records()}
    assert records["the job"]["status"] == "stopped"
    assert records["x"]["status"] == "passed"
    deadline = time.monotonic() + 20
    while is_running(int(path.read_text())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(int(path.read_text()))


def test_a_process_that_is_left_behind_does_not_hold_up(results):
    program = RECORD + "; import subprocess, sys\n"
    program += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    program += "print(flush=True)"
    start = time.monotonic()
    run(results, python(program))
    assert time.monotonic() - start < 30
    assert [record["name"] for record in results.records()] == ["x"]


def test_what_a_job_took_is_expected_of_the_next(results):
    runner = running.Runner(results, 100, lambda line: None)
    runner.run(python(""))  # 60 s are expected before
    runner._end = time.monotonic() + 30
    runner.run(python(RECORD))
    assert [record["name"] for record in results.records()] == ["x"]


def test_lines_of_other_programs_are_summarized(results):
    def summarize(code, lines):
        return {"part": "tests", "name": "t", "status": "passed", "code": code, "lines": lines}

    run(results, python("print('a'); print('b'); raise SystemExit(3)", summarize=summarize))
    [record] = results.records()
    assert (record["code"], record["lines"]) == (3, ["a", "b"])


def test_variables_of_the_user_are_kept(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    assert running.environment()["XLA_CLIENT_MEM_FRACTION"] == "0.92"
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")  # jaxlib allows one of the two
    assert "XLA_CLIENT_MEM_FRACTION" not in running.environment()


def test_a_job_ends_with_the_command_that_started_it():
    program = "import time; from experiments.benchmarks.accelerator import child, machine\n"
    program += "machine.describe = lambda emit: (emit({'a': 1}), time.sleep(600))\n"
    program += "import sys; sys.argv = ['child', 'machine', '{}']; child.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=running.environment(),
        cwd=pathlib.Path("/"),
    )
    assert json.loads(process.stdout.readline()) == {"a": 1}
    process.stdin.close()
    assert process.wait(30) == 1
