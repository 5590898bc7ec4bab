"""What a run reports: a line of JSON each time, TensorBoard files, and the console.

`metrics.jsonl` holds one object a line, {"step": 100, "loss": 6.2, ...}, in the order of steps; a
run that resumes first cuts it to the step it resumes from, so no step is told twice. On a terminal
there is a progress bar; elsewhere (a log file, a notebook) plain lines.
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from etils import epath
from tqdm import tqdm

FILE = "metrics.jsonl"


def read_metrics(folder: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the records of a workdir's `metrics.jsonl`, without a last line cut short by a kill.

    The list is empty where there is no such file.
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
    """Writes records to `metrics.jsonl`, to TensorBoard and to the console."""

    def __init__(self, folder: epath.PathLike, *, step: int, steps: int, primary: bool = True):
        """Opens the files and cuts what they hold beyond `step`.

        Args:
          folder: the workdir.
          step: the updates made so far: the step resumed from, or 0.
          steps: the updates of the whole run.
          primary: False writes nothing: of several processes one reports.
        """
        self._steps = steps
        self._file = self._board = self._bar = None
        if not primary:
            return
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        kept = [record for record in read_metrics(folder) if record["step"] <= step]
        # No record of a step that is not (or no longer) in a checkpoint.
        temporary = folder / f"{FILE}.tmp"
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        temporary.replace(folder / FILE)
        self._file = (folder / FILE).open("a")
        self._board = _board(folder / "tensorboard", purge_step=step + 1)
        if sys.stderr.isatty():
            self._bar = tqdm(initial=step, total=steps, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends the record {"step": step, **values} and the same values to TensorBoard."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def progress(self, step: int, loss: float, tokens_per_second: float | None) -> None:
        """Moves the progress bar, if there is one, to `step`."""
        if self._bar is not None:
            rate = "" if tokens_per_second is None else f"{_short(tokens_per_second)} tokens/s"
            self._bar.set_postfix_str(f"loss {loss:.3f} {rate}", refresh=False)
            self._bar.update(step - self._bar.n)

    def line(self, step: int, values: Mapping[str, float], seconds_a_step: float | None) -> None:
        """Prints a step's values where there is no progress bar."""
        if self._file is not None and self._bar is None:
            parts = [f"step {step}/{self._steps}", f"loss {values['loss']:.4f}"]
            parts.append(f"learning rate {values['learning_rate']:.2e}")
            if seconds_a_step is not None:
                parts.append(f"{_short(values['tokens_per_second'])} tokens/s")
                left = tqdm.format_interval((self._steps - step) * seconds_a_step)
                parts.append(f"{left} left")
            self.say("  ".join(parts))

    def say(self, text: str) -> None:
        """Prints a line of text, above the progress bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._file is not None:
            print(text, flush=True)

    def close(self) -> None:
        """Closes the files; what was written stays."""
        for each in (self._bar, self._board, self._file):
            if each is not None:
                each.close()
        self._file = self._board = self._bar = None


class Meter:
    """Averages the steps' losses and their speed between two records.

    Time in which no step runs (evaluation, checkpoints) is taken out by `pause`, and so is the
    first step, which waits for the compiler.
    """

    def __init__(self, tokens_per_step: int):
        self._tokens = tokens_per_step
        self._last: float | None = None
        self._speed: float | None = None  # seconds a step, smoothed, for the progress bar
        self._reset()

    def _reset(self) -> None:
        self._seconds, self._timed = 0.0, 0
        self._losses: list[Mapping[str, float]] = []

    def add(self, losses: Mapping[str, float]) -> None:
        """Notes a finished step; all have the same names."""
        now = time.perf_counter()
        self._losses.append(losses)
        if self._last is not None:
            spent = now - self._last
            self._seconds += spent
            self._timed += 1
            self._speed = spent if self._speed is None else 0.95 * self._speed + 0.05 * spent
        self._last = now

    def pause(self) -> None:
        """Leaves out the time until the next step has finished."""
        self._last = None

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of late, or None before it is known."""
        return self._tokens / self._speed if self._speed else None

    def take(self) -> tuple[dict[str, float], float | None]:
        """Returns the mean losses and the speed since the last call, and the seconds a step took.

        Both speeds are missing (the seconds None) where no step could be timed.
        """
        values = {
            name: sum(losses[name] for losses in self._losses) / len(self._losses)
            for name in self._losses[0]
        }
        seconds = self._seconds / self._timed if self._timed else None
        if seconds:
            values["tokens_per_second"] = self._tokens / seconds
        self._reset()
        return values, seconds


def _board(folder: epath.Path, purge_step: int) -> Any:
    """tensorboardX's writer, imported here, since half a second of imports hangs on it.

    Where PyTorch is installed it would be imported, too, for seconds and hundreds of megabytes,
    only to know its tensors' type.
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide:
            del sys.modules["torch"]
    return SummaryWriter(str(folder), purge_step=purge_step)


def _short(number: float) -> str:
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{letter}"
    return f"{number:.0f}"
