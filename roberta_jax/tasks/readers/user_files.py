"""Reads the user's own files, one row at a time: csv, tsv, JSON lines, and text.

csv: RFC 4180. The delimiter is the comma, semicolon, tab or bar that divides the first rows into
  the same number of fields. Fields in quotes may hold delimiters, newlines and doubled quotes.
tsv: Tabs divide fields. A quote is an ordinary character, as in GLUE's files, unless every field of
  the file that starts with one is quoted correctly, as pandas and R write them; then it is read as
  csv.
jsonl: One JSON object a line. The fields of nested objects have dotted names ("answer.text").
txt: Each line is the value of the one column "text".

The first row of csv and tsv files has the names of the columns. Files are UTF-8, with or without a
byte-order mark, and may be compressed (.gz, .bz2, .xz, .zst).
"""

import csv
import dataclasses
import difflib
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from roberta_jax.data.text.files import MAX_DOCUMENT_BYTES, open_decompressed
from roberta_jax.errors import NotFoundError, UsageError, counted, listed, shortened
from roberta_jax.storage.reading import check_regular_file, parse_json
from roberta_jax.tasks.readers.user_encodings import decoded_lines

FORMATS = ("csv", "tsv", "jsonl")
TEXT_COLUMN = "text"  # the name of the only column of a .txt file

_ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "txt",
}
_DELIMITERS = ",;\t|"
_SAMPLE = 1000  # rows from which the delimiter and a missing header are recognized


class Row(NamedTuple):
    """One row of a file.

    Attributes:
      line: the number of its first line, from 1.
      values: column -> value: a string in csv, tsv and txt; any JSON value but an object in jsonl.
      source: jsonl: the object as it is in the file. Otherwise None.
    """

    line: int
    values: Mapping[str, Any]
    source: dict[str, Any] | None = None


class _QuotingError(UsageError):
    """Quotes that do not follow RFC 4180."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A file whose format is known.

    Attributes:
      path: of the file.
      format: "csv", "tsv", "jsonl" or "txt".
      columns: the names of the header; () in jsonl, where each line has its own.
      delimiter: csv and tsv: between the fields.
      quoted: csv and tsv: whether quotes have a meaning.
    """

    path: pathlib.Path
    format: str
    columns: tuple[str, ...] = ()
    delimiter: str = ""
    quoted: bool = True

    def rows(self) -> Iterator[Row]:
        """Yields the rows in the order of the file; blank lines are no rows.

        In txt a blank line is a row with an empty text.

        Raises:
          UsageError: the file cannot be read, or a line is not what its format demands.
        """
        if self.format == "jsonl":
            yield from self._objects()
        elif self.format == "txt":
            for line, text in enumerate(decoded_lines(self.path), 1):
                yield Row(line, {TEXT_COLUMN: text.rstrip("\r\n")})
        else:
            yield from self._delimited()

    def _delimited(self) -> Iterator[Row]:
        records = _records(self.path, self.delimiter, self.quoted)
        width = len(self.columns)
        for line, cells in itertools.islice(records, 1, None):
            if len(cells) != width:
                raise UsageError(_width_message(self, line, cells))
            yield Row(line, dict(zip(self.columns, cells, strict=True)))

    def _objects(self) -> Iterator[Row]:
        for line, text in enumerate(decoded_lines(self.path), 1):
            if not text.strip():
                continue
            try:
                value = parse_json(text.rstrip("\r\n"))
            except ValueError as error:
                raise UsageError(_not_json_message(self.path, line, text, error)) from None
            if not isinstance(value, dict):
                raise UsageError(
                    f"{self.path}:{line}: the line is {_named(value)}; a JSON object with the "
                    'columns as its fields is needed, such as {"text": "...", "label": "..."}.'
                )
            yield Row(line, _flattened(value), value)


