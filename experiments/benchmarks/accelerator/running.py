"""Runs jobs one after the other within a time limit, and keeps what they measured in a file."""

import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from experiments.benchmarks.accelerator.child import END
from experiments.benchmarks.accelerator.jobs import EXPECTED_SECONDS, Job
from roberta_jax.storage.atomic import write_json

_RESERVE = 5.0  # seconds for the end of the command
_LONGEST = 4.0  # a job is ended after so many times the seconds that it is expected to take
_LINES = 6  # of a failed job's standard error that are reported
# JAX's share of a GPU's memory. The rest is for the libraries beside it.
_GPU_SHARE = "0.92"


class Results:
    """The records of a run, and the file that has them; each new record is written at once.

    Args:
      path: the JSON file.
      about: what the file says besides the records.
    """

    def __init__(self, path: pathlib.Path, about: Mapping[str, Any]):
        self._path, self._about = path, dict(about)
        self._records: dict[str, dict] = {}

    def add(self, record: dict) -> None:
        """Adds a record, or replaces that of the same name."""
        self._records[record["name"]] = record
        write_json(self._path, {**self._about, "records": self.records()})

    def records(self, part: str | None = None) -> list[dict]:
        """The records, or those of one part."""
        return [each for each in self._records.values() if part in (None, each["part"])]


class Runner:
    """Runs jobs until the time is over.

    Args:
      results: gets the records.
      seconds: the time limit, from now on.
      tell: prints a line about a job.
    """

    def __init__(self, results: Results, seconds: float, tell: Callable[[str], None]):
        self._results, self._tell = results, tell
        self._end = time.monotonic() + seconds - _RESERVE
        self._seconds: dict[str, list[float]] = {kind: [] for kind in EXPECTED_SECONDS}

    def left(self) -> float:
        """Seconds until the last job has to end."""
        return self._end - time.monotonic()

    def run(self, job: Job) -> None:
        """Runs a job, or records that it was skipped because too little time is left."""
        if job.refusal:
            self._record(job, "refused", job.refusal)
            return
        seconds = self._seconds[job.kind]
        expected = statistics.mean(seconds) if seconds else EXPECTED_SECONDS[job.kind]
        left = self.left()
        if left < expected:
            reason = f"no time: about {expected:.0f} s needed, {max(0, left):.0f} s left"
            self._record(job, "skipped", reason)
            return
        self._tell(f"{job.title} ...")
        start = time.monotonic()
        limit = min(left, _LONGEST * max(expected, EXPECTED_SECONDS[job.kind]))
        status, reason = self._run(job, limit)
        seconds.append(time.monotonic() - start)
        if status:
            self._record(job, status, reason)
        self._tell(f"{job.title}: {status or 'done'} after {seconds[-1]:.0f} s")

    def _record(self, job: Job, status: str, reason: str) -> None:
        record = {"part": "job", "name": job.title, "kind": job.kind, "status": status}
        self._results.add(record | {"reason": reason})

    def _run(self, job: Job, limit: float) -> tuple[str | None, str]:
        """(None, "") if it ended well, else ("failed" or "stopped", why)."""
        late = threading.Event()
        process = timer = None
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            try:  # a signal may raise at any place
                process = subprocess.Popen(
                    job.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=environment() | dict(job.env),
                    text=True,
                    process_group=0,  # with what it starts, so that all can be ended
                )
                timer = threading.Timer(limit, lambda: (late.set(), _kill(process)))
                timer.daemon = True
                timer.start()
                lines = []
                for line in process.stdout:
                    if job.summarize is None and line == END:
                        break
                    lines.append(line.strip())
                    if job.summarize is None:
                        self._results.add(json.loads(line))
                code = process.wait()
            finally:
                if timer is not None:
                    timer.cancel()
                if process is not None:
                    _kill(process)
                    process.wait()
            if job.summarize is not None and not late.is_set():
                self._results.add(job.summarize(code, lines))
                return None, ""
            if late.is_set():
                return "stopped", f"was ended at its limit of {limit:.0f} s"
            if code:
                errors.seek(0)
                text = [line.rstrip() for line in errors if line.strip()][-_LINES:]
                return "failed", f"status {code}: " + " | ".join(text)[-1500:]
            return None, ""


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.killpg(process.pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    """The environment of a job: JAX may use nearly all of a GPU's memory."""
    env = dict(os.environ)
    if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & env.keys():
        env["XLA_CLIENT_MEM_FRACTION"] = _GPU_SHARE
    env.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    env.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    root = pathlib.Path(__file__).parents[3]
    env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [env.get("PYTHONPATH")])])
    return env
