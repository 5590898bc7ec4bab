"""Draws the curves of one or more training runs: loss, and perplexity on held-out text.

    python -m experiments.plot_metrics runs/tiny runs/small --out=loss.png

Reads each workdir's `metrics.jsonl`, also while the run goes on. The perplexities of n-gram models
on the same held-out text, where a run has recorded them, are drawn as dashed lines.
"""

import argparse
import math
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from roberta_jax import cli
from roberta_jax.errors import UsageError
from roberta_jax.training.metrics import FILE, read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS = "loss"
HELD_OUT = "eval_perplexity"
BASELINES = {"unigram_perplexity": "unigram model", "bigram_perplexity": "bigram model"}

Points = tuple[list[int], list[float]]  # steps and values


def curve(records: Sequence[dict[str, Any]], key: str) -> Points:
    """The steps and values of the records that have `key`."""
    found = [(record["step"], record[key]) for record in records if key in record]
    return [step for step, _ in found], [value for _, value in found]


def figure(workdirs: Sequence[str | os.PathLike]) -> "Figure":
    """Draws runs into one figure: the training loss above, held-out perplexity below.

    Raises:
      UsageError: matplotlib is not installed, or a workdir has recorded no loss.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
    except ImportError:
        raise UsageError("drawing needs matplotlib: pip install matplotlib") from None
    runs = {_name(workdir): read_metrics(workdir) for workdir in workdirs}
    for workdir, records in zip(workdirs, runs.values(), strict=True):
        if not curve(records, LOSS)[0]:
            raise UsageError(f"no training loss in {pathlib.Path(workdir) / FILE}")

    evaluated = any(curve(records, HELD_OUT)[0] for records in runs.values())
    panels = 2 if evaluated else 1
    drawing = Figure(figsize=(7, 3.2 * panels), layout="constrained")
    axes = drawing.subplots(panels, sharex=True, squeeze=False)[:, 0]
    axes[0].set_ylabel("training loss (nats a masked token)")
    for number, (name, records) in enumerate(runs.items()):
        color = f"C{number % 10}"
        axes[0].plot(*curve(records, LOSS), color=color, label=name, linewidth=1.2)
        if evaluated:
            steps, values = curve(records, HELD_OUT)
            last = f"{name}: {values[-1]:.4g}" if values else f"{name}: none yet"
            axes[1].plot(steps, values, color=color, label=last, marker=".", linewidth=1.2)
    if evaluated:
        _draw_baselines(axes[1], runs)
        axes[1].set_ylabel("held-out perplexity")
        axes[1].set_yscale("log")
        axes[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[1].yaxis.set_major_formatter(EngFormatter())
        axes[1].yaxis.set_minor_formatter(NullFormatter())
    axes[-1].set_xlabel("step")
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    return drawing


def _draw_baselines(panel, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Draws each n-gram model once, however many runs share its value."""
    for style, (key, model) in zip(("--", ":"), BASELINES.items(), strict=True):
        sharing: dict[float, list[str]] = {}
        for name, records in runs.items():
            _, values = curve(records, key)
            if values and math.isfinite(values[-1]):
                sharing.setdefault(values[-1], []).append(name)
        for value, names in sharing.items():
            whose = f" ({', '.join(names)})" if len(names) < len(runs) else ""
            label = f"{model}: {value:.4g}{whose}"
            panel.axhline(value, color="0.4", linestyle=style, linewidth=1, label=label)


def _name(workdir: str | os.PathLike) -> str:
    """How the legend calls a run: by its path as given."""
    return str(pathlib.Path(workdir))


def main(argv: Sequence[str] | None = None) -> None:
    """The command; wrong input is printed without a traceback, with exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.plot_metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument("--out", default="metrics.png", help="the picture (default: metrics.png)")
    arguments = parser.parse_args(argv)
    with cli.usage_errors():
        drawing = figure(arguments.workdirs)
        try:
            drawing.savefig(arguments.out, dpi=150)
        except (OSError, ValueError) as error:  # ValueError: a format that is not known
            raise UsageError(f"cannot write {arguments.out}: {error}") from error
    print(arguments.out)


if __name__ == "__main__":
    main()