def open_table(
    path: str | os.PathLike, format: str | None = None, key: str = "--config.data.train"
) -> Table:
    """Opens a file: reads its header, and finds out how its fields are divided.

    Args:
      path: the file.
      format: one of `FORMATS` or "txt"; None takes it from the name's ending.
      key: the option that names the file, for messages.

    Raises:
      UsageError: there is no such file, it is empty, or it is not of this format.
    """
    path = _checked(path, key)
    ending = format_of(path)
    format = format or ending
    if format is None:
        raise UsageError(
            f"{key}: the ending of {path} does not say its format. Rename it to end in "
            f"{listed(sorted(_ENDINGS))}, optionally with .gz, .bz2, .xz or .zst."
        )
    if "jsonl" in (format, ending) and ending not in (format, "txt", None):
        raise UsageError(
            f"{key}: {path} has the ending of a {ending} file, but the task is {format}. Use "
            f"--config=configs/finetune.py:{ending}, or rename the file."
        )
    if format in ("jsonl", "txt"):
        _check_not_empty(path, format, key)
        return Table(path, format, (TEXT_COLUMN,) if format == "txt" else ())
    delimiter = "\t" if format == "tsv" else _delimiter(path)
    quoted = format == "csv" or _has_quoted_fields(path)
    first = next(_records(path, delimiter, quoted), None)
    if first is None:
        raise UsageError(f"{key}: {path} is empty.")
    columns = _column_names(path, first[1])
    if format == "tsv" and len(columns) == 1 and "," in columns[0]:
        is_task = key.startswith("--config")
        instead = "use --config=configs/finetune.py:csv" if is_task else "rename it to .csv"
        raise UsageError(
            f"{path}:1: there is no tab in the header, {shortened(columns[0])!r}. If commas divide "
            f"the fields, {instead}."
        )
    return Table(path, format, columns, delimiter, quoted)


def format_of(path: os.PathLike | str) -> str | None:
    """The format that a file name's ending stands for, without that of a compression, or None."""
    name = os.fspath(path).lower()
    for suffix in (".gz", ".bz2", ".xz", ".zst"):
        name = name.removesuffix(suffix)
    return _ENDINGS.get(os.path.splitext(name)[1])


def check_header(table: Table) -> None:
    """Checks that the first row of a csv or tsv file is a header, as far as that can be known.

    It is not one if a name is a number, is empty or very long, or is a value that its own column
    has at least twice in the first rows. Names that number the columns (0, 1, ...) are accepted:
    pandas writes them where a table has no names.

    Raises:
      UsageError: the file has no header, or has it several times.
    """
    names = [name for name in table.columns if name]
    if not names or names == [str(number) for number in range(len(names))]:
        return
    reason = None
    for name in names:
        if is_number(name):
            reason = f"{name!r} is a number"
        elif len(name) > 100 or "\n" in name:
            reason = f"{shortened(name, 40)!r} is too long for a name"
    rows = [row.values for row in itertools.islice(table.rows(), _SAMPLE)]
    for row in rows:
        if all(row[name] == name for name in names):
            raise UsageError(
                f"{table.path}: the header, {_shown(names)}, is repeated among the rows. Remove "
                "the copies, which remain where files with headers are joined."
            )
    for name in names:
        if sum(row[name] == name for row in rows) > 1:
            reason = f"{name!r} is also a value of its column"
    if reason:
        raise UsageError(
            f"{table.path} seems to have no header: its first row is {_shown(names)}, and {reason}."
            " Write a first line with the names of the columns, such as text"
            f"{table.delimiter if table.delimiter != chr(9) else '<tab>'}label."
        )


def missing_column_message(
    path: os.PathLike, name: str, columns: Sequence[str], key: str = ""
) -> str:
    """Says that a file lacks a column, which ones it has, and which of them has a similar name."""
    near = difflib.get_close_matches(
        name.lower(), [column.lower() for column in columns], n=1, cutoff=0.6
    )
    nearest = next((each for each in columns if near and each.lower() == near[0]), None)
    option = f"{key}={name}: " if key else ""
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    return f"{option}{path} has no column {name!r}. Its columns: {_shown(columns)}.{hint}"


def is_number(text: str) -> bool:
    """Whether a string spells a number, as `float` reads it; "nan" and "inf" count."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _checked(path: str | os.PathLike, key: str) -> pathlib.Path:
    name = os.fspath(path)
    if "://" in name:
        raise UsageError(f"{key}={name}: such files are read from local folders; copy it first.")
    path = pathlib.Path(name).expanduser()
    try:
        check_regular_file(path)
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else None
        near = difflib.get_close_matches(path.name, os.listdir(folder) if folder else [], n=1)
        hint = f" Did you mean {path.with_name(near[0])}?" if near else ""
        raise NotFoundError(f"{key}: no file {path} (from {os.getcwd()}).{hint}") from None
    return path


def _check_not_empty(path: pathlib.Path, format: str, key: str) -> None:
    with open_decompressed(path) as file:
        start = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise UsageError(f"{key}: {path} is empty.")
    if format == "jsonl" and start.startswith(b"["):
        raise UsageError(
            f"{path} is one JSON list; each line has to be an object of its own. Convert it: "
            "jq -c '.[]' OLD > NEW.jsonl"
        )


def _records(path: pathlib.Path, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Yields (first line, fields) of the records, the header included, without blank lines."""
    if not quoted:
        for line, text in enumerate(decoded_lines(path), 1):
            if text := text.removesuffix("\n").removesuffix("\r"):
                yield line, text.split(delimiter)
        return
    if csv.field_size_limit() < MAX_DOCUMENT_BYTES:  # the default is 131,072 characters
        csv.field_size_limit(MAX_DOCUMENT_BYTES)
    reader = csv.reader(decoded_lines(path), delimiter=delimiter, strict=True)
    line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _QuotingError(_csv_message(path, line, reader.line_num, error)) from None
        if cells:
            yield line, cells
        line = reader.line_num + 1


