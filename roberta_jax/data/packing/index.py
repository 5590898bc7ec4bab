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
that. Processes may build the same index at the same time: the first one to finish wins.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from roberta_jax.data.packing.formats import FORMATS, INPUT, PairOptions, ShardText
from roberta_jax.data.packing.row_sharing import share_rows
from roberta_jax.data.store.token_store import TokenStore
from roberta_jax.errors import UsageError
from roberta_jax.storage.atomic import create_folder, write_json

VERSION = 2
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
    folder = store.folder / "packed" / _name(store, format, seq_len, options)
    if not (folder / "index.json").exists():
        try:
            _build(store, format, seq_len, options, folder)
        except OSError as error:
            raise UsageError(
                f"the packing index cannot be written beside the token store: {error}. Free some "
                f"space, make {store.folder} writable, or use another folder with "
                "--config.data.cache_dir=..."
            ) from error
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
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
        index = _write_tables(store, format, seq_len, options, temporary)
        write_json(temporary / "index.json", index, indent=None)


def _write_tables(
    store: TokenStore, format: str, seq_len: int, options: PairOptions, folder: pathlib.Path
) -> dict:
    """Writes `inputs.bin` and `rows.bin`; returns the contents of `index.json`."""
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
