"""The results of a study, as a table, curves and files.

from experiments.reporting import Results, collect
from experiments.study import load_study

results = collect(load_study("table2:tiny"), "runs/table2")            # from the workdirs
results = Results.from_folder("experiments/results/table2_tiny")       # from a report
results.table()             # rows of text, for example for a pandas.DataFrame
results.figure(x="tokens")  # a Matplotlib figure
"""

import csv
import dataclasses
import io
import itertools
import json
import math
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from experiments.reporting import study_figure
from experiments.reporting.paired_test import Comparison, adjusted, compare, differences
from experiments.study.finetuned import SCORE
from experiments.study.progress import FINISHED
from roberta_jax.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DESCRIPTION, POINTS, CURVES = "study.json", "points.csv", "curves.csv"
CHECKSUMS = "crc32"  # of the tables, in the description

POINT_FIELDS = ("setting", "seed", "workdir", "state", "step", "steps")
CURVE_FIELDS = (
    "setting",
    "seed",
    "step",
    "tokens",
    "seconds",
    "loss",
    "eval_loss",
    "eval_perplexity",
)
_STRING_FIELDS = ("setting", "workdir", "state")
_INTEGER_FIELDS = ("seed", "step", "steps", "best_step", "tokens")

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The values of a metric for one setting, one for each seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation, or None for a single value."""
        if len(self.values) < 2:
            return None
        with np.errstate(invalid="ignore"):  # a run that diverged has an infinite perplexity
            return float(np.std(self.values, ddof=1))

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    def __str__(self) -> str:
        """Formats the mean, the standard deviation and the median: "84.20 ± 0.31 (84.10)"."""
        digits = 1
        if math.isfinite(self.mean) and self.mean:
            digits = min(max(3 - math.floor(math.log10(abs(self.mean))), 0), 6)
        if self.deviation is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f} ({self.median:.{digits}f})"


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a study, which may be incomplete.

    Attributes:
      study: the study: its name, origin, question, settings, seeds, columns, paper, source and
        notes, the changes of its base config, and what `collect` adds: `runs`, what each setting
        trains; `warnings`; and `one_tokenizer`, False if values per token cannot be compared. For
        fine-tuning also `groups`, the settings of each task, `references`, and `intervals`; and
        for fine-tuned points `downstream`, the arguments of `experiments.downstream` for each task.
      points: a row for each point: POINT_FIELDS, and the metrics of those that are finished.
      curves: rows with CURVE_FIELDS, some of which are None. `loss` is the masked language modeling
        loss of training; `seconds` is the time spent in training steps.
    """

    study: Row
    points: Sequence[Row]
    curves: Sequence[Row]

    def finished(self, setting: str) -> list[Row]:
        """Returns the points of a setting whose pretraining is finished."""
        return [
            point
            for point in self.points
            if point["setting"] == setting and point["state"].startswith(FINISHED)
        ]

    def summary(self, setting: str, heading: str) -> Summary | None:
        """Returns a metric over the seeds that have it, or None if no seed has it.

        Args:
          setting: the name of the setting.
          heading: the metric's heading in the table, a key of `study["columns"]`.
        """
        return self._summary(setting, self.study["columns"][heading])

    def _summary(self, setting: str, metric: str) -> Summary | None:
        points = [point for point in self.points if point["setting"] == setting]
        values = tuple(point[metric] for point in points if point.get(metric) is not None)
        return Summary(values) if values else None

    def comparable(self, heading: str) -> bool:
        """Whether the values of a column can be compared between the settings.

        Losses and perplexities per token cannot if the settings have different tokenizers.
        """
        per_token = self.study["columns"][heading].endswith(("_loss", "_perplexity"))
        return self.study.get("one_tokenizer", True) or not per_token

    def comparisons(self) -> list[Comparison]:
        """Compares all settings in each column of losses, perplexities and evaluations.

        Perplexities are compared by their logarithms, the losses in nats per token. Settings of
        fine-tuning are compared by their score, if they have the same task.
        """
        if self.study.get("groups"):
            return self._score_comparisons()
        comparisons = []
        for heading, metric in self.study["columns"].items():
            is_perplexity = metric.endswith("_perplexity")
            if not (is_perplexity or metric.endswith("_loss") or "." in metric):
                continue  # what describes a run, such as its epochs
            if not self.comparable(heading):
                continue
            values: dict[str, dict[int, float]] = {name: {} for name in self.study["settings"]}
            for point in self.points:
                value = point.get(metric)
                if value is not None:
                    value = math.log(value) if is_perplexity and value > 0 else value
                    values[point["setting"]][point["seed"]] = value
            comparisons += compare(heading, values)
        return comparisons

    def _score_comparisons(self) -> list[Comparison]:
        if self.study.get("references"):  # the best setting is shown instead
            return []
        comparisons = []
        for title, settings in self.study["groups"].items():
            values = {
                setting: {
                    point["seed"]: point[SCORE]
                    for point in self.points
                    if point["setting"] == setting and point.get(SCORE) is not None
                }
                for setting in settings
            }
            comparisons += differences(title, values)
        return adjusted(comparisons)

    def best(self) -> list[dict[str, str]]:
        """Returns the best setting of each task, by the median of its score over the seeds.

        Each row also has the task's values of `study["references"]`. It is empty for a study
        without them.
        """
        references, rows = self.study.get("references") or {}, []
        for title, settings in self.study.get("groups", {}).items() if references else ():
            summaries = {setting: self._summary(setting, SCORE) for setting in settings}
            measured = {name: each for name, each in summaries.items() if each is not None}
            row = {"task": title, "best setting": "no run finished", "seeds": "", "score": ""}
            if measured:
                name = max(measured, key=lambda each: _median_or_lowest(measured[each]))
                number = f"{len(measured[name].values)}/{len(self.study['seeds'])}"
                row |= {"best setting": name, "seeds": number, "score": str(measured[name])}
                row["settings measured"] = f"{len(measured)}/{len(settings)}"
            else:
                row["settings measured"] = f"0/{len(settings)}"
            for heading, values in references.items():
                row[heading] = str(values.get(title, ""))
            rows.append(row)
        return rows

    def equal_settings(self) -> list[tuple[str, str]]:
        """Returns the pairs of settings whose finished runs have equal metrics for all seeds."""
        metrics: dict[str, dict[int, Row]] = {}
        for setting in self.study["settings"]:
            for point in self.finished(setting):
                values = {key: value for key, value in point.items() if key not in POINT_FIELDS}
                metrics.setdefault(setting, {})[point["seed"]] = values
        return [
            (one, other)
            for one, other in itertools.combinations(metrics, 2)
            if metrics[one] == metrics[other]
        ]

    def table(self) -> list[dict[str, str]]:
        """Returns the table: {heading: text} for each setting, with the paper's values."""
        paper, rows = self.study["paper"], []
        for setting in self.study["settings"]:
            num_finished = len(self.finished(setting))
            row = {"setting": setting, "seeds": f"{num_finished}/{len(self.study['seeds'])}"}
            for heading in self.study["columns"]:
                row[heading] = self._cell(setting, heading, num_finished)
                if any(heading in values for values in paper.values()):
                    row[f"{heading}, paper"] = str(paper.get(setting, {}).get(heading, ""))
            rows.append(row)
        return rows

    def _cell(self, setting: str, heading: str, num_finished: int) -> str:
        if not self.comparable(heading):
            return "not comparable"
        summary = self.summary(setting, heading)
        if summary is None and num_finished and self.study.get("groups"):
            return "–"  # a score that the task of this setting does not have
        if summary is None:
            return "not measured" if num_finished else "no run finished"
        number = len(summary.values)
        return f"{summary}, n = {number}" if number < num_finished else str(summary)

    def missing(self) -> list[str]:
        """Returns a line for each point that is not finished, with its state."""
        return [
            f"{point['setting']}, seed {point['seed']}: {point['state']}"
            for point in self.points
            if point["state"] != FINISHED
        ]

    def figure(self, x: str = "steps") -> "Figure":
        """Draws training loss and held-out perplexity against "steps", "tokens" or "seconds".

        Each line is the mean over the seeds of a setting, and its band extends from their smallest
        to their largest value.

        Raises:
          UsageError: `x` is none of these, there is no data yet, the settings have different
            tokenizers, or Matplotlib is not installed.
        """
        if not self.study.get("one_tokenizer", True):
            raise UsageError(
                "losses per token of different tokenizers are not comparable, so there is nothing "
                "to draw."
            )
        seeds = {
            setting: [point["seed"] for point in self.finished(setting)]
            for setting in self.study["settings"]
        }
        return study_figure.draw(self.curves, x, seeds, len(self.study["seeds"]))

    def files(self) -> dict[str, str]:
        """Returns the contents of the files that `from_folder` reads, by file name."""
        metrics = sorted({key for point in self.points for key in point} - set(POINT_FIELDS))
        tables = {
            POINTS: _to_csv((*POINT_FIELDS, *metrics), self.points),
            CURVES: _to_csv(CURVE_FIELDS, self.curves),
        }
        crc32 = {name: _crc32(text.encode()) for name, text in tables.items()}
        study = {**self.study, CHECKSUMS: crc32}
        return {DESCRIPTION: json.dumps(study, indent=2, ensure_ascii=False) + "\n", **tables}

    @classmethod
    def from_folder(cls, folder: epath.PathLike) -> "Results":
        """Reads the results from the folder of a report, as `experiments.report` writes it.

        Raises:
          UsageError: the folder does not hold a report.
        """
        folder = pathlib.Path(folder)
        try:
            study = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            checksums = study.pop(CHECKSUMS, {}) if isinstance(study, dict) else {}
            for name, expected in checksums.items():
                if _crc32((folder / name).read_bytes()) != expected:
                    raise UsageError(
                        f"{folder / name} is damaged: its checksum is not the one in "
                        f"{DESCRIPTION}. Write the report again with experiments.report."
                    )
            points, curves = (_read_csv(folder / name) for name in (POINTS, CURVES))
        except UsageError:
            raise
        except FileNotFoundError as error:
            raise UsageError(
                f"no report of a study in {folder}: no file {error.filename}"
            ) from None
        except (
            OSError, ValueError, TypeError, AttributeError, csv.Error, RecursionError
        ) as error:  # fmt: skip
            raise UsageError(f"the report of a study in {folder} cannot be read: {error}") from None
        _check_report(folder, study, points, curves)
        points = [{key: value for key, value in row.items() if value is not None} for row in points]
        return cls(study, points, curves)


