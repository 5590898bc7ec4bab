"""How fast text becomes tokens: all of preparing against `tokenizers` encoding alone.

    python experiments/benchmarks/prepare_text.py --text='TEXT/*.jsonl' --tokenizer=FOLDER

Ours reads the files, finds sentences, encodes, and writes the token stores, as `prepare` does.
The peer only encodes: `encode_batch` of the `tokenizers` library on documents that are in memory
already, some 8 MB in a call, with all cores. (`encode_batch_fast`, which leaves out the offsets, is
measured too.) Both have the same vocabulary and take turns, so that a busy machine slows both.

MB are of UTF-8 text, without the JSON around it. Beside MB/s of wall time stand MB for each second
of a core's time, which other work on the machine disturbs less. The stages of ours are timed apart
as well, each on one core, to see what bounds it.
"""

import argparse
import collections
import os
import pathlib
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator

import tiktoken
import tokenizers
from ml_collections import ConfigDict

from roberta_jax.data.store.build import Recipe, build_stores
from roberta_jax.data.text.corpus import open_corpus
from roberta_jax.data.text.sentences import split_sentences
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.tokenizer.bulk import BulkEncoder

RECIPE = Recipe(validation_fraction=0.01, sentences="split", language="en")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True, help="files, as config.data.files takes them")
    parser.add_argument("--tokenizer", required=True, help="a folder with a tokenizer's files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=None, help="default: one on each core")
    arguments = parser.parse_args()

    tokenizer = RobertaTokenizer.from_pretrained(arguments.tokenizer)
    corpus = open_corpus(
        ConfigDict({"source": "files", "files": arguments.text, "text_field": "text"})
    )
    counts = collections.Counter()
    documents = [text for piece in corpus.pieces() for text in corpus.documents(piece, counts)]
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    print(
        f"{len(documents)} documents, {megabytes:.1f} MB of text, {os.cpu_count()} cores; Python "
        f"{platform.python_version()}, tokenizers {tokenizers.__version__}, tiktoken "
        f"{tiktoken.__version__}, load {os.getloadavg()[0]:.1f}"
    )

    def ours():
        with tempfile.TemporaryDirectory() as folder:
            build_stores(
                pathlib.Path(folder) / "x", corpus, tokenizer, RECIPE, workers=arguments.workers
            )

    batches = list(in_batches(documents))
    contenders = {
        "ours, end to end": ours,
        "encode_batch": lambda: [len(tokenizer.backend.encode_batch(b)) for b in batches],
        "encode_batch_fast": lambda: [len(tokenizer.backend.encode_batch_fast(b)) for b in batches],
    }
    measured = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, run in contenders.items():
            measured[name].append([megabytes / spent for spent in seconds(run)])
    medians = {
        name: [statistics.median(x) for x in zip(*m, strict=True)] for name, m in measured.items()
    }
    mine = medians["ours, end to end"]
    for name, (speed, core_speed) in medians.items():
        rounds = " ".join(f"{wall:.2f}" for wall, _ in measured[name])
        print(
            f"{name:18} {speed:6.2f} MB/s (ours is {mine[0] / speed:.2f}x; rounds {rounds}), "
            f"{core_speed:5.2f} MB per core second (ours is {mine[1] / core_speed:.2f}x)"
        )

    print("stages of ours, on one core:")
    bulk = BulkEncoder(tokenizer)
    sentences = [split_sentences(text, "split", "en") for text in documents]
    for name, run in {
        "read": lambda: collections.deque(corpus.pieces(), maxlen=0),
        "read and parse": lambda: [
            text for piece in corpus.pieces() for text in corpus.documents(piece, counts)
        ],
        "split": lambda: [split_sentences(text, "split", "en") for text in documents],
        "encode": lambda: [bulk.encode_documents(sentences[i::8]) for i in range(8)],
    }.items():
        print(f"  {name:16} {megabytes / seconds(run)[1]:7.1f} MB per core second")


def in_batches(documents: list[str], characters: int = 8_000_000) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    yield batch


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and seconds of all cores together, ended child processes included."""
    before = os.times()
    run()
    after = os.times()
    return after.elapsed - before.elapsed, sum(after[:4]) - sum(before[:4])


if __name__ == "__main__":
    main()
