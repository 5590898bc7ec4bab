"""Text sources: corpora of documents, in an order that never changes.

A corpus is read in two steps: `Corpus.pieces()` streams bytes in the main process, and
`Corpus.documents(piece)` finds the documents of a piece in a worker.

| config.data.source | a document is |
|---|---|
| builtin | a Python documentation topic, or the docstrings of one library module |
| files, *.jsonl *.json *.ndjson | one field of the JSON object on each line |
| files, other names | the text between blank lines |
| tfds | one field of an example of a TensorFlow dataset |
"""

from __future__ import annotations

import abc
import collections
import functools
import hashlib
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from roberta_jax.data.text import builtin, files
from roberta_jax.data.text.encodings import check_encoding
from roberta_jax.data.text.source import SOURCES, TextSource
from roberta_jax.errors import UsageError

# Some hundred pieces, the maximum that waits for workers, must fit into memory.
PIECE_BYTES = 1 << 20

_BLANK_LINE = re.compile(rb"\r?\n\s*\n")
# A byte-order mark is no text. Files that were joined have it in the middle.
_MARK = "\ufeff"
_MARKS = re.compile(f"^{_MARK}+", re.MULTILINE)
# Reading the start of so many files, at equal distances, shows most mistakes and takes no time.
_CHECKED_FILES = 100
_CHECKED_BYTES = 1 << 16


class Piece(NamedTuple):
    """Bytes of one or more whole documents.

    Attributes:
      source: The origin for error messages, such as the path of a file.
      line: The number of the first line in it.
      data: The bytes.
      read: Number of bytes read from disk for this piece, out of `Corpus.size`.
    """

    source: str
    line: int
    data: bytes
    read: int


class Corpus(abc.ABC):
    """The documents of one source. A pickle for workers holds no text."""

    size: int | None = None
    """Number of bytes on disk (compressed, for compressed files), or None if it is not known."""

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """A JSON value that identifies the corpus; it changes if the text may have changed."""

    @abc.abstractmethod
    def pieces(self) -> Iterator[Piece]:
        """Streams the text as pieces, which are always the same and in the same order.

        Raises:
          UsageError: The text cannot be read.
        """

    def num_bytes(self) -> int | None:
        """The number of bytes of all pieces, or None if it is not known without reading them."""
        return None

    def parts(self) -> list[Corpus]:
        """Corpora that can be read at the same time, and are this one together."""
        return [self]

    def check(self) -> None:
        """Reads enough of the text to notice most mistakes, in little time.

        Raises:
          UsageError: The text cannot be read.
        """
        self.identity()

    def documents(self, piece: Piece, counts: collections.Counter) -> Iterator[str]:
        """Yields the documents of a piece.

        Args:
          piece: One of `pieces()`.
          counts: "invalid_utf8" is increased by the number of documents in which invalid UTF-8 (or
            half a surrogate pair, in JSON) was replaced by U+FFFD.

        Raises:
          UsageError: A record is malformed; the message names the file and line.
        """
        yield _decode(piece.data, counts)


def open_corpus(source: TextSource) -> Corpus:
    """Opens a corpus.

    Raises:
      UsageError: The source is unknown, a value that it requires is missing, or its files or
        dataset do not exist.
    """
    if source.source == "builtin":
        return BuiltinCorpus()
    if source.source == "files":
        if not source.files:
            raise UsageError(
                "--config.data.source is 'files' and --config.data.files is not set: name a file "
                "or a glob, such as --config.data.files='text/**/*.jsonl.gz'."
            )
        return FilesCorpus(files.find(source.files), source.text_field)
    if source.source == "tfds":
        return TfdsCorpus(
            source.tfds_name, source.tfds_split, source.tfds_field, source.tfds_data_dir
        )
    raise UsageError(
        f"--config.data.source is {source.source!r}, but it must be one of {', '.join(SOURCES)}."
    )


def grouped(pieces: Iterable[Piece], num_bytes: int) -> Iterator[list[Piece]]:
    """Groups successive pieces: each group has at least `num_bytes`, except the last."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece.data)
        if size >= num_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def is_heldout(text: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out fraction of the corpus.

    This depends only on a hash of the text. Equal documents are on the same side, and adding or
    removing other documents changes nothing.
    """
    digest = hashlib.blake2b(text.strip().encode(), digest_size=8, person=b"heldout").digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


