"""Processes that are measured in turn: each is asked over a pipe and answers with JSON lines."""

import json
import subprocess
import sys
from collections.abc import Sequence


class Side:
    """A process that works on request; its first answer says that it is ready.

    Args:
      command: the command line.
    """

    def __init__(self, command: Sequence[str]):
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ready = self._answer()

    def ask(self, what: str = "go") -> dict:
        """Sends a request and waits for the answer."""
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a side ended with status {self._process.wait()}")
        return json.loads(line)


def peak_mb() -> float:
    """The largest resident memory of this process so far, on Linux."""
    with open("/proc/self/status") as file:
        peak = next(line for line in file if line.startswith("VmHWM")).split()[1]
    return int(peak) / 1024
