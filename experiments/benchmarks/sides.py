"""Processes that are measured in turn: each is asked over a pipe and answers with JSON lines."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version


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


def serve(call: Callable[[], object], times: int) -> None:
    """Answers the requests of a `Side`, in its process.

    Prints `{}` when it is called. Then it answers each line of standard input with the median time
    of the calls in seconds, and the line "stop" with the peak memory of the process.

    Args:
      call: what is timed.
      times: calls per request.
    """
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": statistics.median(seconds)}), flush=True)
    print(json.dumps({"peak_mb": peak_mb()}), flush=True)


def speedups(seconds: Mapping[str, Sequence[float]]) -> dict[str, float | list[float]]:
    """How many times as long as the first side each other one takes.

    It is the median over the rounds, and their range.

    Args:
      seconds: {side: its time in each round}, of two or more sides.
    """
    ours, *others = seconds
    result = {}
    for side in others:
        ratios = [theirs / own for theirs, own in zip(seconds[side], seconds[ours], strict=True)]
        result[f"times_{side}"] = round(statistics.median(ratios), 2)
        result[f"times_{side}_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
    return result


def about(*packages: str) -> dict[str, str | int | float | None]:
    """The versions of Python and of packages, the cores, and how busy the machine is."""
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        **{package: version(package) for package in packages},
    }


def peak_mb() -> float:
    """The largest resident memory of this process so far, on Linux."""
    with open("/proc/self/status") as file:
        peak = next(line for line in file if line.startswith("VmHWM")).split()[1]
    return int(peak) / 1024
