"""Which tokens make an input, and which inputs share a row: an index, never a copy of the tokens.

Two tables describe every format of the paper. `inputs` says which slices of the token store make
an input: a segment a, and for sentence pairs a segment b and whether b really follows a. `rows`
says which inputs lie in which row: `inputs[rows[r]:rows[r + 1]]`. Where inputs fill a row each,
as in FULL-SENTENCES, the second table is trivial; short inputs will share rows through it.

FULL-SENTENCES is fairseq's break mode `complete`: take whole lines, blank lines included, until
the next one does not fit into seq_len - 1 tokens (`<s>` goes in front when the batch is made).
Where fairseq lets a line that is longer than a row overflow it, here the line is cut into pieces
of a row's length and a rest, and the rest goes on like any other line. Rows never cross shards.

The index is computed once for each (store, format, length), shard by shard, and kept beside the
store in a folder named by a hash of all that decides it; later calls only map it into memory.
Builds at the same time do each other no harm: the first to finish wins.
"""

import array
import bisect
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile

import numpy as np

from roberta_jax.data.token_store import TokenStore
from roberta_jax.errors import UsageError

VERSION = 1
FORMATS = ("full_sentences",)
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
second segment), and 1 where b follows a in the text, 0 where it does not, -1 where nothing asks."""


@dataclasses.dataclass(frozen=True)
class PackedIndex:
    """The two tables.

    Attributes:
      inputs: `INPUT` records [N].
      rows: int64 [R + 1]; row r holds inputs[rows[r]:rows[r + 1]].
      seq_len: L, tokens in a row with its `<s>` and padding.
      max_inputs: M, the most inputs in a row.
      num_tokens: tokens in all rows without padding, each input's `<s>` included.
    """

    inputs: np.ndarray
    rows: np.ndarray
    seq_len: int
    max_inputs: int
    num_tokens: int

    @property
    def num_rows(self) -> int:
        return len(self.rows) - 1

    @property
    def padding_share(self) -> float:
        """Share of the rows' positions that hold padding."""
        return 1 - self.num_tokens / (self.num_rows * self.seq_len)


def load_or_pack(store: TokenStore, format: str, seq_len: int) -> PackedIndex:
    """The index of a store in a format, read from beside the store or made there.

    Args:
      store: where the tokens are.
      format: one of `FORMATS`.
      seq_len: L, tokens in a row, `<s>` included; at least 2.

    Raises:
      UsageError: an unknown format, a row without room for text, an empty store, or a folder that
        cannot be written.
    """
    if format not in FORMATS:
        raise UsageError(f"data.format is {format!r}, but it must be one of {', '.join(FORMATS)}")
    if seq_len < 2:
        raise UsageError(f"seq_len is {seq_len}, but a row holds <s> and at least one more token")
    if store.num_tokens == 0:
        raise UsageError(f"{store.folder} holds no tokens: give data.* a source with some text")
    folder = store.folder / "packed" / _name(store, format, seq_len)
    if not (folder / "index.json").exists():
        try:
            _build(store, seq_len, folder)
        except OSError as error:
            raise UsageError(
                f"the packing index cannot be written beside the token store: {error}. Make room "
                f"there and {store.folder} writable, or set data.cache_dir to another folder"
            ) from error
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return PackedIndex(
        inputs=np.memmap(folder / "inputs.bin", INPUT, "r", shape=(index["num_inputs"],)),
        rows=np.memmap(folder / "rows.bin", "<i8", "r", shape=(index["num_rows"] + 1,)),
        seq_len=seq_len,
        max_inputs=index["max_inputs"],
        num_tokens=index["num_tokens"],
    )


def _name(store: TokenStore, format: str, seq_len: int) -> str:
    """A folder name that changes with anything that could change the index."""
    about = json.dumps([VERSION, format, seq_len, store.index], sort_keys=True)
    digest = hashlib.blake2b(about.encode(), digest_size=8).hexdigest()
    return f"{format}-{seq_len}-{digest}"


def _build(store: TokenStore, seq_len: int, folder: pathlib.Path) -> None:
    """Writes the tables into a folder of another name, then renames it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp", dir=folder.parent))
    try:
        num_inputs = num_tokens = 0
        with (temporary / "inputs.bin").open("wb") as inputs_file:
            for shard in store.shards:
                row_ends = full_sentences(np.asarray(shard.sentence_ends), seq_len - 1)
                inputs = np.zeros(len(row_ends), INPUT)
                inputs["a_len"] = np.diff(row_ends, prepend=0)
                inputs["a_start"] = shard.start + row_ends - inputs["a_len"]
                inputs["next_label"] = -1
                inputs.tofile(inputs_file)
                num_inputs += len(inputs)
                num_tokens += int(row_ends[-1]) + len(inputs)
        np.arange(num_inputs + 1, dtype="<i8").tofile(temporary / "rows.bin")
        index = {
            "num_inputs": num_inputs,
            "num_rows": num_inputs,
            "num_tokens": num_tokens,
            "max_inputs": 1,
        }
        (temporary / "index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
        os.chmod(temporary, 0o755)  # mkdtemp's are private; a store may be shared
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / "index.json").exists():  # else another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def full_sentences(line_ends: np.ndarray, block: int) -> np.ndarray:
    """fairseq's `complete` mode: whole lines until the next does not fit.

    Args:
      line_ends: int64 [S], ascending exclusive ends of the lines, in tokens; no line is empty.
      block: the most tokens a row takes.

    Returns:
      int64 [R], exclusive ends of the rows; the last is the last line's.
    """
    ends = _cut_long_lines(line_ends, block)
    view = memoryview(np.ascontiguousarray(ends))
    row_ends = array.array("q")
    line, end = 0, 0
    # Each row's end depends on the row before, so this is a loop; a line has a token at least,
    # which bounds how far ahead to look.
    while line < len(view):
        line = bisect.bisect_right(view, end + block, line, min(line + block, len(view)))
        end = view[line - 1]
        row_ends.append(end)
    return np.frombuffer(row_ends, np.int64) if row_ends else np.zeros(0, np.int64)


def _cut_long_lines(line_ends: np.ndarray, block: int) -> np.ndarray:
    """Adds an end after each `block` tokens of a line that is longer than that."""
    lengths = np.diff(line_ends, prepend=0)
    long = np.flatnonzero(lengths > block)
    if not len(long):
        return line_ends
    cuts = (lengths[long] - 1) // block
    starts = np.repeat(line_ends[long] - lengths[long], cuts)
    number = np.arange(1, len(starts) + 1) - np.repeat(np.cumsum(cuts) - cuts, cuts)
    return np.sort(np.concatenate([line_ends, starts + number * block]), kind="stable")
