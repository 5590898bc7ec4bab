"""Files to predict for, and the same files with the predictions beside the original columns.

The input is a csv, tsv or jsonl file, or a .txt file with a text on each line; see
`readers.user_files`. The output is csv, tsv or jsonl, as the ending of its name says. Both are read
and written a block of rows at a time, and an interrupted output is continued where it ended:

    table = open_table("new.csv", key="--input")
    profile = profile_input(table)
    columns = prediction_columns(task, table, profile)
    with PredictionFile("predictions.csv", table, profile, added_columns(kind, labels)) as output:
        for first, rows in blocks(table, 10_000, output.rows):
            examples = list(examples_of(rows, columns, (), table.path, start=first))
            output.write(rows, predictions_of(examples))
"""

import collections
import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from roberta_jax.errors import UsageError, counted, listed, shortened
from roberta_jax.storage.atomic import write_json
from roberta_jax.storage.locks import AlreadyLocked, exclusive_lock
from roberta_jax.tasks.readers.user_columns import Columns, FileProfile, profile
from roberta_jax.tasks.readers.user_files import (
    FORMATS,
    Row,
    Table,
    check_header,
    format_of,
    missing_column_message,
)
from roberta_jax.tasks.readers.user_guess import guess_choice_columns, guess_text_columns, is_id
from roberta_jax.tasks.task import Task

# Kind -> the columns that are added, before those of the labels.
_ADDED = {
    "classification": ("prediction", "score"),
    "multi_label": ("prediction",),
    "regression": ("prediction",),
    "tokens": ("prediction", "scores"),
    "choice": ("prediction", "score", "scores"),
    "question_answering": ("prediction", "score"),
    "pronoun": ("prediction",),
}
_SCORE = "score_"  # before the name of a label
_WORDS = ("tokens", "words")


def profile_input(table: Table, id_column: str | None = None) -> FileProfile:
    """Reads a file to predict for from beginning to end, so that no line of it fails later.

    Args:
      table: the file.
      id_column: the column that identified the examples of training, if there was one.

    Raises:
      UsageError: the file cannot be read, or has no rows.
    """
    found = profile(table.rows(), lambda name: is_id(name) or name == id_column)
    if not found.rows:
        raise UsageError(f"--input: {table.path} holds a header and no rows.")
    return found


def prediction_columns(
    task: Task,
    table: Table,
    profile: FileProfile,
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    choice_columns: Sequence[str] = (),
) -> Columns:
    """The columns that a task takes from a file without labels.

    For a task of the user's own files they are those of training; for another task its fields, or
    if the file does not have those, what `user_guess` finds. The only column of a .txt file is that
    of a task with one text.

    Args:
      task: the task.
      table: the file.
      profile: what is in it.
      text_column, pair_column, choice_columns: take precedence.

    Raises:
      UsageError: the file lacks a column, or it is not clear which one is meant.
    """
    columns = _own_columns(task)
    is_user_task = columns is not None
    columns = columns or _columns_of_fields(task)
    given = {"text": text_column, "pair": pair_column, "choices": tuple(choice_columns)}
    given = {name: value for name, value in given.items() if value}
    if table.format == "txt":
        if len(columns.texts) != 1 or columns.kind not in _ADDED or columns.kind == "tokens":
            raise UsageError(
                f"--input: {table.path} has one text on each line, but {task.name} takes "
                f"{listed(columns.texts)}. Write a csv, tsv or jsonl file with these columns."
            )
        return dataclasses.replace(columns, text=table.columns[0], pair=None, id=None, label=())
    has_all = all(name in profile.columns for name in columns.texts)
    if not is_user_task and not given and (not has_all or not columns.texts):
        columns = _guessed(task, columns, table, profile)
    columns = dataclasses.replace(columns, label=(), **given)
    for name in columns.texts:
        if name not in profile.columns:
            check_header(table)
            raise UsageError(
                "--input: " + missing_column_message(table.path, name, profile.columns)
            )
    has_ids = (
        columns.id in profile.columns
        and columns.id not in profile.repeated
        and profile.columns[columns.id].filled == profile.rows
    )
    return columns if has_ids else dataclasses.replace(columns, id=None)


def blocks(table: Table, size: int, start: int = 0) -> Iterator[tuple[int, list[Row]]]:
    """Yields (number of the first row, rows) of blocks of `size` rows, from row `start` on."""
    rows = itertools.islice(table.rows(), start, None)
    while block := list(itertools.islice(rows, size)):
        yield start, block
        start += len(block)


