"""The packing index: which tokens form an input, and which inputs share a row.

The index holds no copy of the tokens, but two tables, which can describe every format. `inputs`
lists the slices of the token store that form each input: a segment a and, for pairs, a segment b
and whether b follows a in the text. `rows` lists the inputs of each row:
`inputs[rows[r]:rows[r + 1]]`. In FULL-SENTENCES a row holds one input; in the other formats, whose
inputs can be short, up to `MAX_INPUTS` share a row. Rows never cross shards.

`formats` defines the inputs and `row_sharing` which of them share a row. Pairs are sampled several
times (BERT's `dupe_factor`). The index holds all these duplicates, one after the other, and each
epoch uses the next one.

The index is computed once for each (store, format, length, options), shard by shard. It is cached
beside the store, in a folder named by a hash of everything it depends on, and memory-mapped after
that:

    packed.lock                    held while an index of the store is being packed
    packed/<format>-<L>-<hash>/
      inputs.bin                   `INPUT` records
      rows.bin                     int64
      index.json                   counts, and sizes and hashes of the two files
      checked.json                 which files were read and had the right hash, see `store.digests`

An index that is not what was written is packed again. It is read and hashed only after a change:
200 million tokens have 14 MB of tables in FULL-SENTENCES rows of 512 (15 ms of CPU time) and 196 MB
in single sentences of 25 tokens (0.17 s). Opening an unchanged one takes less than 1 ms.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from roberta_jax.data.packing.formats import FORMATS, INPUT, PairOptions, ShardText
from roberta_jax.data.packing.row_sharing import share_rows
from roberta_jax.data.store.digests import (
    DamagedError,
    check_files,
    read_json,
    remember_files,
    with_digest,
)
from roberta_jax.data.store.token_store import TokenStore
from roberta_jax.errors import UsageError
from roberta_jax.storage.atomic import create_folder, write_json
from roberta_jax.storage.locks import exclusive_lock
from roberta_jax.storage.reading import describe_file

VERSION = 2
_FOLDER, _INDEX, _TABLES = "packed", "index.json", ("inputs.bin", "rows.bin")
PAIR_FORMATS = tuple(name for name, format in FORMATS.items() if format.is_pair)


@dataclasses.dataclass(frozen=True)
class PackedIndex:
    """The two tables.

    Attributes:
      inputs: `INPUT` records [N].
      rows: int64 [R + 1]; row r holds inputs[rows[r]:rows[r + 1]].
      seq_len: L, tokens in a row, `<s>` and padding included.
      max_inputs: M, the maximum number of inputs in a row.
      num_tokens: Number of tokens in all rows, special tokens included, without padding.
      num_separators: Number of `</s>` between a and b; 0 for single inputs.
      duplicate_ends: For each duplicate, the number of the row after its last. () is one duplicate.
    """

    inputs: np.ndarray
    rows: np.ndarray
    seq_len: int
    max_inputs: int
    num_tokens: int
    num_separators: int = 0
    duplicate_ends: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        return len(self.rows) - 1

    @property
    def padding_share(self) -> float:
        """Fraction of the rows' positions that hold padding."""
        return 1 - self.num_tokens / (self.num_rows * self.seq_len)


def check_packing(format: str, seq_len: int, options: PairOptions) -> None:
    """Checks the format and the row length.

    Raises:
      UsageError: The format is unknown, or a row has no room for text.
    """
    if format not in FORMATS:
        raise UsageError(
            f"--config.data.format is {format!r}, but it must be one of {', '.join(FORMATS)}"
        )
    if seq_len < 2:
        raise UsageError(
            f"--config.seq_len is {seq_len}, but a row holds <s> and at least one more token: use "
            "a number from 2"
        )
    least = FORMATS[format].num_specials(options) + 2
    if FORMATS[format].is_pair and seq_len < least:
        raise UsageError(
            f"--config.seq_len is {seq_len}, but a pair takes at least {least} tokens: <s>, "
            f"{options.num_separators + 1} </s> and one token of each text"
        )


def load_or_pack(
    store: TokenStore, format: str, seq_len: int, options: PairOptions | None = None
) -> PackedIndex:
    """Opens the packing index of a store; computes and caches it first if necessary.

    Args:
      store: The tokens.
      format: A key of `FORMATS`.
      seq_len: L, tokens in a row, `<s>` included; at least 2.
      options: How pairs are sampled. None uses BERT's values.

    Raises:
      UsageError: The format is unknown, a row has no room for text, the store is empty, holds a
        single document (for pairs) or gives no input, or the index cannot be written.
    """
    options = options or PairOptions()
    check_packing(format, seq_len, options)
    if store.num_tokens == 0:
        raise UsageError(
            f"{store.folder} holds no tokens: name a source with some text, such as "
            "--config.data.files='text/*.txt'"
        )
    if FORMATS[format].is_pair and store.num_documents < 2:
        raise UsageError(
            f"{store.folder} holds a single document, but --config.data.format={format} draws "
            "random texts from other documents: give it more documents (in plain text, blank lines "
            "separate documents)"
        )
    folder = store.folder / _FOLDER / _name(store, format, seq_len, options)
    index = _open_if_intact(folder)
    if index is None:
        try:
            index = _pack(store, format, seq_len, options, folder)
        except OSError as error:
            raise UsageError(
                f"the packing index cannot be written beside the token store: {error}. Free some "
                f"space, make {store.folder} writable, or use another folder with "
                "--config.data.cache_dir=..."
            ) from error
    ends = index["duplicate_ends"]
    if not ends or not ends[-1]:
        raise UsageError(
            f"{store.folder} gives no input in the format {format}: add text, or use another "
            "--config.data.format"
        )
    return PackedIndex(
        inputs=np.memmap(folder / "inputs.bin", INPUT, "r", shape=(index["num_inputs"],)),
        rows=np.memmap(folder / "rows.bin", "<i8", "r", shape=(ends[-1] + 1,)),
        seq_len=seq_len,
        max_inputs=index["max_inputs"],
        num_tokens=index["num_tokens"],
        num_separators=index["separators"],
        duplicate_ends=tuple(ends),
    )


