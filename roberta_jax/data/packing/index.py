"""Which tokens make an input, and which inputs share a row: an index, never a copy of the tokens.

Two tables describe every format of the paper. `inputs` says which slices of the token store make
an input: a segment a, and for pairs a segment b and whether b really follows a. `rows` says which
inputs lie in which row: `inputs[rows[r]:rows[r + 1]]`. In FULL-SENTENCES every row holds one input;
in the others, where some are short, up to `MAX_INPUTS` share one. Rows never cross shards.

`blocks` and `pairs` say what an input is, `sharing` which go together. Pairs are sampled anew a
number of times (BERT's `dupe_factor`): the index holds all these duplicates, one after the other,
and each epoch takes the next.

The index is computed once for each (store, format, length, options), shard by shard, and kept
beside the store in a folder named by a hash of all that decides it; later calls only map it into
memory. Builds at the same time do each other no harm: the first to finish wins.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np

from roberta_jax.data.packing import blocks, pairs
from roberta_jax.data.packing.row_sharing import share_rows
from roberta_jax.data.store.token_store import Shard, TokenStore
from roberta_jax.errors import UsageError

VERSION = 2
SINGLE_FORMATS = ("full_sentences", "doc_sentences", "sentences")
PAIR_FORMATS = ("segment_pair", "sentence_pair")
FORMATS = SINGLE_FORMATS + PAIR_FORMATS
MAX_INPUTS = 16  # in a row, where inputs are short
INPUT = np.dtype(
    [
        ("a_start", "<i8"),
        ("a_len", "<i4"),
        ("b_start", "<i8"),
        ("b_len", "<i4"),
        ("next_label", "i1"),
    ]
)
"""One input: slices of the store by global token position and length (b_len is 0 where there is no
second segment), and BERT's label: 0 where b follows a in the text, 1 where it is random, -1 where
there is no b. A pair's slices do not hold the `</s>` that end a and b; a single one's does."""


@dataclasses.dataclass(frozen=True)
class PairOptions:
    """How pairs are sampled; the defaults are BERT's.

    Attributes:
      dupe_factor: how many times the corpus is sampled, each time with other choices.
      short_seq_prob: share of the documents whose segments are to be shorter than would fit;
        SEGMENT-PAIR only.
      num_separators: how many `</s>` stand between a and b: 2 as in RoBERTa, or 1.
      seed: of the choices.
    """

    dupe_factor: int = 10
    short_seq_prob: float = 0.1
    num_separators: int = 2
    seed: int = 0

    def __post_init__(self):
        if self.dupe_factor < 1:
            raise UsageError(
                f"data.dupe_factor is {self.dupe_factor}, but pairs are sampled at least once"
            )
        if not 0 <= self.short_seq_prob <= 1:
            raise UsageError(
                f"data.short_seq_prob is {self.short_seq_prob}, but it is a share of the "
                "documents: give a number from 0 to 1"
            )
        if self.num_separators not in (1, 2):
            raise UsageError(
                f"data.num_separators is {self.num_separators}, but between the two texts of "
                "a pair stand 1 or 2 `</s>`"
            )


@dataclasses.dataclass(frozen=True)
class PackedIndex:
    """The two tables.

    Attributes:
      inputs: `INPUT` records [N].
      rows: int64 [R + 1]; row r holds inputs[rows[r]:rows[r + 1]].
      seq_len: L, tokens in a row with its `<s>` and padding.
      max_inputs: M, the most inputs in a row.
      num_tokens: tokens in all rows without padding, each input's `<s>` and separators included.
      num_separators: `</s>` between a and b, for pairs; 0 where inputs are single.
      duplicate_ends: for each duplicate the number of the row after its last; () is one duplicate.
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
        """Share of the rows' positions that hold padding."""
        return 1 - self.num_tokens / (self.num_rows * self.seq_len)


def check_packing(format: str, seq_len: int, options: PairOptions) -> None:
    """Raises a UsageError for an unknown format, or rows without room for text."""
    if format not in FORMATS:
        raise UsageError(f"data.format is {format!r}, but it must be one of {', '.join(FORMATS)}")
    if seq_len < 2:
        raise UsageError(f"seq_len is {seq_len}, but a row holds <s> and at least one more token")
    least = _specials(format, options) + 2
    if format in PAIR_FORMATS and seq_len < least:
        raise UsageError(
            f"seq_len is {seq_len}, but a pair takes at least {least}: <s>, the </s>s and a token "
            "of either text"
        )


