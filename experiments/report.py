"""Writes the report of a study: a table over the seeds with the paper's values, and curves.

    python -m experiments.report table2:tiny --runs=runs/table2

It reads the workdirs that `experiments.sweep` wrote, also while the sweep is running, and lists the
runs that are missing. The report is a folder that can be read without the workdirs and holds no
paths of the machine:

    README.md       the question, the table, the curves and the missing runs
    points.csv      a row for each run, with all its final metrics
    curves.csv      training losses and evaluations, at up to 200 steps each
    study.json      the definition of the study
    steps.png, tokens.png, seconds.png

`experiments.reporting.Results.from_folder` reads it.
"""

import argparse
import pathlib
from collections.abc import Sequence

from experiments.reporting.collect import collect
from experiments.reporting.report_files import README, can_draw, write_report
from experiments.study.arguments import add_study_arguments, parsed_study
from experiments.study.loading import ROOT
from roberta_jax import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; exits with status 2 and a message, without a traceback, on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_study_arguments(parser)
    parser.add_argument("--runs", required=True, help="the folder of the workdirs")
    parser.add_argument(
        "--out", help="the report's folder (default: experiments/results/NAME_OF_THE_STUDY)"
    )
    arguments = parser.parse_args(argv)
    with cli.usage_errors():
        study = parsed_study(arguments)
        results = collect(study, arguments.runs)
        default = ROOT / "experiments" / "results" / study.name
        folder = pathlib.Path(arguments.out or default)
        write_report(results, folder)
    print(folder / README)
    if not can_draw():
        print("The plots were left out; they need matplotlib: pip install matplotlib")


if __name__ == "__main__":
    main()