def remove_damaged(store: TokenStore) -> list[pathlib.Path]:
    """Reads all packing indices of a store and removes those that are not what was written.

    Returns:
      The folders that were removed. What is needed of them is packed again by the next run.
    """
    removed = []
    for folder in sorted((store.folder / _FOLDER).glob("*")):
        if folder.is_dir() and folder.suffix != ".tmp":
            try:
                _open(folder, read_all=True)
            except DamagedError:
                with _lock(store):
                    _remove(folder)
                removed.append(folder)
    return removed


def _open(folder: pathlib.Path, read_all: bool = False) -> dict[str, Any]:
    """Checks an index; returns the contents of its `index.json`, or raises DamagedError."""
    index, has_digest = read_json(folder / _INDEX)
    if not has_digest:  # written by an earlier version, or damaged
        raise DamagedError(f"{_INDEX} has no hashes")
    if index["name"] != folder.name:
        raise DamagedError(f"{_INDEX} is that of another index")
    check_files(folder, index["files"], read_all=read_all)
    return index


def _open_if_intact(folder: pathlib.Path) -> dict[str, Any] | None:
    """Like `_open`; returns None, and says why, where the index has to be packed again."""
    try:
        return _open(folder)
    except DamagedError as error:
        if folder.exists():
            logging.warning("The packing index %s: %s. It is packed again.", folder, error)
        return None


def _pack(
    store: TokenStore, format: str, seq_len: int, options: PairOptions, folder: pathlib.Path
) -> dict[str, Any]:
    """Packs an index, unless another process has done so, and opens it."""
    with _lock(store):
        # No process that is alive has a temporary folder now.
        for leftover in (store.folder / _FOLDER).glob("*.tmp"):
            _remove(leftover)
        with contextlib.suppress(DamagedError):
            return _open(folder)
        _remove(folder)
        _build(store, format, seq_len, options, folder)
        try:
            return _open(folder)
        except DamagedError as error:
            raise OSError(f"{folder} was damaged while it was written: {error}") from error


@contextlib.contextmanager
def _lock(store: TokenStore) -> Iterator[None]:
    """Held by the process that writes packing indices of a store; others wait."""

    def report_wait() -> None:
        print(f"Waiting for another process that packs {store.folder}", file=sys.stderr)

    with exclusive_lock(store.folder / f"{_FOLDER}.lock", on_wait=report_wait):
        yield


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _name(store: TokenStore, format: str, seq_len: int, options: PairOptions) -> str:
    """The name of the index's folder; it changes with anything that can change the index."""
    pair = dataclasses.asdict(options) if FORMATS[format].is_pair else None
    key = json.dumps([VERSION, format, seq_len, pair, store.index], sort_keys=True)
    digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    return f"{format}-{seq_len}-{digest}"


def _build(
    store: TokenStore, format: str, seq_len: int, options: PairOptions, folder: pathlib.Path
) -> None:
    with create_folder(folder) as temporary:
        counts = _write_tables(store, format, seq_len, options, temporary)
        files = {name: describe_file(temporary / name) for name in _TABLES}
        index = with_digest({"name": folder.name, **counts, "files": files})
        write_json(temporary / _INDEX, index, indent=None)
        remember_files(temporary, files)  # renaming the folder does not change them


def _write_tables(
    store: TokenStore, format: str, seq_len: int, options: PairOptions, folder: pathlib.Path
) -> dict:
    """Writes `inputs.bin` and `rows.bin`; returns the counts of `index.json`."""
    is_pair, max_inputs = FORMATS[format].is_pair, FORMATS[format].max_inputs
    specials = FORMATS[format].num_specials(options)
    num_inputs = num_rows = num_tokens = 0
    duplicate_ends = []
    with (
        (folder / "inputs.bin").open("wb") as inputs_file,
        (folder / "rows.bin").open("wb") as rows_file,
    ):
        np.zeros(1, "<i8").tofile(rows_file)
        for duplicate in range(options.dupe_factor if is_pair else 1):
            for inputs in _inputs_by_shard(store, format, seq_len, options, duplicate):
                lengths = inputs["a_len"].astype(np.int64) + inputs["b_len"] + specials
                if max_inputs == 1:
                    ends = np.arange(1, len(inputs) + 1)
                else:
                    order, ends = share_rows(lengths, seq_len, max_inputs)
                    inputs = inputs[order]
                inputs.tofile(inputs_file)
                (ends + num_inputs).astype("<i8").tofile(rows_file)
                num_inputs += len(inputs)
                num_rows += len(ends)
                num_tokens += int(lengths.sum())
            duplicate_ends.append(num_rows)
    return {
        "num_inputs": num_inputs,
        "num_tokens": num_tokens,
        "max_inputs": max_inputs,
        "separators": options.num_separators if is_pair else 0,
        "duplicate_ends": duplicate_ends,
    }


def _inputs_by_shard(
    store: TokenStore, format: str, seq_len: int, options: PairOptions, duplicate: int
) -> Iterator[np.ndarray]:
    """Yields the `INPUT` records of each shard, in the order of the text."""
    max_tokens = seq_len - FORMATS[format].num_specials(options)
    for number, shard in enumerate(store.shards):
        text = ShardText(shard, number, max_tokens, options, duplicate)
        inputs = FORMATS[format].make_inputs(text)
        inputs["a_start"] += shard.start
        inputs["b_start"] += shard.start
        yield inputs
