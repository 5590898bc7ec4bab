"""Measures the speed of preparing text, and that of `tokenizers` for encoding only.

    python experiments/benchmarks/prepare_text.py --text='TEXT/*.jsonl' --tokenizer=FOLDER

Ours reads the files, splits sentences, encodes, and writes the token stores, as `prepare` does. The
peer only encodes: `encode_batch` of the `tokenizers` library, on documents in memory, with about 8
MB per call, on all cores. `encode_batch_fast`, which computes no offsets, is measured too. Both use
the same vocabulary and are measured in turn, so that other work on the machine affects both.

MB are megabytes of UTF-8 text, without the JSON syntax. In addition to MB/s of wall time, it
reports MB per second of CPU time, which other work affects less. The stages of ours are also timed
separately, each on one core.
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

from experiments.benchmarks.arguments import positive
from roberta_jax import cli
from roberta_jax.data.store.build import Recipe, build_stores
from roberta_jax.data.text.corpus import open_corpus
from roberta_jax.data.text.sentences import split_sentences
from roberta_jax.data.text.source import TextSource
from roberta_jax.errors import UsageError
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.tokenizer.bulk import BulkEncoder

RECIPE = Recipe(validation_fraction=0.01, sentences="split", language="en")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True, help="a glob of files, as for config.data.files")
    parser.add_argument("--tokenizer", required=True, help="the folder of a tokenizer")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument(
        "--workers", type=positive, default=None, help="worker processes (default: one per core)"
    )
    arguments = parser.parse_args()

    with cli.usage_errors():
        try:
            tokenizer = RobertaTokenizer.from_pretrained(arguments.tokenizer)
        except (OSError, ValueError) as error:
            raise UsageError(f"--tokenizer={arguments.tokenizer}: {error}") from error
        corpus = open_corpus(TextSource(files=arguments.text))
        counts = collections.Counter()
        documents = [text for piece in corpus.pieces() for text in corpus.documents(piece, counts)]
        megabytes = sum(len(text.encode()) for text in documents) / 1e6
        if megabytes < 1:
            raise UsageError(
                f"--text={arguments.text} holds {megabytes:.1g} MB of text, too little to measure "
                "the speed. Name files with at least 1 MB."
            )
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
    variants = {
        "ours, end to end": ours,
        "encode_batch": lambda: [len(tokenizer.backend.encode_batch(b)) for b in batches],
        "encode_batch_fast": lambda: [len(tokenizer.backend.encode_batch_fast(b)) for b in batches],
    }
    measured = {name: [] for name in variants}
    for _ in range(arguments.rounds):
        for name, run in variants.items():
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
    """Returns the wall time and the CPU time in seconds; the latter includes child processes."""
    before = os.times()
    run()
    after = os.times()
    return after.elapsed - before.elapsed, sum(after[:4]) - sum(before[:4])


if __name__ == "__main__":
    main()
