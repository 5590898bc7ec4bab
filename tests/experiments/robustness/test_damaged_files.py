"""Tests of the campaign of damaged files: its verdicts, and a few cases from end to end."""

import os
import subprocess
import sys

import pytest

from experiments.robustness import damages
from experiments.study.loading import ROOT

DATA = bytes(range(1, 161))


@pytest.mark.parametrize("name", damages.DAMAGES)
def test_every_damage_changes_the_file(tmp_path, name):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    damages.apply(name, path, None)
    if name == "unreadable":
        assert path.stat().st_mode & 0o777 == 0
    else:
        assert not path.is_file() or path.read_bytes() != DATA


def test_sizes_of_damages(tmp_path):
    def damaged(name):
        path = tmp_path / "file"
        path.write_bytes(DATA)
        damages.apply(name, path, None)
        return path.read_bytes()

    assert len(damaged("half")) == 80
    assert damaged("one byte short") == DATA[:-1]
    assert damaged("one byte more")[:-1] == DATA
    assert damaged("zeroed block") == DATA[:60] + bytes(20) + DATA[80:]
    for name, place in (("bit at start", 0), ("bit at 1/3", 53), ("bit at end", 159)):
        assert damaged(name) == DATA[:place] + bytes([DATA[place] ^ 1]) + DATA[place + 1 :]


def test_another_file(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    damages.apply(damages.ANOTHER, tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == b"b"


# Each reader gives one verdict. It runs in a process of its own, because the campaign forks.
VERDICTS = """
import os, pathlib, sys, time
from experiments.robustness import damaged_files
from experiments.robustness.kinds import Kind
from roberta_jax.errors import UsageError

def fail(folder, root):
    raise UsageError(f"{folder / 'a' / 'file'} is damaged") if damaged(folder) else SystemExit
def vague(folder, root):
    raise UsageError("something is damaged")
def crash(folder, root):
    return {}[1]
def abort(folder, root):
    os.kill(os.getpid(), 9)
def hang(folder, root):
    time.sleep(60)
def repair(folder, root):
    (folder / "a" / "file").write_bytes(b"right")
    return 1
def ignore(folder, root):
    return 1
def warn(folder, root):
    print("WARNING: file is damaged")
    return 2
def believe(folder, root):
    return 2
def resume(folder, root):
    return [1, {"start": 2}]
def damaged(folder):
    return (folder / "a" / "file").read_bytes() != b"right"

root = pathlib.Path(sys.argv[1])
(root / "part" / "a").mkdir(parents=True)
(root / "part" / "a" / "file").write_bytes(b"right")
for name, read in list(globals().items()):
    if name in sys.argv[2:]:
        for is_valid in (None, lambda path: True):
            kind = Kind(name, "part", ("a/*",), read, is_valid)
            case = damaged_files.Case(kind, pathlib.PurePath("a/file"), "bit at 1/3")
            expected = [1, {"start": 4}] if name == "resume" else 1
            print(name, damaged_files.run_case(case, root, expected, timeout=3).verdict, sep=": ")
"""


@pytest.fixture
def run(tmp_path):
    """Runs Python with arguments, and returns the finished process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_verdicts(run, tmp_path):
    expected = {
        "fail": ("refused", "refused"),
        "vague": ("vague", "vague"),
        "crash": ("traceback", "traceback"),
        "abort": ("traceback", "traceback"),
        "hang": ("hang", "hang"),
        "repair": ("repaired", "repaired"),
        "ignore": ("harmless", "harmless"),
        "warn": ("warned", "warned"),
        "believe": ("silently wrong", "unprotected"),
        "resume": ("older", "older"),
    }
    process = run("-c", VERDICTS, str(tmp_path / "root"), *expected)
    lines = [f"{name}: {verdict}" for name, verdicts in expected.items() for verdict in verdicts]
    assert process.stdout.splitlines() == lines, process.stderr


def test_a_few_cases_from_end_to_end(run, tmp_path):
    process = run(
        *("-m", "experiments.robustness.damaged_files", f"--out={tmp_path}"),
        *("--kinds=packing index,token store: shards,text*xz", "--damages=zeroed block,missing"),
    )
    assert process.returncode == 0, process.stdout + process.stderr
    table = (tmp_path / "damaged_files.md").read_text()
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for cells in (line.split("|") for line in table.splitlines() if line.startswith("|"))
    }
    # Files, cases, refused, repaired.
    assert rows["packing index"][:4] == ["12", "24", "", "24"]
    assert rows["token store: shards"][:3] == ["6", "12", "12"]
    assert rows["text, .xz"][:3] == ["1", "2", "2"]
