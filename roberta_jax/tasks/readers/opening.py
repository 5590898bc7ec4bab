"""Opens the files of tasks: plain, .gz, .xz, .bz2 or .zst; UTF-8 with or without a mark."""

import codecs
import pathlib
from collections.abc import Iterator
from typing import Any

from roberta_jax.errors import NotFoundError, UsageError, shortened
from roberta_jax.storage.reading import check_regular_file, parse_json

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_lines(path: pathlib.Path, keep_ends: bool = False) -> Iterator[tuple[int, str]]:
    r"""Yields the number, from 1, and the text of each line.

    Lines end at "\n" or "\r\n" and nowhere else: the texts of tasks contain other characters that
    Unicode counts as the end of a line.

    Args:
      path: the file.
      keep_ends: whether the lines keep their ends, as the module `csv` needs them.

    Raises:
      UsageError: the file cannot be read, is truncated or damaged, or is not UTF-8.
    """
    for number, line in enumerate(_lines(path), 1):
        if number == 1:
            if line.startswith(_UTF16_MARKS):
                raise UsageError(f"{path} is UTF-16: convert it to UTF-8 first.")
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{path}:{number}: this line is not UTF-8: it has the byte "
                f"0x{line[error.start]:02x}. Convert the file first, such as from Latin-1: "
                "iconv -f LATIN1 -t UTF-8 OLD > NEW"
            ) from None
        yield number, text if keep_ends else text.removesuffix("\n").removesuffix("\r")


def read_json(path: pathlib.Path) -> Any:
    """The value of a JSON file.

    Raises:
      UsageError: the file cannot be read, or is not JSON.
    """
    text = "".join(line for _, line in read_lines(path, keep_ends=True))
    try:
        return _without_surrogates(parse_json(text), text)
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}. Download it again.") from None


def read_json_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("FILE:LINE", object) of a file with a JSON object on each line; skips blank lines.

    Raises:
      UsageError: the file cannot be read, or a line is not a JSON object.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = _without_surrogates(parse_json(line), line)
        except ValueError as error:
            raise UsageError(
                f"{where}: this line is not JSON ({error}). Each line of the file holds one object."
            ) from None
        if not isinstance(value, dict):
            raise UsageError(
                f"{where}: each line must be a JSON object, and this one is {_described(value)}."
            )
        yield where, value


def value_at(record: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The value of a key of a JSON object.

    Raises:
      UsageError: the record is not an object, has no such key, or a value of another type there.
    """
    if not isinstance(record, dict):
        raise UsageError(f"{where}: expected a JSON object, found {_described(record)}.")
    if key not in record:
        raise UsageError(
            f"{where}: no key {key!r}; the keys are {shortened(', '.join(record) or 'none', 200)}."
        )
    value = record[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = " or ".join(_TYPES[each] for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise UsageError(f"{where}: {key!r} must be {names}, and is {_described(value)}.")
    return value


def texts_at(record: Any, key: str, where: str) -> list[str]:
    """The list of texts at a key of a JSON object. Raises a UsageError as `value_at` does."""
    values = value_at(record, key, list, where)
    for value in values:
        if not isinstance(value, str):
            raise UsageError(
                f"{where}: {key!r} must be a list of texts, and has {_described(value)}."
            )
    return values


_TYPES = {str: "a text", list: "a list", dict: "an object", int: "a whole number"}


def _described(value: Any) -> str:
    name = {list: "a list", dict: "an object", type(None): "null"}.get(type(value))
    return name or shortened(repr(value), 60)


def _lines(path: pathlib.Path) -> Iterator[bytes]:
    from roberta_jax.data.text.files import open_decompressed

    try:
        check_regular_file(path)
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist.") from None
    with open_decompressed(path) as file:
        yield from file


def _without_surrogates(value: Any, text: str) -> Any:
    r"""Replaces halves of surrogate pairs by U+FFFD: JSON can spell them ("\ud83d"), UTF-8 cannot.

    Offsets into the texts do not change, because each half is one character before and after.
    """
    if "\\ud" not in text and "\\uD" not in text:
        return value
    return _replaced(value)


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_replaced(each) for each in value]
    if isinstance(value, dict):
        return {_replaced(key): _replaced(each) for key, each in value.items()}
    return value
