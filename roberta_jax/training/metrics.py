"""Writes the metrics of a run to a JSON lines file, to TensorBoard and to the console.

`metrics.jsonl` holds one object per line, {"step": 100, "loss": 6.2, ...}, in the order of the
steps. A run that resumes first removes the records after the step from which it resumes, so the
file never has two records of the same update. The console shows a progress bar on a terminal, and
plain lines elsewhere (a log file, a notebook).
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from etils import epath
from tqdm import tqdm

from roberta_jax.storage.atomic import write_text

FILE = "metrics.jsonl"


def read_metrics(folder: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the records of a workdir's `metrics.jsonl`; an empty list if there is no such file.

    A last line that is incomplete, because the process was killed while writing it, is left out.
    """
    path = epath.Path(folder) / FILE
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class MetricsWriter:
    """Writes metrics to `metrics.jsonl`, to TensorBoard and to the console."""

    def __init__(self, folder: epath.PathLike, *, step: int, steps: int, primary: bool = True):
        """Opens the files and removes their records of steps after `step`.

        Args:
          folder: the workdir.
          step: the step from which the run resumes, or 0.
          steps: the number of steps of the whole run.
          primary: whether this process writes; False for all but one of several processes.
        """
        self._steps = steps
        self._file = self._tensorboard = self._progress_bar = None
        if not primary:
            return
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        records = [record for record in read_metrics(folder) if record["step"] <= step]
        write_text(folder / FILE, "".join(json.dumps(record) + "\n" for record in records))
        self._file = (folder / FILE).open("a")
        self._tensorboard = _summary_writer(folder / "tensorboard", purge_step=step + 1)
        if sys.stderr.isatty():
            self._progress_bar = tqdm(initial=step, total=steps, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends the record {"step": step, **values}, and adds the values to TensorBoard."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def progress(self, step: int, loss: float, tokens_per_second: float | None) -> None:
        """Moves the progress bar, if there is one, to `step`."""
        bar = self._progress_bar
        if bar is not None:
            rate = "" if tokens_per_second is None else f"{_short(tokens_per_second)} tokens/s"
            bar.set_postfix_str(f"loss {loss:.3f} {rate}", refresh=False)
            bar.update(step - bar.n)

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
                remaining = tqdm.format_interval((self._steps - step) * seconds_per_step)
                parts.append(f"{remaining} left")
            self.say("  ".join(parts))

    def say(self, text: str) -> None:
        """Prints a line of text, above the progress bar if there is one."""
        if self._progress_bar is not None:
            self._progress_bar.write(text, file=sys.stderr)
        elif self._file is not None:
            print(text, flush=True)

    def close(self) -> None:
        """Closes the files and the progress bar. Can be called more than once."""
        for each in (self._progress_bar, self._tensorboard, self._file):
            if each is not None:
                each.close()
        self._file = self._tensorboard = self._progress_bar = None


class Meter:
    """Averages the losses and measures the speed of the steps between two records.

    The first step is not timed, because it includes compilation. `pause` excludes the time until
    the next step has finished, for evaluations and checkpoints.
    """

    def __init__(self, tokens_per_step: int):
        self._tokens_per_step = tokens_per_step
        self._last_time: float | None = None  # when the last step finished; None after a pause
        self._smoothed_seconds: float | None = None  # per step, for the progress bar
        self._reset()

    def _reset(self) -> None:
        self._seconds, self._timed_steps = 0.0, 0
        self._losses: list[Mapping[str, float]] = []

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


def _summary_writer(folder: epath.Path, purge_step: int) -> Any:
    """Returns tensorboardX's SummaryWriter. The import takes half a second, so it is done here.

    tensorboardX imports PyTorch if it is installed, only to recognise tensors. That would take
    seconds and hundreds of megabytes, so PyTorch is hidden from it.
    """
    hide_torch = "torch" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide_torch:
            del sys.modules["torch"]
    return SummaryWriter(str(folder), purge_step=purge_step)


def _short(number: float) -> str:
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{suffix}"
    return f"{number:.0f}"