def _delimiter(path: pathlib.Path) -> str:
    """The delimiter that divides the first rows of a csv file into the same number of fields.

    Where several do, the one with the most fields; where none does, the one with the most fields in
    the header, and the comma for a single column.
    """
    best, delimiter = (False, 1), ","
    for each in _DELIMITERS:
        try:
            widths = [
                len(cells) for _, cells in itertools.islice(_records(path, each, True), _SAMPLE)
            ]
        except _QuotingError:
            continue
        if widths and widths[0] > 1 and (len(set(widths)) == 1, widths[0]) > best:
            best, delimiter = (len(set(widths)) == 1, widths[0]), each
    return delimiter


def _has_quoted_fields(path: pathlib.Path) -> bool:
    """Whether all fields of a tsv file that start with a quote are quoted correctly."""
    with open_decompressed(path) as file:
        lines = iter(file.readline, b"")
        if not any(line.startswith(b'"') or b'\t"' in line for line in lines):
            return False
    try:
        return len({len(cells) for _, cells in _records(path, "\t", True)}) == 1
    except _QuotingError:
        return False


def _column_names(path: pathlib.Path, cells: list[str]) -> tuple[str, ...]:
    """The names of the header. Columns without one, as of trailing delimiters, get a number.

    The first may stay without: pandas writes the numbers of its rows there.
    """
    names = [cell.strip() for cell in cells]
    named = [name for name in names if name]
    if duplicates := sorted({name for name in named if names.count(name) > 1}):
        raise UsageError(
            f"{path}:1: several columns have the same name: {_shown(duplicates)}. Rename them."
        )
    return tuple(name or (f"column_{i + 1}" if i else "") for i, name in enumerate(names))


def _flattened(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of an object and of those in it; a field named "a.b" precedes "b" of "a"."""
    if not prefix and not any(isinstance(each, dict) for each in value.values()):
        return value
    fields: dict[str, Any] = {}
    for name, each in value.items():
        if isinstance(each, dict):
            for inner, field in _flattened(each, f"{prefix}{name}.").items():
                fields.setdefault(inner, field)
        else:
            fields[prefix + name] = each
    return fields


def _named(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {str: "a string", list: "a list", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def _shown(names: Sequence[str]) -> str:
    return listed([shortened(name, 40) or '""' for name in names], 20)


def _width_message(table: Table, line: int, cells: list[str]) -> str:
    name = {"\t": "tab"}.get(table.delimiter, repr(table.delimiter))
    if len(cells) < len(table.columns):
        hint = "Add the missing ones, also where they are empty"
    elif table.quoted:
        hint = f"Put fields that hold the delimiter, {name}, in double quotes"
    else:
        hint = "Replace the tabs within fields by spaces"
    return (
        f"{table.path}:{line}: this row has {counted(len(cells), 'field')}, but the header has "
        f"{len(table.columns)} ({_shown(table.columns)}). {hint}."
    )


def _csv_message(path: pathlib.Path, line: int, last: int, error: csv.Error) -> str:
    text = str(error)
    if "new-line character" in text:
        return (
            f"{path}:{line}: a carriage return stands within a field without quotes, or ends the "
            "lines. Convert the line ends: tr '\\r' '\\n' < OLD > NEW"
        )
    if "unexpected end" in text or "field larger" in text:
        return (
            f"{path}: the row that begins in line {line} has a quoted field that does not end. "
            "Close it, or double the quotes that belong to the text."
        )
    where = f"{path}:{last}" if last == line else f"{path}:{line}-{last}"
    return (
        f"{where}: a field in quotes goes on after its closing quote. Within such a field, each "
        'quote has to be doubled: "He said ""yes""."'
    )


def _not_json_message(path: pathlib.Path, line: int, text: str, error: ValueError) -> str:
    reason = f"{error.msg} at character {error.pos + 1}" if hasattr(error, "msg") else str(error)
    hint = ""
    if text.strip() in ("{", "["):
        hint = " One object has to stand on one line: jq -c . OLD > NEW.jsonl"
    return f"{path}:{line}: the line is not JSON: {reason}.{hint}"
