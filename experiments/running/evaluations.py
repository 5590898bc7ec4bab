"""The commands that evaluate a point after pretraining, and the files that they write."""

import sys

from etils import epath

from experiments.study.definition import Point
from experiments.study.progress import EVALUATIONS, parse_metrics


class BadOutput(Exception):
    """An evaluation ended with status 0, but did not write a JSON object of numbers."""


def evaluation_command(point: Point, evaluation: str, workdir: epath.Path) -> list[str]:
    """Returns the command of an evaluation, and removes what an interrupted one has written."""
    output = _output(workdir, evaluation)
    output.unlink(missing_ok=True)
    values = {
        "{workdir}": str(workdir),
        "{output}": str(output),
        "{seed}": str(point.seed),
        "{python}": sys.executable,
    }
    command = []
    for argument in point.study.evaluations[evaluation]:
        for placeholder, value in values.items():
            argument = argument.replace(placeholder, value)
        command.append(argument)
    return command


def accept_output(workdir: epath.Path, evaluation: str) -> None:
    """Checks the output of an evaluation and renames it to the name that readers look for.

    Raises:
      BadOutput: the file is missing, or does not hold a JSON object of numbers.
    """
    output = _output(workdir, evaluation)
    try:
        parse_metrics(output.read_text())
        output.replace(workdir / EVALUATIONS / f"{evaluation}.json")
    except (OSError, ValueError, RecursionError) as error:
        raise BadOutput(f"{output} must hold a JSON object of numbers: {error}") from error


def _output(workdir: epath.Path, evaluation: str) -> epath.Path:
    """The file that the command writes, under a temporary name."""
    return workdir / EVALUATIONS / f"{evaluation}.json.tmp"
