"""Builds the two token stores of a corpus, train/ and heldout/, with several processes.

The main process divides the text into chunks of some 8 MB. A worker splits a chunk into documents
and sentences, encodes them and writes a part. The main process joins the parts into shards (see
`shards`). The workers are processes of this machine or of a cluster, see `executors`.

The chunks depend only on the bytes of the text, and parts are joined in order. The stores are
therefore the same byte for byte for any number of workers, and after any number of interruptions.
Finished parts are not built again.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import tqdm.auto

from roberta_jax.data.executors import LOCAL, Runner, open_executor, usable_cores
from roberta_jax.data.store.layout import INDEX, lay_out, token_dtype
from roberta_jax.data.store.shards import BUILDING, HELDOUT, TRAIN, ShardWriter, write_part
from roberta_jax.data.store.token_store import TokenStore
from roberta_jax.data.text.corpus import Corpus, Piece, grouped, is_heldout
from roberta_jax.data.text.sentences import split_sentences
from roberta_jax.errors import UsageError
from roberta_jax.storage.locks import exclusive_lock
from roberta_jax.storage.reading import new_hash
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.tokenizer.bulk import BulkEncoder

CHUNK_BYTES = 8 << 20
# A part that was written on another machine can be seen here only after some time: network file
# systems remember for up to a minute that a file did not exist.
_SECONDS_TO_APPEAR = 90


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
    runner: Runner = LOCAL,
) -> tuple[TokenStore, TokenStore]:
    """Opens the stores train/ and heldout/ in `folder`; builds them first if necessary.

    If another process is building the same stores, this one waits for it.

    Args:
      folder: A folder for this corpus, tokenizer and recipe only; its name must identify them.
      corpus: The text.
      tokenizer: Encodes the text.
      recipe: How the corpus is divided.
      workers: Number of processes on this machine. None uses one for each core.
      progress: Whether to show a progress bar.
      runner: What runs the workers. For a cluster, `folder` must be on a file system that all its
        machines share.

    Raises:
      UsageError: The text cannot be read, a worker died, or a store in the folder is damaged.
      OSError: Writing failed because of lacking space or permission.
    """

    # If the stores are complete, nothing is written, so the folder can be read-only. Parts are left
    # over only if a process was killed while it deleted them.
    if not are_complete(folder) or (folder / BUILDING).exists():
        with folder_lock(folder, progress):
            if not are_complete(folder):
                workers = workers or usable_cores()
                _build(folder, _Encoder(corpus, tokenizer, recipe), workers, progress, runner)
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


def _build(
    folder: pathlib.Path, encoder: _Encoder, workers: int, progress: bool, runner: Runner
) -> None:
    writer = ShardWriter(folder, encoder.dtype)
    corpus, tokenizer = encoder.corpus, encoder.tokenizer
    hasher = new_hash()
    chunks = enumerate(_chunks(corpus.pieces(), hasher))
    first = list(itertools.islice(chunks, 2))
    if len(first) < 2:
        workers, runner = 1, LOCAL  # starting processes takes longer than encoding one chunk
    pending: dict[concurrent.futures.Future, _Sizes] = {}
    with (
        _Bar(corpus.size, progress) as bar,
        open_executor(encoder, workers, runner) as executor,
    ):

        def collect(at_most: int) -> None:
            """Adds finished parts until at most this many are pending."""
            while len(pending) > at_most:
                executor.flush()
                completed = concurrent.futures.wait(pending, return_when="FIRST_COMPLETED").done
                for future in completed:
                    sizes = pending.pop(future)
                    number = executor.result(future)
                    if not runner.is_local:
                        _wait_for_part(writer, number)
                    writer.add(number)
                    bar.advance(sizes, writer.counts)

        for number, pieces in itertools.chain(first, chunks):
            sizes = _Sizes.of(pieces)
            if writer.has(number):
                bar.advance(sizes, writer.counts)
                continue
            pending[executor.submit(writer.building, number, pieces)] = sizes
            collect(at_most=executor.max_pending)  # bounds the memory
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


def _wait_for_part(writer: ShardWriter, number: int) -> None:
    """Waits until a part that another machine has written can be seen here."""
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    while not writer.is_written(number):
        if time.monotonic() > deadline:
            raise UsageError(
                f"A worker has written part {number} of the text into {writer.building}, but it is "
                "not there on this machine. Name a folder that all machines of the cluster share "
                "with --config.data.cache_dir=FOLDER."
            )
        time.sleep(0.5)


def _chunks(pieces: Iterator[Piece], hasher) -> Iterator[list[Piece]]:
    """Groups pieces into chunks of at least CHUNK_BYTES, except the last; hashes all of them."""
    for chunk in grouped(pieces, CHUNK_BYTES):
        for piece in chunk:
            hasher.update(piece.data)
        yield chunk


class _Sizes(NamedTuple):
    """The sizes of a chunk in bytes: of its text, and of what was read from disk for it."""

    text: int
    read: int

    @classmethod
    def of(cls, pieces: list[Piece]) -> "_Sizes":
        return cls(sum(len(piece.data) for piece in pieces), sum(piece.read for piece in pieces))


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

    def advance(self, sizes: _Sizes, counts: collections.Counter) -> None:
        self._text_bytes += sizes.text
        megabytes = self._text_bytes / 1e6
        speed = megabytes / max(time.monotonic() - self._start, 1e-3)
        self._bar.set_postfix_str(
            f"{megabytes:.0f} MB, {speed:.1f} MB/s, {counts['documents']} documents", refresh=False
        )
        self._bar.update(sizes.read)
