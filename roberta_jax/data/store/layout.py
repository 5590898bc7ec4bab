"""The on-disk format of a token store, and functions that write it; `token_store` reads it.

The tokens are in fairseq's order: the ids of each sentence, then `</s>`, and one more `</s>` at the
end of each document, which counts as a sentence of length 1 (fairseq's blank line). An input in the
format FULL-SENTENCES (fairseq's `complete` mode) is therefore a contiguous slice of a shard.

A store is one folder:

    index.json                      counts, the tokenizer's fingerprint, sizes, hashes, and a hash
                                    of all these; written last
    00000.tokens.npy                uint16 or uint32 [T]
    00000.sentence_ends.npy         int64 [S], exclusive ends in tokens from the shard's start
    00000.document_ends.npy         int64 [D], the same for documents
    00001.tokens.npy                ...
    checked.json                    which files were read and had the right hash, see `digests`

A shard holds whole documents and its size is bounded, so a reader never needs more than one shard
in memory. A folder without `index.json` is not a complete store.

Letters in array names: T tokens, S sentences, D documents.
"""

import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from roberta_jax.data.store.digests import with_digest
from roberta_jax.storage.atomic import replace_file, write_json
from roberta_jax.storage.reading import new_hash

FORMAT = "roberta_jax token store"
VERSION = 1
INDEX = "index.json"
ARRAYS = ("tokens", "sentence_ends", "document_ends")
COUNTS = ("num_tokens", "num_sentences", "num_documents")
# 256 MB of uint16. The paper's 160 GB of text give some 300 shards, each of them one open file.
SHARD_TOKENS = 1 << 27


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype of token ids: uint16 for vocabularies of up to 65536 ids, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def array_path(folder: pathlib.Path, name: str, array: str) -> pathlib.Path:
    """The file of an array (one of `ARRAYS`) of the shard `name`."""
    return folder / f"{name}.{array}.npy"


def lay_out(
    ids_T: np.ndarray, sentence_lengths_S: np.ndarray, document_lengths_D: np.ndarray, eos_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Adds a `</s>` after each sentence and one more after each document.

    Args:
      ids_T: The ids of all sentences, concatenated, without special tokens.
      sentence_lengths_S: Number of tokens of each sentence.
      document_lengths_D: Number of sentences of each document.
      eos_id: The id of `</s>`.

    Returns:
      (tokens, sentence_ends, document_ends), the arrays of a shard. `tokens` has the dtype of
      `ids_T`, the others are int64.
    """
    # A line is a sentence or the blank line that ends a document, as in fairseq.
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
    """Writes the files of one shard, each of them atomically.

    Args:
      folder: The store's folder.
      name: The stem of the file names.
      dtype: The dtype of the tokens.
      parts: (tokens, sentence_ends, document_ends) of each part of the shard. The ends count from
        the start of the part.

    Returns:
      The shard's entry in the index: name, counts, and the size and hash of each file.
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
    """Writes the concatenated parts as one `.npy` file; returns its size and hash."""
    with replace_file(path) as temporary, temporary.open("wb") as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (sum(map(len, parts)),),
        }
        hasher = new_hash()
        beginning = io.BytesIO()
        np.lib.format.write_array_header_1_0(beginning, header)
        for data in (
            beginning.getbuffer(),
            *(np.ascontiguousarray(part, dtype).data for part in parts),
        ):
            hasher.update(data)
            file.write(data)
        size = file.tell()
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
    """Writes `index.json`, which completes a store.

    Args:
      folder: The store's folder, with the files of all shards.
      vocab_size: Number of ids of the tokenizer.
      eos_id: The id of `</s>`.
      fingerprint: The tokenizer's fingerprint.
      shards: The return values of `write_shard`, in order.
      about: More entries for the index, such as the source of the text and its statistics.
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
    write_json(folder / INDEX, with_digest(index), indent=1)
