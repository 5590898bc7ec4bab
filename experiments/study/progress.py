"""How far a run is, read from its workdir."""

import dataclasses
import json
from collections.abc import Collection, Mapping

from etils import epath

from experiments.study.finetuned import read_scores
from experiments.study.records import read_records
from roberta_jax.errors import UsageError
from roberta_jax.training.run import finished_metrics

FINISHED = "finished"  # the state of a finished run, or how that state begins
EVALUATIONS = "evaluations"  # the folder of a workdir with the metrics of the study's evaluations


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
      step: the last step that was reported; None if the run has not started.
      steps: the number of steps of the whole run; None where its config gives epochs.
      metrics: the final metrics of the run and of its evaluations, and for fine-tuning the scores
        of all splits; None until the training is finished.
      missing: the evaluations that are still to be run.
    """

    step: int | None
    steps: int | None
    metrics: Mapping[str, float] | None = None
    missing: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        return self.metrics is not None and not self.missing

    def __str__(self) -> str:
        if self.finished:
            return FINISHED
        if self.missing:
            return f"{FINISHED}, but without the evaluations {', '.join(self.missing)}"
        if self.step is None:
            return "not begun"
        return f"step {self.step}" if self.steps is None else f"step {self.step}/{self.steps}"


def read_progress(workdir: epath.Path, steps: int | None, evaluations: Collection[str]) -> Progress:
    """Reads how far a run is; works while the run is being written.

    Args:
      workdir: the folder of the run, which need not exist.
      steps: the number of steps of the whole run, or None.
      evaluations: the names of the evaluations that follow the training.

    Raises:
      UsageError: the records of the run, or the result of an evaluation, are unreadable.
    """
    records = read_records(workdir)
    metrics = finished_metrics(workdir, steps)
    if metrics is None:
        return Progress(step=records[-1]["step"] if records else None, steps=steps)
    metrics |= read_scores(workdir)
    if steps is None:  # of a config with epochs
        steps = records[-1]["step"]
    measured = read_evaluations(workdir)
    missing = tuple(name for name in evaluations if name not in measured)
    for name, values in measured.items():
        metrics |= {f"{name}.{key}": value for key, value in values.items()}
    return Progress(step=steps, steps=steps, metrics=metrics, missing=missing)


def read_evaluations(workdir: epath.Path) -> dict[str, dict[str, float]]:
    """Returns the metrics of the evaluations of a run: {evaluation: {metric: value}}.

    Raises:
      UsageError: a file does not hold a JSON object with numbers.
    """
    folder = workdir / EVALUATIONS
    evaluations = {}
    for path in sorted(folder.glob("*.json")) if folder.exists() else []:
        try:
            evaluations[path.stem] = parse_metrics(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"{path}: {error}. Delete it to run the evaluation again.") from None
    return evaluations


def parse_metrics(text: str) -> dict[str, float]:
    """Returns the numbers of a JSON object; values of other types are ignored.

    Raises:
      ValueError: the text is not a JSON object, or holds no numbers.
    """
    values = json.loads(text)
    numbers = {
        key: float(value)
        for key, value in (values.items() if isinstance(values, dict) else ())
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    if not numbers:
        raise ValueError("not a JSON object with numbers")
    return numbers
