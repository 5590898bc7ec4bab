"""Pictures of predictions: a confusion matrix, or a scatter plot of numbers.

Matplotlib draws them, which the extra `finetune` installs.
"""

import importlib.util
import io
import textwrap
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from roberta_jax.finetuning.tables import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MATPLOTLIB = "Matplotlib, which the extra `finetune` installs: pip install matplotlib"
MOST_CLASSES = 50
_CHARACTERS = 24  # of the name of a class


def can_draw() -> bool:
    """Whether Matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def confusion_matrix(names: Sequence[str], counts: np.ndarray, heading: str) -> "Figure":
    """Draws how often each class was predicted for each, and the shares of the rows.

    Args:
      names: of the K classes.
      counts: int [K, K], of examples by label (row) and prediction (column).
      heading: the title.
    """
    from matplotlib.figure import Figure

    number = len(names)
    shown = [_fitted(name) for name in names]
    longest = max(map(len, shown))
    cell = 0.95 if number <= 6 else 0.6 if number <= 20 else 0.36
    margin = 1.1 + 0.075 * longest
    side = max(cell * number, 1.8)
    figure = Figure(figsize=(side + margin + 1.0, side + margin + 0.5), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 9 if number <= 6 else 7 if number <= 20 else 5
    for (row, column), count in np.ndenumerate(counts):
        if not count and number > 6:
            continue
        share = f"\n{_per_cent(shares[row, column])}" if number <= 20 else ""
        axes.text(
            column,
            row,
            f"{count:,}{share}" if count < 10_000 or number <= 6 else f"{count / 1000:.0f}k{share}",
            ha="center",
            va="center",
            fontsize=size,
            color="white" if shares[row, column] > 0.55 else "black",
        )
    ticks = range(number)
    small = 9 if number <= 20 else 6
    rotation = 0 if number <= 6 and longest <= 10 else 90
    axes.set_xticks(ticks, shown, rotation=rotation, fontsize=small, parse_math=False)
    axes.set_yticks(ticks, shown, fontsize=small, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.set_title(_wrapped(heading, side + margin), fontsize=10, parse_math=False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("share of the examples with the label")
    return figure


def scatter(gold: Sequence[float], predicted: Sequence[float], heading: str) -> "Figure":
    """Draws predicted numbers against those of the labels, with the line where both are the same.

    Args:
      gold, predicted: the numbers; pairs that are not finite are left out.
      heading: the title.
    """
    from matplotlib.figure import Figure

    values = np.array([gold, predicted], np.float64)
    values = values[:, np.isfinite(values).all(0)]
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(*values, s=12, alpha=float(np.clip(200 / max(values.shape[1], 1), 0.08, 0.7)))
    if values.size:
        low, high = float(values.min()), float(values.max())
        axes.plot([low, high], [low, high], color="0.5", linewidth=1, label="prediction = label")
        axes.legend(loc="upper left", fontsize=8)
    axes.set_xlabel("label")
    axes.set_ylabel("prediction")
    axes.set_title(_wrapped(heading, 5), fontsize=10, parse_math=False)
    return figure


def png(figure: "Figure") -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Characters that Matplotlib's font does not have, such as Chinese ones, become boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _per_cent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{100 * share:.0f}%"


def _fitted(name: str) -> str:
    """The name, without its middle if it is long: long names often begin or end alike."""
    name = one_line(name)
    if len(name) <= _CHARACTERS:
        return name
    end = _CHARACTERS // 2
    return f"{name[: _CHARACTERS - end - 1]}…{name[-end:]}"


def _wrapped(heading: str, inches: float) -> str:
    lines = textwrap.wrap(one_line(heading), max(int(inches * 11), 20), max_lines=3)
    return "\n".join(lines)
