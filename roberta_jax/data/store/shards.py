"""From numbered parts to the shards of two stores, so that a kill at any moment loses little.

Workers write parts, in any order: `building/00000012.npz` holds the tokens that chunk 12 of the
text gave, for training and held-out. Consecutive parts become a shard of each store as soon as
there are enough of them; then `building/shard-00000.json` says so and the parts go. When all are
in shards, the indices are written and `building/` goes. Every file appears under its name only when
it is whole, so whatever a killed process leaves can be taken up by the next one.

Which parts share a shard follows from their sizes alone, never from when they came.
"""

import collections
import json
import os
import pathlib
import shutil
import zipfile
import zlib
from typing import Any

import numpy as np

from roberta_jax.data.store import layout
from roberta_jax.data.store.layout import ARRAYS
from roberta_jax.errors import UsageError

TRAIN, HELDOUT = "train", "heldout"
SIDES = (TRAIN, HELDOUT)

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def write_part(
    folder: pathlib.Path, number: int, sides: dict[str, Arrays], counts: collections.Counter
) -> None:
    """Writes one part.

    Args:
      folder: `Assembly.building`.
      number: Of the chunk that it holds, from 0.
      sides: For TRAIN and for HELDOUT (tokens, sentence_ends, document_ends), see `lay_out`.
      counts: What was met in the text.
    """
    arrays = {
        f"{side}.{name}": array
        for side, three in sides.items()
        for name, array in zip(ARRAYS, three, strict=True)
    }
    path = _part_path(folder, number)
    temporary = layout.temporary_name(path)
    with temporary.open("wb") as file:
        np.savez(file, counts=np.array(json.dumps(counts)), **arrays)
    os.replace(temporary, path)


class Assembly:
    """Gathers the parts of one pair of stores; takes up what an earlier process has left.

    Attributes:
      building: The folder for parts.
      counts: Sums of the counts of all parts so far, and "tokens", both sides together.
    """

    def __init__(self, folder: pathlib.Path, dtype: np.dtype):
        """Opens or makes `folder`; the stores' tokens will have `dtype`."""
        self.building = folder / "building"
        self.counts: collections.Counter = collections.Counter()
        self._folder = folder
        self._dtype = dtype
        self._shards: list[dict[str, Any]] = []
        self._parts: dict[int, dict[str, int]] = {}  # counts of those that are in no shard yet
        for path in (self.building, folder / TRAIN, folder / HELDOUT):
            path.mkdir(parents=True, exist_ok=True)
        while (path := self._record_path(len(self._shards))).exists():
            self._shards.append(json.loads(path.read_text(encoding="utf-8")))
            self.counts.update(self._shards[-1]["counts"])
        for path in self.building.glob("*.npz"):
            number = int(path.stem)
            counts = _read_counts(path) if number >= self._first_loose else None
            if counts is None:
                path.unlink()
            else:
                self._note(number, counts)

    def has(self, number: int) -> bool:
        """Whether this part is there already."""
        return number < self._first_loose or number in self._parts

    def add(self, number: int) -> None:
        """Takes in a part that `write_part` has just written."""
        counts = _read_counts(_part_path(self.building, number))
        if counts is None:
            raise FileNotFoundError(f"{self.building} has lost part {number} while it was filled")
        self._note(number, counts)
        self._write_shards(all_parts_are_here=False)

    def finish(
        self, *, vocab_size: int, eos_id: int, fingerprint: str, about: dict[str, Any]
    ) -> None:
        """Puts the last parts into shards and writes the indices; see `write_index`."""
        self._write_shards(all_parts_are_here=True)
        for side in (HELDOUT, TRAIN):
            for path in (self._folder / side).glob("*.tmp"):
                path.unlink()  # of a process killed while writing
            layout.write_index(
                self._folder / side,
                vocab_size=vocab_size,
                eos_id=eos_id,
                fingerprint=fingerprint,
                shards=[shard[side] for shard in self._shards if shard[side]],
                about={**about, "counts": dict(sorted(self.counts.items()))},
            )
        shutil.rmtree(self.building)

    @property
    def _first_loose(self) -> int:
        """Number of the first part that is in no shard."""
        return self._shards[-1]["end"] if self._shards else 0

    def _note(self, number: int, counts: dict[str, int]) -> None:
        self._parts[number] = counts
        self.counts.update(counts)

    def _write_shards(self, all_parts_are_here: bool) -> None:
        group: list[int] = []
        tokens = 0
        number = self._first_loose
        while number in self._parts:
            size = self._parts[number]["tokens"]
            if group and tokens + size > layout.SHARD_TOKENS:
                self._write_shard(group)
                group, tokens = [], 0
            group.append(number)
            tokens += size
            number += 1
        if group and all_parts_are_here:
            self._write_shard(group)

    def _write_shard(self, numbers: list[int]) -> None:
        """Writes one shard of each store (of a store that gets no document here, none)."""
        name = f"{len(self._shards):05d}"
        record: dict[str, Any] = {"end": numbers[-1] + 1}
        for side in SIDES:
            parts = [self._read_part(number, side) for number in numbers]
            parts = [part for part in parts if len(part[0])]
            folder = self._folder / side
            record[side] = layout.write_shard(folder, name, self._dtype, parts) if parts else None
        counts: collections.Counter = collections.Counter()
        for number in numbers:
            counts.update(self._parts.pop(number))
        record["counts"] = dict(counts)
        layout.write_json(self._record_path(len(self._shards)), record)
        self._shards.append(record)
        for number in numbers:
            _part_path(self.building, number).unlink()

    def _read_part(self, number: int, side: str) -> Arrays:
        path = _part_path(self.building, number)
        try:
            with np.load(path) as part:
                return tuple(part[f"{side}.{name}"] for name in ARRAYS)
        except _DAMAGE as error:
            path.unlink()
            raise UsageError(
                f"{path} was damaged after it was written ({error}); it is deleted now. Run the "
                f"command again: it makes that part anew and keeps the others."
            ) from error

    def _record_path(self, shard: int) -> pathlib.Path:
        return self.building / f"shard-{shard:05d}.json"


# What NumPy and zipfile raise on a file that a power cut left short, or whose checksum is wrong.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError)


def _part_path(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"{number:08d}.npz"


def _read_counts(path: pathlib.Path) -> dict[str, int] | None:
    """The counts of a part; None where it is missing or damaged."""
    try:
        with np.load(path) as part:
            return json.loads(str(part["counts"]))
    except (FileNotFoundError, *_DAMAGE):
        return None