def added_columns(kind: str, labels: Sequence[str]) -> tuple[str, ...]:
    """The columns of predictions: "prediction", mostly "score", and "score_LABEL" for each label.

    Args:
      kind: of the task.
      labels: its labels.
    """
    per_label = labels if kind in ("classification", "multi_label") else ()
    return (*_ADDED[kind], *(_SCORE + name for name in per_label))


class PredictionFile:
    """Writes the rows of a file with predictions beside them; a context manager.

    The rows are written to OUTPUT.partial, which is renamed at the end. OUTPUT.partial.json says
    after each block how far it is complete. If a process is interrupted, the next one with the same
    input, columns and `fingerprint` continues there; `rows` is the number of rows that are done.

    In csv and tsv files, lists are JSON, but several labels are "one|two" if no label has a bar in
    it. Missing values are empty.

    Args:
      path: the output, which must not be the input. An existing one is replaced at the end.
      table: the input.
      profile: what is in it.
      added: from `added_columns`.
      fingerprint: what the predictions depend on beside the input, such as a digest of the model.

    Raises:
      UsageError: the path has no ending of a format, or is the input; its folder does not exist;
        the input already has one of the added columns; or another process writes this file.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        table: Table,
        profile: FileProfile,
        added: Sequence[str],
        fingerprint: Mapping[str, Any] | None = None,
    ):
        self._path = pathlib.Path(path).expanduser()
        self._format = _checked_format(self._path, table.path)
        self._columns = tuple(profile.columns) if table.format == "jsonl" else table.columns
        self._added = tuple(added)
        if taken := [name for name in self._added if name in profile.columns]:
            raise UsageError(
                f"--input: {table.path} already has a column {taken[0]!r}, which predictions are "
                "written to. Rename or remove it."
            )
        self._partial = self._path.with_name(f"{self._path.name}.partial")
        self._state_path = self._path.with_name(f"{self._path.name}.partial.json")
        state = {
            "input": _digest(table.path),
            "columns": [*self._columns, *self._added],
            "fingerprint": dict(fingerprint or {}),
        }
        self._state = json.loads(json.dumps(state))  # as it is read from a file
        self._lock_path = self._path.with_name(f"{self._path.name}.lock")
        self._lock = exclusive_lock(self._lock_path)
        self._file: io.BufferedWriter | None = None
        self.rows = 0

    def __enter__(self) -> "PredictionFile":
        try:
            self._lock.__enter__()
        except AlreadyLocked:
            raise UsageError(f"--output: another process is writing {self._path}.") from None
        try:
            self.rows, size = self._complete_part()
            self._file = self._partial.open("r+b" if size else "wb")
            self._file.truncate(size)
            self._file.seek(size)
            if not size and self._format != "jsonl":
                self._file.write(self._delimited([[*self._columns, *self._added]]))
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self._file.close()
            if kind is None:
                os.replace(self._partial, self._path)
                self._state_path.unlink(missing_ok=True)
        finally:
            self._unlock()

    def write(self, rows: Sequence[Row], predictions: Sequence[Mapping[str, Any]]) -> None:
        """Writes a block of rows. After this they survive an interruption.

        Args:
          rows: those of the input that follow the rows written before.
          predictions: one for each row, as a `Kind` makes them.
        """
        if len(rows) != len(predictions):
            raise ValueError(f"{len(rows)} rows and {len(predictions)} predictions")
        values = [_values(each, self._added) for each in predictions]
        if self._format == "jsonl":
            data = b"".join(map(_json_line, rows, values))
        else:
            data = self._delimited(
                [
                    [_cell(row.values.get(name)) for name in self._columns]
                    + [_cell(each[name]) for name in self._added]
                    for row, each in zip(rows, values, strict=True)
                ]
            )
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows += len(rows)
        write_json(
            self._state_path,
            self._state | {"rows": self.rows, "bytes": self._file.tell()},
            indent=None,
        )

    def _unlock(self) -> None:
        with contextlib.suppress(OSError):  # where open files cannot be removed
            self._lock_path.unlink()
        self._lock.__exit__(None, None, None)

    def _complete_part(self) -> tuple[int, int]:
        """(rows, bytes) that an interrupted process has written; zeros if there is nothing."""
        try:
            state = json.loads(self._state_path.read_text(encoding="utf-8"))
            rows, size = state.pop("rows"), state.pop("bytes")
            if state == self._state and self._partial.stat().st_size >= size > 0:
                return rows, size
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            pass  # there is none, or it is of another kind: begin anew
        return 0, 0

    def _delimited(self, rows: Sequence[Sequence[str]]) -> bytes:
        text = io.StringIO()
        delimiter = "\t" if self._format == "tsv" else ","
        options = {"delimiter": delimiter, "lineterminator": "\n"}
        plain = csv.writer(text, **options)
        quoting = csv.writer(text, quoting=csv.QUOTE_ALL, **options)
        for cells in rows:
            # Some versions of `csv` do not quote carriage returns, but refuse to read them.
            (quoting if any("\r" in cell for cell in cells) else plain).writerow(cells)
        return text.getvalue().encode("utf-8", "replace")


def _own_columns(task: Task) -> Columns | None:
    """The columns that a task of the user's own files has been made with."""
    return getattr(task.reader, "keywords", {}).get("columns")


