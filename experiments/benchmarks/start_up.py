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
from experiments.benchmarks.synthetic_store import dataset_of, make_store
from roberta_jax.data.batches import PackedDataset
from roberta_jax.data.packing.index import load_or_pack
from roberta_jax.data.pipeline import rows_at
from roberta_jax.data.row_order import FULL, WindowedOrder
from roberta_jax.data.store import layout
from roberta_jax.data.store.token_store import TokenStore

SEQ_LEN, BATCH = 512, 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=positive, default=16)
    parser.add_argument("--folder", required=True, help="where to make the store; kept")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.folder)
    if not (folder / layout.INDEX).exists():
        make_store(folder, arguments.shards, layout.SHARD_TOKENS, linked=True)
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
        dataset = dataset_of(store, packed, order)
        for hosts in (1, 16):
            for step in range(3):
                positions = step * BATCH + np.arange(BATCH // hosts)
                what = f"batch {step}, order {name}, {len(positions)} rows"
                measured(what, make_batch, dataset, positions, order)


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
