"""The campaign of interruptions: what it records and counts, and a few interruptions."""

import json
import re
import subprocess
import sys

import pytest

from experiments.robustness import interrupted_runs, kills
from experiments.study.loading import ROOT
from roberta_jax.storage.locks import exclusive_lock

KEY = {"processes": 1, "store": "local"}


def fault(run, kind="SIGKILL", phase="training", **values):
    return {"run": run, "kind": kind, "phase": phase, "seconds_until_end": 1.5, **KEY, **values}


def end(run, *differences, **values):
    return {"run": run, "differences": list(differences), **KEY, **values}


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_records_of_an_unfinished_workdir_are_dropped(tmp_path):
    path = tmp_path / kills.RECORDS
    straight = {"run": "straight", "straight": {"training": 2.0}, **KEY}
    write(path, [straight, fault("a"), fault("a"), end("a"), fault("b")])
    with path.open("a") as file:
        file.write('{"run": "b", "ki')  # the campaign was killed
    records = kills.Records(path)
    assert len(records.faults()) == 2
    assert records.faults(processes=2) == []
    assert records.straight("straight") == {"training": 2.0}
    assert records.straight("other") is None
    records.add(**fault("b"))
    records.add(**end("b"))
    assert len(kills.Records(path).faults(processes=1, store="local")) == 3


def test_the_table_counts_interruptions_and_names_failures():
    two = {"processes": 2, "store": "objects"}
    lines = [
        *(fault("a", phase=phase) for phase in ("saving", "saving", "training")),
        fault("b", "SIGTERM", **two),
        end("a"),
        end("b", "records differs", **two),
    ]
    text = kills.table(lines)
    assert "| saving | SIGKILL | 2 |  | 2 |" in text
    assert "| training | SIGTERM |  | 1 | 1 |" in text
    assert "| **all** | | 3 | 1 | **4** |" in text
    assert "| of these bit-identical | | 1 | 0 | 1 |" in text
    assert "- b: records differs" in text
    assert kills.table(lines[:3]).rstrip().endswith("none.")


@pytest.mark.parametrize(
    ("kind", "one", "statuses", "printed", "wrong"),
    [
        ("SIGKILL", None, [-9], "", 0),
        ("SIGTERM", None, [143], "", 0),
        ("SIGTERM", None, [1], "", 1),
        ("Ctrl-C", None, [2], "", 2),  # not its status, and silent
        ("SIGKILL", 1, [2, -9], "error: process 1 ended", 0),
        ("SIGKILL", 1, [2, -9], "", 1),  # silent
        ("SIGKILL", 1, [-6, -9], "", 1),
        ("SIGTERM", 0, [143, 143], "", 0),
        ("SIGTERM", 0, [-15, 2], "error: process 0 ended", 0),
    ],
)
def test_statuses(kind, one, statuses, printed, wrong):
    assert len(kills._wrong_statuses(kind, "training", one, statuses, printed)) == wrong


def test_places(tmp_path):
    local = interrupted_runs.Place(tmp_path, "run", "local")
    assert local.workdir == str(local.files) == str(tmp_path / "run")
    objects = interrupted_runs.Place(tmp_path, "run", "objects")
    assert objects.workdir == "gs://bucket/run"
    assert objects.files == tmp_path / "objects" / "bucket" / "run"


def campaign(folder, *arguments):
    command = [sys.executable, "-m", "experiments.robustness.kills", *arguments]
    command += [f"--out={folder / 'out'}", f"--results={folder}", "--override=train.steps=20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def counted(number, name):
    """The line of the workdir with the last interruption; one before may have ended too soon."""
    return re.compile(rf"^{number} interruptions; run\d+_{name}: identical$", re.MULTILINE)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_few_interruptions_and_more_later(tmp_path):
    assert counted(2, "1_local").search(campaign(tmp_path, "--count=2"))
    assert counted(3, "1_local").search(campaign(tmp_path, "--count=3"))
    assert "| **all** | | 3 | **3** |" in (tmp_path / "kills.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_interruptions_of_two_processes_in_an_object_store(tmp_path):
    text = campaign(tmp_path, "--count=1", "--processes=2", "--store=objects")
    assert counted(1, "2_objects").search(text)


def test_two_campaigns_do_not_share_a_folder(tmp_path, capsys):
    with exclusive_lock(tmp_path / ".lock"), pytest.raises(SystemExit):
        kills.main([f"--out={tmp_path}"])
    assert "another campaign is running there" in capsys.readouterr().err
