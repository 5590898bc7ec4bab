"""How a token store lies on disk, and how it is written; `token_store` reads it.

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
hold more than one shard. A folder without `index.json` is no store: whatever was killed while
writing left none.

Letters in array names: T tokens, S sentences, D documents.
"""

import hashlib
import io
import json
import os
import pathlib
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

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


def new_hash():
    return hashlib.blake2b(digest_size=16)
