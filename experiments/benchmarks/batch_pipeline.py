"""Measures the speed of making masked batches, and that of Hugging Face's collator.

    python experiments/benchmarks/batch_pipeline.py [--rows=256 --seq_len=512 --rounds=7]

It needs the extras `data` and `parity`, takes about a minute and writes
experiments/benchmarks/results/batch_pipeline.json. With another --format, such as sentence_pair, in
which several inputs share a row, it only prints the results.

Ours is the whole pipeline of training with its default number of threads: the order of the rows,
the gather from the memory-mapped store, `<s>`, padding, and masking with exact counts; both engines
are measured. The peer is `transformers.DataCollatorForLanguageModeling` on the same rows. It has
less to do: the rows are in memory as tensors, with the mask of special tokens that `run_mlm.py`
computes in advance, and it draws each token independently, so that its counts are not exact. It
runs in the main process, as is usual, and in a DataLoader with one worker process per core.

All variants are measured in turn within each round, so that other work on the machine affects all
of them; results are medians over the rounds. In addition to tokens per second of wall time, it
reports tokens per second of CPU time, which other work affects less (except for the DataLoader,
which works in other processes). Token ids are random, since the time does not depend on their
values.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from experiments.benchmarks.arguments import positive
from roberta_jax import cli
from roberta_jax.data import hashing, pipeline
from roberta_jax.data.batches import PackedDataset
from roberta_jax.data.masking import Masking
from roberta_jax.data.packing import index as packing
from roberta_jax.data.store import layout
from roberta_jax.data.store.token_store import TokenStore

VOCAB, BOS, PAD, EOS, MASK = 50265, 0, 1, 2, 50264
RESULTS = pathlib.Path(__file__).parent / "results" / "batch_pipeline.json"


def make_store(folder: pathlib.Path, num_tokens: int) -> TokenStore:
    """Writes a store of random ids with about 25 tokens per sentence, as in English text."""
    rng = np.random.default_rng(0)
    num_documents = num_tokens // (30 * 25)
    sentences = rng.integers(10, 51, num_documents)
    lengths = rng.geometric(1 / 25, sentences.sum())
    ids = rng.integers(4, MASK, lengths.sum()).astype(layout.token_dtype(VOCAB))
    arrays = layout.lay_out(ids, lengths, sentences, EOS)
    shard = layout.write_shard(folder, "00000", ids.dtype, [arrays])
    layout.write_index(folder, vocab_size=VOCAB, eos_id=EOS, fingerprint="", shards=[shard])
    return TokenStore.open(folder)


def make_collator():
    """Returns Hugging Face's collator, with a tokenizer that has RoBERTa's special ids."""
    import tokenizers
    import transformers

    vocab = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": 3, "<mask>": MASK}
    vocab |= {f"token{i}": i for i in range(4, MASK)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, "<unk>")),
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    return transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)


def peers(dataset: PackedDataset, num_rows: int) -> dict[str, Callable[[], Iterator]]:
    """Returns the collator in the main process and in a DataLoader, on rows of the same corpus."""
    import torch

    rows = dataset.assemble(np.arange(16 * num_rows) % dataset.num_rows)["input_ids"]
    examples = [
        {
            "input_ids": torch.from_numpy(ids.astype(np.int64)),
            "special_tokens_mask": torch.from_numpy(np.isin(ids, (BOS, PAD, EOS)).astype(np.int64)),
        }
        for ids in rows
    ]
    collate = make_collator()

    def collator():
        while True:
            for start in range(0, len(examples), num_rows):
                yield collate(examples[start : start + num_rows])

    def loader():
        while True:
            yield from torch.utils.data.DataLoader(
                16 * examples, num_rows, collate_fn=collate, num_workers=os.cpu_count()
            )

    return {"hf_collator": collator, "hf_dataloader": loader}


def stages(dataset: PackedDataset, num_rows: int, rounds: int) -> dict[str, float]:
    """Returns the milliseconds that one thread takes for the parts of one of our batches."""
    rows = np.arange(num_rows) * 7 % dataset.num_rows
    epochs = np.zeros_like(rows)
    keys = hashing.fold(0, rows)
    bits = hashing.hash32(keys, np.arange(dataset.seq_len))
    parts = {
        "row_order": lambda: hashing.permute(rows, dataset.num_rows, 0, epochs),
        "assemble": lambda: dataset.assemble(rows),
        "assemble_and_mask": lambda: dataset(rows, epochs),
        "of_masking_hash": lambda: hashing.hash32(keys, np.arange(dataset.seq_len)),
        "of_masking_partition": lambda: np.partition(bits, dataset.num_slots - 1, axis=1),
    }
    return {
        name: round(1000 * statistics.median(seconds(part) for _ in range(10 * rounds)), 3)
        for name, part in parts.items()
    }


def seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(batches: Iterator, num_batches: int) -> tuple[float, float]:
    """Returns batches per second of wall time and of CPU time, after filling the buffers."""
    for _ in range(12):
        next(batches)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(num_batches):
        next(batches)  # the batch is freed immediately, as in training
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    batches.close()
    return num_batches / wall, num_batches / cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=positive, default=256)
    parser.add_argument("--seq_len", type=positive, default=512)
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--format", default="full_sentences", choices=packing.FORMATS)
    args = parser.parse_args()
    with cli.usage_errors():
        packing.check_packing(args.format, args.seq_len, packing.PairOptions())

    with tempfile.TemporaryDirectory() as folder:
        store = make_store(pathlib.Path(folder), 20_000_000)
        pack = functools.partial(packing.load_or_pack, store, args.format, args.seq_len)
        packing_seconds = seconds(pack)
        packed = pack()
        dataset = PackedDataset(
            store,
            packed,
            Masking(),
            0,
            vocab_size=VOCAB,
            bos_id=BOS,
            pad_id=PAD,
            mask_id=MASK,
            special_ids=(BOS, PAD, EOS, 3, MASK),
            token_types=True,
            next_sentence=args.format in packing.PAIR_FORMATS,
        )

        def run(engine):
            return pipeline.train_batches(
                dataset, batch_size=args.rows, seed=0, start_step=0, engine=engine
            )

        variants = {"tf": lambda: run("tf"), "numpy": lambda: run("numpy")}
        variants |= peers(dataset, args.rows)
        measured = {name: [] for name in variants}
        for _ in range(args.rounds):
            for name, start in variants.items():
                measured[name].append(measure(start(), 12 if name.startswith("hf") else 300))
        mtok = args.rows * args.seq_len / 1e6
        wall = {name: sorted(mtok * x for x, _ in values) for name, values in measured.items()}
        core = {name: [mtok * x for _, x in values] for name, values in measured.items()}
        del core["hf_dataloader"]
        median = {name: statistics.median(values) for name, values in wall.items()}
        report = {
            "command": " ".join(["python experiments/benchmarks/batch_pipeline.py", *sys.argv[1:]]),
            "shape": [args.rows, args.seq_len],
            "Mtok_per_s": {name: round(value, 2) for name, value in median.items()},
            "Mtok_per_s_worst_and_best": {
                name: [round(values[0], 2), round(values[-1], 2)] for name, values in wall.items()
            },
            "Mtok_per_core_s": {
                name: round(statistics.median(values), 2) for name, values in core.items()
            },
            "times_as_fast": {
                f"{ours}/{peer}": round(median[ours] / median[peer], 1)
                for ours in ("tf", "numpy")
                for peer in ("hf_collator", "hf_dataloader")
            },
            "one_thread_ms": stages(dataset, args.rows, args.rounds),
            "packing": {
                "tokens": store.num_tokens,
                "seconds": round(packing_seconds, 3),
                "padding_share": round(packed.padding_share, 4),
            },
            "machine": {
                "cores": os.cpu_count(),
                "load_average": os.getloadavg(),
                "platform": platform.platform(),
            },
            "versions": versions(),
        }
    text = json.dumps(report, indent=1)
    print(text)
    if args.format == "full_sentences":
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text + "\n")


def versions() -> dict[str, str]:
    import importlib.metadata as metadata

    packages = ("numpy", "tensorflow-cpu", "torch", "transformers")
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in packages}


if __name__ == "__main__":
    main()
