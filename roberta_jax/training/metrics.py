"""Writes the metrics of a run to a JSON lines file, to TensorBoard and to the console.

`metrics.jsonl` holds one object per line, {"step": 100, "loss": 6.2, ...}, in the order of the
steps. A run that resumes first removes the records that its checkpoint does not know of, so that
each record is there once: apart from speeds, they equal those of a run that was never interrupted.
On an object store the file is written as a whole: at each evaluation, before each checkpoint, which
counts on the records before it, and once a minute.
The console shows a progress bar on a terminal, and plain lines elsewhere (a log file, a notebook).
"""

import contextlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from tqdm import tqdm

from roberta_jax.errors import UsageError
from roberta_jax.storage.atomic import write_text
from roberta_jax.storage.published import PublishedFolder
from roberta_jax.training.preemption import discard_failed_output
from roberta_jax.training.workdir import LOCK

FILE = "metrics.jsonl"

# Each record of an update has this value, and no record of an evaluation has it.
_OF_AN_UPDATE = "learning_rate"
# Each record that is not of an evaluation has one of these: the other is of `SpikeWatch.rewind`.
_NOT_OF_AN_EVALUATION = (_OF_AN_UPDATE, "skipped_batches")

_PUBLISH_SECONDS = 60.0  # how old the files on an object store may be between checkpoints


def read_metrics(folder: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the records of a workdir's `metrics.jsonl`; an empty list if there is no such file.

    A last line that is incomplete, because the process was killed while writing it, is left out.
    Other lines that are not records, because the file is damaged, are left out with a warning.

    Raises:
      UsageError: the file cannot be read.
    """
    path = epath.Path(folder) / FILE
    try:
        lines = path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror or error}. Move it away, or restore it; the "
            "checkpoints do not depend on it."
        ) from error
    *lines, incomplete = lines  # the last line ends in a newline if it is complete
    records, unreadable = [], 0
    for line in lines:
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif line.strip():
            # A line that was cut short may have been continued by the next records.
            parts = [_parse(part) for part in re.split(rb'(?=\{"step": )', line)]
            records += [part for part in parts if part is not None]
            unreadable += 1
    records += [record for record in (_parse(incomplete),) if record is not None]
    if unreadable:
        logging.warning(
            "%s: %d damaged line(s) could not be read and are left out; %d records were read.",
            path,
            unreadable,
            len(records),
        )
    return records


def _parse(line: bytes) -> dict[str, Any] | None:
    """Returns the record that a line holds, or None if it is not one."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    is_record = (
        isinstance(record, dict)
        and type(record.get("step")) is int
        and all(type(value) in (int, float) for value in record.values())
    )
    return record if is_record else None


