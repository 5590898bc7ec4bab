"""Draws the curves of a study: a line for each setting, with the spread of its seeds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from roberta_jax.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.study_results import Results, Row

AXES = {
    "steps": ("step", "step"),
    "tokens": ("tokens", "tokens seen"),
    "seconds": ("seconds", "seconds of training"),
}
DASHES = ("-", "--", ":")  # each for ten settings
PANELS = {"loss": "training loss (nats a masked token)", "eval_perplexity": "held-out perplexity"}


def draw(results: "Results", x: str) -> "Figure":
    """The figure of `Results.figure`."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError:
        raise UsageError("drawing needs matplotlib: pip install matplotlib") from None
    if x not in AXES:
        raise UsageError(f"x={x!r}: draw against one of {', '.join(AXES)}.")
    field, label = AXES[x]
    rows = [row for row in results.curves if row[field] is not None]
    panels = [kind for kind in PANELS if any(row[kind] is not None for row in rows)]
    if not panels:
        raise UsageError(f"no curve to draw against {x} yet: no run has recorded its loss.")
    drawing = Figure(figsize=(7.5, 3.4 * len(panels)), layout="constrained")
    axes = drawing.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for panel, kind in zip(axes, panels, strict=True):
        lines = {
            setting: spread(results, rows, setting, field, kind)
            for setting in results.study["settings"]
        }
        for number, (setting, line) in enumerate(lines.items()):
            if line is not None:
                style = {
                    "color": f"C{number % 10}",
                    "linestyle": DASHES[number // 10 % len(DASHES)],
                }
                _draw_line(panel, line, _label(results, setting, line), style)
        panel.set_ylabel(PANELS[kind])
        if kind == "eval_perplexity":
            _scale(panel, [line for line in lines.values() if line is not None])
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    if x != "steps":
        axes[-1].xaxis.set_major_formatter(EngFormatter())
    axes[-1].set_xlabel(label)
    return drawing


def spread(
    results: "Results", rows: Sequence["Row"], setting: str, field: str, kind: str
) -> dict[str, Any] | None:
    """The seeds' mean, smallest and largest values of a curve, at the steps that all have.

    Of the finished seeds, or of all while none is finished: a seed that is on its way would bend
    the mean where it ends.
    """
    curves: dict[int, dict[int, tuple[float, float]]] = {}
    for row in rows:
        if row["setting"] == setting and row[kind] is not None:
            curves.setdefault(row["seed"], {})[row["step"]] = (row[field], row[kind])
    done = [point["seed"] for point in results.finished(setting) if point["seed"] in curves]
    seeds = done or list(curves)
    if not seeds:
        return None
    steps = sorted(set.intersection(*(set(curves[seed]) for seed in seeds)))
    if not steps:
        return None
    found = np.array([[curves[seed][step] for step in steps] for seed in seeds])
    values = found[:, :, 1]
    return {
        "seeds": len(seeds),
        "x": found[:, :, 0].mean(0),
        "mean": values.mean(0),
        "low": values.min(0),
        "high": values.max(0),
    }


def _draw_line(panel, line: dict[str, Any], label: str, style: dict[str, str]) -> None:
    marker = "." if len(line["x"]) < 30 else None
    panel.plot(line["x"], line["mean"], label=label, linewidth=1.2, marker=marker, **style)
    if line["seeds"] > 1:
        band = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
        panel.fill_between(line["x"], line["low"], line["high"], **band)


def _label(results: "Results", setting: str, line: dict[str, Any]) -> str:
    every = len(results.study["seeds"])
    few = "" if line["seeds"] == every else f" ({line['seeds']} of {every} seeds)"
    return f"{setting}{few}: {line['mean'][-1]:.4g}"


def _scale(panel, lines: Sequence[dict[str, Any]]) -> None:
    """A logarithmic axis where values span a power of ten; its numbers written out."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    low, high = min(line["low"].min() for line in lines), max(line["high"].max() for line in lines)
    if not 10 * low < high < np.inf:
        return
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(EngFormatter())
    panel.yaxis.set_minor_formatter(NullFormatter())
