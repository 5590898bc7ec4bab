"""A small corpus of random token ids, for tests of packing, batches and training."""

import pathlib

import numpy as np

from roberta_jax.data.batches import PackedDataset
from roberta_jax.data.masking import Masking
from roberta_jax.data.packing import formats
from roberta_jax.data.packing import index as packing
from roberta_jax.data.row_order import FULL, RowOrder
from roberta_jax.data.store import token_store

VOCAB, BOS, PAD, EOS, MASK = 120, 0, 1, 2, 119


def make_store(
    folder: pathlib.Path, num_documents: int = 40, seed: int = 0, shard_tokens: int = 1500
) -> token_store.TokenStore:
    """Documents of 1 to 12 sentences of up to 39 ids from [4, 119)."""
    rng = np.random.RandomState(seed)  # its numbers are the same in all NumPy versions
    documents = [
        [rng.randint(4, MASK, rng.randint(1, 40)).tolist() for _ in range(rng.randint(1, 13))]
        for _ in range(num_documents)
    ]
    return token_store.write_store(folder, documents, VOCAB, EOS, shard_tokens)


def make_dataset(
    store: token_store.TokenStore,
    seq_len: int = 32,
    seed: int = 5,
    packed: packing.PackedIndex | None = None,
    format: str = "full_sentences",
    pairs: packing.PairOptions | None = None,
    token_types: bool = False,
    next_sentence: bool = False,
    row_order: RowOrder = FULL,
    **masking,
) -> PackedDataset:
    """A dataset of a store, with the index `packed` or else one of the given format."""
    return PackedDataset(
        store,
        packed or packing.load_or_pack(store, format, seq_len, pairs),
        Masking(**masking),
        seed,
        vocab_size=VOCAB,
        bos_id=BOS,
        pad_id=PAD,
        mask_id=MASK,
        special_ids=(BOS, PAD, EOS, 3, MASK),
        word_starts=np.arange(VOCAB) % 3 == 0,
        token_types=token_types,
        next_sentence=next_sentence,
        row_order=row_order,
    )


def share_rows(store: token_store.TokenStore, seq_len: int, max_inputs: int = 3):
    """A simple index: each sentence of at most seq_len - 1 tokens is an input, and consecutive
    inputs of a shard share a row while they fit."""
    inputs, rows, room, members = [], [0], 0, 0
    for shard in store.shards:
        room = 0  # rows never cross shards
        ends = np.asarray(shard.sentence_ends)
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            length = int(end - start)
            if length >= seq_len:
                continue
            if length + 1 > room or members == max_inputs:
                rows.append(rows[-1])
                room, members = seq_len, 0
            inputs.append((shard.start + start, length, 0, 0, -1))
            rows[-1] += 1
            room -= length + 1
            members += 1
    inputs = np.array(inputs, formats.INPUT)
    return packing.PackedIndex(
        inputs=inputs,
        rows=np.array(rows, np.int64),
        seq_len=seq_len,
        max_inputs=max_inputs,
        num_tokens=int(inputs["a_len"].sum()) + len(inputs),
    )
