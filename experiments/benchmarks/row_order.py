"""Compares the windowed order of rows with the full permutation: quality, and what is read.

    python experiments/benchmarks/row_order.py --text='TEXT/*.jsonl.xz' --cache=FOLDER

It needs at least some 50 MB of text, which is prepared in FOLDER with a tokenizer of 8192 tokens,
and prints the tables of experiments/benchmarks/results/row_order.md. Parts, chosen with --parts:

neighbours  For each row of a batch, the distance in the text to the nearest other row of the
            batch; and the documents in a batch.
gradients   Gradient noise: the expected squared distance of a batch's gradient from that of the
            whole corpus, for a model that was trained on the full order. Also that of the mean over
            16 successive batches, times 16, which shows how much they have in common. Both are
            divided by the value of the full order, so 1 is a perfect shuffle.
training    The validation loss after training with some of the orders, for several seeds.
reads       For 40 G tokens in rows of 512: the 4 KB pages and the blocks of 8 MB that the rows of a
            step are in, and what one of 1, 4 and 16 hosts needs of the store in 100 steps. For a
            synthetic store of --tokens tokens of which nothing is in memory at first: the bytes
            that the disk reads in --read_steps steps.

"sequential" is the order of the text, the worst case.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from configs.pretrain import get_config
from experiments.benchmarks.arguments import positive, some_of
from experiments.benchmarks.synthetic_store import dataset_of, make_store
from roberta_jax import cli
from roberta_jax.data.batches import PackedDataset
from roberta_jax.data.masking import Masking
from roberta_jax.data.packing.index import load_or_pack
from roberta_jax.data.pipeline import eval_batches, rows_at
from roberta_jax.data.row_order import FULL, RowOrder, WindowedOrder
from roberta_jax.data.store import layout
from roberta_jax.data.store.token_store import TokenStore
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.pretraining.datasets import model_inputs
from roberta_jax.pretraining.text import Prepared, check_sources, prepare
from roberta_jax.pretraining.text_spec import read_text_spec

PARTS = ("neighbours", "gradients", "training", "reads")
SEQ_LEN, BATCH = 64, 32
BLOCK_ROWS = 128  # in the parts with real text, so that a small corpus has thousands of blocks
SUCCESSIVE = 16
TRAINED = (
    "full",
    "window 16, 16 streams",
    "window 4, 4 streams",
    "window 1, 1 stream",
    "sequential",
)


class Sequential:
    """The rows in the order of the text."""

    def __call__(self, index, size, seed, epochs):
        return np.asarray(index, np.int64)


def windowed(window: int, streams: int, block_rows: int, batch: int) -> WindowedOrder:
    return WindowedOrder(block_rows, window, streams, max(1, batch // streams))


def orders(block_rows: int, batch: int) -> dict[str, RowOrder]:
    sizes = ((16, 16), (16, 4), (16, 1), (4, 4), (4, 1), (1, 1))
    names = {
        f"window {window}, {streams} stream{'s' * (streams > 1)}": (window, streams)
        for window, streams in sizes
    }
    return {
        "full": FULL,
        **{name: windowed(*pair, block_rows, batch) for name, pair in names.items()},
        "sequential": Sequential(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", help="a glob of files, as for config.data.files")
    parser.add_argument("--cache", help="the folder for the prepared text")
    parser.add_argument("--parts", type=some_of(PARTS), default=",".join(PARTS))
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--steps", type=positive, default=600, help="of each training run")
    parser.add_argument("--places", type=positive, default=12, help="where gradients are taken")
    parser.add_argument("--tokens", type=positive, default=400_000_000)
    parser.add_argument("--read_steps", type=positive, default=100)
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with cli.usage_errors():
        if set(parts) - {"reads"}:
            with_text(arguments, parts)
        if "reads" in parts:
            reads(arguments.tokens, arguments.read_steps)


def with_text(arguments: argparse.Namespace, parts: list[str]) -> None:
    if not arguments.text or not arguments.cache:
        raise UsageError("give --text and --cache, or --parts=reads")
    config = get_config("small")
    config.data.files, config.data.cache_dir = arguments.text, arguments.cache
    spec = read_text_spec(config)
    check_sources(spec)
    prepared = prepare(spec)
    dataset = make_dataset(prepared, prepared.train)
    print(
        f"{prepared.train.num_tokens:,} tokens in {prepared.train.num_documents:,} documents, "
        f"{dataset.num_rows:,} rows of {SEQ_LEN} tokens, "
        f"{-(-dataset.num_rows // BLOCK_ROWS):,} blocks of {BLOCK_ROWS} rows, batches of {BATCH}"
    )
    if "neighbours" in parts:
        neighbours(prepared, dataset)
    if set(parts) & {"gradients", "training"}:
        training = Training(prepared, dataset, arguments.steps)
        if "gradients" in parts:
            gradients(training, arguments.places)
        if "training" in parts:
            compare_training(training, arguments.seeds)


def make_dataset(prepared: Prepared, store: TokenStore) -> PackedDataset:
    tokenizer = prepared.tokenizer
    return PackedDataset(
        store,
        load_or_pack(store, "full_sentences", SEQ_LEN),
        Masking(),
        0,
        vocab_size=len(tokenizer),
        bos_id=tokenizer.bos_token_id,
        pad_id=tokenizer.pad_token_id,
        mask_id=tokenizer.mask_token_id,
        special_ids=tokenizer.all_special_ids,
    )


def neighbours(prepared: Prepared, dataset: PackedDataset) -> None:
    packed = load_or_pack(prepared.train, "full_sentences", SEQ_LEN)
    starts = packed.inputs["a_start"][packed.rows[:-1]]
    shards = prepared.train.shards
    document_ends = np.concatenate([shard.document_ends + shard.start for shard in shards])
    documents = np.searchsorted(document_ends, starts, side="right")
    print("\n| order | nearest row, median tokens | within 1,000 tokens | documents in a batch |")
    print("|---|---|---|---|")
    for name, order in orders(BLOCK_ROWS, BATCH).items():
        distances, distinct = [], []
        for step in np.linspace(0, dataset.num_rows // BATCH - 1, 300).astype(int):
            rows = np.sort(rows_of(step, dataset, order, seed=0)[0])
            gaps = np.diff(starts[rows])
            distances.append(np.minimum(np.append(gaps, gaps[-1]), np.insert(gaps, 0, gaps[0])))
            distinct.append(len(np.unique(documents[rows])))
        nearest = np.concatenate(distances)
        print(
            f"| {name} | {np.median(nearest):,.0f} | {(nearest < 1000).mean():.1%} | "
            f"{np.mean(distinct):.1f} |"
        )


def rows_of(step: int, dataset: PackedDataset, order: RowOrder, seed: int):
    positions = step * BATCH + np.arange(BATCH)
    return rows_at(positions, dataset.epoch_ends, seed, order)


class Training:
    """A small masked language model and its optimizer."""

    def __init__(self, prepared: Prepared, dataset: PackedDataset, steps: int):
        self.dataset, self.steps = dataset, steps
        config = RobertaConfig(
            vocab_size=len(prepared.tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=256,
            max_position_embeddings=SEQ_LEN + 2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.08,
        )
        model = RobertaForMaskedLM(config, Execution(dtype=jnp.float32))
        schedule = optax.warmup_cosine_decay_schedule(0, 3e-3, steps // 10, steps)
        optimizer = optax.adamw(schedule, b2=0.98, weight_decay=0.01)

        def loss_of(params, batch):
            sums = model.apply({"params": params}, **batch, method="loss")
            return sum(sums[name] / n for name, n in model.count(**batch).items())

        @jax.jit
        def update(params, state, batch):
            loss, grads = jax.value_and_grad(loss_of)(params, batch)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss

        self.gradient = jax.jit(
            lambda params, batch: jax.flatten_util.ravel_pytree(jax.grad(loss_of)(params, batch))[0]
        )
        self._loss, self._update, self._optimizer = jax.jit(loss_of), update, optimizer
        self._init = lambda seed: model.init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))
        heldout = make_dataset(prepared, prepared.heldout)
        self._heldout = [
            model_inputs(batch, 1)
            for batch in eval_batches(heldout, batch_size=BATCH, seed=1, max_rows=2048)
        ]

    def batch(self, step: int, order: RowOrder, seed: int) -> dict[str, np.ndarray]:
        return model_inputs(self.dataset(*rows_of(step, self.dataset, order, seed)), 1)

    def run(self, order: RowOrder, seed: int):
        """Trains with an order; returns the parameters and the validation loss."""
        params = self._init(seed)["params"]
        state = self._optimizer.init(params)
        for step in range(self.steps):
            params, state, _ = self._update(params, state, self.batch(step, order, seed))
        losses = [float(self._loss(params, batch)) for batch in self._heldout]
        return params, statistics.mean(losses)


def gradients(training: Training, places: int) -> None:
    params, loss = training.run(FULL, seed=0)
    print(f"\nGradients of a model of validation loss {loss:.3f}, at {places} places of an epoch")
    last = training.dataset.num_rows // BATCH - SUCCESSIVE

    def batches(order: RowOrder, seed: int) -> Iterator[list[np.ndarray]]:
        for place in np.linspace(0, last, places).astype(int):
            yield [
                np.asarray(training.gradient(params, training.batch(step, order, seed)))
                for step in range(place, place + SUCCESSIVE)
            ]

    # The gradient of the corpus, from other batches of the full order.
    expected, count, square = 0.0, 0, 0.0
    for group in batches(FULL, seed=1):
        for gradient in group:
            expected, count, square = expected + gradient, count + 1, square + gradient @ gradient
    expected = expected / count
    noise_of_expected = (square / count - expected @ expected) / (count - 1)

    print("| order | gradient noise | of 16 successive batches |\n|---|---|---|")
    baseline = None
    for name, order in orders(BLOCK_ROWS, BATCH).items():
        single, successive = [], []
        for group in batches(order, seed=2):
            single += [float((each - expected) @ (each - expected)) for each in group]
            mean = np.mean(group, axis=0) - expected
            successive.append(float(mean @ mean))
        values = (
            statistics.mean(single) - noise_of_expected,
            SUCCESSIVE * (statistics.mean(successive) - noise_of_expected),
        )
        baseline = baseline or values
        print(
            f"| {name} | {values[0] / baseline[0]:.3f} | {values[1] / baseline[1]:.3f} |",
            flush=True,
        )


def compare_training(training: Training, seeds: int) -> None:
    print(f"\nValidation loss after {training.steps} steps, seeds 0 to {seeds - 1}")
    print("| order | mean | difference to full, and its standard error | each |\n|---|---|---|---|")
    full: list[float] = []
    for name, order in orders(BLOCK_ROWS, BATCH).items():
        if name not in TRAINED:
            continue
        losses = [training.run(order, seed)[1] for seed in range(seeds)]
        full = full or losses
        gaps = [loss - base for loss, base in zip(losses, full, strict=True)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        each = " ".join(f"{loss:.4f}" for loss in losses)
        gap = f"{statistics.mean(gaps):+.4f} ± {error:.4f}" if order is not FULL else ""
        print(f"| {name} | {statistics.mean(losses):.4f} | {gap} | {each} |", flush=True)


def reads(disk_tokens: int, read_steps: int) -> None:
    seq_len, batch, block_tokens = 512, 8192, 1 << 22
    rows = 40 * 10**9 // seq_len
    block_rows, row_bytes = block_tokens // seq_len, 2 * seq_len
    sizes = ((16, 16), (4, 16), (16, 1), (4, 1))
    print(
        f"\n{rows:,} rows of {seq_len} tokens (80 GB), batches of {batch}, blocks of 8 MB\n"
        "| order | pages a step | blocks a step | GB of blocks in 100 steps: 1 host | of 4 | "
        "of 16 |\n|---|---|---|---|---|---|"
    )
    chosen = {"full": FULL} | {
        f"window {w}, {s} stream{'s' * (s > 1)}": windowed(w, s, block_rows, batch)
        for w, s in sizes
    }
    for name, order in chosen.items():

        def rows_of_host(step: int, hosts: int, order: RowOrder = order) -> np.ndarray:
            positions = step * batch + np.arange(batch // hosts)
            return rows_at(positions, np.array([rows]), 0, order)[0]

        first = rows_of_host(0, 1)
        pages = len(np.unique(first * row_bytes // 4096))
        blocks = len(np.unique(first // block_rows))
        needed = []
        for hosts in (1, 4, 16):
            seen = np.concatenate([rows_of_host(step, hosts) for step in range(100)])
            needed.append(f"{len(np.unique(seen // block_rows)) * 2 * block_tokens / 1e9:.1f}")
        print(f"| {name} | {pages:,} | {blocks:,} | {' | '.join(needed)} |", flush=True)

    with tempfile.TemporaryDirectory(dir=".") as folder:
        shard_tokens = min(disk_tokens, layout.SHARD_TOKENS)
        make_store(pathlib.Path(folder), max(1, disk_tokens // shard_tokens), shard_tokens)
        store = TokenStore.open(pathlib.Path(folder))
        packed = load_or_pack(store, "full_sentences", seq_len)
        index = store.index
        del store  # with its memory maps, whose pages would stay in memory
        print(
            f"\n{packed.num_rows:,} rows ({2 * index['num_tokens'] / 1e9:.1f} GB), batches of 512, "
            f"blocks of 8 MB, {read_steps} steps\n| order | MB of rows | MB read | seconds |\n"
            "|---|---|---|---|"
        )
        chosen = {"full": FULL} | {
            f"window {w}, {s} stream{'s' * (s > 1)}": windowed(w, s, block_rows, 512)
            for w, s in ((4, 4), (4, 1), (1, 4))
        }
        for name, order in chosen.items():
            read, seconds = read_from_disk(folder, index, packed, order, 512, read_steps)
            size = read_steps * 512 * row_bytes / 1e6
            print(f"| {name} | {size:.0f} | {read / 1e6:.0f} | {seconds:.1f} |", flush=True)


def read_from_disk(folder, index, packed, order, batch: int, steps: int) -> tuple[int, float]:
    """The bytes and the seconds for the rows of some steps, when no page is in memory at first."""
    store = TokenStore(pathlib.Path(folder), index)
    for shard in store.shards:
        with layout.array_path(store.folder, shard.name, "tokens").open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    dataset = dataset_of(store, packed, order)
    before, start = bytes_read(), time.perf_counter()
    for step in range(steps):
        positions = step * batch + np.arange(batch)
        dataset.assemble(rows_at(positions, dataset.epoch_ends, 0, order)[0])
    return bytes_read() - before, time.perf_counter() - start


def bytes_read() -> int:
    """Bytes that this process has had the disk read (Linux)."""
    lines = pathlib.Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


if __name__ == "__main__":
    main()
