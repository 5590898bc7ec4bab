"""What came out of a study: read from its workdirs, or from the folder of a report.

from experiments.study_files import load_study
from experiments.study_results import Results, collect

results = collect(load_study("table2:tiny"), "runs/table2")
results = Results.from_folder("experiments/results/table2_tiny")
results.table()             # rows of text, for a pandas.DataFrame, say
results.figure(x="tokens")  # matplotlib's
"""

import csv
import dataclasses
import io
import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from experiments.study import FINISHED, Point, Progress, Study, decides
from roberta_jax.errors import UsageError
from roberta_jax.training.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DESCRIPTION, POINTS, CURVES = "study.json", "points.csv", "curves.csv"
MOST_RECORDS = 200  # of a run that are kept of its losses, and of its evaluations

POINT_FIELDS = ("setting", "seed", "workdir", "state", "step", "steps")
CURVE_FIELDS = ("setting", "seed", "step", "tokens", "seconds", "loss", "eval_loss")
CURVE_FIELDS += ("eval_perplexity",)
_TEXT, _WHOLE = ("setting", "workdir", "state"), ("seed", "step", "steps", "tokens")

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Summary:
    """A metric of a setting, over its seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float | None:
        """The sample's standard deviation; None of a single value."""
        if len(self.values) < 2:
            return None
        with np.errstate(invalid="ignore"):  # a run that diverged has an infinite perplexity
            return float(np.std(self.values, ddof=1))

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    def __str__(self) -> str:
        """As "84.20 ± 0.31 (84.10)": mean, standard deviation and median."""
        digits = 1
        if math.isfinite(self.mean) and self.mean:
            digits = min(max(3 - math.floor(math.log10(abs(self.mean))), 0), 6)
        if self.deviation is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f} ({self.median:.{digits}f})"


@dataclasses.dataclass(frozen=True)
class Results:
    """A study's results, as far as they are.

    Attributes:
      study: what the study is: name, origin, question, settings, seeds, columns, paper, source,
        notes, and what was changed for all.
      points: a row each: POINT_FIELDS, and the metrics of the finished ones.
      curves: rows with CURVE_FIELDS, some of them None; `loss` is that of masked language
        modelling in training, `seconds` the time spent in training steps.
    """

    study: Row
    points: Sequence[Row]
    curves: Sequence[Row]

    def finished(self, setting: str) -> list[Row]:
        """The points of the setting whose pretraining is finished."""
        return [
            point
            for point in self.points
            if point["setting"] == setting and point["state"].startswith(FINISHED)
        ]

    def summary(self, setting: str, heading: str) -> Summary | None:
        """The metric under a heading over the seeds that have it; None if none has."""
        metric = self.study["columns"][heading]
        found = [point.get(metric) for point in self.points if point["setting"] == setting]
        values = tuple(value for value in found if value is not None)
        return Summary(values) if values else None

    def table(self) -> list[dict[str, str]]:
        """A row of text for each setting: our figures, beside those of the paper."""
        paper, rows = self.study["paper"], []
        for setting in self.study["settings"]:
            finished = len(self.finished(setting))
            row = {"setting": setting, "seeds": f"{finished}/{len(self.study['seeds'])}"}
            for heading in self.study["columns"]:
                row[heading] = self._cell(setting, heading, finished)
                if any(heading in figures for figures in paper.values()):
                    row[f"{heading}, paper"] = str(paper.get(setting, {}).get(heading, ""))
            rows.append(row)
        return rows

    def _cell(self, setting: str, heading: str, finished: int) -> str:
        summary = self.summary(setting, heading)
        if summary is None:
            return "not measured" if finished else "no run finished"
        few = len(summary.values) < finished
        return f"{summary}, n = {len(summary.values)}" if few else str(summary)

    def missing(self) -> list[str]:
        """A line for each point that is not finished, and what it lacks."""
        return [
            f"{point['setting']}, seed {point['seed']}: {point['state']}"
            for point in self.points
            if point["state"] != "finished"
        ]

    def figure(self, x: str = "steps") -> "Figure":
        """Draws training loss and held-out perplexity against "steps", "tokens" or "seconds".

        A line is the mean over a setting's seeds, its band their smallest and largest values.

        Raises:
          UsageError: there is nothing to draw yet, or no matplotlib.
        """
        from experiments.study_figures import draw

        return draw(self, x)

    def files(self) -> dict[str, str]:
        """The contents of the files that `from_folder` reads."""
        metrics = sorted({key for point in self.points for key in point} - set(POINT_FIELDS))
        return {
            DESCRIPTION: json.dumps(self.study, indent=2, ensure_ascii=False) + "\n",
            POINTS: _csv((*POINT_FIELDS, *metrics), self.points),
            CURVES: _csv(CURVE_FIELDS, self.curves),
        }

    @classmethod
    def from_folder(cls, folder: epath.PathLike) -> "Results":
        """Reads what `experiments.report` wrote.

        Raises:
          UsageError: there is no such report.
        """
        folder = pathlib.Path(folder)
        try:
            study = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            points, curves = (_rows(folder / name) for name in (POINTS, CURVES))
        except FileNotFoundError as error:
            raise UsageError(
                f"no report of a study in {folder}: no file {error.filename}"
            ) from None
        points = [{key: value for key, value in row.items() if value is not None} for row in points]
        return cls(study, points, curves)


