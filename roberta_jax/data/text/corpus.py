"""Where text comes from: a corpus gives documents, in an order that never changes.

Reading is in two steps, because the first cannot be shared among workers and the second can:
`Corpus.pieces()` streams bytes, and `Corpus.documents(piece)` finds the documents in a piece.

| config.data.source | a document is |
|---|---|
| builtin | a Python documentation topic, or the docstrings of one library module |
| files, *.jsonl *.json *.ndjson | one field of the JSON object on each line |
| files, other names | what stands between blank lines |
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
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from roberta_jax.data.text import builtin, files
from roberta_jax.errors import UsageError

SOURCES = ("builtin", "files", "tfds")

# Small enough that some hundred pieces, as many as may wait for workers, fit in memory easily.
PIECE_BYTES = 1 << 20

_BLANK_LINE = re.compile(rb"\r?\n\s*\n")


class Piece(NamedTuple):
    """Bytes that hold whole documents.

    Attributes:
      source: Where they come from, for messages: a file's path.
      line: Number of the first line there.
      data: The bytes.
      read: Bytes newly read from disk for it, for progress against `Corpus.size`.
    """

    source: str
    line: int
    data: bytes
    read: int


class Corpus(abc.ABC):
    """Documents of one origin. Pickles small, for workers."""

    size: int | None = None
    """Bytes on disk (compressed, where files are), or None where that is not known."""

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """What tells this corpus from any other, as JSON; the same again if nothing changed."""

    @abc.abstractmethod
    def pieces(self) -> Iterator[Piece]:
        """Streams the text, always the same pieces in the same order.

        Raises:
          UsageError: Something cannot be read.
        """

    def documents(self, piece: Piece, counts: collections.Counter) -> Iterator[str]:
        """Yields the documents of a piece.

        Args:
          piece: One of `pieces()`.
          counts: Its "invalid_utf8" grows by the number of documents in which invalid UTF-8 (or
            half a surrogate pair, in JSON) was replaced by U+FFFD.

        Raises:
          UsageError: Naming file and line, where a record is not what it should be.
        """
        yield _decode(piece.data, counts)


def open_corpus(data: ConfigDict) -> Corpus:
    """Opens the corpus that `config.data` describes.

    Raises:
      UsageError: The source is unknown, its settings are missing, or there is nothing there.
    """
    if data.source == "builtin":
        return BuiltinCorpus()
    if data.source == "files":
        if not data.files:
            raise UsageError(
                "config.data.source is 'files' and config.data.files is not set: give a path or a "
                "glob, such as --config.data.files='text/**/*.jsonl.gz'."
            )
        return FilesCorpus(files.find(data.files), data.text_field)
    if data.source == "tfds":
        return TfdsCorpus(data.tfds_name, data.tfds_split, data.tfds_field, data.tfds_data_dir)
    raise UsageError(f"config.data.source is {data.source!r}; it takes one of {', '.join(SOURCES)}")


def is_heldout(text: str, share: float) -> bool:
    """Whether a document belongs to the held-out share.

    It is decided by a hash of the text alone: equal documents fall on the same side, and a document
    stays on its side when others come or go.
    """
    digest = hashlib.blake2b(text.strip().encode(), digest_size=8, person=b"heldout").digest()
    return int.from_bytes(digest, "little") < share * 2**64


class BuiltinCorpus(Corpus):
    """See `builtin_corpus`."""

    @functools.cached_property
    def _documents(self) -> list[tuple[str, str]]:
        return list(builtin.documents())  # seconds of parsing, 2 MB

    def identity(self) -> dict[str, Any]:
        return {
            "source": "builtin",
            "version": builtin.VERSION,
            "python": ".".join(map(str, sys.version_info)),
            "sources": builtin.digest(),
        }

    def pieces(self) -> Iterator[Piece]:
        for name, text in self._documents:
            # A docstring may hold any escape, half a surrogate pair too.
            data = text.encode("utf-8", "surrogatepass")
            yield Piece(name, 1, data, len(data))

    def __reduce__(self):
        return _Decoder, ()


class FilesCorpus(Corpus):
    """JSON lines and plain text.

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

    def pieces(self) -> Iterator[Piece]:
        for path, *size_and_time in self._files:
            may_end = _always if files.is_json(path) else bytes.isspace
            for block in files.read_blocks(path, PIECE_BYTES, may_end):
                yield Piece(str(path), *block)
            if _size_and_time(path) != size_and_time:
                raise UsageError(
                    f"{path} has changed while it was read. Run again when it is done."
                )

    def documents(self, piece: Piece, counts: collections.Counter) -> Iterator[str]:
        if not files.is_json(pathlib.Path(piece.source)):
            for part in _BLANK_LINE.split(piece.data):
                if part and not part.isspace():
                    yield _decode(part, counts)
            return
        for number, line in enumerate(piece.data.split(b"\n"), piece.line):
            if line and not line.isspace():
                yield self._text(line, f"{piece.source}:{number}", counts)

    def _text(self, line: bytes, where: str, counts: collections.Counter) -> str:
        try:
            value = json.loads(_decode(line, counts))
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{where}: this line is no JSON ({error}). Each line of a .jsonl, .json or .ndjson "
                f"file holds one object; mend the line, or rename a file of plain text to .txt."
            ) from None
        if not isinstance(value, dict):
            raise UsageError(
                f"{where}: this line holds a {type(value).__name__}, not a JSON object. Each line "
                f"holds one object with the text in its field {self._text_field!r}."
            )
        if self._text_field not in value:
            raise UsageError(
                f"{where}: no field {self._text_field!r}; the fields are "
                f"{', '.join(map(repr, value)) or 'none'}. Set config.data.text_field."
            )
        text = value[self._text_field]
        if text is None:
            return ""
        if not isinstance(text, str):
            raise UsageError(
                f"{where}: the field {self._text_field!r} holds a {type(text).__name__}, not text. "
                f"Set config.data.text_field to one of {', '.join(map(repr, value))}."
            )
        return _whole(text, counts)


