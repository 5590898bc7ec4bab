"""The examples of the user's own files, from the columns that a task takes."""

import collections
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from roberta_jax.errors import UsageError, counted, listed, shortened
from roberta_jax.tasks.examples import (
    ChoiceExample,
    Example,
    QuestionExample,
    TextExample,
    TokenExample,
)
from roberta_jax.tasks.readers.user_columns import Columns, spelled_label
from roberta_jax.tasks.readers.user_files import Row, missing_column_message, open_table
from roberta_jax.tasks.task import Task

# What is counted while reading.
NO_LABEL = "rows without a label, left out"
EMPTY_TEXT = "rows with an empty text, kept"

_TRUE, _FALSE = ("1", "true", "1.0", "yes"), ("0", "false", "0.0", "no")
_LABELLED_SPLITS = ("train", "validation")
_CORRECT = "Correct or remove them."
_MAX_PROBLEMS = 1000  # lines that are collected for a message


def read_user_file(
    path: pathlib.Path,
    task: Task,
    split: str,
    *,
    format: str,
    columns: Columns,
    counts: collections.Counter | None = None,
) -> Iterator[Example]:
    """Yields the examples of a csv, tsv or jsonl file; see `tasks.user_task.open_user_data`.

    Rows of the splits "train" and "validation" that have no label are left out. In other splits the
    labels may be unknown: the column may be missing, or hold nothing or -1, as in many data sets.

    Args:
      path: the file.
      task: its labels are those that examples may have, unless there are none.
      split: the split that the file is.
      format: one of `user_files.FORMATS`.
      columns: those of the file that are used.
      counts: counts what was left out or is remarkable, by `NO_LABEL` and `EMPTY_TEXT`.

    Raises:
      UsageError: the file lacks a column, or a row cannot be used. Wrong labels and targets are
        collected and reported together, with their lines, at the end of the file.
    """
    table = open_table(path, format, f"--config.data.{split}")
    needed = columns.named if split in _LABELLED_SPLITS else columns.texts
    if table.columns:
        for name in needed:
            if name not in table.columns:
                raise UsageError(missing_column_message(path, name, table.columns))
    yield from examples_of(
        table.rows(), columns, task.labels, path, counts, split in _LABELLED_SPLITS
    )


def examples_of(
    rows: Iterable[Row],
    columns: Columns,
    labels: Sequence[str],
    path: pathlib.Path,
    counts: collections.Counter | None = None,
    needs_label: bool = False,
    start: int = 0,
) -> Iterator[Example]:
    """Yields the example of each row. Those of "question_answering" are without answers.

    Args:
      rows: of the file.
      columns: those that are used.
      labels: the labels that examples may have; () for any.
      path: the file, for messages.
      counts: as in `read_user_file`.
      needs_label: whether rows without a label are left out.
      start: the number of the first row, for ids.

    Raises:
      UsageError: as `read_user_file`.
    """
    counts = collections.Counter() if counts is None else counts
    parser = _Parser(columns, labels, path, counts, needs_label)
    for number, row in enumerate(rows, start):
        example = parser.example(row, number)
        if example is None:
            continue
        if needs_label and _label(example) is None:
            counts[NO_LABEL] += 1
            continue
        yield example
    parser.raise_problems()


