"""Decodes the lines of the user's own files, which are UTF-8, and says what they are if not."""

import functools
import pathlib
from collections.abc import Iterator

from roberta_jax.data.text.files import MAX_DOCUMENT_BYTES, open_decompressed
from roberta_jax.errors import UsageError, shortened

_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (  # those of UTF-32 before those of UTF-16, which they start with
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
# Encodings that spreadsheets and older programs write, and their names for iconv. A text in a Latin
# script has few bytes beyond ASCII, a text in another script many.
_LATIN = ("WINDOWS-1252", "ISO-8859-1")
_OTHERS = ("GB18030", "SHIFT_JIS", "EUC-KR", "BIG5", "WINDOWS-1251", "KOI8-R")
_MAX_LATIN = 0.25


def decoded_lines(path: pathlib.Path) -> Iterator[str]:
    """Yields the lines of a file with their ends, without a byte-order mark.

    Only a line feed ends a line.

    Raises:
      UsageError: the file cannot be read, is not UTF-8, holds NUL bytes, or has a line longer than
        `MAX_DOCUMENT_BYTES`. The message names line and probable encoding.
    """
    with open_decompressed(path) as file:
        read_line = functools.partial(file.readline, MAX_DOCUMENT_BYTES + 1)
        for number, line in enumerate(iter(read_line, b""), 1):
            if number == 1:
                _check_mark(path, line)
                line = line.removeprefix(_MARK)
            if len(line) > MAX_DOCUMENT_BYTES:
                megabytes = MAX_DOCUMENT_BYTES >> 20
                raise UsageError(f"{path}:{number}: this line is longer than {megabytes} MB.")
            if b"\0" in line:
                raise UsageError(
                    f"{path}:{number}: the line holds a NUL byte. The file is damaged, binary, or "
                    "UTF-16 without a mark; convert that: iconv -f UTF-16LE -t UTF-8 OLD > NEW"
                )
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise UsageError(_encoding_message(path, number, line, error.start)) from None
            yield text


def _check_mark(path: pathlib.Path, line: bytes) -> None:
    for mark, name in _WIDE_MARKS:
        if line.startswith(mark):
            raise UsageError(
                f"{path} is {name}. Convert it: iconv -f {name} -t UTF-8 OLD > NEW, or save it as "
                "UTF-8."
            )


def _encoding_message(path: pathlib.Path, number: int, line: bytes, position: int) -> str:
    """Names the encodings in which a line can be read, and how it reads in each."""
    start = max(line.rfind(b" ", 0, position), position - 20, 0)
    high = sum(byte > 0x7F for byte in line)
    readings = {}
    for encoding in _LATIN if high <= _MAX_LATIN * len(line) else _OTHERS:
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError:
            continue
        begin = len(line[:start].decode(encoding, "ignore"))
        reading = shortened(text[begin:].strip(), 20).partition("... (")[0]
        if reading.isprintable():
            readings.setdefault(reading, encoding)
    first = next(iter(readings.values()), "ENCODING")
    guesses = ", ".join(f"{reading!r} in {encoding}" for reading, encoding in readings.items())
    guess = f" It would read {guesses}." if guesses else ""
    return (
        f"{path}:{number}: the line is not UTF-8: it has the byte 0x{line[position]:02x}.{guess} "
        f"Convert the file: iconv -f {first} -t UTF-8 OLD > NEW, or save it as UTF-8."
    )
