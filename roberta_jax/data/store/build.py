"""Builds the two token stores of a corpus, train/ and heldout/, with several processes.

The main process divides the text into chunks of some 8 MB. A worker splits a chunk into documents
and sentences, encodes them and writes a part. The main process joins the parts into shards (see
`shards`).

The chunks depend only on the bytes of the text, and parts are joined in order. The stores are
therefore the same byte for byte for any number of workers, and after any number of interruptions.
Finished parts are not built again.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

import tqdm.auto

from roberta_jax.data.store.digests import new_hash
from roberta_jax.data.store.layout import INDEX, lay_out, token_dtype
from roberta_jax.data.store.shards import BUILDING, HELDOUT, TRAIN, ShardWriter, write_part
from roberta_jax.data.store.token_store import TokenStore
from roberta_jax.data.text.corpus import Corpus, Piece, is_heldout
from roberta_jax.data.text.sentences import split_sentences
from roberta_jax.errors import UsageError
from roberta_jax.storage.locks import exclusive_lock
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.tokenizer.bulk import BulkEncoder

CHUNK_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a corpus is divided into stores and sentences.

    Attributes:
      validation_fraction: Fraction of the documents, in [0, 1), in the held-out store.
      sentences: "split" or "lines", see `split_sentences`.
      language: The language code, for "split".
      max_overlap: Held-out documents of which a larger fraction also occurs in the training text
        are left out of both stores; see `overlap.overlap_with_training`. 1 keeps all.
    """

    validation_fraction: float
    sentences: str
    language: str
    max_overlap: float = 1.0


def build_stores(
    folder: pathlib.Path,
    corpus: Corpus,
    tokenizer: RobertaTokenizer,
    recipe: Recipe,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> tuple[TokenStore, TokenStore]:
    """Opens the stores train/ and heldout/ in `folder`; builds them first if necessary.

    If another process is building the same stores, this one waits for it.

    Args:
      folder: A folder for this corpus, tokenizer and recipe only; its name must identify them.
      corpus: The text.
      tokenizer: Encodes the text.
      recipe: How the corpus is divided.
      workers: Number of processes. None uses one for each core.
      progress: Whether to show a progress bar.

    Raises:
      UsageError: The text cannot be read, a worker died, or a store in the folder is damaged.
      OSError: Writing failed because of lacking space or permission.
    """

    # If the stores are complete, nothing is written, so the folder can be read-only. Parts are left
    # over only if a process was killed while it deleted them.
    if not are_complete(folder) or (folder / BUILDING).exists():
        with folder_lock(folder, progress):
            if not are_complete(folder):
                workers = workers or len(_usable_cores())
                _build(folder, _Encoder(corpus, tokenizer, recipe), workers, progress)
            shutil.rmtree(folder / BUILDING, ignore_errors=True)
    train, heldout = TokenStore.open(folder / TRAIN), TokenStore.open(folder / HELDOUT)
    _check_origin(train, heldout, tokenizer)
    return train, heldout


def are_complete(folder: pathlib.Path) -> bool:
    """Whether the two stores of a folder were built to their end."""
    return all((folder / side / INDEX).exists() for side in (TRAIN, HELDOUT))


def _check_origin(train: TokenStore, heldout: TokenStore, tokenizer: RobertaTokenizer) -> None:
    """Checks that the stores belong together and to the tokenizer."""
    advice = "Delete that folder and prepare the text again."
    for store in (train, heldout):
        made_with = (store.fingerprint, store.vocab_size, store.eos_id)
        if made_with != (tokenizer.fingerprint(), len(tokenizer), tokenizer.eos_token_id):
            raise UsageError(f"{store.folder} was made with another tokenizer. {advice}")
    counts = train.index["counts"]
    num_documents = train.num_documents + heldout.num_documents + counts.get("overlapping", 0)
    num_tokens = train.num_tokens + heldout.num_tokens + counts.get("overlapping_tokens", 0)
    if (
        heldout.index["counts"] != counts
        or num_documents != counts["documents"]
        or num_tokens != counts["tokens"]
    ):
        raise UsageError(
            f"The stores in {train.folder.parent} do not belong together: their texts do not add "
            f"up to the corpus. {advice}"
        )


def content_hash(corpus: Corpus) -> str:
    """The hash of a corpus's text, which `build_stores` writes into the index ("text_blake2b")."""
    hasher = new_hash()
    for piece in corpus.pieces():
        hasher.update(piece.data)
    return hasher.hexdigest()


@contextlib.contextmanager
def folder_lock(folder: pathlib.Path, progress: bool) -> Iterator[None]:
    """Holds an exclusive lock on a folder; waits if another process holds it.

    Args:
      folder: The folder, which need not exist. The lock file is created beside it.
      progress: Whether to print a line before waiting.
    """

    def report_wait() -> None:
        if progress:
            print(f"Waiting for another process that prepares {folder}", file=sys.stderr)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder.with_name(folder.name + ".lock"), on_wait=report_wait):
        yield