class TfdsCorpus(Corpus):
    """A split of a TensorFlow dataset, its files read one after the other.

    Args:
      name: As `tfds.builder` takes it: "wiki40b/en:1.3.0".
      split: "train", "train[:10%]" and so on.
      field: The feature that holds the text.
      data_dir: Where datasets are; None for TFDS's own default.
    """

    def __init__(self, name: str, split: str, field: str, data_dir: str | None):
        for key, value in (("name", name), ("split", split), ("field", field)):
            if not value:
                raise UsageError(
                    f"config.data.source is 'tfds' and config.data.tfds_{key} is not set."
                )
        self._settings = (name, split, field, data_dir)
        self._split, self._field = split, field
        tfds = _import_tfds()
        try:
            self._builder = tfds.builder(name, data_dir=data_dir)
            self._builder.download_and_prepare()
            known = self._builder.info.features
            self._num_examples = self._builder.info.splits[split].num_examples
        except Exception as error:  # TFDS raises its own, urllib's, TensorFlow's, bare ValueErrors
            raise UsageError(
                f"TFDS cannot give {name!r}, split {split!r}, from "
                f"{data_dir or 'its default folder'}: {error}"
            ) from error
        if field not in known:
            raise UsageError(
                f"The dataset {name!r} has no field {field!r}; the fields are "
                f"{', '.join(map(repr, known))}. Set config.data.tfds_field."
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
        tfds = _import_tfds()
        in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        dataset = self._builder.as_dataset(
            split=self._split, shuffle_files=False, read_config=in_order
        )
        for number, example in enumerate(tfds.as_numpy(dataset)):
            text = example[self._field]
            if not isinstance(text, bytes):
                raise UsageError(
                    f"The field {self._field!r} of {self._builder.info.full_name} holds a "
                    f"{type(text).__name__}, not text. Set config.data.tfds_field."
                )
            yield Piece(self._builder.info.full_name, number, text, len(text))

    def __reduce__(self):
        return _Decoder, ()


class _Decoder(Corpus):
    """What workers get where pieces are documents already: no text, no TensorFlow."""

    def identity(self):
        raise NotImplementedError("a decoder has no text of its own")

    pieces = identity


def _import_tfds():
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError(
            f"config.data.source='tfds' needs TensorFlow Datasets ({error}). Install the extra "
            f"`data`: pip install -e '.[data]'"
        ) from error
    tf.config.set_visible_devices([], "GPU")  # the accelerators are JAX's
    return tfds


def _size_and_time(path: pathlib.Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    return [stat.st_size, stat.st_mtime_ns]


def _always(line: bytes) -> bool:
    return True


def _decode(data: bytes, counts: collections.Counter) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        counts["invalid_utf8"] += 1
        return data.decode(errors="replace")


def _whole(text: str, counts: collections.Counter) -> str:
    """Replaces halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        counts["invalid_utf8"] += 1
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
