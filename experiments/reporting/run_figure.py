"""Draws the loss and the held-out perplexity or scores of training runs into one figure."""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments.reporting.study_figure import MATPLOTLIB
from experiments.study.records import read_records
from roberta_jax.errors import UsageError, listed
from roberta_jax.training.metrics import FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS = "loss"
PERPLEXITY = "eval_perplexity"
_EVAL = "eval_"  # begins the names of what is measured on held-out examples
BASELINES = {"unigram_perplexity": "unigram model", "bigram_perplexity": "bigram model"}


def curve(records: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Returns the steps and the values of the records that have `key`."""
    pairs = [(record["step"], record[key]) for record in records if key in record]
    return [step for step, _ in pairs], [value for _, value in pairs]


def scores(records: Sequence[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Returns {score: (steps, values)} of the evaluations of a fine-tuning run; else {}.

    The last record of a finished run repeats the scores of the best evaluation, and is left out.
    """
    evaluations = [record for record in records if "finished" not in record]
    keys = dict.fromkeys(key for record in evaluations for key in record if key.startswith(_EVAL))
    if PERPLEXITY in keys:
        return {}
    keys.pop(f"{_EVAL}loss", None)
    return {key.removeprefix(_EVAL): curve(evaluations, key) for key in keys}


def figure(workdirs: Sequence[str | os.PathLike]) -> "Figure":
    """Draws the training loss of runs and, below it, their held-out perplexity or scores.

    Dashed lines are the perplexities of n-gram models on the same text, if they were recorded. Of
    fine-tuning runs, each score of the task has a panel.

    Args:
      workdirs: the folders of the runs; the legend shows them as given.

    Raises:
      UsageError: Matplotlib is not installed, or a workdir has no recorded loss.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
    except ImportError:
        raise UsageError(f"drawing needs {MATPLOTLIB}") from None
    names = [str(pathlib.Path(workdir)) for workdir in workdirs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{listed(twice)} is given twice. Name each workdir once.")
    runs = {name: read_records(name) for name in names}
    for name, records in runs.items():
        if not curve(records, LOSS)[0]:
            raise UsageError(
                f"no training loss in {pathlib.Path(name) / FILE}. Give the workdir of a run that "
                "has recorded its loss (--config.train.log_every)."
            )

    evaluated = any(curve(records, PERPLEXITY)[0] for records in runs.values())
    scored = {name: scores(records) for name, records in runs.items()}
    score_names = list(dict.fromkeys(name for each in scored.values() for name in each))
    num_panels = 1 + evaluated + len(score_names)
    result = Figure(figsize=(7, 3.2 * num_panels), layout="constrained")
    panels = result.subplots(num_panels, sharex=True, squeeze=False)[:, 0]
    unit = "" if any(scored.values()) else " (nats per masked token)"
    panels[0].set_ylabel(f"training loss{unit}")
    for number, (name, records) in enumerate(runs.items()):
        color = f"C{number % 10}"
        panels[0].plot(*curve(records, LOSS), color=color, label=name, linewidth=1.2)
        if evaluated:
            _draw_evaluations(panels[1], name, curve(records, PERPLEXITY), color)
        for panel, score in zip(panels[1 + evaluated :], score_names, strict=True):
            _draw_evaluations(panel, name, scored[name].get(score, ([], [])), color)
    if evaluated:
        _draw_baselines(panels[1], runs)
        panels[1].set_ylabel("held-out perplexity")
        panels[1].set_yscale("log")
        panels[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[1].yaxis.set_major_formatter(EngFormatter())
        panels[1].yaxis.set_minor_formatter(NullFormatter())
    for panel, score in zip(panels[1 + evaluated :], score_names, strict=True):
        panel.set_ylabel(score.replace("_", " "))
    panels[-1].set_xlabel("step")
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    return result


def _draw_evaluations(panel, name: str, points: tuple[list[int], list[float]], color: str) -> None:
    """Draws what the evaluations of a run measured; its last value is in the legend."""
    steps, values = points
    label = f"{name}: {values[-1]:.4g}" if values else f"{name}: none yet"
    panel.plot(steps, values, color=color, label=label, marker=".", linewidth=1.2)


def _draw_baselines(panel, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Draws the perplexities of the n-gram models; a value that several runs share is one line."""
    for style, (key, model) in zip(("--", ":"), BASELINES.items(), strict=True):
        runs_by_value: dict[float, list[str]] = {}
        for name, records in runs.items():
            _, values = curve(records, key)
            if values and math.isfinite(values[-1]):
                runs_by_value.setdefault(values[-1], []).append(name)
        for value, names in runs_by_value.items():
            suffix = f" ({', '.join(names)})" if len(names) < len(runs) else ""
            label = f"{model}: {value:.4g}{suffix}"
            panel.axhline(value, color="0.4", linestyle=style, linewidth=1, label=label)
