"""The command `doctor`, in one process and in several."""

import os
import subprocess
import sys

import pytest

from roberta_jax import doctor
from roberta_jax.diagnostics import devices, machine
from roberta_jax.diagnostics.report import Level, problem, worst
from roberta_jax.launching.environment import free_port, process_variables
from tests.support import processes

CHECKS = [
    *("versions", "devices", "hosts", "all-reduce", "embedding"),
    *("workdir", "append", "lock", "checkpoint", "compile cache", "free disk", "memory"),
]


def examined(*arguments):
    lines = []
    results = doctor.examine(*arguments, say=lines.append)
    return results, lines


def test_all_checks_are_made_and_each_has_a_line(tmp_path):
    results, lines = examined(str(tmp_path / "run"))
    assert list(dict.fromkeys(result.check for result in results)) == CHECKS
    assert not [result for result in results if result.level is Level.PROBLEM]
    assert len(lines) == len(results)
    assert not (tmp_path / "run").exists()


def test_without_a_workdir_its_checks_are_left_out():
    results, _ = examined(None)
    assert "append" not in {result.check for result in results}


def test_a_workdir_that_cannot_be_written_is_not_examined_further(tmp_path):
    (tmp_path / "file").write_text("")
    results, lines = examined(str(tmp_path / "file"))
    checks = {result.check: result.level for result in results}
    assert checks["workdir"] is Level.PROBLEM
    assert "append" not in checks
    assert any(line.startswith("problem  workdir") for line in lines)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "caf\udce9"])
def test_a_name_that_no_folder_can_have_is_a_problem(tmp_path, name):
    results, _ = examined(str(tmp_path / name))
    # The system takes names that are not UTF-8, but the library of the checkpoints does not.
    assert {each.check for each in results if each.level is Level.PROBLEM} <= {
        "workdir",
        "checkpoint",
    }
    assert worst(results) is Level.PROBLEM


def test_an_empty_workdir_is_a_wrong_call(capsys):
    with pytest.raises(SystemExit) as error:
        doctor.main(["--workdir="])
    assert error.value.code == 2
    assert "--workdir= is empty" in capsys.readouterr().err


@pytest.mark.parametrize(("level", "status"), [(None, 0), (Level.PROBLEM, 1)])
def test_problems_decide_the_exit_status(monkeypatch, capsys, level, status):
    bad = [problem("memory", "none.", "buy some.")]
    monkeypatch.setattr(machine, "memory", lambda: bad if level else [])
    with pytest.raises(SystemExit) as error:
        doctor.main([])
    assert error.value.code == status
    assert ("buy some." in capsys.readouterr().out) == bool(level)


def test_an_error_of_a_library_is_a_problem_and_the_rest_is_examined(monkeypatch):
    def fail():
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(devices, "embedding", fail)
    results, _ = examined(None)
    (failed,) = [result for result in results if result.level is Level.PROBLEM]
    assert failed.text == "the check failed: RuntimeError: no such kernel"
    assert results[-1].check == "memory"


def started(folders, *arguments):
    """Runs the command in a process for each folder, in that folder."""
    port = free_port()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "roberta_jax.doctor", "--distributed", *arguments],
            cwd=folder,
            env=processes.environment(
                2, **process_variables(index, len(folders), port, 0), **{machine.CACHE: "cache"}
            ),
            stdout=subprocess.PIPE,
            text=True,
        )
        for index, folder in enumerate(folders)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    return [process.returncode for process in running], outputs


@pytest.mark.slow
def test_several_processes_make_one_report(tmp_path):
    statuses, (report, silent) = started([tmp_path, tmp_path], "--workdir=run")
    assert statuses == [0, 0]
    assert "2 processes on 1 host: " in report
    assert "4 MiB over 4 devices in " in report
    assert "run can be written, and seen by 2 processes" in report
    assert not [line for line in silent.splitlines() if line.startswith("ok")]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_a_problem_on_every_process(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    statuses, (report, _) = started(folders, "--workdir=run")
    assert statuses == [1, 1]
    assert "process 0: run is not shared: files of process 1 are not seen here" in report
    assert "process 1: run is not shared: files of process 0 are not seen here" in report
    assert "choose a --workdir that all hosts see" in " ".join(report.split())


@pytest.mark.slow
def test_a_check_that_hangs_ends_the_command():
    code = (
        "import time; from roberta_jax import doctor\n"
        "from roberta_jax.diagnostics import machine\n"
        "machine.memory = lambda: time.sleep(600)\n"
        "doctor.examine(None, seconds=20)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(processes.ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    assert "problem  memory           no answer after 20 s." in ended.stdout
