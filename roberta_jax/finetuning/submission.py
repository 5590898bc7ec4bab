"""The files that the servers of benchmarks take: GLUE's TSV files, and SuperGLUE's JSON lines."""

import json
import math
from typing import Any

from roberta_jax.errors import UsageError, shortened
from roberta_jax.finetuning.results import SplitResult
from roberta_jax.finetuning.tables import one_line
from roberta_jax.tasks.task import Task


def submission_file(task: Task, result: SplitResult) -> tuple[str, str] | None:
    """The name and the text of the file for the server, or None if the split has none.

    A TSV file (https://gluebenchmark.com/faq) has a header and a row for each example in the order
    of the official file, numbered from 0. Labels are spelled as `Task.submission_labels` says.
    Numbers have three digits after the point and are limited to the range from 0 to
    `Task.label_scale` (STS-B: 5). A `.jsonl` file (SuperGLUE) has an object with `idx` and `label`
    for each example.

    Raises:
      UsageError: a prediction is not a finite number, or a label cannot be written.
    """
    name = task.submission.get(result.split)
    if name is None or not result.predictions:
        return None
    answers = [_spelled(task, each["prediction"], name) for each in result.predictions]
    if name.endswith(".jsonl"):
        rows = [
            json.dumps({"idx": _index(each["id"], number), "label": answer})
            for number, (each, answer) in enumerate(zip(result.predictions, answers, strict=True))
        ]
    else:
        rows = ["index\tprediction"]
        rows += [f"{number}\t{answer}" for number, answer in enumerate(answers)]
    return name, "\n".join(rows) + "\n"


def _spelled(task: Task, prediction: Any, name: str) -> str:
    if task.kind == "regression":
        if not math.isfinite(prediction):
            raise UsageError(
                f"cannot write {name}: a prediction is {prediction}. The model has diverged; train "
                "it with a lower --config.optimizer.learning_rate."
            )
        return f"{min(max(prediction, 0.0), task.label_scale):.3f}"
    answer = str(prediction)
    answer = task.submission_labels.get(answer, answer)
    if one_line(answer) != answer:
        raise UsageError(
            f"cannot write {name}: the label {shortened(repr(answer), 60)} has characters that "
            "would break its rows. Give it another spelling."
        )
    return answer


def _index(id_: str, number: int) -> int:
    return int(id_) if id_.isascii() and id_.isdigit() else number