class _Parser:
    """Makes examples of rows, and collects the rows whose labels cannot be used."""

    def __init__(
        self,
        columns: Columns,
        labels: Sequence[str],
        path: pathlib.Path,
        counts: collections.Counter,
        needs_label: bool,
    ):
        self._columns, self._labels, self._path, self._counts = columns, labels, path, counts
        self._needs_label = needs_label
        self._known = frozenset(labels)
        # (what is wrong, what to do) -> (line, value) of the rows.
        self._problems: dict[tuple[str, str], list[tuple[int, str]]] = {}
        self._noted = 0
        makers = {
            "tokens": self._tokens,
            "choice": self._choice,
            "question_answering": self._question,
        }
        self._make = makers.get(columns.kind, self._text)

    def example(self, row: Row, number: int) -> Example | None:
        """The example of a row; None where it has been noted as a problem."""
        id = str(number)
        if self._columns.id is not None:
            value = row.values.get(self._columns.id)
            if value is None or value == "":
                self._note("the id is missing", row, "")
                return None
            id = spelled_label(value)
        noted = self._noted
        example = self._make(row, id)
        return example if self._noted == noted else None

    def raise_problems(self) -> None:
        """Raises a UsageError with the lines of the commonest problem, if there was one."""
        if not self._problems:
            return
        (reason, advice), found = max(self._problems.items(), key=lambda item: len(item[1]))
        lines = listed([str(line) for line, _ in found])
        values = sorted({repr(shortened(value, 40)) for _, value in found if value})
        number = f"{_MAX_PROBLEMS:,} rows or more" if len(found) >= _MAX_PROBLEMS else None
        shown = f": {listed(values)}" if values else ""
        raise UsageError(
            f"{self._path}: in {number or counted(len(found), 'row')} {reason}{shown} "
            f"({'line' if len(found) == 1 else 'lines'} {lines}). {advice}"
        )

    def _note(self, reason: str, row: Row, value: Any, advice: str = _CORRECT) -> None:
        self._noted += 1
        found = self._problems.setdefault((reason, advice), [])
        if len(found) < _MAX_PROBLEMS:
            found.append((row.line, str(value)))

    def _text(self, row: Row, id: str) -> TextExample:
        columns = self._columns
        text = self._string(row, columns.text)
        pair = None if columns.pair is None else self._string(row, columns.pair)
        if not text.strip() or (pair is not None and not pair.strip()):
            self._counts[EMPTY_TEXT] += 1
        return TextExample(id, text, pair, self._text_label(row))

    def _text_label(self, row: Row) -> str | tuple[str, ...] | float | None:
        columns = self._columns
        if not columns.label:
            return None
        if columns.kind == "multi_label" and len(columns.label) > 1:
            return self._flags(row)
        value = row.values.get(columns.label[0])
        if columns.kind == "multi_label":
            return self._several(row, value)
        if self._is_unknown(value):
            return None
        if columns.kind == "regression":
            return self._number(row, value)
        return self._known_label(row, value)

    def _is_unknown(self, value: Any) -> bool:
        if value is None or (isinstance(value, str) and not value.strip()):
            return True
        hidden = not self._needs_label and "-1" not in self._known
        return hidden and self._columns.kind != "regression" and spelled_label(value) == "-1"

    def _known_label(self, row: Row, value: Any) -> str | None:
        """The name of a label; None, with a note, where the task does not have it."""
        if isinstance(value, (list, dict)):
            self._note(
                "the label is a list, and one label is needed",
                row,
                json.dumps(value),
                "Correct the rows, or set --config.data.kind=multi_label.",
            )
            return None
        name = spelled_label(value)
        if self._columns.label_ids and self._known:
            if name.isdecimal() and int(name) < len(self._labels):
                return self._labels[int(name)]
            self._note(
                f"the label is not the number of one of the {len(self._labels)} labels, from 0",
                row,
                name,
            )
            return None
        if self._known and name not in self._known:
            self._note(
                f"the label is none of {listed(self._labels)}",
                row,
                name,
                "Correct the rows, or name all labels with --config.data.labels.",
            )
            return None
        return name

    def _flags(self, row: Row) -> tuple[str, ...] | None:
        """The columns, one for each label, that hold 1; None where all are empty."""
        cells = {name: row.values.get(name) for name in self._columns.label}
        spelled = {n: "" if v is None else spelled_label(v).lower() for n, v in cells.items()}
        if not any(spelled.values()):
            return None
        for name, value in spelled.items():
            if value not in _TRUE + _FALSE:
                self._note(f"column {name!r} has to be 0 or 1, but is", row, value or "empty")
                return None
        return tuple(name for name, value in spelled.items() if value in _TRUE)

    def _several(self, row: Row, value: Any) -> tuple[str, ...] | None:
        """The labels of a cell: a list, or divided by the separator; null is unknown."""
        if value is None:
            return None
        if isinstance(value, str):
            if value.strip().startswith("["):
                try:
                    value = json.loads(value)
                except ValueError:
                    self._note(
                        "the labels look like a list, but not like one in JSON",
                        row,
                        value,
                        "Write them as one|two.",
                    )
                    return None
            else:
                value = [part for part in value.split(self._columns.separator) if part.strip()]
        if not isinstance(value, list):
            value = [value]
        names = [self._known_label(row, each) for each in value]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def _number(self, row: Row, value: Any) -> float | None:
        try:
            number = math.nan if isinstance(value, (bool, list)) else float(value)
        except (ValueError, OverflowError):
            self._note(
                "the target is not a number",
                row,
                value,
                "Correct the rows, or set --config.data.kind=classification.",
            )
            return None
        if not math.isfinite(number):
            self._note("the target is not a finite number", row, value)
        return number

    def _tokens(self, row: Row, id: str) -> TokenExample | None:
        columns = self._columns
        words = row.values.get(columns.text)
        if not isinstance(words, list) or not words:
            self._note(f"{columns.text!r} is not a list of words", row, "")
            return None
        words = tuple(_clean(str(word)) for word in words)
        tags = row.values.get(columns.label[0]) if columns.label else None
        if tags is None:
            return TokenExample(id, words, None)
        if not isinstance(tags, list) or len(tags) != len(words):
            self._note(f"{columns.label[0]!r} has not one tag for each word", row, "")
            return None
        names = tuple(self._known_label(row, tag) or "" for tag in tags)
        if not all(words):
            self._counts[EMPTY_TEXT] += 1
        return TokenExample(id, words, names)

    def _question(self, row: Row, id: str) -> QuestionExample:
        context = self._string(row, self._columns.text)
        question = self._string(row, self._columns.pair)
        if not context.strip() or not question.strip():
            self._counts[EMPTY_TEXT] += 1
        return QuestionExample(id, question, context)

    def _choice(self, row: Row, id: str) -> ChoiceExample | None:
        columns = self._columns
        context = "" if columns.text is None else self._string(row, columns.text)
        question = "" if columns.pair is None else self._string(row, columns.pair)
        if len(columns.choices) > 1:
            choices = tuple(self._string(row, name) for name in columns.choices)
            while choices and not choices[-1].strip():  # this row has fewer
                choices = choices[:-1]
        else:
            found = row.values.get(columns.choices[0])
            if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
                self._note(f"{columns.choices[0]!r} is not a list of strings", row, "")
                return None
            choices = tuple(map(_clean, found))
        if len(choices) < 2:
            self._note("there are fewer than 2 choices", row, "")
            return None
        if not all(choice.strip() for choice in choices):
            self._counts[EMPTY_TEXT] += 1
        value = row.values.get(columns.label[0]) if columns.label else None
        label = self._correct(row, value, choices)
        return ChoiceExample(id, context, question, choices, label)

    def _correct(self, row: Row, value: Any, choices: tuple[str, ...]) -> int | None:
        """The index of the correct choice, given as a number, a letter, or the choice itself."""
        if self._is_unknown(value):
            return None
        name = spelled_label(value)
        first = self._columns.first_choice
        if choices.count(name) == 1:
            return choices.index(name)
        if name.isdecimal() and first <= int(name) < first + len(choices):
            return int(name) - first
        if len(name) == 1 and 0 <= ord(name.upper()) - ord("A") < len(choices):
            return ord(name.upper()) - ord("A")
        self._note(
            f"the correct choice is neither a number from {first} to {first + len(choices) - 1}, "
            f"nor a letter from A to {chr(ord('A') + len(choices) - 1)}, nor one of the choices",
            row,
            name,
        )
        return None

    def _string(self, row: Row, name: str) -> str:
        value = row.values.get(name)
        if isinstance(value, str):
            return _clean(value)
        if isinstance(value, list):
            self._note(
                f"column {name!r} is a list, and a text is needed",
                row,
                "",
                "Name another column, or join the parts.",
            )
        return "" if value is None else spelled_label(value)


def _label(example: Example) -> Any:
    """What is None where the label is unknown."""
    return example.tags if isinstance(example, TokenExample) else example.label


def _clean(text: str) -> str:
    """Replaces halves of surrogate pairs, which JSON can spell and UTF-8 cannot, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
