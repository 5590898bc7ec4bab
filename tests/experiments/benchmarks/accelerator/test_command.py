"""The command with tiny sizes on a CPU, without the packages that it must not need."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.benchmarks.accelerator import __main__ as command
from experiments.benchmarks.accelerator import child

ROOT = pathlib.Path(__file__).parents[4]
MISSING = (
    "tensorflow", "tensorflow_datasets", "ml_collections", "sentencex", "tensorboardX",
    "zstandard",
)  # fmt: skip
# Python imports this module at its start, also in the processes that the command starts.
BLOCKER = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING!r}:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


@pytest.fixture
def environment(tmp_path):
    """Variables of a process in which the packages cannot be imported."""
    folder = tmp_path / "blocker"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def start(environment, tmp_path, *arguments):
    command = [sys.executable, "-m", "experiments.benchmarks.accelerator", "--smoke"]
    return subprocess.Popen(
        [*command, f"--output={tmp_path / 'out.json'}", *arguments],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, tmp_path):
    """(table, records by name) of a run that succeeds."""
    table, errors = process.communicate(timeout=800)
    assert process.returncode == 0, table + errors
    records = json.loads((tmp_path / "out.json").read_text())["records"]
    return table, {record["name"]: record for record in records}


def test_no_module_needs_a_package_that_may_be_missing(environment):
    names = sorted({module for module, _ in child.JOBS.values()} | {"__main__"})
    program = "import importlib, sys\n"
    program += f"for name in {names}:\n"
    program += "    importlib.import_module('experiments.benchmarks.accelerator.' + name)\n"
    program += f"for name in {MISSING}:\n    assert name not in sys.modules, name\n"
    program += "assert 'torch' not in sys.modules\n"
    program += (
        "try:\n    import ml_collections\nexcept ModuleNotFoundError:\n    print('blocked')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert run.stdout == "blocked\n", run.stderr


@pytest.mark.slow
def test_our_side(environment, tmp_path):
    options = ("--parts=exactness,jax", "--attentions=xla,pallas_tpu", "--remats=full")
    process = start(environment, tmp_path, *options, "--lengths=32")
    table, records = finish(process, tmp_path)
    status = {name: record["status"] for name, record in records.items()}
    assert status.pop("machine") == "measured"
    assert status.pop("attention pallas_tpu") == "refused"
    step = "tiny 32 jax xla/full"
    for each in (step, f"{step}/unrolled"):
        assert {status.pop(each), status.pop(f"profile of {each}")} == {"measured"}
    assert records[f"{step}/unrolled"]["first_loss"] == pytest.approx(records[step]["first_loss"])
    assert set(status.values()) == {"passed"}
    assert {"same bits xla", "whole model xla against the CPU"} <= status.keys()
    record = records[step]
    assert record["rows"] == 4
    assert record["tokens_per_second"] > 0
    assert record["share_of_product"] > 0
    assert record["program_bytes"] > 0
    assert record["last_loss"] < record["first_loss"]
    operations = records[f"profile of {step}"]["operations"]
    assert any("layer" in each["place"] for each in operations)
    assert records["machine"]["versions"]["jax"]
    for name in (*status, step):
        assert name in table


@pytest.mark.slow
@pytest.mark.parity
def test_the_side_of_torch(environment, tmp_path):
    pytest.importorskip("torch")
    process = start(environment, tmp_path, "--parts=torch", "--lengths=16")
    table, records = finish(process, tmp_path)
    for head in ("masked_only", "shipped"):
        record = records[f"tiny 16 torch {head}"]
        assert record["status"] == "measured"
        assert record["rows"] == 8
        assert record["last_loss"] < record["first_loss"]
        assert f"tiny 16 torch {head}" in table


@pytest.mark.slow
def test_a_signal_still_gets_the_table_and_leaves_no_process(environment, tmp_path):
    process = start(environment, tmp_path, "--parts=exactness")
    deadline = time.monotonic() + 120
    while "attention checks ..." not in process.stderr.readline():
        assert time.monotonic() < deadline
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not (pids := children.read_text().split()):
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    table, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "TFLOP/s" in table
    assert json.loads((tmp_path / "out.json").read_text())["records"][0]["name"] == "machine"
    deadline = time.monotonic() + 30
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes=0"], "'0' is not a number from 0.5"),
        (["--minutes=nan"], "'nan' is not a number"),
        (["--models=huge"], "'huge' is unknown: use large, base, tiny"),
        (["--lengths=513"], "at most 512 tokens"),
        (["--attentions=flash"], "'flash' is unknown: use xla"),
        (["--remats=some"], "'some' is unknown"),
        (["--tokens=0"], "'0' is not a whole number"),
        (["--unroll=-2"], "'-2' is not a whole number"),
        (["--torch_backend=nvfuser"], "invalid choice"),
    ],
)
def test_wrong_calls(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as error:
        command.main([*arguments, f"--output={tmp_path / 'out.json'}"])
    assert error.value.code == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_help_describes_the_parts(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    printed = capsys.readouterr().out
    for text in ("--minutes", "exactness  each attention", "--smoke"):
        assert text in printed
