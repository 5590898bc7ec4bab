"""Draws the curves of a study: a line for each setting, with a band for the spread of its seeds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from roberta_jax.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MATPLOTLIB = "matplotlib, which the extra `plot` installs: pip install matplotlib"
# What curves can be drawn against -> field of their rows, label of the axis.
AXES = {
    "steps": ("step", "step"),
    "tokens": ("tokens", "tokens seen"),
    "seconds": ("seconds", "seconds of training"),
}
LINE_STYLES = ("-", "--", ":")  # each for ten settings
# Field of the curves' rows -> label of its panel.
PANELS = {
    "loss": "training loss (nats per masked token)",
    "eval_perplexity": "held-out perplexity",
}

Rows = Sequence[Mapping[str, Any]]


def draw(curves: Rows, x: str, finished: Mapping[str, Sequence[int]], num_seeds: int) -> "Figure":
    """Draws the training loss and the held-out perplexity.

    Args:
      curves: the rows of `Results.curves`.
      x: a key of AXES.
      finished: maps each setting of the study to its seeds whose pretraining is finished.
      num_seeds: the number of seeds of the study; the legend says where fewer were drawn.

    Raises:
      UsageError: `x` is unknown, there is no data yet, or Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError:
        raise UsageError(f"drawing needs {MATPLOTLIB}") from None
    if x not in AXES:
        raise UsageError(f"x={x!r}: draw against one of {', '.join(AXES)}.")
    field, x_label = AXES[x]
    rows = [row for row in curves if row[field] is not None]
    metrics = [metric for metric in PANELS if any(row[metric] is not None for row in rows)]
    if not metrics:
        raise UsageError(f"no curve to draw against {x} yet: no run has recorded its loss.")
    figure = Figure(figsize=(7.5, 3.4 * len(metrics)), layout="constrained")
    panels = figure.subplots(len(metrics), sharex=True, squeeze=False)[:, 0]
    for panel, metric in zip(panels, metrics, strict=True):
        lines = {
            setting: spread(
                [row for row in rows if row["setting"] == setting], seeds, field, metric
            )
            for setting, seeds in finished.items()
        }
        for number, (setting, line) in enumerate(lines.items()):
            if line is not None:
                style = {
                    "color": f"C{number % 10}",
                    "linestyle": LINE_STYLES[number // 10 % len(LINE_STYLES)],
                }
                _draw_line(panel, line, _label(setting, line, num_seeds), style)
        panel.set_ylabel(PANELS[metric])
        if metric == "eval_perplexity":
            _set_scale(panel, [line for line in lines.values() if line is not None])
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    if x != "steps":
        panels[-1].xaxis.set_major_formatter(EngFormatter())
    panels[-1].set_xlabel(x_label)
    return figure


def spread(rows: Rows, finished: Sequence[int], field: str, metric: str) -> dict[str, Any] | None:
    """Returns the mean and the range over the seeds of a setting, at the steps that all seeds have.

    Only finished seeds count, or all of them while none is finished: otherwise the mean would jump
    at the last step of an unfinished seed.

    Args:
      rows: the curves of the setting.
      finished: its seeds whose pretraining is finished.
      field: the field of the horizontal axis.
      metric: the field of the vertical axis.

    Returns:
      "seeds", the number of seeds, and arrays "x", "mean", "low" and "high" of equal length. None
      if no step has a value for all seeds.
    """
    curves: dict[int, dict[int, tuple[float, float]]] = {}
    for row in rows:
        if row[metric] is not None:
            curves.setdefault(row["seed"], {})[row["step"]] = (row[field], row[metric])
    seeds = [seed for seed in finished if seed in curves] or list(curves)
    if not seeds:
        return None
    steps = sorted(set.intersection(*(set(curves[seed]) for seed in seeds)))
    if not steps:
        return None
    values = np.array([[curves[seed][step] for step in steps] for seed in seeds])
    x, y = values[:, :, 0], values[:, :, 1]
    return {
        "seeds": len(seeds),
        "x": x.mean(0),
        "mean": y.mean(0),
        "low": y.min(0),
        "high": y.max(0),
    }


def _draw_line(panel, line: dict[str, Any], label: str, style: dict[str, str]) -> None:
    marker = "." if len(line["x"]) < 30 else None
    panel.plot(line["x"], line["mean"], label=label, linewidth=1.2, marker=marker, **style)
    if line["seeds"] > 1:
        band = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
        panel.fill_between(line["x"], line["low"], line["high"], **band)


def _label(setting: str, line: dict[str, Any], num_seeds: int) -> str:
    seeds = "" if line["seeds"] == num_seeds else f" ({line['seeds']} of {num_seeds} seeds)"
    return f"{setting}{seeds}: {line['mean'][-1]:.4g}"


def _set_scale(panel, lines: Sequence[dict[str, Any]]) -> None:
    """Uses a logarithmic axis, with tick labels as plain numbers, for values that span a decade."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    low, high = min(line["low"].min() for line in lines), max(line["high"].max() for line in lines)
    if not 10 * low < high < np.inf:
        return
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(EngFormatter())
    panel.yaxis.set_minor_formatter(NullFormatter())
