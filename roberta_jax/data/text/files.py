"""Finds text files, decompresses them and divides them into blocks.

A block consists of whole lines of one file and ends at the end of a document, so any worker can
parse it. Reading a file only decompresses it and counts lines, because it is the only serial stage
of preparing text and must supply many workers.
"""

import bz2
import contextlib
import functools
import glob
import gzip
import io
import lzma
import os
import pathlib
import stat
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import zstandard

from roberta_jax.errors import UsageError

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")

# Of one document or line. Preparing a line of 64 MB took 833 MB of memory, 13 times its size.
MAX_DOCUMENT_BYTES = 1 << 28

_BUFFER = 1 << 20
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")  # the first also starts UTF-32's little-endian mark


class Block(NamedTuple):
    """Whole lines of one file.

    Attributes:
      line: The number of the first line, from 1.
      data: The decompressed lines.
      read: Number of bytes read from the file for this block, for a progress bar.
    """

    line: int
    data: bytes
    read: int


def find(patterns: str) -> list[pathlib.Path]:
    """Returns the files that match any of the comma-separated globs, sorted, without duplicates.

    `**` matches any number of folders and `~` is the home folder. Matching folders are ignored if
    the glob also matches files.

    Raises:
      UsageError: A glob matches no file, or something that is neither a file nor a folder.
    """
    paths: set[pathlib.Path] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matches = glob.glob(os.path.expanduser(pattern), recursive=True)
        files = {pathlib.Path(match).absolute() for match in matches if os.path.isfile(match)}
        for match in matches:
            if not os.path.isfile(match) and not os.path.isdir(match):
                raise UsageError(_no_file_message(match))
        if not files:
            raise UsageError(_no_match_message(pattern, matches))
        paths |= files
    if not paths:
        raise UsageError(
            "--config.data.files is empty: name a file or a glob, such as "
            "--config.data.files='text/*.txt'."
        )
    return sorted(paths)


def is_json(path: pathlib.Path) -> bool:
    """Whether a file name, without the suffix of a compression, is that of JSON lines."""
    name = path.name.lower()
    for suffix in _OPENERS:
        name = name.removesuffix(suffix)
    return name.endswith(JSON_SUFFIXES)


def is_plain(path: pathlib.Path) -> bool:
    """Whether a file name is that of a file without compression."""
    return not path.name.lower().endswith(tuple(_OPENERS))


def mark_bytes(path: pathlib.Path) -> int:
    """The size of the byte-order mark of a plain file, which its blocks leave out.

    Raises:
      UsageError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return len(_UTF8_MARK) if file.read(len(_UTF8_MARK)) == _UTF8_MARK else 0
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error


def read_blocks(
    path: pathlib.Path, block_bytes: int, may_end: Callable[[bytes], bool]
) -> Iterator[Block]:
    """Divides a file into blocks.

    Args:
      path: A plain, .gz, .bz2, .xz or .zst file.
      block_bytes: The minimum size of a block, except the last. A block ends at the first line
        after that size at which a document may end.
      may_end: Returns whether a document may end with a line.

    Raises:
      UsageError: The file cannot be read, is truncated or damaged, is UTF-16, or a document or line
        is longer than `MAX_DOCUMENT_BYTES`.
    """
    try:
        with path.open("rb") as raw:
            if not is_plain(path) and not os.fstat(raw.fileno()).st_size:
                raise EOFError(
                    "it is empty, which no compressed file is"
                )  # gzip reads it as no text
            on_disk = 0
            first_line = number = 1
            lines: list[bytes] = []
            size = 0
            # At most one byte more than allowed, so that a line without an end takes no memory.
            read_line = functools.partial(
                _decompressed(raw, path.name.lower()).readline, MAX_DOCUMENT_BYTES + 1
            )
            for line in iter(read_line, b""):
                if size + len(line) > MAX_DOCUMENT_BYTES:
                    raise UsageError(_too_long_message(path, first_line))
                if number == 1:
                    if line.startswith(_UTF16_MARKS):
                        raise UsageError(f"{path} is UTF-16: convert it to UTF-8 first.")
                    line = line.removeprefix(_UTF8_MARK)
                number += 1
                lines.append(line)
                size += len(line)
                if size >= block_bytes and may_end(line):
                    yield Block(first_line, b"".join(lines), raw.tell() - on_disk)
                    on_disk, first_line, lines, size = raw.tell(), number, [], 0
            if lines:
                yield Block(first_line, b"".join(lines), raw.tell() - on_disk)
    except PermissionError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise UsageError(
            f"{path} cannot be read to its end: {error}. If the file is truncated or damaged, "
            f"download it again, or leave it out of --config.data.files."
        ) from error


@contextlib.contextmanager
def open_decompressed(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a plain, .gz, .bz2, .xz or .zst file; reading it returns the decompressed bytes.

    Raises:
      UsageError: The file cannot be read, is truncated or damaged; also while it is read.
    """
    try:
        with path.open("rb") as raw:
            if not is_plain(path) and not os.fstat(raw.fileno()).st_size:
                raise EOFError("it is empty, which no compressed file is")
            yield _decompressed(raw, path.name.lower())
    except PermissionError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise UsageError(
            f"{path} cannot be read to its end: {error}. If it is truncated or damaged, write or "
            "download it again."
        ) from error


class _ZstdFile(io.RawIOBase):
    """Decompresses .zst frames. (zstandard's own reader does not report truncated files.)"""

    def __init__(self, raw: BinaryIO):
        self._raw = raw
        self._frame = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            unused = self._frame.unused_data if self._frame and self._frame.eof else b""
            data = unused or self._raw.read(1 << 16)
            if not data:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the file ends in the middle of a zstd frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self._ready = memoryview(self._frame.decompress(data))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


_OPENERS = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile, ".zst": _ZstdFile}


def _decompressed(raw: BinaryIO, name: str) -> BinaryIO:
    """Wraps an open file so that it returns decompressed bytes."""
    for suffix, opener in _OPENERS.items():
        if name.endswith(suffix):
            file = gzip.GzipFile(fileobj=raw) if suffix == ".gz" else opener(raw)
            return io.BufferedReader(file, _BUFFER)
    return raw


def _too_long_message(path: pathlib.Path, line: int) -> str:
    megabytes = MAX_DOCUMENT_BYTES >> 20
    if is_json(path):
        return (
            f"{path}:{line}: this line is longer than {megabytes} MB. Each line of a .jsonl, .json "
            "or .ndjson file holds one document; divide it."
        )
    return (
        f"{path}: the document from line {line} on is longer than {megabytes} MB. Blank lines "
        "separate the documents of a text file; if each line is a document, write JSON lines "
        "(.jsonl) instead."
    )


def _no_file_message(path: str) -> str:
    """Says what a path is that is neither a file nor a folder."""
    message = f"--config.data.files: {path!r} is no file of text, but "
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return f"{message}a link to a file that does not exist: {os.readlink(path)!r}."
    except OSError as error:  # such as links that form a circle
        return f"{message}a link that leads to none: {error.strerror}."
    what = "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
    return f"{message}{what}: write its text to a file first."


def _no_match_message(pattern: str, folders: list[str]) -> str:
    message = f"--config.data.files: no file matches {pattern!r} (from {os.getcwd()})"
    if "://" in pattern:
        return f"{message}: text is read from local or mounted folders; copy or mount it first."
    if folders:
        example = os.path.join(folders[0], "**", "*.jsonl")
        return f"{message}, only a folder does: name the files in it, such as {example!r}."
    return f"{message}. Check the path, and quote globs so that the shell does not expand them."
