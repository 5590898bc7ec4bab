"""Scores as text: the line of the terminal, and a row like those of the paper's tables.

Scores from 0 to 1 are shown times 100, as in the paper; SQuAD's are per cent already; errors are in
the unit of the labels.
"""

import math
import re
from collections.abc import Sequence

from roberta_jax.errors import counted
from roberta_jax.finetuning.results import SplitResult
from roberta_jax.tasks import metrics
from roberta_jax.tasks.task import Task

INTERVALS = (
    "In brackets: 95% intervals over the choice of examples, by bootstrap. They do not include the "
    "variation between seeds."
)
_SQUAD_TITLES = {"exact_match": "EM", "exact": "EM", "f1": "F1"}


def metric_of(task: Task, score: str) -> tuple[metrics.Metric | None, str]:
    """(the metric of a score, the group that it is of): "accuracy_high" is of the group "high".

    The metric is None for a score that is not from `tasks.metrics`.
    """
    if task.kind == "question_answering":
        return None, ""
    for name in sorted(metrics.METRICS, key=len, reverse=True):
        if score == name or score.startswith(f"{name}_"):
            return metrics.METRICS[metrics.of_kind(name, task.kind)], score[len(name) + 1 :]
    return None, ""


def title(task: Task, score: str) -> str:
    """The name of a score in tables and sentences."""
    metric, group = metric_of(task, score)
    if metric is None:
        if task.kind == "question_answering":
            return _SQUAD_TITLES.get(score, score.replace("_", " "))
        return score.replace("_", " ")
    return f"{metric.title} ({group})" if group else metric.title


def shown(task: Task, score: str, value: float) -> str:
    """A score as it is shown: "66.8"."""
    if not math.isfinite(value):
        return str(value)
    metric, _ = metric_of(task, score)
    if metric is not None and metric.is_error:
        return f"{value:.3g}"
    scale = 1 if task.kind == "question_answering" else 100
    return f"{scale * value + 0.0:.1f}".replace("-0.0", "0.0")


def shown_interval(task: Task, score: str, interval: tuple[float, float]) -> str:
    """ "61.0 to 72.2"."""
    return " to ".join(shown(task, score, end) for end in interval)


def main_scores(task: Task, result: SplitResult) -> list[str]:
    """The scores that tables show: those of the task's metrics, with those of groups."""
    return [
        score
        for metric in task.metrics
        for score in result.scores
        if score == metric or (score.startswith(f"{metric}_") and metric_of(task, score)[1])
    ]


def compared_with_baseline(task: Task, result: SplitResult) -> str | None:
    """How the selecting metric compares with the baseline: "better than the baseline".

    None if there is no baseline, no interval, or one of the numbers is not finite.
    """
    name = next(iter(task.metrics), "")
    interval, baseline = (result.intervals or {}).get(name), (result.baseline or {}).get(name)
    if interval is None or baseline is None or name not in result.scores:
        return None
    if not all(map(math.isfinite, (*interval, baseline))):
        return None
    metric, _ = metric_of(task, name)
    (low, high), sign = interval, -1 if metric is not None and metric.is_error else 1
    by = f" by its {title(task, name)}" if len(main_scores(task, result)) > 1 else ""
    if min(sign * low, sign * high) > sign * baseline:
        return f"better than the baseline{by}"
    if max(sign * low, sign * high) < sign * baseline:
        return f"worse than the baseline{by}"
    return f"not better than the baseline{by}, within the interval"


def summary_line(task: Task, result: SplitResult) -> str:
    """The result of a split in a line, for the terminal.

    Such as "accuracy 66.8 (95% 61.0 to 72.2); always 'entailment': 52.7; better than the baseline".
    It has no intervals, and no comparison, if the result has none: see `results.with_intervals`.
    """
    names = main_scores(task, result) or list(result.scores)
    if not names:
        return f"{counted(len(result.predictions), 'prediction')}; no example has a label to score"
    scores = []
    for name in names:
        interval = (result.intervals or {}).get(name)
        ends = "" if interval is None else f" (95% {shown_interval(task, name, interval)})"
        scores.append(f"{title(task, name)} {shown(task, name, result.scores[name])}{ends}")
    parts = [", ".join(scores)]
    if of_baseline := _baseline_scores(task, result):
        parts.append(f"{one_line(result.baseline_name)}: {', '.join(of_baseline)}")
    if comparison := compared_with_baseline(task, result):
        parts.append(comparison)
    return "; ".join(parts)


def _baseline_scores(task: Task, result: SplitResult) -> list[str]:
    baseline = result.baseline or {}
    return [shown(task, name, baseline[name]) for name in task.metrics if name in baseline]


def score_table(task: Task, results: Sequence[SplitResult]) -> str:
    """A Markdown table with a row for each split: scores, intervals and the baseline."""
    names = list(dict.fromkeys(name for each in results for name in main_scores(task, each)))
    rows = [["task", "split", "examples", *(title(task, name) for name in names), "baseline"]]
    for result in results:
        cells = []
        for name in names:
            if name not in result.scores:
                cells.append("")
                continue
            interval = (result.intervals or {}).get(name)
            ends = "" if interval is None else f" ({shown_interval(task, name, interval)})"
            cells.append(shown(task, name, result.scores[name]) + ends)
        baseline = " / ".join(_baseline_scores(task, result))
        named = f"{baseline} ({result.baseline_name})" if baseline else ""
        rows.append([task.title, result.split, f"{len(result.examples):,}", *cells, named])
    lines = [[escaped(cell) for cell in row] for row in rows]
    numeric = ["---", "---", *["---:"] * (len(names) + 1), "---"]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], numeric, *lines[1:]))


def one_line(text: str) -> str:
    """The text with escapes for line breaks, tabs and other characters that do not print."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def escaped(text: str) -> str:
    """The text as Markdown that shows it, in one line."""
    return re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", one_line(text))


def fenced(text: str) -> str:
    """The text as a block of code in Markdown."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