def load_or_pack(
    store: TokenStore, format: str, seq_len: int, options: PairOptions | None = None
) -> PackedIndex:
    """The index of a store in a format, read from beside the store or made there.

    Args:
      store: where the tokens are.
      format: one of `FORMATS`.
      seq_len: L, tokens in a row, `<s>` included; at least 2.
      options: for pairs; None takes BERT's.

    Raises:
      UsageError: an unknown format, a row without room for text, an empty store, pairs from a
        single document, or a folder that cannot be written.
    """
    options = options or PairOptions()
    check_packing(format, seq_len, options)
    if store.num_tokens == 0:
        raise UsageError(f"{store.folder} holds no tokens: give data.* a source with some text")
    if format in PAIR_FORMATS and store.num_documents < 2:
        raise UsageError(
            f"{store.folder} holds a single document, and the text that does not follow another "
            "one comes from another document: give data.* more documents (in plain text a blank "
            "line separates them)"
        )
    folder = store.folder / "packed" / _name(store, format, seq_len, options)
    if not (folder / "index.json").exists():
        try:
            _build(store, format, seq_len, options, folder)
        except OSError as error:
            raise UsageError(
                f"the packing index cannot be written beside the token store: {error}. Make room "
                f"there and {store.folder} writable, or set data.cache_dir to another folder"
            ) from error
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    ends = index["duplicate_ends"]
    if not ends or not ends[-1]:
        raise UsageError(f"{store.folder} gives no input in the format {format}: add text")
    return PackedIndex(
        inputs=np.memmap(folder / "inputs.bin", INPUT, "r", shape=(index["num_inputs"],)),
        rows=np.memmap(folder / "rows.bin", "<i8", "r", shape=(ends[-1] + 1,)),
        seq_len=seq_len,
        max_inputs=index["max_inputs"],
        num_tokens=index["num_tokens"],
        num_separators=index["separators"],
        duplicate_ends=tuple(ends),
    )


def _specials(format: str, options: PairOptions) -> int:
    """Tokens of an input that are in neither slice: `<s>`, and a pair's `</s>`s."""
    return 2 + options.num_separators if format in PAIR_FORMATS else 1


def _name(store: TokenStore, format: str, seq_len: int, options: PairOptions) -> str:
    """A folder name that changes with anything that could change the index."""
    pair = dataclasses.asdict(options) if format in PAIR_FORMATS else None
    about = json.dumps([VERSION, format, seq_len, pair, store.index], sort_keys=True)
    digest = hashlib.blake2b(about.encode(), digest_size=8).hexdigest()
    return f"{format}-{seq_len}-{digest}"


def _build(
    store: TokenStore, format: str, seq_len: int, options: PairOptions, folder: pathlib.Path
) -> None:
    """Writes the tables into a folder of another name, then renames it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp", dir=folder.parent))
    try:
        index = _write_tables(store, format, seq_len, options, temporary)
        (temporary / "index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
        os.chmod(temporary, 0o755)  # mkdtemp's are private; a store may be shared
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / "index.json").exists():  # else another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_tables(
    store: TokenStore, format: str, seq_len: int, options: PairOptions, folder: pathlib.Path
) -> dict:
    """Writes `inputs.bin` and `rows.bin`; returns what else `PackedIndex` has."""
    is_pair = format in PAIR_FORMATS
    max_inputs = 1 if format == "full_sentences" else MAX_INPUTS
    specials = _specials(format, options)
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
    """`INPUT` records of each shard, in the order of the text."""
    for number, shard in enumerate(store.shards):
        if format in PAIR_FORMATS:
            inputs = _pairs(shard, format, seq_len, options, duplicate, number)
        else:
            inputs = _single(shard, format, seq_len - 1)
        inputs["a_start"] += shard.start
        inputs["b_start"] += shard.start
        yield inputs


def _single(shard: Shard, format: str, block: int) -> np.ndarray:
    line_ends, document_ends = np.asarray(shard.sentence_ends), np.asarray(shard.document_ends)
    if format == "full_sentences":
        starts, lengths = blocks.full_sentences(line_ends, block)
    else:
        take = {"doc_sentences": blocks.doc_sentences, "sentences": blocks.sentences}[format]
        starts, lengths = take(line_ends, document_ends, block)
    inputs = np.zeros(len(starts), INPUT)
    inputs["a_start"], inputs["a_len"], inputs["next_label"] = starts, lengths, -1
    return inputs


def _pairs(
    shard: Shard, format: str, seq_len: int, options: PairOptions, duplicate: int, number: int
) -> np.ndarray:
    line_ends, document_ends = np.asarray(shard.sentence_ends), np.asarray(shard.document_ends)
    budget = seq_len - _specials(format, options)
    choices = pairs.Choices(options.seed, duplicate, number)
    if len(document_ends) == 1 and not duplicate:
        logging.warning(
            "shard %s of %s holds a single document: there is no other to draw a random text from, "
            "so all its pairs are ones that follow each other",
            shard.name,
            shard.folder,
        )
    if format == "segment_pair":
        found = pairs.segment_pairs(
            line_ends, document_ends, budget, options.short_seq_prob, choices
        )
    else:
        found = pairs.sentence_pairs(line_ends, document_ends, budget, choices)
    inputs = np.zeros(len(found.label), INPUT)
    for field in ("a_start", "a_len", "b_start", "b_len"):
        inputs[field] = getattr(found, field)
    inputs["next_label"] = found.label
    return inputs
