"""A token store of random ids, as large as wanted, for benchmarks of the input pipeline."""

import os
import pathlib

import numpy as np

from roberta_jax.data.batches import PackedDataset
from roberta_jax.data.masking import Masking
from roberta_jax.data.packing.index import PackedIndex
from roberta_jax.data.row_order import RowOrder
from roberta_jax.data.store import layout
from roberta_jax.data.store.token_store import TokenStore

VOCAB_SIZE = 50265  # of roberta-base, as are the ids below
BOS, PAD, EOS, UNK, MASK = 0, 1, 2, 3, 50264


def make_store(
    folder: pathlib.Path, num_shards: int, shard_tokens: int, *, linked: bool = False
) -> None:
    """Writes a store of random sentences of 8 to 44 tokens, 20 in a document.

    Args:
      folder: created if needed.
      num_shards: number of shards.
      shard_tokens: tokens of each, nearly.
      linked: all shards are hard links to the files of one, so that the store takes the disk space
        of one, whatever its size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 45, shard_tokens // 27)  # a mean of 26, and `</s>`
    documents = np.full(len(lengths) // 20, 20)
    lengths = lengths[: documents.sum()]
    entries = []
    for number in range(num_shards):
        name = f"{number:05d}"
        if number and linked:
            entries.append({**entries[0], "name": name})
            for array in layout.ARRAYS:
                path = layout.array_path(folder, name, array)
                path.unlink(missing_ok=True)
                os.link(layout.array_path(folder, "00000", array), path)
            continue
        ids = rng.integers(4, 50_000, int(lengths.sum()), np.uint16)
        arrays = layout.lay_out(ids, lengths, documents, EOS)
        entries.append(layout.write_shard(folder, name, np.dtype("<u2"), [arrays]))
    layout.write_index(folder, vocab_size=VOCAB_SIZE, eos_id=EOS, fingerprint="-", shards=entries)


def dataset_of(store: TokenStore, packed: PackedIndex, order: RowOrder) -> PackedDataset:
    """The rows of such a store, masked as RoBERTa does."""
    return PackedDataset(
        store,
        packed,
        Masking(),
        0,
        vocab_size=VOCAB_SIZE,
        bos_id=BOS,
        pad_id=PAD,
        mask_id=MASK,
        special_ids=(BOS, PAD, EOS, UNK, MASK),
        row_order=order,
    )