def _columns_of_fields(task: Task) -> Columns:
    if task.kind == "question_answering":
        return Columns(kind=task.kind, text="context", pair="question")
    if task.kind == "choice":
        return Columns(kind=task.kind, text=None)
    if task.kind == "tokens":
        return Columns(kind=task.kind, text=_WORDS[0])
    if task.kind == "pronoun":
        raise UsageError(
            f"{task.name} predicts what pronouns refer to, which files of texts cannot say; use "
            "`evaluate` with the task's own files."
        )
    first, second = (*task.fields, None, None)[:2]
    return Columns(kind=task.kind, text=first, pair=second)


def _guessed(task: Task, columns: Columns, table: Table, profile: FileProfile) -> Columns:
    """The columns of a file that does not have the fields of a task of the table."""
    try:
        if columns.kind == "choice":
            text, pair, choices = guess_choice_columns(profile.columns)
            return Columns(kind="choice", text=text, pair=pair, choices=choices)
        if columns.kind in ("tokens", "question_answering"):
            words = [name for name in _WORDS if name in profile.columns]
            return dataclasses.replace(columns, text=words[0]) if words else columns
        text, pair = guess_text_columns(profile.columns)
    except UsageError as error:
        advice = str(error).replace("--config.data.", "--")  # the options of `predict`
        raise UsageError(f"--input: {table.path}: {advice}") from None
    if task.fields and (pair is None) != (columns.pair is None):
        raise UsageError(
            f"--input: {task.name} takes {counted(len(columns.texts), 'text')} "
            f"({listed(columns.texts)}), and {table.path} does not have these columns. Rename its "
            "columns, or say which ones to take. "
            f"Its columns: {listed([shortened(name, 40) for name in profile.columns], 20)}."
        )
    return dataclasses.replace(columns, text=text, pair=pair)


def _checked_format(path: pathlib.Path, source: pathlib.Path) -> str:
    name = format_of(path)
    plain = path.suffix.lower() not in (".gz", ".bz2", ".xz", ".zst")
    if name not in FORMATS or not plain:
        raise UsageError(f"--output={path}: the name has to end in .csv, .tsv or .jsonl.")
    if path.is_dir():
        raise UsageError(f"--output={path} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise UsageError(f"--output={path}: the folder {path.parent} does not exist; create it.")
    if path.exists() and path.samefile(source):
        raise UsageError(f"--output={path} is the input, which is not overwritten; name another.")
    return name


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _values(prediction: Mapping[str, Any], added: Sequence[str]) -> dict[str, Any]:
    """Added column -> its value for one prediction."""
    predicted, scores = prediction["prediction"], prediction.get("scores")
    values = collections.defaultdict(lambda: None, {"prediction": predicted, "scores": scores})
    if isinstance(scores, Mapping):
        values |= {_SCORE + name: value for name, value in scores.items()}
        if isinstance(predicted, str):
            values["score"] = scores.get(predicted)
        elif all("|" not in name for name in scores):
            values["prediction"] = _Labels(predicted)
    elif "score" in prediction:
        values["score"] = prediction["score"]
    elif isinstance(scores, Sequence) and isinstance(predicted, int):
        values["score"] = scores[predicted]
    return {name: values[name] for name in added}


class _Labels(list):
    """Several labels, which a cell has as "one|two"."""


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, _Labels):
        return "|".join(value)
    return json.dumps(value, ensure_ascii=False)


def _json_line(row: Row, values: Mapping[str, Any]) -> bytes:
    source = dict(row.values) if row.source is None else row.source
    value = source | values
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
        return json.dumps(value).encode() + b"\n"