class MetricsWriter:
    """Writes metrics to `metrics.jsonl`, to TensorBoard and to the console.

    Attributes:
      step: the step that is being computed; the training loop sets it.
      records: how many records the file has.
      seconds_per_step: the recent speed, None before a step was timed.
      on_closed_output: called if stdout cannot be written, such as when its reader has ended
        (`... | head`). Further output is discarded.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        step: int,
        steps: int,
        evaluation_due: bool = False,
        records: int = 0,
        primary: bool = True,
    ):
        """Opens the files and removes their records of steps after `step`.

        Args:
          folder: the workdir.
          step: the step from which the run resumes, or 0.
          steps: the number of steps of the whole run.
          evaluation_due: whether the run resumes before the evaluation of `step`. A record of it,
            left by a process that resumed there and was killed, is removed.
          records: how many records there were at `step`. A warning says if some are missing.
          primary: whether this process writes; False for all but one of several processes.

        Raises:
          UsageError: `metrics.jsonl` cannot be read.
        """
        self.step = step
        self.seconds_per_step: float | None = None
        self.on_closed_output: Callable[[], Any] = lambda: None
        self.records = 0
        self._folder, self._steps, self._primary = folder, steps, primary
        self._file = self._tensorboard = self._progress_bar = None
        self._files: PublishedFolder | None = None
        if not primary:
            return
        from roberta_jax.training.tensorboard import EventLog

        folder = epath.Path(folder)
        kept = [record for record in read_metrics(folder) if record["step"] <= step]
        if evaluation_due:
            kept = [
                r
                for r in kept
                if r["step"] < step or any(name in r for name in _NOT_OF_AN_EVALUATION)
            ]
        lines = dict.fromkeys(json.dumps(record) + "\n" for record in kept)  # no line twice
        self.records = len(lines)
        if self.records < records:
            logging.warning(
                "%s has %d of the %d records up to step %d; the others are lost. The model is not "
                "affected.",
                folder / FILE,
                self.records,
                records,
                step,
            )
        self._files = PublishedFolder(folder, lease=folder / LOCK)
        write_text(self._files.local / FILE, "".join(lines))
        self._file = (self._files.local / FILE).open("a")
        self._tensorboard = EventLog(
            self._files.local / "tensorboard",
            earlier=sorted((folder / "tensorboard").glob("*.tfevents.*")),
            next_step=step if evaluation_due else step + 1,
            records=[json.loads(line) for line in lines],
        )
        if sys.stderr.isatty():
            # Without tqdm's own estimate of the time left, which counts compilation as steps.
            layout = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            self._progress_bar = tqdm(
                initial=step, total=steps, bar_format=layout, dynamic_ncols=True
            )

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        # On a full disk closing fails as well, which would only hide the first error.
        with (
            contextlib.nullcontext() if error is None else contextlib.suppress(OSError, UsageError)
        ):
            self.close(after_error=error is not None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends the record {"step": step, **values}, and adds the values to TensorBoard."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        self.records += 1
        self._tensorboard.add(step, values)
        if self._files.seconds_behind > _PUBLISH_SECONDS or _OF_AN_UPDATE not in values:
            with contextlib.suppress(UsageError):  # the next checkpoint needs it, and tries again
                self.publish()

    def publish(self) -> None:
        """Makes all records of this process visible, before something is saved that counts on them.

        On a file system they are visible as soon as they are written.

        Raises:
          UsageError: they cannot be written to the object store.
        """
        if self._files is not None:
            self._tensorboard.flush()
            self._files.publish()

    def rewind(self, step: int, evaluation_due: bool = False) -> None:
        """Removes the records of steps after `step`, as a run that resumes there does."""
        speed, on_closed_output = self.seconds_per_step, self.on_closed_output
        self.close()
        self.__init__(
            self._folder,
            step=step,
            steps=self._steps,
            evaluation_due=evaluation_due,
            primary=self._primary,
        )
        self.seconds_per_step, self.on_closed_output = speed, on_closed_output

    def progress(
        self,
        step: int,
        loss: float,
        tokens_per_second: float | None,
        seconds_per_step: float | None = None,
    ) -> None:
        """Moves the progress bar, if there is one, to `step`."""
        self.seconds_per_step = seconds_per_step
        bar = self._progress_bar
        if bar is not None:
            parts = [f"loss {loss:.3f}"]
            if tokens_per_second is not None:
                parts.append(f"{_short(tokens_per_second)} tokens/s")
            if seconds_per_step is not None:
                parts.append(self._time_left(step, seconds_per_step))
            bar.set_postfix_str(", ".join(parts), refresh=False)
            bar.update(step - bar.n)

    def _time_left(self, step: int, seconds_per_step: float) -> str:
        return f"{tqdm.format_interval((self._steps - step) * seconds_per_step)} left"

    def line(self, step: int, values: Mapping[str, float], seconds_per_step: float | None) -> None:
        """Prints the metrics of a step, unless there is a progress bar.

        Args:
          step: the number of updates made.
          values: `loss`, `learning_rate` and, where `seconds_per_step` is given,
            `tokens_per_second`.
          seconds_per_step: for the remaining time; None prints neither that nor the speed.
        """
        if self._file is not None and self._progress_bar is None:
            parts = [f"step {step}/{self._steps}", f"loss {values['loss']:.4f}"]
            parts.append(f"learning rate {values['learning_rate']:.2e}")
            if seconds_per_step is not None:
                parts.append(f"{_short(values['tokens_per_second'])} tokens/s")
                parts.append(self._time_left(step, seconds_per_step))
            self.say("  ".join(parts))

    def say(self, text: str) -> None:
        """Prints a line of text, above the progress bar if there is one."""
        if self._progress_bar is not None:
            self._progress_bar.write(text, file=sys.stderr)
        elif self._file is not None:
            try:
                print(text, flush=True)
            except OSError as error:
                if not discard_failed_output(error):
                    raise
                self.on_closed_output()

    def close(self, after_error: bool = False) -> None:
        """Closes the files and the progress bar. Can be called more than once.

        Args:
          after_error: see `PublishedFolder.close`.
        """
        files, opened = self._files, (self._file, self._tensorboard, self._progress_bar)
        self._files = self._file = self._tensorboard = self._progress_bar = None
        with contextlib.ExitStack() as stack:  # the last one first
            if files is not None:
                stack.callback(files.close, after_error)
            for each in opened:
                if each is not None:
                    stack.callback(each.close)


class Meter:
    """Averages the losses and measures the speed of the steps between two records.

    The first step is not timed, because it includes compilation. `pause` excludes the time until
    the next step has finished, for evaluations and checkpoints.
    """

    def __init__(self, tokens_per_step: int, losses: Sequence[Mapping[str, float]] = ()):
        """Starts to measure.

        Args:
          tokens_per_step: for the speed.
          losses: those of the steps since the last record that were made before, from `losses`.
        """
        self._tokens_per_step = tokens_per_step
        self._last_time: float | None = None  # when the last step finished; None after a pause
        self._smoothed_seconds: float | None = None  # per step, for the progress bar
        self._reset()
        self._losses += losses

    def _reset(self) -> None:
        self._seconds, self._timed_steps = 0.0, 0
        self._losses: list[Mapping[str, float]] = []

    @property
    def losses(self) -> list[Mapping[str, float]]:
        """The losses of the steps since the last record, which a checkpoint has to save."""
        return list(self._losses)

    def add(self, losses: Mapping[str, float]) -> None:
        """Adds a step that has just finished; its losses have the same names in every call."""
        now = time.perf_counter()
        self._losses.append(losses)
        if self._last_time is not None:
            seconds = now - self._last_time
            self._seconds += seconds
            self._timed_steps += 1
            if self._smoothed_seconds is None:
                self._smoothed_seconds = seconds
            else:
                self._smoothed_seconds = 0.95 * self._smoothed_seconds + 0.05 * seconds
        self._last_time = now

    def pause(self) -> None:
        """Excludes the time until the next step has finished."""
        self._last_time = None

    @property
    def seconds_per_step(self) -> float | None:
        """The recent time of a step, smoothed, or None before a step was timed."""
        return self._smoothed_seconds

    @property
    def tokens_per_second(self) -> float | None:
        """The recent speed, smoothed, or None before a step was timed."""
        return self._tokens_per_step / self._smoothed_seconds if self._smoothed_seconds else None

    def take(self) -> tuple[dict[str, float], float | None]:
        """Returns the averages over the steps since the last call.

        Returns:
          (the mean losses and `tokens_per_second`, the mean seconds per step). If no step was
          timed, there is no `tokens_per_second` and the seconds are None.
        """
        values = {
            name: sum(losses[name] for losses in self._losses) / len(self._losses)
            for name in self._losses[0]
        }
        seconds = self._seconds / self._timed_steps if self._timed_steps else None
        if seconds:
            values["tokens_per_second"] = self._tokens_per_step / seconds
        self._reset()
        return values, seconds


def _short(number: float) -> str:
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{suffix}"
    return f"{number:.0f}"
