"""Measures the time and the memory of packing text into rows, for corpora of two sizes.

    python experiments/benchmarks/pack_rows.py            # 10 and 100 million tokens

The text is synthetic, with 25 tokens per sentence and 500 tokens per document on average, both with
geometric lengths, in shards of 10 million tokens. Each format is packed into rows of 512 tokens in
a process of its own; pairs are sampled ten times, as in BERT. Memory is the increase of the peak
memory of the process.

There is no peer to compare with: fairseq packs single sequences in C++ when a job starts, without
an index of shared rows, and BERT's `create_pretraining_data.py` writes pairs as text records. The
results show that the time is about proportional to the size of the corpus, while the memory grows
much less.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

import numpy as np

from experiments.benchmarks.arguments import positive, positives
from roberta_jax import cli
from roberta_jax.data.packing import index as packing
from roberta_jax.data.store import layout
from roberta_jax.data.store.token_store import TokenStore

SHARD_TOKENS, SENTENCE, DOCUMENT, SEQ_LEN, VOCAB = 10_000_000, 25, 20, 512, 50265


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=positives, default="10,100", help="of tokens")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # a store and a format
    arguments = parser.parse_args()
    if arguments.child:
        with cli.usage_errors():
            print(json.dumps(_pack(*arguments.child)))
        return
    about = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(about))
    sizes = [millions * 1_000_000 for millions in arguments.millions]
    with tempfile.TemporaryDirectory() as folder:
        stores = [_write(pathlib.Path(folder) / str(size), size) for size in sizes]
        for format in packing.FORMATS:
            results = [_median(store, format, arguments.rounds) for store in stores]
            growth = results[-1]["seconds"] / results[0]["seconds"]
            print(f"{format:16}", end="")
            for size, each in zip(sizes, results, strict=True):
                print(
                    f"  {size // 1_000_000}M: {each['seconds']:.2f} s, {each['megabytes']:.0f} MB,"
                    f" {each['padding']:.2%} padding;",
                    end="",
                )
            print(f"  {growth:.1f} times the time for {sizes[-1] / sizes[0]:g} times the text")


def _write(folder: pathlib.Path, tokens: int) -> pathlib.Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    shards = []
    for number in range(tokens // SHARD_TOKENS):
        lengths = rng.geometric(1 / SENTENCE, SHARD_TOKENS // (SENTENCE + 1))
        documents = rng.geometric(1 / DOCUMENT, len(lengths))
        documents = documents[: np.searchsorted(np.cumsum(documents), len(lengths))]
        documents[-1] += len(lengths) - documents.sum()
        ids = rng.integers(4, VOCAB, lengths.sum()).astype(np.uint16)
        arrays = layout.lay_out(ids, lengths, documents, eos_id=2)
        name = f"{number:05}"
        shards.append(layout.write_shard(folder, name, np.dtype("<u2"), [arrays]))
    layout.write_index(folder, vocab_size=VOCAB, eos_id=2, fingerprint="", shards=shards)
    return folder


def _median(store: pathlib.Path, format: str, rounds: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(store), format]
    runs = []
    for _ in range(rounds):
        child = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(child.stdout))
    return {key: float(np.median([run[key] for run in runs])) for key in runs[0]}


def _pack(folder: str, format: str) -> dict[str, float]:
    store = TokenStore.open(folder)
    for old in (store.folder / "packed").glob("*/*"):
        old.unlink()
    for old in (store.folder / "packed").glob("*"):
        old.rmdir()
    before = _peak()
    start = time.perf_counter()
    packed = packing.load_or_pack(store, format, SEQ_LEN)
    seconds = time.perf_counter() - start
    megabytes = _peak() - before
    return {"seconds": seconds, "megabytes": megabytes, "padding": packed.padding_share}


def _peak() -> float:
    """Returns the peak memory in megabytes. `getrusage` would include the parent process."""
    status = pathlib.Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
