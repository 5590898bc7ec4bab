"""A tokenised corpus on disk: memory-mapped shards and one index.

Tokens lie as fairseq lays them: the ids of a sentence, then `</s>`; a document is closed by one
more `</s>`, which counts as a sentence of length 1 (fairseq's blank line). So FULL-SENTENCES
(fairseq's `complete` mode) is a contiguous slice of a shard.

A store is one folder:

    index.json                      counts, the tokenizer's fingerprint, sizes, hashes; written last
    00000.tokens.npy                uint16 or uint32 [T]
    00000.sentence_ends.npy         int64 [S], exclusive ends in tokens within the shard
    00000.document_ends.npy         int64 [D], the same for documents
    00001.tokens.npy                ...

A shard ends where a document ends and is of bounded size, so nothing that reads a store needs to
hold more than one shard. The global position of a token is `shard.start` plus its place in the
shard. A folder without `index.json` is no store: whatever was killed while writing left none.

Letters in array names: T tokens, S sentences, D documents.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

from roberta_jax.errors import UsageError

FORMAT = "roberta_jax token store"
VERSION = 1
INDEX = "index.json"
ARRAYS = ("tokens", "sentence_ends", "document_ends")
COUNTS = ("num_tokens", "num_sentences", "num_documents")
# 256 MB of uint16: some 300 shards for the paper's 160 GB of text, each one open file at most.
SHARD_TOKENS = 1 << 27


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest dtype that holds ids below `vocab_size`: uint16 up to 65536, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard; its arrays are memory-mapped, read-only, at first use.

    Attributes:
      folder: the store's folder.
      name: stem of its files.
      start: global position of its first token.
      num_tokens, num_sentences, num_documents: T, S and D.
    """

    folder: pathlib.Path
    name: str
    start: int
    num_tokens: int
    num_sentences: int
    num_documents: int

    # Rows are gathered from `tokens` at random, so the map stays open: one file for each shard.
    # The ends are read once, in order, when packing: they are mapped anew at each use.
    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """uint16 or uint32 [T]."""
        return self._map("tokens")

    @property
    def sentence_ends(self) -> np.ndarray:
        """int64 [S], exclusive ends in tokens; the lone `</s>` of a document's end has one too."""
        return self._map("sentence_ends")

    @property
    def document_ends(self) -> np.ndarray:
        """int64 [D], exclusive ends in tokens; the last is `num_tokens`."""
        return self._map("document_ends")

    def _map(self, array: str) -> np.ndarray:
        return np.load(array_path(self.folder, self.name, array), mmap_mode="r")