def collect(study: Study, root: epath.PathLike) -> Results:
    """Reads the workdirs of a study below `root`, also while they are being written.

    Raises:
      UsageError: none of the points has begun.
    """
    points, curves, begun = [], [], False
    for setting in study.settings:
        for seed in study.seeds:
            point = Point(study, setting, seed)
            progress = point.progress(root)
            begun = begun or progress.step is not None
            points.append(_point_row(point, progress))
            curves += _curve_rows(point, read_metrics(point.workdir(root)))
    if not begun:
        raise UsageError(
            f"no point of {study.name} has begun in {root}. First run\n"
            f"  python -m experiments.sweep {study.origin} --out={root}\n"
            "If it did run: the same --set and --seeds belong to this command."
        )
    described = ("name", "origin", "question", "columns", "paper", "source", "notes")
    parts = {name: getattr(study, name) for name in described}
    # Of files their names alone: where they lie is no one's matter.
    changes = {
        key: value.rpartition("/")[2] if isinstance(value, str) else value
        for key, value in study.changes.items()
        if decides(key)
    }
    lists = {"settings": list(study.settings), "seeds": list(study.seeds)}
    return Results({**parts, **lists, "changes": changes}, points, curves)


def _point_row(point: Point, progress: Progress) -> dict[str, Any]:
    return {
        "setting": point.setting,
        "seed": point.seed,
        "workdir": point.name,
        "state": str(progress),
        "step": progress.step or 0,
        "steps": progress.steps,
        **(progress.metrics or {}),
    }


def _curve_rows(point: Point, records: Sequence[Row]) -> list[dict[str, Any]]:
    config = point.config()
    tokens, steps = config.train.batch_size * config.seq_len, config.train.steps
    times = training_seconds(records, tokens)
    rows = []
    for kind in ("loss", "eval_loss"):
        for record in _thinned([record for record in records if kind in record], steps):
            row = {"setting": point.setting, "seed": point.seed, "step": record["step"]}
            row |= {"tokens": record["step"] * tokens, "seconds": times.get(record["step"])}
            if kind == "loss":
                row["loss"] = record.get("masked_lm_loss", record["loss"])
            else:
                row |= {key: record.get(key) for key in ("eval_loss", "eval_perplexity")}
            rows.append(dict.fromkeys(CURVE_FIELDS) | row)
    return rows


def training_seconds(records: Sequence[Row], tokens_per_step: int) -> dict[int, float]:
    """The time that the training steps up to each record's step took, by the recorded speeds.

    Where a record has no speed, its steps count with the run's median; nothing is known of a run
    without any.
    """
    losses = [record for record in records if "loss" in record]
    speeds = [record["tokens_per_second"] for record in losses if "tokens_per_second" in record]
    if not speeds:
        return {}
    usual = statistics.median(speeds)
    steps, seconds = [0], [0.0]
    for record in losses:
        tokens = (record["step"] - steps[-1]) * tokens_per_step
        seconds.append(seconds[-1] + tokens / record.get("tokens_per_second", usual))
        steps.append(record["step"])
    asked = [record["step"] for record in records]
    return dict(zip(asked, np.interp(asked, steps, seconds).tolist(), strict=True))


def _thinned(records: Sequence[Row], steps: int) -> list[Row]:
    """The last record of each of so many equal parts of the run; the same steps for each seed."""
    return list({record["step"] * MOST_RECORDS // steps: record for record in records}.values())


def _csv(fields: Sequence[str], rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [
            {key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(file)
        ]


def _value(key: str, text: str) -> Any:
    if key in _TEXT:
        return text
    if not text:
        return None
    return int(text) if key in _WHOLE else float(text)