def _check_report(folder: pathlib.Path, study: Any, points: Sequence[Row], curves: Sequence[Row]):
    needed = ("name", "origin", "question", "columns", "paper", "source", "notes", "settings")
    needed += ("seeds", "changes")
    for name, row, keys in (
        (DESCRIPTION, study, needed),
        *((POINTS, row, POINT_FIELDS) for row in points),
        *((CURVES, row, CURVE_FIELDS) for row in curves),
    ):
        lacking = [key for key in keys if not isinstance(row, Mapping) or key not in row]
        if lacking:
            raise UsageError(f"{folder / name} is damaged: it has no {lacking[0]!r}.")
    expected = len(study["settings"]) * len(study["seeds"])
    if len(points) != expected:
        raise UsageError(
            f"{folder / POINTS} is damaged: it has {len(points)} runs, and {DESCRIPTION} names "
            f"{expected}."
        )


def _median_or_lowest(summary: Summary) -> float:
    return -math.inf if math.isnan(summary.median) else summary.median


def _crc32(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}"


def _to_csv(fields: Sequence[str], rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_csv(path: pathlib.Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [
            {key: _parse(key, text) for key, text in row.items()} for row in csv.DictReader(file)
        ]


def _parse(field: str, text: str) -> Any:
    """Converts the text of a CSV field to the field's type; empty numbers become None."""
    if field in _STRING_FIELDS:
        return text
    if not text:
        return None
    return int(text) if field in _INTEGER_FIELDS else float(text)
