"""Examples of tasks from TensorFlow Datasets, by the kind of the task."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from roberta_jax.errors import UsageError
from roberta_jax.tasks.examples import (
    ChoiceExample,
    Example,
    PronounExample,
    QuestionExample,
    TextExample,
    TokenExample,
)
from roberta_jax.tasks.readers.glue import text_example
from roberta_jax.tasks.readers.multiple_choice import hellaswag_example, race_passage
from roberta_jax.tasks.readers.squad import check_answerable, warn_of_starts, with_checked_starts
from roberta_jax.tasks.readers.wsc import wsc_example
from roberta_jax.tasks.task import Task

Record = Mapping[str, Any]

_WORDS = ("tokens", "words")
_TAGS = ("ner", "tags", "ner_tags")


def read_tfds(task: Task, split: str, data_dir: str | None) -> Iterator[Example]:
    """The examples of a split of the task's dataset.

    Args:
      task: a task with `tfds`.
      split: the task's name of the split; `tfds_splits` may have another one for TFDS.
      data_dir: the folder of datasets; None for the default of TFDS.

    Raises:
      UsageError: the task is not in TFDS, TFDS is not installed or cannot load the dataset, or the
        dataset has other features.
    """
    from roberta_jax.data.tfds_examples import read_examples

    if task.tfds is None:
        raise UsageError(
            f"{task.title} is not in TensorFlow Datasets: give --config.data.folder, a folder with "
            f"{task.download}."
        )
    name = task.tfds_splits.get(split, split)
    source = f"TFDS {task.tfds}, {name}"
    records = read_examples(task.tfds, name, data_dir)
    yield from _BY_KIND[task.kind](records, task, source)


def _texts(records: Iterator[Record], task: Task, source: str) -> Iterator[TextExample]:
    """In the order of their numbers: TFDS shuffles them, and GLUE's server needs the order."""
    examples = [text_example(record, task, source, n) for n, record in enumerate(records)]
    if all(each.id.isdecimal() for each in examples):
        examples.sort(key=lambda each: int(each.id))
    yield from examples


def _tokens(records: Iterator[Record], task: Task, source: str) -> Iterator[TokenExample]:
    numbers = itertools.count()
    for record in records:
        words = _first(record, _WORDS, source)
        if words == ["-DOCSTART-"]:
            continue
        tags = _first(record, _TAGS, source)
        yield TokenExample(str(next(numbers)), tuple(words), tuple(tags))


def _choices(records: Iterator[Record], task: Task, source: str) -> Iterator[ChoiceExample]:
    for number, record in enumerate(records):
        if "article" in record:
            yield from race_passage(record, str(record.get("example_id", "")), source)
        else:
            yield hellaswag_example(record, source, str(number))


def _questions(records: Iterator[Record], task: Task, source: str) -> Iterator[QuestionExample]:
    counts: Counter[str] = Counter()
    for record in records:
        answers = record["answers"]
        check_answerable(task, answers["text"], str(record["id"]), source)
        example = QuestionExample(
            str(record["id"]),
            record["question"],
            record["context"],
            tuple(answers["text"]),
            tuple(answers["answer_start"]),
            record.get("title", ""),
        )
        yield with_checked_starts(example, counts)
    warn_of_starts(counts, source)


def _pronouns(records: Iterator[Record], task: Task, source: str) -> Iterator[PronounExample]:
    for number, record in enumerate(records):
        yield wsc_example(record, source, str(record.get("idx", number)))


_BY_KIND: Mapping[str, Callable[[Iterator[Record], Task, str], Iterator[Example]]] = {
    "classification": _texts,
    "multi_label": _texts,
    "regression": _texts,
    "tokens": _tokens,
    "choice": _choices,
    "question_answering": _questions,
    "pronoun": _pronouns,
}


def _first(record: Record, names: tuple[str, ...], source: str) -> list:
    for name in names:
        if name in record:
            return record[name]
    raise UsageError(
        f"{source}: no feature {' or '.join(names)}; the features are {', '.join(record)}."
    )