class TokenStore:
    """The read side of a store. Make one with `TokenStore.open(folder)`."""

    def __init__(self, folder: pathlib.Path, index: dict[str, Any]):
        self.folder = folder
        self.index = index
        starts = np.cumsum([0] + [entry["num_tokens"] for entry in index["shards"]], dtype=np.int64)
        self.shard_starts: np.ndarray = starts
        """int64 [n+1]: global position of each shard's first token, then the number of tokens."""
        self.shards: tuple[Shard, ...] = tuple(
            Shard(
                folder=folder,
                name=entry["name"],
                start=int(start),
                num_tokens=entry["num_tokens"],
                num_sentences=entry["num_sentences"],
                num_documents=entry["num_documents"],
            )
            for entry, start in zip(index["shards"], starts[:-1], strict=True)
        )

    @classmethod
    def open(cls, folder: str | os.PathLike) -> TokenStore:
        """Opens a finished store; looks at its files' sizes, not at their contents (see `verify`).

        Raises:
          UsageError: there is no store, it is of another version, or a file is missing, short or
            of another size than was written; the message says how to rebuild.
        """
        folder = pathlib.Path(folder)
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"{folder} holds no token store (no {INDEX}). Prepare the text again with "
                f"`python -m roberta_jax.prepare --config=...`."
            ) from None
        except ValueError:
            raise UsageError(_broken(folder, f"{INDEX} is not readable as JSON")) from None
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise UsageError(_broken(folder, f"{INDEX} does not describe a token store"))
        if index["version"] != VERSION:
            raise UsageError(
                _broken(folder, f"it is of version {index['version']}, this code reads {VERSION}")
            )
        for entry in index["shards"]:
            for array in ARRAYS:
                path = array_path(folder, entry["name"], array)
                wanted = entry["files"][array]["bytes"]
                size = path.stat().st_size if path.is_file() else None
                if size != wanted:
                    found = "is missing" if size is None else f"has {size} bytes, not {wanted}"
                    raise UsageError(_broken(folder, f"{path.name} {found}"))
        return cls(folder, index)

    def verify(self) -> None:
        """Reads every file again and compares its hash with the one taken when it was written.

        Raises:
          UsageError: naming the first file whose contents have changed.
        """
        for entry in self.index["shards"]:
            for array in ARRAYS:
                path = array_path(self.folder, entry["name"], array)
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, _new_hash).hexdigest()
                if digest != entry["files"][array]["blake2b"]:
                    raise UsageError(
                        _broken(self.folder, f"the contents of {path.name} have changed")
                    )

    @property
    def num_tokens(self) -> int:
        """All tokens, each `</s>` included."""
        return self.index["num_tokens"]

    @property
    def num_sentences(self) -> int:
        """All sentences, the lone `</s>` at the end of each document included."""
        return self.index["num_sentences"]

    @property
    def num_documents(self) -> int:
        return self.index["num_documents"]

    @property
    def vocab_size(self) -> int:
        return self.index["vocab_size"]

    @property
    def eos_id(self) -> int:
        return self.index["eos_id"]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.index["dtype"])

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the tokenizer that made the ids."""
        return self.index["fingerprint"]

    def __reduce__(self):
        return TokenStore.open, (self.folder,)  # never pickle the tokens themselves

    def __repr__(self) -> str:
        return (
            f"TokenStore({str(self.folder)!r}, {self.num_documents} documents, "
            f"{self.num_tokens} tokens, {len(self.shards)} shards)"
        )


def array_path(folder: pathlib.Path, name: str, array: str) -> pathlib.Path:
    """Where the array (one of `ARRAYS`) of the shard `name` lies."""
    return folder / f"{name}.{array}.npy"


def lay_out(
    ids_T: np.ndarray, sentence_lengths_S: np.ndarray, document_lengths_D: np.ndarray, eos_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Puts the `</s>`s in: after each sentence, and one more after each document.

    Args:
      ids_T: ids of all sentences, end to end, without special tokens.
      sentence_lengths_S: tokens in each sentence.
      document_lengths_D: sentences in each document.
      eos_id: the id of `</s>`.

    Returns:
      (tokens, sentence_ends, document_ends) as a shard holds them; dtypes of `ids_T`, int64, int64.
    """
    # In lines, as fairseq counts them: a document has a line for each sentence and an empty one.
    line_ends_D = np.cumsum(np.asarray(document_lengths_D, np.int64) + 1)
    is_sentence = np.ones(len(sentence_lengths_S) + len(line_ends_D), bool)
    is_sentence[line_ends_D - 1] = False
    line_lengths = np.ones(len(is_sentence), np.int64)
    line_lengths[is_sentence] += sentence_lengths_S
    sentence_ends = np.cumsum(line_lengths)
    tokens = np.empty(int(sentence_ends[-1]) if len(sentence_ends) else 0, ids_T.dtype)
    is_text = np.ones(len(tokens), bool)
    is_text[sentence_ends - 1] = False
    tokens[sentence_ends - 1] = eos_id
    tokens[is_text] = ids_T
    return tokens, sentence_ends, sentence_ends[line_ends_D - 1]


