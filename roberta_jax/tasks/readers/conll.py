"""Files with a word on each line and its tag in the last column: CoNLL-2003, WNUT-17, WikiANN."""

import pathlib
import re
from collections.abc import Iterator, Sequence

from roberta_jax.errors import UsageError, counted, listed, shortened
from roberta_jax.tasks.examples import TokenExample
from roberta_jax.tasks.readers.opening import read_lines
from roberta_jax.tasks.task import Task

_DOCUMENT = "-DOCSTART-"
_LANGUAGE = re.compile(r"^[a-z][a-z_-]{1,11}:(?=.)")  # WikiANN's "en:word"


def read_conll(
    path: pathlib.Path,
    task: Task,
    split: str,
    *,
    language_prefix: bool = False,
    iob1: bool = False,
) -> Iterator[TokenExample]:
    """The sentences of a file, which blank lines separate.

    Columns are separated by tabs where a line has one, and otherwise by spaces. The word is in
    the first and the tag in the last. The lines of a sentence must have the same number of columns;
    a file with one column has no tags. `-DOCSTART-` lines are no sentences.

    Args:
      path: the file.
      task: the task; its labels are the possible tags, any if it has none.
      split: not used: a file has the same form in each split.
      language_prefix: whether to remove a language before the words, as in WikiANN ("en:word").
      iob1: whether the tags are IOB1, as in CoNLL-2003's files; they become BIO, see `iob1_to_bio`.

    Raises:
      UsageError: the file cannot be read, a line has another number of columns than the one before
        it, or the task has no such tag; the message names the file and the line.
    """
    rows: list[list[str]] = []
    number_of_sentence = 0
    for number, line in read_lines(path):
        if "\t" in line:
            values = [value.strip() for value in line.split("\t")]
        else:
            values = [value for value in line.split(" ") if value]
        if not any(values) or values[0] == _DOCUMENT:
            if rows:
                yield _sentence(rows, number_of_sentence, iob1)
                number_of_sentence += 1
                rows = []
            continue
        if rows and len(values) != len(rows[0]):
            raise UsageError(
                f"{path}:{number}: {counted(len(values), 'column')}, and the line before it has "
                f"{len(rows[0])}. Correct the line, or put a blank line between sentences."
            )
        if len(values) > 1 and task.labels and values[-1] not in task.labels:
            raise UsageError(
                f"{path}:{number}: the tag {shortened(values[-1], 40)!r} is not one of "
                f"{task.title}'s: {listed(task.labels, 20)}. Correct the line."
            )
        if language_prefix:
            values[0] = _LANGUAGE.sub("", values[0], count=1)
        rows.append(values)
    if rows:
        yield _sentence(rows, number_of_sentence, iob1)


def iob1_to_bio(tags: Sequence[str]) -> tuple[str, ...]:
    """Tags in which each entity begins with "B-", of IOB1 tags.

    In IOB1, the form of CoNLL-2003's files, an entity begins with "I-", and with "B-" only directly
    after another one of the same type. BIO (also called IOB2) is what TFDS and HF's datasets have;
    it stays as it is.
    """
    result = []
    before = "O"
    for tag in tags:
        begins = tag.startswith("I-") and before[2:] != tag[2:]
        result.append("B-" + tag[2:] if begins else tag)
        before = tag
    return tuple(result)


def _sentence(rows: list[list[str]], number: int, iob1: bool) -> TokenExample:
    tags = tuple(row[-1] for row in rows) if len(rows[0]) > 1 else None
    if iob1 and tags is not None:
        tags = iob1_to_bio(tags)
    return TokenExample(str(number), tuple(row[0] for row in rows), tags)
