"""Plots the training loss and the held-out perplexity of one or more training runs.

    python -m experiments.plot_metrics runs/tiny runs/small --out=loss.png

It reads `metrics.jsonl` in each workdir, also while the run is going on. The perplexities of n-gram
models on the same held-out text, if a run has recorded them, are drawn as dashed lines.
"""

import argparse
from collections.abc import Sequence

from experiments.reporting.run_figure import figure
from roberta_jax import cli
from roberta_jax.errors import UsageError


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; exits with status 2 and a message, without a traceback, on wrong input."""
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
    with cli.usage_errors():
        drawing = figure(arguments.workdirs)
        try:
            drawing.savefig(arguments.out, dpi=150)
        except (OSError, ValueError) as error:  # ValueError: an unknown file format
            raise UsageError(f"cannot write {arguments.out}: {error}") from error
    print(arguments.out)


if __name__ == "__main__":
    main()
