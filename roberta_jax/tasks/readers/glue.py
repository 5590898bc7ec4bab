"""GLUE's tab-separated files, and the same data as JSON lines.

A quote is a character like any other in these files: `csv` would join lines at it. The first line
names the columns, except in CoLA's files of training and validation, which have no names.
"""

import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from roberta_jax.errors import UsageError, counted, shortened
from roberta_jax.tasks.examples import TextExample
from roberta_jax.tasks.readers.labels import read_label
from roberta_jax.tasks.readers.opening import read_json_lines, read_lines
from roberta_jax.tasks.task import Task

# Names of the texts in other forms of the same data: those of TFDS, and common JSON lines.
_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("text_a", "text_b"))
_SINGLES = (("sentence",), ("text",), ("text_a",))
_IDS = ("index", "id", "idx")


def read_glue(
    path: pathlib.Path,
    task: Task,
    split: str,
    *,
    columns: Sequence[str] = (),
    skip_malformed: bool = False,
) -> Iterator[TextExample]:
    """The examples of a file.

    Texts have no white space at their ends, as in fairseq. A label is None where the file has no
    column of labels, or hides them ("-1"). The id is that of the columns "index", "id" or "idx",
    and otherwise the number of the line, from 0.

    Args:
      path: a file of tab-separated columns, or of JSON objects (.jsonl).
      task: the task; `fields` and `label_field` name the columns.
      split: its name; only "train" and "validation" may have lines that are left out, since the
        predictions for a test file are counted.
      columns: the names of the columns of a file that has no line of names.
      skip_malformed: whether lines with another number of columns are left out, and counted in a
        warning. QQP has such lines, which all published results are without.

    Raises:
      UsageError: the file cannot be read, has other columns, a line with another number of columns,
        or a label that the task does not have; the message names the file and the line.
    """
    from roberta_jax.data.text.files import is_json

    if is_json(path):
        records: Iterator[tuple[str, Mapping[str, Any]]] = read_json_lines(path)
    else:
        skips = skip_malformed and split in ("train", "validation")
        records = _rows(path, task, columns, skips)
    for number, (where, record) in enumerate(records):
        yield text_example(record, task, where, number)


def text_example(record: Mapping[str, Any], task: Task, where: str, number: int) -> TextExample:
    """The example of a record: a line of a file, or an example of TFDS.

    Args:
      record: column or key -> value.
      task: the task.
      where: "FILE:LINE", for messages.
      number: its number, from 0; the id if the record has none.

    Raises:
      UsageError: the record has not the task's texts, or another label.
    """
    names = _text_names(record, task)
    if names is None:
        raise UsageError(
            f"{where}: no {' and '.join(map(repr, task.fields))}; there are "
            f"{shortened(', '.join(map(repr, record)) or 'none', 200)}. {_is_it_right(task)}"
        )
    texts = []
    for name in names:
        if not isinstance(record[name], str):
            raise UsageError(f"{where}: {name!r} must be a text, and is {record[name]!r:.60}.")
        texts.append(record[name].strip())
    label = next((record[name] for name in (task.label_field, "label") if name in record), None)
    identity = next((record[name] for name in _IDS if name in record), number)
    return TextExample(
        str(identity),
        texts[0],
        texts[1] if len(texts) > 1 else None,
        read_label(task, label, where),
    )


def _text_names(record: Mapping[str, Any] | Sequence[str], task: Task) -> Sequence[str] | None:
    others = _PAIRS if len(task.fields) > 1 else _SINGLES
    return next(
        (names for names in (task.fields, *others) if all(name in record for name in names)), None
    )


def _is_it_right(task: Task) -> str:
    return f"Check that the file is that of {task.title}, and is separated by tabs or JSON lines."


def _rows(
    path: pathlib.Path, task: Task, columns: Sequence[str], skip_malformed: bool
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields ("FILE:LINE", column -> text) of the lines of a file with tabs."""
    header: list[str] = []
    malformed: list[int] = []
    for number, line in read_lines(path):
        if not line:
            continue
        values = line.split("\t")
        if not header:
            header = [name.strip() for name in values]
            if _text_names(header, task) is not None:
                continue
            if len(values) != len(columns):
                raise UsageError(
                    f"{path}:{number}: the first line has no "
                    f"{'columns' if len(task.fields) > 1 else 'column'} "
                    f"{' and '.join(map(repr, task.fields))}; it has "
                    f"{shortened(', '.join(map(repr, header)), 200)}. {_is_it_right(task)}"
                )
            header = list(columns)
        if len(values) != len(header):
            if not skip_malformed:
                raise UsageError(
                    f"{path}:{number}: {counted(len(values), 'column')}, and the first line has "
                    f"{len(header)}. Correct the line, or remove it."
                )
            malformed.append(number)
            continue
        yield f"{path}:{number}", dict(zip(header, values, strict=True))
    if malformed:
        logging.warning(
            "%s: %s without the %d columns of the first line, such as line %d, left out.",
            *(path, counted(len(malformed), "line"), len(header), malformed[0]),
        )
