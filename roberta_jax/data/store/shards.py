"""Joins the parts that workers write into the shards of two stores; an interrupted build resumes.

Workers write parts in any order: `building/00000012.npz` holds the tokens of chunk 12 of the text,
for training and for validation. As soon as enough consecutive parts exist, they are joined into one
shard of each store, `building/shard-00000.json` records this, and the parts are deleted. The
held-out shards stay in `building/heldout/` until all of the training text is there: then the
documents that overlap with it are left out. Last, the indices are written and `building/` is
deleted. All files are written atomically, so the next process can use whatever an interrupted one
has finished.

The sizes of the parts alone determine which parts share a shard, not the order in which they are
written.
"""

import collections
import contextlib
import functools
import json
import logging
import pathlib
import shutil
import zipfile
import zlib
from typing import Any

import numpy as np

from roberta_jax.data.store import layout
from roberta_jax.data.store.digests import (
    DamagedError,
    check_files,
    read_json,
    remember_files,
    with_digest,
)
from roberta_jax.data.store.layout import ARRAYS
from roberta_jax.data.store.overlap import overlap_with_training
from roberta_jax.errors import UsageError
from roberta_jax.storage.atomic import replace_file, write_json

TRAIN, HELDOUT = "train", "heldout"
BUILDING = "building"
SIDES = (TRAIN, HELDOUT)

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def write_part(
    folder: pathlib.Path, number: int, sides: dict[str, Arrays], counts: collections.Counter
) -> None:
    """Writes one part.

    Args:
      folder: `ShardWriter.building`.
      number: The number of the chunk of text, from 0.
      sides: (tokens, sentence_ends, document_ends) for TRAIN and for HELDOUT, see `lay_out`.
      counts: Statistics of the chunk; "tokens" is required.
    """
    named = {
        f"{side}.{name}": array
        for side, arrays in sides.items()
        for name, array in zip(ARRAYS, arrays, strict=True)
    }
    with replace_file(_part_path(folder, number)) as temporary, temporary.open("wb") as file:
        np.savez(file, number=number, counts=np.array(json.dumps(counts)), **named)


