"""Plots the training loss and the held-out perplexity of one or more training runs.

    python -m experiments.plot_metrics runs/tiny runs/small --out=loss.png
    python -m experiments.plot_metrics runs/rte --out=rte.png

Of fine-tuning runs it plots the scores of the task instead of the perplexity.
It reads `metrics.jsonl` in each workdir, also while the run is going on. The perplexities of n-gram
models on the same held-out text, if a run has recorded them, are drawn as dashed lines.
"""

import argparse
import io
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.command_line import command
from experiments.reporting.run_figure import figure
from roberta_jax.errors import UsageError
from roberta_jax.storage import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; exits with a message, without a traceback, on wrong input."""
    with command():
        _run_command(argv)


def _run_command(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.plot_metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument(
        "--out", default="metrics.png", help="the file to write (default: metrics.png)"
    )
    arguments = parser.parse_args(argv)
    print(write_figure(figure(arguments.workdirs), pathlib.Path(arguments.out)))


def write_figure(drawing: "Figure", path: pathlib.Path) -> pathlib.Path:
    """Writes a figure in the format that the file's name ends in, PNG if it has no ending.

    Returns:
      The path of the file.

    Raises:
      UsageError: it cannot be written, or Matplotlib does not know the format.
    """
    data = io.BytesIO()
    try:
        is_device = path.exists() and not path.is_file()  # or a pipe: it must not be replaced
        if not path.suffix and not is_device:
            path = path.with_name(f"{path.name}.png")
        drawing.savefig(data, format=path.suffix[1:] or "png", dpi=150)
        if is_device:
            path.write_bytes(data.getvalue())
        else:
            atomic.write_bytes(path, data.getvalue())
    except (OSError, ValueError) as error:  # ValueError: an unknown file format
        raise UsageError(f"cannot write {path}: {error}") from error
    return path


if __name__ == "__main__":
    main()
