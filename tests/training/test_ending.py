"""How processes end."""

import subprocess
import sys

import pytest

from tests.support import processes

_WAITING = {
    "a thread": "threading.Thread(target=time.sleep, args=(600,)).start()",
    "a thread of an executor": "ThreadPoolExecutor().submit(time.sleep, 600)",
}
_IMPORTS = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from roberta_jax.training.ending import end_within
"""


def run(program):
    return subprocess.run(
        [sys.executable, "-c", _IMPORTS + program],
        env=processes.environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("waiting", _WAITING)
def test_a_process_ends_though_a_thread_waits(waiting):
    ended = run(f"{_WAITING[waiting]}\nend_within(0.2, 2)\nprint('written')\nsys.exit(2)")
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "written\n", "")


def test_a_process_that_goes_on_does_not_end():
    ended = run("end_within(0.1, 2)\ntime.sleep(1)\nprint('went on')")
    assert (ended.returncode, ended.stdout) == (0, "went on\n")