class ShardWriter:
    """Joins the parts of one pair of stores, including those of an interrupted process.

    Args:
      folder: The folder of the two stores; created if it is missing.
      dtype: The dtype of the tokens.

    Attributes:
      building: The folder of the parts.
      counts: The sums of the counts of all parts so far. Both stores count.
    """

    def __init__(self, folder: pathlib.Path, dtype: np.dtype):
        self.building = folder / BUILDING
        self.counts: collections.Counter = collections.Counter()
        self._folder = folder
        self._dtype = dtype
        self._shards: list[dict[str, Any]] = []
        self._parts: dict[int, dict[str, int]] = {}  # counts of the parts that are in no shard yet
        for path in (self._shard_folder(HELDOUT), folder / TRAIN, folder / HELDOUT):
            path.mkdir(parents=True, exist_ok=True)
        for path in self.building.glob("*.tmp"):
            path.unlink()  # left by a process that was killed while writing
        while (record := self._read_record(len(self._shards))) is not None:
            self._shards.append(record)
            self.counts.update(record["counts"])
        for path in self.building.glob("*.npz"):
            number = int(path.stem)
            counts = _read_counts(path) if number >= self._first_pending else None
            if counts is None:
                _remove(path)
            else:
                self._add_counts(number, counts)

    def has(self, number: int) -> bool:
        """Whether a part exists already, as a file or in a shard."""
        return number < self._first_pending or number in self._parts

    def is_written(self, number: int) -> bool:
        """Whether the file of a part that is in no shard exists."""
        return _part_path(self.building, number).exists()

    def add(self, number: int) -> None:
        """Adds a part that `write_part` has just written; writes the shards it completes."""
        counts = _read_counts(_part_path(self.building, number))
        if counts is None:
            raise FileNotFoundError(
                f"{self.building} lost part {number}, or it was damaged, after it was written"
            )
        self._add_counts(number, counts)
        self._write_shards(is_last=False)

    def finish(
        self,
        *,
        vocab_size: int,
        eos_id: int,
        fingerprint: str,
        max_overlap: float,
        workers: int,
        about: dict[str, Any],
    ) -> None:
        """Writes the last shards, the final held-out shards and the indices.

        Args:
          vocab_size: see `write_index`, as for `eos_id`, `fingerprint` and `about`.
          eos_id: the id of `</s>`.
          fingerprint: the tokenizer's fingerprint.
          max_overlap: held-out documents that overlap more with the training text are left out; see
            `overlap_with_training`. The count "overlapping" is their number, and
            "overlapping_tokens" that of their tokens.
          workers: number of threads.
          about: more entries for the indices.
        """
        self._write_shards(is_last=True)
        entries = {TRAIN: [shard[TRAIN] for shard in self._shards if shard[TRAIN]]}
        entries[HELDOUT] = self._select_heldout(entries[TRAIN], eos_id, max_overlap, workers)
        for side in (HELDOUT, TRAIN):
            for path in (self._folder / side).glob("*.tmp"):
                path.unlink()  # left by a process that was killed while writing
            layout.write_index(
                self._folder / side,
                vocab_size=vocab_size,
                eos_id=eos_id,
                fingerprint=fingerprint,
                shards=entries[side],
                about={**about, "counts": dict(sorted(self.counts.items()))},
            )
            files = {
                f"{shard['name']}.{array}.npy": shard["files"][array]
                for shard in entries[side]
                for array in ARRAYS
            }
            with contextlib.suppress(DamagedError):  # opening the store says what is wrong
                remember_files(self._folder / side, files)
        shutil.rmtree(self.building)

    @property
    def _first_pending(self) -> int:
        """The number of the first part that is in no shard."""
        return self._shards[-1]["end"] if self._shards else 0

    def _add_counts(self, number: int, counts: dict[str, int]) -> None:
        self._parts[number] = counts
        self.counts.update(counts)

    def _write_shards(self, is_last: bool) -> None:
        """Writes the shards for which all parts exist; `is_last` if no more parts will come."""
        group: list[int] = []
        tokens = 0
        number = self._first_pending
        while number in self._parts:
            size = self._parts[number]["tokens"]
            if group and tokens + size > layout.SHARD_TOKENS:
                self._write_shard(group)
                group, tokens = [], 0
            group.append(number)
            tokens += size
            number += 1
        if group and is_last:
            self._write_shard(group)

    def _write_shard(self, numbers: list[int]) -> None:
        """Writes a shard of each store, or none if the parts hold no document for the store."""
        name = f"{len(self._shards):05d}"
        record: dict[str, Any] = {"end": numbers[-1] + 1}
        for side in SIDES:
            parts = [self._read_part(number, side) for number in numbers]
            parts = [part for part in parts if len(part[0])]
            folder = self._shard_folder(side)
            record[side] = layout.write_shard(folder, name, self._dtype, parts) if parts else None
        counts: collections.Counter = collections.Counter()
        for number in numbers:
            counts.update(self._parts.pop(number))
        record["counts"] = dict(counts)
        write_json(self._record_path(len(self._shards)), with_digest(record), indent=1)
        self._shards.append(record)
        for number in numbers:
            _part_path(self.building, number).unlink()

    def _select_heldout(
        self, train: list[dict[str, Any]], eos_id: int, max_overlap: float, workers: int
    ) -> list[dict[str, Any]]:
        """Writes the held-out shards without the documents that overlap with the training text.

        Returns:
          Their entries in the index. A shard that has no document left has none.
        """
        shards = {
            shard[HELDOUT]["name"]: self._read_heldout(shard[HELDOUT]["name"])
            for shard in self._shards
            if shard[HELDOUT]
        }
        documents = [document for shard in shards.values() for document in _documents(shard)]
        is_unique = np.ones(len(documents), bool)
        if max_overlap < 1:
            overlap_D = overlap_with_training(
                [functools.partial(self._map_tokens, entry["name"]) for entry in train],
                [tokens for tokens, _, _ in documents],
                eos_id,
                workers,
            )
            is_unique = overlap_D <= max_overlap
        left_out = [documents[number] for number in np.flatnonzero(~is_unique)]
        self.counts["overlapping"] = len(left_out)
        self.counts["overlapping_tokens"] = sum(len(tokens) for tokens, _, _ in left_out)

        entries = []
        ends = np.cumsum([len(document_ends) for _, _, document_ends in shards.values()])
        for name, numbers in zip(shards, np.split(np.arange(len(documents)), ends), strict=False):
            parts = [documents[number] for number in numbers if is_unique[number]]
            if parts:
                folder = self._folder / HELDOUT
                entries.append(layout.write_shard(folder, name, self._dtype, parts))
        return entries

    def _shard_folder(self, side: str) -> pathlib.Path:
        return self.building / HELDOUT if side == HELDOUT else self._folder / side

    def _read_heldout(self, name: str) -> Arrays:
        # Into memory, because a map of each array would keep a file open for each shard.
        folder = self._shard_folder(HELDOUT)
        return tuple(np.load(layout.array_path(folder, name, array)) for array in ARRAYS)

    def _map_tokens(self, name: str) -> np.ndarray:
        return np.load(layout.array_path(self._folder / TRAIN, name, ARRAYS[0]), mmap_mode="r")

    def _read_part(self, number: int, side: str) -> Arrays:
        path = _part_path(self.building, number)
        try:
            with np.load(path) as part:
                return tuple(part[f"{side}.{name}"] for name in ARRAYS)
        except _DAMAGE as error:
            path.unlink()
            raise UsageError(
                f"{path} was damaged after it was written ({error}) and has been deleted. Run the "
                f"command again: it rebuilds that part and keeps the others."
            ) from error

    def _read_record(self, shard: int) -> dict[str, Any] | None:
        """The record of a shard, or None if the parts of the shard have to be built again."""
        path = self._record_path(shard)
        if not path.exists():
            return None
        try:
            record, has_digest = read_json(path)
            for side in SIDES:
                if record[side]:
                    name, files = record[side]["name"], record[side]["files"]
                    expected = {f"{name}.{array}.npy": files[array] for array in ARRAYS}
                    check_files(self._shard_folder(side), expected, remember=False)
        except (DamagedError, KeyError, TypeError) as error:
            logging.warning("%s: %s; building that part again", self._folder, error)
            has_digest = False
        if not has_digest:
            _remove(path)
            return None
        return record

    def _record_path(self, shard: int) -> pathlib.Path:
        return self.building / f"shard-{shard:05d}.json"


def _documents(shard: Arrays) -> list[Arrays]:
    """The documents of a shard, each as a part of its own."""
    tokens, sentence_ends, document_ends = shard
    starts = np.concatenate([[0], document_ends[:-1]])
    first_sentences = np.searchsorted(sentence_ends, starts, side="right")
    last_sentences = np.searchsorted(sentence_ends, document_ends)
    return [
        (tokens[start:end], sentence_ends[first : last + 1] - start, np.array([end - start]))
        for start, end, first, last in zip(
            starts, document_ends, first_sentences, last_sentences, strict=True
        )
    ]


# Raised by NumPy and zipfile for a truncated file or a wrong checksum.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError)


def _part_path(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"{number:08d}.npz"


def _read_counts(path: pathlib.Path) -> dict[str, int] | None:
    """The counts of a part, or None if it is missing, damaged, or another part."""
    try:
        with np.load(path) as part:
            return json.loads(str(part["counts"])) if part["number"] == int(path.stem) else None
    except (OSError, *_DAMAGE):
        return None


def _remove(path: pathlib.Path) -> None:
    """Deletes a file or, should there be a folder of its name, that."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