def write_shard(
    folder: pathlib.Path,
    name: str,
    dtype: np.dtype,
    parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> dict[str, Any]:
    """Writes one shard's files, each under a temporary name, then renamed.

    Args:
      folder: the store's folder.
      name: stem of the files.
      dtype: of the tokens.
      parts: (tokens, sentence_ends, document_ends) of each part, counted from the part's start.

    Returns:
      Its entry for the index: the name, its counts, and each file's size and hash.
    """
    starts = np.cumsum([0] + [len(tokens) for tokens, _, _ in parts])
    arrays = {
        "tokens": (dtype, [tokens for tokens, _, _ in parts]),
        **{
            ends: ("<i8", [part[i] + start for part, start in zip(parts, starts, strict=False)])
            for i, ends in enumerate(ARRAYS[1:], 1)
        },
    }
    return {
        "name": name,
        **{
            count: sum(map(len, arrays[array][1]))
            for array, count in zip(ARRAYS, COUNTS, strict=True)
        },
        "files": {
            array: _write_array(array_path(folder, name, array), np.dtype(dtype), pieces)
            for array, (dtype, pieces) in arrays.items()
        },
    }


def _write_array(
    path: pathlib.Path, dtype: np.dtype, parts: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Writes parts, end to end, as one `.npy` file; returns its size and the hash of its bytes."""
    temporary = temporary_name(path)
    with temporary.open("wb") as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (sum(map(len, parts)),),
        }
        hasher = _new_hash()
        beginning = io.BytesIO()
        np.lib.format.write_array_header_1_0(beginning, header)
        for data in (
            beginning.getbuffer(),
            *(np.ascontiguousarray(part, dtype).data for part in parts),
        ):
            hasher.update(data)
            file.write(data)
        size = file.tell()
    os.replace(temporary, path)
    return {"bytes": size, "blake2b": hasher.hexdigest()}


def write_index(
    folder: pathlib.Path,
    *,
    vocab_size: int,
    eos_id: int,
    fingerprint: str,
    shards: Sequence[dict[str, Any]],
    about: dict[str, Any] | None = None,
) -> None:
    """Writes `index.json`, which makes the folder a store.

    Args:
      folder: where the shards' files are already.
      vocab_size: number of ids of the tokenizer.
      eos_id: the id of `</s>`.
      fingerprint: the tokenizer's fingerprint.
      shards: what `write_shard` returned, in order.
      about: more to keep in the index: where the text came from, what was met in it.
    """
    index = {
        "format": FORMAT,
        "version": VERSION,
        "vocab_size": vocab_size,
        "eos_id": eos_id,
        "fingerprint": fingerprint,
        "dtype": token_dtype(vocab_size).str,
        **{count: sum(shard[count] for shard in shards) for count in COUNTS},
        **(about or {}),
        "shards": list(shards),
    }
    write_json(folder / INDEX, index)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON under a temporary name, then renames it."""
    temporary = temporary_name(path)
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def temporary_name(path: pathlib.Path) -> pathlib.Path:
    """A name beside `path` that no other process or host uses, to write to before renaming."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


def write_store(
    folder: str | os.PathLike,
    documents: Sequence[Sequence[Sequence[int]]],
    vocab_size: int,
    eos_id: int = 2,
    shard_tokens: int = SHARD_TOKENS,
    fingerprint: str = "",
) -> TokenStore:
    """Writes a store from ids in memory: for tests and small experiments.

    Args:
      folder: where to write; made if it is missing.
      documents: the ids of each sentence of each document, without special tokens.
      vocab_size: number of ids; decides the dtype.
      eos_id: the id of `</s>`.
      shard_tokens: a shard holds whole documents of at most so many tokens (one at least).
      fingerprint: what `TokenStore.fingerprint` shall say.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = token_dtype(vocab_size)
    groups: list[list[Sequence[Sequence[int]]]] = []
    room = 0
    for document in documents:
        size = sum(len(sentence) + 1 for sentence in document) + 1
        if size > room or not groups:
            groups.append([])
            room = shard_tokens
        groups[-1].append(document)
        room -= size
    shards = []
    for number, group in enumerate(groups):
        sentences = [sentence for document in group for sentence in document]
        arrays = lay_out(
            np.array([i for sentence in sentences for i in sentence], dtype),
            np.array([len(sentence) for sentence in sentences], np.int64),
            np.array([len(document) for document in group], np.int64),
            eos_id,
        )
        shards.append(write_shard(folder, f"{number:05d}", dtype, [arrays]))
    write_index(
        folder, vocab_size=vocab_size, eos_id=eos_id, fingerprint=fingerprint, shards=shards
    )
    return TokenStore.open(folder)


def _new_hash():
    return hashlib.blake2b(digest_size=16)


def _broken(folder: pathlib.Path, what: str) -> str:
    return (
        f"The token store {folder} cannot be used: {what}. Delete that folder and prepare the text "
        f"again with `python -m roberta_jax.prepare --config=...`."
    )
