"""Labels as files spell them, and as tasks name them."""

import math
from typing import Any

from roberta_jax.errors import UsageError, listed, shortened
from roberta_jax.tasks.task import Task

# What stands for the label of examples whose label is not published.
HIDDEN = ("", "-1", "-", "hidden")


def read_label(task: Task, value: Any, where: str) -> str | float | None:
    """The label of an example: a name, or a number for a regression; None if it is hidden.

    A file may have the name itself, in upper or lower case, or its spelling in the task's files
    (`Task.submission_labels`: GLUE writes "1" for CoLA's "acceptable").

    Args:
      task: the task.
      value: as it is in the file; None where the file has none.
      where: "FILE:LINE", for messages.

    Raises:
      UsageError: it is not a label of the task, or not a number.
    """
    text = "" if value is None else str(value).strip()
    if task.kind == "regression":
        return _read_number(task, text, where)
    if text.lower() in HIDDEN:
        return None
    if not task.labels or text in task.labels:
        return text
    names = {name.lower(): name for name in task.labels}
    names |= {spelling.lower(): name for name, spelling in task.submission_labels.items()}
    if text.lower() not in names:
        known = [repr(name) for name in dict.fromkeys([*task.labels, *names.values()])]
        raise UsageError(
            f"{where}: {shortened(text, 40)!r} is not a label of {task.title}, which has "
            f"{listed(known, 20)}. Correct the line, or check that the file is that of the task."
        )
    return names[text.lower()]


def _read_number(task: Task, text: str, where: str) -> float | None:
    if text.lower() in ("", "hidden"):
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(
            f"{where}: the target {shortened(text, 40)!r} of {task.title} is not a finite number. "
            "Correct or remove the line."
        )
    return None if number == -1 else number
