"""The state of a sweep: a job for each point, and the process that works on it."""

import dataclasses
import pathlib
import shutil
import subprocess

from experiments.study.definition import Point

LOG_LINES = 15  # of a failed process's log that are shown
FULL_BYTES = 1 << 20  # a disk with less free space is full


@dataclasses.dataclass
class Job:
    """A point and how far it is.

    Attributes:
      point: the point to train and evaluate.
      name: the name of its workdir, which names it to the worker processes.
      tokens_per_step: tokens in a batch; steps are weighted by it to estimate the time left. For
        fine-tuning it is the number of examples.
      steps: the number of training steps of the whole run; None while it is not known.
      step: the last step that the run reported.
      retries: how many of its processes were ended by a signal and started again.
      started: `time.monotonic()` when its first process started here, or None.
    """

    point: Point
    name: str
    tokens_per_step: int
    steps: int | None
    step: int = 0
    retries: int = 0
    started: float | None = None

    @property
    def tokens_left(self) -> int:
        return ((self.steps or self.step) - self.step) * self.tokens_per_step


def make_job(point: Point) -> Job:
    """Returns the job of a point that has not started."""
    config = point.config()
    tokens = config.train.batch_size * (1 if point.study.finetunes else config.seq_len)
    return Job(point, point.name, tokens, config.train.steps)


@dataclasses.dataclass
class Stage:
    """A running process of a job: its training or one of its evaluations.

    Attributes:
      job: the job.
      slot: the index of the slot, and so of the CPU cores, that the process occupies.
      evaluation: the name of the evaluation; None is the training.
      process: the process.
      log: the file that its output is appended to; None if the workdir is on an object store.
      log_start: the size of that file when the process started, in bytes.
    """

    job: Job
    slot: int
    evaluation: str | None
    process: subprocess.Popen
    log: pathlib.Path | None
    log_start: int

    def failure(self, reason: str) -> str:
        """Describes how the process failed, with the end of its log."""
        stage = "" if self.evaluation is None else f", evaluation {self.evaluation}"
        message = f"failed {self.job.point}{stage} ({reason})"
        if self.log is None:
            return message
        if shutil.disk_usage(self.log.parent).free < FULL_BYTES:  # and the log is incomplete
            return (
                f"{message}: no space is left on the disk of {self.log.parent}. Make room and run "
                "the sweep again."
            )
        excerpt = [f"    {line}" for line in self._log_excerpt()]
        return "\n".join([f"{message}; the end of {self.log}:", *excerpt])

    def _log_excerpt(self) -> list[str]:
        with open(self.log, "rb") as file:
            file.seek(self.log_start)
            text = file.read().decode(errors="replace")
        # A progress bar rewrites its line; only the last state of it is shown.
        lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip().split("\n")]
        first = max(len(lines) - LOG_LINES, 0)
        if self.process.returncode == 2:  # threads of libraries may print after the error message
            errors = [index for index, line in enumerate(lines) if line.startswith("error: ")]
            first = errors[-1] if errors else first
        return lines[first : first + LOG_LINES]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a sweep ended, as the names of points.

    Attributes:
      finished: the points that are finished.
      failed: the points with a failed process.
      elsewhere: the points that another process is working on.
      left: the points that are unfinished because the sweep was asked to stop.
    """

    finished: list[str]
    failed: list[str]
    elsewhere: list[str]
    left: list[str]

    @property
    def status(self) -> int:
        """The exit status of the command."""
        return 1 if self.failed or self.left else 0
