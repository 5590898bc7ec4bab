"""SQuAD's JSON, versions 1.1 and 2.0, and data sets in its form (XQuAD, MLQA)."""

import dataclasses
import logging
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from roberta_jax.errors import UsageError, counted, shortened
from roberta_jax.tasks.examples import QuestionExample
from roberta_jax.tasks.readers.opening import read_json, value_at
from roberta_jax.tasks.task import Task

_CORRECTED = "with another start, where the passage has their text, once"
_NOT_FOUND = "not in their passage, which count in scores but not in training"


def read_squad(path: pathlib.Path, task: Task, split: str) -> Iterator[QuestionExample]:
    """The questions of a file.

    An answer must be what the passage has at its start. Where it is not, but occurs exactly once
    in the passage, the start is corrected. Otherwise the start becomes -1: the answer counts in
    scores, which compare texts, and cannot be trained on, as in the scripts of BERT and of Hugging
    Face. A warning counts these answers.

    Args:
      path: the JSON file.
      task: the task; `answerable` says that each question must have an answer.
      split: not used.

    Raises:
      UsageError: the file has another form, or questions without an answer in a task that has none.
    """
    counts: Counter[str] = Counter()
    documents = value_at(read_json(path), "data", list, str(path))
    for document in documents:
        title = document.get("title", "") if isinstance(document, dict) else ""
        for paragraph in value_at(document, "paragraphs", list, str(path)):
            context = value_at(paragraph, "context", str, str(path))
            for question in value_at(paragraph, "qas", list, str(path)):
                example = _question(question, context, str(title), task, path)
                yield with_checked_starts(example, counts)
    warn_of_starts(counts, str(path))


def with_checked_starts(example: QuestionExample, counts: Counter[str]) -> QuestionExample:
    """The question with corrected starts of its answers; -1 for one that is not in the passage.

    Args:
      example: the question with its answers as they are in the file.
      counts: is increased by what was corrected, and what was not found.
    """
    starts = []
    for text, start in zip(example.answers or (), example.starts or (), strict=True):
        if not text or start < 0 or not example.context.startswith(text, start):
            first = example.context.find(text) if text else -1
            once = first >= 0 and example.context.find(text, first + 1) < 0
            counts[_CORRECTED if once else _NOT_FOUND] += 1
            start = first if once else -1
        starts.append(start)
    return dataclasses.replace(example, starts=tuple(starts)) if starts else example


def warn_of_starts(counts: Counter[str], source: str) -> None:
    """Logs what `with_checked_starts` counted."""
    for what, number in counts.items():
        logging.warning("%s: %s %s.", source, counted(number, "answer"), what)


def check_answerable(task: Task, answers: Any, identity: str, source: str) -> None:
    """Raises a UsageError if a question has no answer in a task where each has one."""
    if task.answerable and answers is not None and not answers:
        raise UsageError(
            f"{source}: question {shortened(identity)} has no answer, as in SQuAD 2.0, and each "
            f"question of {task.title} has one. Choose the task squad2."
        )


def _question(
    record: Any, context: str, title: str, task: Task, path: pathlib.Path
) -> QuestionExample:
    text = value_at(record, "question", str, str(path))
    identity = str(value_at(record, "id", (str, int), f"{path}: question {shortened(text)!r}"))
    where = f"{path}: question {shortened(identity)}"
    answers = None
    if "answers" in record:
        answers = [] if record.get("is_impossible") else value_at(record, "answers", list, where)
    check_answerable(task, answers, identity, str(path))
    if answers is None:
        return QuestionExample(identity, text, context, title=title)
    return QuestionExample(
        identity,
        text,
        context,
        tuple(value_at(answer, "text", str, where) for answer in answers),
        tuple(value_at(answer, "answer_start", int, where) for answer in answers),
        title,
    )
