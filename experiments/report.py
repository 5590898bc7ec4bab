"""Writes the report of a study: a table over the seeds with the paper's values, and curves.

    python -m experiments.report table2:tiny --runs=runs/table2

It reads the workdirs that `experiments.sweep` wrote, also while the sweep is running. The first
line of the report names the runs that are missing. The report is a folder that can be read without
the workdirs and holds no absolute paths of the machine. By default it is
RUNS/report/NAME_OF_THE_STUDY; to replace a report in experiments/results, name it with --out.

    README.md       the question, the table, which differences the seeds decide, and the curves
    points.csv      a row for each run, with all its final metrics
    curves.csv      training losses and evaluations, at up to 200 steps each
    study.json      the definition of the study
    steps.png, tokens.png, seconds.png

`experiments.reporting.Results.from_folder` reads it.
"""

import argparse
from collections.abc import Sequence

from etils import epath

from experiments.command_line import check_runs_folder, command
from experiments.reporting.collect import collect
from experiments.reporting.report_files import README, can_draw, unfinished, write_report
from experiments.reporting.study_figure import MATPLOTLIB
from experiments.study.arguments import add_study_arguments, parsed_study

REPORTS = "report"  # the folder in --runs for the reports, by the names of the studies


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; exits with a message, without a traceback, on wrong input."""
    with command():
        _run_command(argv)


def _run_command(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_study_arguments(parser)
    parser.add_argument("--runs", required=True, help="the folder of the workdirs")
    parser.add_argument(
        "--out", help="the report's folder (default: report/NAME_OF_THE_STUDY in --runs)"
    )
    arguments = parser.parse_args(argv)
    check_runs_folder(arguments.runs, "--runs", writable=False)
    study = parsed_study(arguments)
    results = collect(study, arguments.runs)
    folder = epath.Path(arguments.out or epath.Path(arguments.runs) / REPORTS / study.name)
    write_report(results, folder)
    print(folder / README)
    if results.missing():
        print(unfinished(results))
    if not can_draw():
        print(f"The plots were left out; they need {MATPLOTLIB}")


if __name__ == "__main__":
    main()
