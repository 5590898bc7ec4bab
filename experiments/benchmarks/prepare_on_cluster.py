"""Measures tokenising by several processes of each runner, and compares the stores' bytes.

    python experiments/benchmarks/prepare_on_cluster.py --text='TEXT/*.jsonl' --tokenizer=FOLDER \\
        --runners=local,ray,beam --workers=1,2,4

Each process stands for a host of a cluster: Ray and Beam run on this machine, with so many workers.
The engine's own start is not measured for Ray, whose cluster is there before; Beam starts its
workers with each pipeline. All stores must be equal, byte for byte; if one is not, the exit status
is 1. MB are megabytes of UTF-8 text, without the JSON syntax.
"""

import argparse
import contextlib
import hashlib
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator

import psutil

from experiments.benchmarks.arguments import positives, some_of
from roberta_jax import cli
from roberta_jax.data.executors import RUNNERS, Runner, check_runner
from roberta_jax.data.store import build
from roberta_jax.data.store.digests import CHECKED
from roberta_jax.data.text.corpus import open_corpus
from roberta_jax.data.text.source import TextSource
from roberta_jax.tokenizer import RobertaTokenizer

RECIPE = build.Recipe(0.01, "split", "en", max_overlap=0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True, help="glob of text or JSON-lines files")
    parser.add_argument("--tokenizer", required=True, help="folder of a tokenizer")
    parser.add_argument("--runners", type=some_of(RUNNERS), default="local")
    parser.add_argument("--workers", type=positives, default=[1, 2, 4], help="numbers of workers")
    arguments = parser.parse_args()
    runners = [Runner(name) for name in arguments.runners.split(",")]
    with cli.usage_messages():
        for runner in runners:
            check_runner(runner)
        tokenizer = RobertaTokenizer.from_pretrained(arguments.tokenizer)
        corpus = open_corpus(TextSource(files=arguments.text))
        corpus.check()
    megabytes = sum(len(piece.data) for piece in corpus.pieces()) / 1e6
    print(f"{megabytes:.1f} MB, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    first = None
    all_equal = True
    for workers in arguments.workers:
        for runner in runners:
            with tempfile.TemporaryDirectory() as name, _cluster(runner, workers):
                folder = pathlib.Path(name) / "stores"
                cpu, started = _cpu_seconds(), time.perf_counter()
                build.build_stores(
                    folder, corpus, tokenizer, RECIPE, workers=workers, runner=runner
                )
                seconds, cpu = time.perf_counter() - started, _cpu_seconds() - cpu
                digest = _digest(folder)
            first = first or digest
            all_equal = all_equal and digest == first
            print(
                f"{runner.name:5} x{workers}: {megabytes / seconds:6.2f} MB/s, "
                f"{megabytes / cpu:6.2f} MB per core second, "
                f"{'the same bytes' if digest == first else 'OTHER BYTES'}",
                flush=True,
            )
    return 0 if all_equal else 1


@contextlib.contextmanager
def _cluster(runner: Runner, workers: int) -> Iterator[None]:
    """A Ray cluster of this machine with so many workers; nothing for other runners."""
    if runner.name != "ray":
        yield
        return
    import ray

    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _cpu_seconds() -> float:
    """CPU time of this process and its descendants, also of those that have ended."""
    total = sum(os.times()[:4])
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _digest(folder: pathlib.Path) -> str:
    """A digest of all files of a folder, by name, without what this machine noted about them."""
    digest = hashlib.blake2b()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name != CHECKED:
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
