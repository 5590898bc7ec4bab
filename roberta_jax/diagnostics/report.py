"""The results of the checks, of one process and of all."""

import dataclasses
import enum
import textwrap
from collections.abc import Sequence

WIDTH = 100  # columns of the printed report
_INDENT = 9 + 17  # of the texts, after the level and the name of the check


class Level(enum.IntEnum):
    """How serious a result is; problems make the exit status 1."""

    OK = 0
    WARNING = 1
    PROBLEM = 2


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one check on one host.

    Attributes:
      check: the name of the check.
      level: how serious it is.
      text: what was found.
      advice: what to do; empty if it is ok.
    """

    check: str
    level: Level
    text: str
    advice: str = ""

    def to_json(self) -> list:
        """Returns the values that `from_json` reads."""
        return [self.check, int(self.level), self.text, self.advice]

    @classmethod
    def from_json(cls, values: Sequence) -> "Result":
        check, level, text, advice = values
        return cls(check, Level(level), text, advice)


def ok(check: str, text: str) -> Result:
    return Result(check, Level.OK, text)


def warning(check: str, text: str, advice: str) -> Result:
    return Result(check, Level.WARNING, text, advice)


def problem(check: str, text: str, advice: str) -> Result:
    return Result(check, Level.PROBLEM, text, advice)


def worst(results: Sequence[Result]) -> Level:
    """Returns the most serious level of some results."""
    return max((result.level for result in results), default=Level.OK)


def merged(by_process: Sequence[Sequence[Result]]) -> list[tuple[str, Result]]:
    """Merges the results of one check on all processes.

    Args:
      by_process: the results of each process.

    Returns:
      Pairs of a note on where it was found ("" if everywhere) and the result: the results of the
      first process that are ok, and all that are not, equal ones together.
    """
    places: dict[Result, list[int]] = {}
    for process, results in enumerate(by_process):
        for result in results:
            if process == 0 or result.level is not Level.OK:
                places.setdefault(result, []).append(process)
    everywhere = len(by_process)
    return [
        (
            "" if result.level is Level.OK or len(found) == everywhere else _where(found),
            result,
        )
        for result, found in places.items()
    ]


def formatted(result: Result, where: str = "") -> str:
    """Returns a result as a line, with the advice on further lines."""
    head = f"{result.level.name.lower():<9}{result.check:<17}"
    text = f"{where}: {result.text}" if where else result.text
    lines = textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * _INDENT,
        break_on_hyphens=False,
        break_long_words=False,
    )
    for advice in result.advice.splitlines():
        lines += textwrap.wrap(
            advice,
            WIDTH,
            initial_indent=" " * _INDENT + "-> ",
            subsequent_indent=" " * (_INDENT + 3),
            break_on_hyphens=False,
            break_long_words=False,
        )
    return "\n".join(lines)


def _where(processes: Sequence[int]) -> str:
    shown = ", ".join(map(str, processes[:8])) + (", ..." if len(processes) > 8 else "")
    return f"process{'es' if len(processes) > 1 else ''} {shown}"
