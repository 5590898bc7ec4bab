"""Reads a token store: memory-mapped shards of token ids, with sentence and document ends.

`layout` describes the files. The global position of a token is `shard.start` plus its position in
the shard.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from roberta_jax.data.store.digests import DamagedError, check_files, read_json
from roberta_jax.data.store.layout import (
    ARRAYS,
    COUNTS,
    FORMAT,
    INDEX,
    SHARD_TOKENS,
    VERSION,
    array_path,
    lay_out,
    token_dtype,
    write_index,
    write_shard,
)
from roberta_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard; its arrays are memory-mapped, read-only, at first use.

    Attributes:
      folder: The store's folder.
      name: The stem of the file names.
      start: The global position of the first token.
      num_tokens: T.
      num_sentences: S.
      num_documents: D.
    """

    folder: pathlib.Path
    name: str
    start: int
    num_tokens: int
    num_sentences: int
    num_documents: int

    # Batches read `tokens` at random positions, so it stays mapped: one open file for each shard.
    # The ends are only read when packing, from start to end, and are mapped at each access.
    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """uint16 or uint32 [T]."""
        return self._map("tokens")[: self.num_tokens]

    @property
    def sentence_ends(self) -> np.ndarray:
        """int64 [S], exclusive ends in tokens, the lone `</s>` at each document's end included."""
        return self._map("sentence_ends")[: self.num_sentences]

    @property
    def document_ends(self) -> np.ndarray:
        """int64 [D], exclusive ends in tokens; the last is `num_tokens`."""
        return self._map("document_ends")[: self.num_documents]

    def _map(self, array: str) -> np.ndarray:
        return np.load(array_path(self.folder, self.name, array), mmap_mode="r")


class TokenStore:
    """A finished token store. Open one with `TokenStore.open(folder)`."""

    def __init__(self, folder: pathlib.Path, index: dict[str, Any]):
        self.folder = folder
        self.index = index
        starts = np.cumsum([0] + [entry["num_tokens"] for entry in index["shards"]], dtype=np.int64)
        self.shard_starts: np.ndarray = starts
        """int64 [n+1]: the global position of each shard's first token, then the total."""
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
        """Opens a finished store, and checks that its files are what was written.

        Only files that have changed since they were last read are read, see `digests`.

        Raises:
          UsageError: There is no store, it has another version, a file is missing or its contents
            have changed, or it holds ids beyond its vocabulary. The message says how to rebuild
            the store.
        """
        folder = pathlib.Path(folder)
        if not (folder / INDEX).exists():
            raise UsageError(
                f"{folder} holds no token store (no {INDEX}). Prepare the text with "
                f"`python -m roberta_jax.prepare --config=...`."
            )
        try:
            index, has_digest = read_json(folder / INDEX)
            if index.get("format") != FORMAT:
                raise DamagedError(f"{INDEX} does not describe a token store")
            if index.get("version") != VERSION:
                raise DamagedError(
                    f"it has version {index.get('version')}, this code reads {VERSION}"
                )
            try:
                store = cls(folder, index)
                store._check(read_all=False)
                if not has_digest:  # written by an earlier version
                    store._check_counts()
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise DamagedError(f"{INDEX} does not describe a token store ({error})") from error
        except DamagedError as error:
            raise UsageError(_broken(folder, str(error))) from error
        return store

    def verify(self) -> None:
        """Reads all files and compares their hashes with those in the index.

        Raises:
          UsageError: The contents of a file have changed; the message names the first such file.
        """
        try:
            self._check(read_all=True)
        except DamagedError as error:
            raise UsageError(_broken(self.folder, str(error))) from error

    def _check(self, read_all: bool) -> None:
        """Checks the files, and the ids in those that are read; raises DamagedError."""
        expected = {
            array_path(self.folder, entry["name"], array).name: entry["files"][array]
            for entry in self.index["shards"]
            for array in ARRAYS
        }
        read = check_files(self.folder, expected, read_all=read_all)
        for shard in self.shards:
            path = array_path(self.folder, shard.name, "tokens")
            if path.name in read and shard.num_tokens:
                largest = int(shard.tokens.max())
                if largest >= self.vocab_size:
                    raise DamagedError(
                        f"{path.name} holds the id {largest}, but the vocabulary has "
                        f"{self.vocab_size} ids"
                    )

    def _check_counts(self) -> None:
        """Compares the numbers in the index with each other and the arrays; raises DamagedError."""
        if self.index["dtype"] != token_dtype(self.vocab_size).str:
            raise DamagedError(f"{INDEX} has another dtype than its vocabulary needs")
        sums = {count: sum(entry[count] for entry in self.index["shards"]) for count in COUNTS}
        if any(self.index[count] != sums[count] for count in COUNTS) or any(
            np.load(array_path(self.folder, shard.name, array), mmap_mode="r").shape
            != (getattr(shard, count),)
            for shard in self.shards
            for array, count in zip(ARRAYS, COUNTS, strict=True)
        ):
            raise DamagedError(f"the counts in {INDEX} are not those of the files")

    def first(self, max_tokens: int) -> TokenStore:
        """A view of the first documents, up to `max_tokens` tokens; at least of one document."""
        index = dict(self.index)
        entries, remaining = [], max_tokens
        for entry, shard in zip(self.index["shards"], self.shards, strict=True):
            ends = np.asarray(shard.document_ends)
            documents = int(np.searchsorted(ends, remaining, side="right"))
            if not entries:
                documents = max(documents, 1)
            if documents == 0:
                break
            tokens = int(ends[documents - 1])
            sentences = int(np.searchsorted(shard.sentence_ends, tokens)) + 1
            entries.append(
                entry
                | {"num_tokens": tokens, "num_sentences": sentences, "num_documents": documents}
            )
            if documents < len(ends):
                break
            remaining -= tokens
        counts = {count: sum(entry[count] for entry in entries) for count in COUNTS}
        return TokenStore(self.folder, index | counts | {"shards": entries})

    @property
    def num_tokens(self) -> int:
        """Number of tokens, each `</s>` included."""
        return self.index["num_tokens"]

    @property
    def num_sentences(self) -> int:
        """Number of sentences, the lone `</s>` at the end of each document included."""
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
        """The fingerprint of the tokenizer."""
        return self.index["fingerprint"]

    def __reduce__(self):
        return TokenStore, (self.folder, self.index)  # without the tokens

    def __repr__(self) -> str:
        return (
            f"TokenStore({str(self.folder)!r}, {self.num_documents} documents, "
            f"{self.num_tokens} tokens, {len(self.shards)} shards)"
        )


def write_store(
    folder: str | os.PathLike,
    documents: Sequence[Sequence[Sequence[int]]],
    vocab_size: int,
    eos_id: int = 2,
    shard_tokens: int = SHARD_TOKENS,
    fingerprint: str = "",
) -> TokenStore:
    """Writes a store from ids in memory, for tests and small experiments.

    Args:
      folder: The store's folder; created if it is missing.
      documents: The ids of each sentence of each document, without special tokens.
      vocab_size: Number of ids; determines the dtype.
      eos_id: The id of `</s>`.
      shard_tokens: Maximum number of tokens of a shard. A shard holds at least one document.
      fingerprint: The value of `TokenStore.fingerprint`.
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


def _broken(folder: pathlib.Path, problem: str) -> str:
    return (
        f"The token store {folder} cannot be used: {problem}. Delete that folder and prepare the "
        f"text again with `python -m roberta_jax.prepare --config=...`."
    )