class _Encoder:
    """Encodes chunks of text in a worker process; can be pickled."""

    def __init__(self, corpus: Corpus, tokenizer: RobertaTokenizer, recipe: Recipe):
        self.corpus, self.tokenizer, self.recipe = corpus, tokenizer, recipe
        self.dtype = token_dtype(len(tokenizer))
        self._bulk = BulkEncoder(tokenizer)

    def __call__(self, building: pathlib.Path, number: int, pieces: list[Piece]) -> int:
        """Writes part `number` into `building`; returns `number`."""
        counts: collections.Counter = collections.Counter()
        documents: dict[str, list[list[str]]] = {TRAIN: [], HELDOUT: []}
        for piece in pieces:
            for text in self.corpus.documents(piece, counts):
                sentences = split_sentences(text, self.recipe.sentences, self.recipe.language)
                if not sentences:
                    counts["empty"] += 1
                    continue
                side = HELDOUT if is_heldout(text, self.recipe.validation_fraction) else TRAIN
                documents[side].append(sentences)
                counts["characters"] += len(text)
        arrays = {side: self._encode(documents[side]) for side in documents}
        counts["documents"] = sum(map(len, documents.values()))
        counts["tokens"] = sum(len(tokens) for tokens, _, _ in arrays.values())
        write_part(building, number, arrays, counts)
        return number

    def _encode(self, documents: list[list[str]]):
        ids_T, sentence_lengths_S, document_lengths_D = self._bulk.encode_documents(documents)
        eos_id = self.tokenizer.eos_token_id
        return lay_out(ids_T.astype(self.dtype), sentence_lengths_S, document_lengths_D, eos_id)


def _build(folder: pathlib.Path, encoder: _Encoder, workers: int, progress: bool) -> None:
    writer = ShardWriter(folder, encoder.dtype)
    corpus, tokenizer = encoder.corpus, encoder.tokenizer
    hasher = new_hash()
    chunks = enumerate(_chunks(corpus.pieces(), hasher))
    first = list(itertools.islice(chunks, 2))
    if len(first) < 2:
        workers = 1  # starting processes takes longer than encoding one chunk
    pending: dict[concurrent.futures.Future, list[Piece]] = {}
    with _Bar(corpus.size, progress) as bar, _pool(encoder, workers) as submit:

        def collect(at_most: int) -> None:
            """Adds finished parts until at most this many are pending."""
            while len(pending) > at_most:
                completed = concurrent.futures.wait(pending, return_when="FIRST_COMPLETED").done
                for future in completed:
                    pieces = pending.pop(future)
                    writer.add(_result(future))
                    bar.advance(pieces, writer.counts)

        for number, pieces in itertools.chain(first, chunks):
            if writer.has(number):
                bar.advance(pieces, writer.counts)
                continue
            pending[submit(writer.building, number, pieces)] = pieces
            collect(at_most=2 * workers)  # bounds the memory
        collect(at_most=0)
    writer.finish(
        vocab_size=len(tokenizer),
        eos_id=tokenizer.eos_token_id,
        fingerprint=tokenizer.fingerprint(),
        max_overlap=encoder.recipe.max_overlap,
        workers=workers,
        about={
            "source": corpus.identity(),
            "recipe": dataclasses.asdict(encoder.recipe),
            "text_blake2b": hasher.hexdigest(),
        },
    )


def _chunks(pieces: Iterator[Piece], hasher) -> Iterator[list[Piece]]:
    """Groups pieces into chunks of at least CHUNK_BYTES, except the last; hashes all of them."""
    chunk: list[Piece] = []
    size = 0
    for piece in pieces:
        hasher.update(piece.data)
        chunk.append(piece)
        size += len(piece.data)
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class _Bar:
    """A progress bar over the bytes of the files, with the speed in bytes of text."""

    def __init__(self, size: int | None, show: bool):
        self._text_bytes = 0
        self._start = time.monotonic()
        layout = "{desc} |{bar}| {percentage:.0f}% [{elapsed}<{remaining}{postfix}]"
        self._bar = tqdm.auto.tqdm(
            desc="Preparing text",
            total=size,
            disable=not show,
            bar_format=layout if size else "{desc} [{elapsed}{postfix}]",
        )

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def advance(self, pieces: list[Piece], counts: collections.Counter) -> None:
        self._text_bytes += sum(len(piece.data) for piece in pieces)
        megabytes = self._text_bytes / 1e6
        speed = megabytes / max(time.monotonic() - self._start, 1e-3)
        self._bar.set_postfix_str(
            f"{megabytes:.0f} MB, {speed:.1f} MB/s, {counts['documents']} documents", refresh=False
        )
        self._bar.update(sum(piece.read for piece in pieces))


@contextlib.contextmanager
def _pool(encoder: _Encoder, workers: int):
    """Yields `submit(*arguments) -> Future`, which runs `encoder(*arguments)` in a process."""
    if workers == 1:
        yield lambda *arguments: _run_here(encoder, *arguments)
        return
    # Spawn, because forking a process in which JAX or TensorFlow has started threads can hang.
    executor = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (encoder,)
    )

    def submit(*arguments):
        with _without_main(), _interrupts_blocked():
            return executor.submit(_run_in_worker, *arguments)

    try:
        yield submit
    finally:
        executor.shutdown(cancel_futures=True)


def _run_here(encoder: _Encoder, *arguments) -> concurrent.futures.Future:
    future: concurrent.futures.Future = concurrent.futures.Future()
    future.set_result(encoder(*arguments))
    return future


@contextlib.contextmanager
def _without_main():
    """Hides the origin of `__main__`, so that new processes do not import the user's script.

    The script would import JAX in each process. Without this, scripts would also need the guard
    `if __name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    hidden = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    try:
        for name in hidden:
            setattr(main, name, None)
        yield
    finally:
        vars(main).update(hidden)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Blocks Ctrl-C in the processes that are started within, which inherit it.

    They would otherwise print a traceback if it reached them while they import their modules. In
    this process it arrives at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _result(future: concurrent.futures.Future) -> int:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UsageError(
            "A worker process died while preparing text, most likely because memory ran out. "
            "Finished parts are kept: run the command again with fewer processes, such as "
            "--config.data.num_workers=1 (the default is one for each core)."
        ) from error


_encoder: _Encoder  # in a worker process


def _start_worker(encoder: _Encoder) -> None:
    global _encoder
    _encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Ends a worker whose parent was killed, which would otherwise wait for work forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _run_in_worker(*arguments) -> int:
    return _encoder(*arguments)


def _usable_cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
