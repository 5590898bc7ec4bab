"""Measures what a host does before its first batch, on a large synthetic token store.

    python experiments/benchmarks/start_up.py --shards=16 --folder=/tmp/synthetic_store

The store has the given number of shards of 134 million tokens. All are hard links to the files of
one, so that it takes 0.3 GB of disk whatever its size. Packing and the batches do the same work as
with real shards; only the system's file cache is kinder. The batches are those of a host that makes
all 8,192 rows of 512 tokens, and of one of 16 hosts.
"""

import argparse
import os
import pathlib
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks.arguments import positive
from roberta_jax.data.batches import PackedDataset
from roberta_jax.data.masking import Masking
from roberta_jax.data.packing.index import load_or_pack
from roberta_jax.data.pipeline import rows_at
from roberta_jax.data.row_order import FULL, WindowedOrder
from roberta_jax.data.store import layout
from roberta_jax.data.store.token_store import TokenStore

SHARD_TOKENS = 1 << 27
SEQ_LEN, BATCH = 512, 8192
EOS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=positive, default=16)
    parser.add_argument("--folder", required=True, help="where to make the store; kept")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.folder)
    if not (folder / layout.INDEX).exists():
        make_store(folder, arguments.shards)
    store = measured("first open, which hashes every file", TokenStore.open, folder)
    store = measured("open again", TokenStore.open, folder)
    print(
        f"{store.num_tokens:,} tokens, {store.num_documents:,} documents, "
        f"{len(store.shards)} shards, load {os.getloadavg()[0]:.1f}"
    )
    packed = measured("pack", load_or_pack, store, "full_sentences", SEQ_LEN)
    packed = measured("open the index", load_or_pack, store, "full_sentences", SEQ_LEN)
    size = (packed.inputs.nbytes + packed.rows.nbytes) / 1e6
    print(f"{packed.num_rows:,} rows, index of {size:.0f} MB")
    windowed = WindowedOrder(8192, 16, 16, BATCH // 16)
    for name, order in (("full", FULL), ("windowed", windowed)):
        dataset = PackedDataset(
            store,
            packed,
            Masking(),
            0,
            vocab_size=50265,
            bos_id=0,
            pad_id=1,
            mask_id=50264,
            special_ids=(0, 1, 2, 3, 50264),
            row_order=order,
        )
        for hosts in (1, 16):
            for step in range(3):
                positions = step * BATCH + np.arange(BATCH // hosts)
                what = f"batch {step}, order {name}, {len(positions)} rows"
                measured(what, make_batch, dataset, positions, order)


def make_store(folder: pathlib.Path, shards: int) -> None:
    """Writes a store of random sentences of 8 to 44 tokens, 20 in a document."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 45, SHARD_TOKENS // 27)
    documents = np.full(len(lengths) // 20, 20)
    lengths = lengths[: documents.sum()]
    tokens = rng.integers(4, 50_000, int(lengths.sum()), np.uint16)
    arrays = layout.lay_out(tokens, lengths, documents, EOS)
    first = layout.write_shard(folder, "00000", np.dtype("<u2"), [arrays])
    entries = [{**first, "name": f"{number:05d}"} for number in range(shards)]
    for entry in entries[1:]:
        for array in layout.ARRAYS:
            path = layout.array_path(folder, entry["name"], array)
            path.unlink(missing_ok=True)
            os.link(layout.array_path(folder, "00000", array), path)
    layout.write_index(folder, vocab_size=50265, eos_id=EOS, fingerprint="-", shards=entries)


def make_batch(dataset: PackedDataset, positions: np.ndarray, order: Any) -> None:
    dataset(*rows_at(positions, dataset.epoch_ends, 0, order))


def measured(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    started, cpu = time.perf_counter(), time.process_time()
    result = function(*arguments)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what}: {seconds:.3f} s, {cpu:.3f} core seconds; peak memory {peak:.2f} GB", flush=True)
    return result


if __name__ == "__main__":
    main()