class BuiltinCorpus(Corpus):
    """Python's documentation topics and docstrings; see `builtin`."""

    @functools.cached_property
    def _documents(self) -> list[tuple[str, str]]:
        return list(builtin.documents())  # takes seconds and 2 MB

    def identity(self) -> dict[str, Any]:
        return {
            "source": "builtin",
            "version": builtin.VERSION,
            "python": ".".join(map(str, sys.version_info)),
            "sources": builtin.digest(),
        }

    def pieces(self) -> Iterator[Piece]:
        for name, text in self._documents:
            # A docstring can contain any escape sequence, also half a surrogate pair.
            data = text.encode("utf-8", "surrogatepass")
            yield Piece(name, 1, data, len(data))

    def __reduce__(self):
        return _Decoder, ()


class FilesCorpus(Corpus):
    """Files of JSON lines or plain text.

    Args:
      paths: The files, in order.
      text_field: The field of the JSON objects that holds the text.
    """

    def __init__(self, paths: Sequence[pathlib.Path], text_field: str):
        self._text_field = text_field
        self._files = [(path, *_size_and_time(path)) for path in paths]
        self.size = sum(size for _, size, _ in self._files)

    def identity(self) -> dict[str, Any]:
        return {
            "source": "files",
            "text_field": self._text_field,
            "files": [[str(path), size, time] for path, size, time in self._files],
        }

    def num_bytes(self) -> int | None:
        if not all(files.is_plain(path) for path, *_ in self._files):
            return None
        return sum(size - files.mark_bytes(path) for path, size, _ in self._files)

    def parts(self) -> list[Corpus]:
        return [FilesCorpus([path], self._text_field) for path, *_ in self._files]

    def check(self) -> None:
        paths = [path for path, *_ in self._files]
        all_utf8 = True  # one warning is enough
        for path in paths[:: -(-len(paths) // _CHECKED_FILES) or 1]:
            block = next(files.read_blocks(path, _CHECKED_BYTES, _always), None)
            if block is None:
                continue
            all_utf8 = check_encoding(path, block.data, warn=all_utf8) and all_utf8
            for _ in self.documents(Piece(str(path), *block), collections.Counter()):
                pass

    def pieces(self) -> Iterator[Piece]:
        for path, *size_and_time in self._files:
            may_end = _always if files.is_json(path) else bytes.isspace
            for block in files.read_blocks(path, PIECE_BYTES, may_end):
                yield Piece(str(path), *block)
            if _size_and_time(path) != size_and_time:
                raise UsageError(
                    f"{path} has changed while it was read. Run the command again when the file is "
                    "complete."
                )

    def documents(self, piece: Piece, counts: collections.Counter) -> Iterator[str]:
        if not files.is_json(pathlib.Path(piece.source)):
            for part in _BLANK_LINE.split(piece.data):
                if part and not part.isspace():
                    yield _without_marks(_decode(part, counts))
            return
        for number, line in enumerate(piece.data.split(b"\n"), piece.line):
            if line and not line.isspace():
                text = self._text(line, f"{piece.source}:{number}", counts)
                yield _without_marks(text)

    def _text(self, line: bytes, where: str, counts: collections.Counter) -> str:
        try:
            value = json.loads(_decode(line, counts).lstrip(_MARK))
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{where}: this line is not JSON ({error}). Each line of a .jsonl, .json or "
                f".ndjson file holds one object; fix the line, or rename a file of plain text to "
                f".txt."
            ) from None
        if not isinstance(value, dict):
            raise UsageError(
                f"{where}: this line holds a {type(value).__name__}, not a JSON object. Each line "
                f"must be an object with the text in its field {self._text_field!r}."
            )
        if self._text_field not in value:
            raise UsageError(
                f"{where}: no field {self._text_field!r}; the fields are "
                f"{', '.join(map(repr, value)) or 'none'}. Set --config.data.text_field=..."
            )
        text = value[self._text_field]
        if text is None:
            return ""
        if not isinstance(text, str):
            raise UsageError(
                f"{where}: the field {self._text_field!r} holds a {type(text).__name__}, not text. "
                f"Set --config.data.text_field to one of {', '.join(map(repr, value))}."
            )
        return _replace_surrogates(text, counts)


class TfdsCorpus(Corpus):
    """A split of a TensorFlow dataset, read file by file.

    Args:
      name: The argument of `tfds.builder`, such as "wiki40b/en:1.3.0".
      split: The split, such as "train" or "train[:10%]".
      field: The feature that holds the text.
      data_dir: The folder of datasets. None uses the default of TFDS.
    """

    def __init__(self, name: str, split: str, field: str, data_dir: str | None):
        values = {"tfds_name": name, "tfds_split": split, "tfds_field": field}
        missing = [f"--config.data.{key}=..." for key, value in values.items() if not value]
        if missing:
            raise UsageError(
                f"--config.data.source is 'tfds', which also needs {' and '.join(missing)}"
            )
        self._split, self._field = split, field
        tfds = import_tfds()
        try:
            self._builder = tfds.builder(name, data_dir=data_dir)
            self._builder.download_and_prepare()
            features = self._builder.info.features
            self._num_examples = self._builder.info.splits[split].num_examples
        except Exception as error:  # TFDS raises errors of its own, urllib, TensorFlow and Python
            raise UsageError(
                f"TFDS cannot load {name!r}, split {split!r}, from "
                f"{data_dir or 'its default folder'}: {first_line(error)}"
            ) from error
        if field not in features:
            raise UsageError(
                f"The dataset {name!r} has no field {field!r}; the fields are "
                f"{', '.join(map(repr, features))}. Set --config.data.tfds_field=..."
            )

    def identity(self) -> dict[str, Any]:
        return {
            "source": "tfds",
            "name": self._builder.info.full_name,
            "split": self._split,
            "field": self._field,
            "data_dir": str(self._builder.data_dir),
            "examples": self._num_examples,
        }

    def pieces(self) -> Iterator[Piece]:
        tfds = import_tfds()
        in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        dataset = self._builder.as_dataset(
            split=self._split, shuffle_files=False, read_config=in_order
        )
        for number, example in enumerate(tfds.as_numpy(dataset)):
            text = example[self._field]
            if not isinstance(text, bytes):
                raise UsageError(
                    f"The field {self._field!r} of {self._builder.info.full_name} holds a "
                    f"{type(text).__name__}, not text. Set --config.data.tfds_field=..."
                )
            yield Piece(self._builder.info.full_name, number, text, len(text))

    def __reduce__(self):
        return _Decoder, ()


class _Decoder(Corpus):
    """The pickle of corpora whose pieces are documents; it holds no text and no TensorFlow."""

    def identity(self):
        raise NotImplementedError("a decoder has no text")

    pieces = identity


def import_tfds(needed_by: str = "--config.data.source=tfds"):
    """Imports TensorFlow Datasets, without its reserving a GPU's memory.

    Args:
      needed_by: what needs it, for the message.

    Raises:
      UsageError: it is not installed.
    """
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError(
            f"{needed_by} needs TensorFlow Datasets ({error}). Install the extra "
            f"`data`: pip install -e '.[data]'"
        ) from error
    tf.config.set_visible_devices([], "GPU")  # so that it does not reserve their memory
    return tfds


def _size_and_time(path: pathlib.Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    return [stat.st_size, stat.st_mtime_ns]


def first_line(error: Exception) -> str:
    """TFDS lists all datasets that there are after a name that it does not know."""
    return str(error).strip().partition("\n")[0] or repr(error)


def _always(line: bytes) -> bool:
    return True


def _decode(data: bytes, counts: collections.Counter) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        counts["invalid_utf8"] += 1
        return data.decode(errors="replace")


def _without_marks(text: str) -> str:
    """Removes byte-order marks at the start of lines."""
    return _MARKS.sub("", text) if _MARK in text else text


def _replace_surrogates(text: str, counts: collections.Counter) -> str:
    """Replaces halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        counts["invalid_utf8"] += 1
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
