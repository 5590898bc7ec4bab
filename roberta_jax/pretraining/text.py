"""Text preparation: trains the tokenizer unless one is named, and builds the token stores.

Everything is in `config.data.cache_dir`, named by a hash of all that decides its contents, so no
text is prepared twice:

    tokenizers/<hash>/     a trained tokenizer, in Hugging Face's format, and digests.json
    tokens/<hash>/         the stores train/ and heldout/

If `cache_dir` is on an object store, this folder is in the user's cache folder, and the entries are
copied from and to the object store (see `remote_cache`).

Files that are not what was written are noticed when they are opened (see `data.store.digests`): a
damaged tokenizer or packing index is made again, a damaged store is refused.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import logging
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

from roberta_jax.data.executors import LOCAL, Runner
from roberta_jax.data.packing.index import remove_damaged
from roberta_jax.data.store.build import (
    Recipe,
    are_complete,
    build_stores,
    content_hash,
    folder_lock,
)
from roberta_jax.data.store.digests import (
    DamagedError,
    check_files,
    read_json,
    with_digest,
)
from roberta_jax.data.store.layout import VERSION
from roberta_jax.data.store.shards import HELDOUT
from roberta_jax.data.store.token_store import TokenStore
from roberta_jax.data.text.corpus import Corpus, open_corpus
from roberta_jax.data.text.sample import training_sentences
from roberta_jax.errors import UsageError
from roberta_jax.pretraining.remote_cache import RemoteCache
from roberta_jax.pretraining.text_spec import CorpusSpec, TextSpec
from roberta_jax.storage.atomic import create_folder, write_json
from roberta_jax.storage.hub import tokenizer_folder
from roberta_jax.storage.reading import describe_file
from roberta_jax.tokenizer import RobertaTokenizer

# More text than this would hardly change a vocabulary, and counting it takes memory and minutes.
TOKENIZER_SAMPLE_BYTES = 1_000_000_000
_DIGESTS = "digests.json"  # in the folder of a trained tokenizer: sizes and hashes of its files


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Text that is ready for packing.

    Attributes:
      tokenizer: the one named in the config, or the one trained.
      train: documents to train on.
      heldout: documents to evaluate on; empty if `config.data.validation_fraction` is 0.
      more: documents to train on of each further corpus of `config.data.mixture`.
      is_new: whether anything was missing in the cache and had to be prepared.
    """

    tokenizer: RobertaTokenizer
    train: TokenStore
    heldout: TokenStore
    more: tuple[TokenStore, ...] = ()
    is_new: bool = True


def check_sources(spec: TextSpec, runner: Runner = LOCAL) -> None:
    """Checks that the text can be read: that its files or datasets exist, and how each one begins.

    Also that the cache can be used.

    It takes little time, so that a mistake is reported before anything is written.

    Args:
      spec: from `text_spec.read_text_spec`.
      runner: what is to run the tokenisation.

    Raises:
      UsageError: a source or the cache is wrong; the message says what to do.
    """
    _check_shared(spec, runner)
    RemoteCache(spec.remote_cache, spec.cache_dir, progress=False).check()
    for number, corpus in enumerate(spec.corpora):
        try:
            open_corpus(corpus.source).check()
        except UsageError as error:
            if not number:
                raise
            message = f"corpus {number} of --config.data.mixture: {error}"
            raise type(error)(message) from error  # a restart may help


def prepare(
    spec: TextSpec, progress: bool = True, verify: bool = False, runner: Runner = LOCAL
) -> Prepared:
    """Trains the tokenizer and builds the token stores that the cache lacks, and opens them.

    Safe to call from several processes, also on hosts that share the cache: one works, the others
    wait. After a kill the next call continues where the last one was.

    Args:
      spec: from `text_spec.read_text_spec`.
      progress: whether to show progress bars.
      verify: whether to read the stores, their packing indices and the text again and compare
        their hashes.
      runner: what runs the tokenisation; a cluster gives the same stores as this machine.

    Raises:
      UsageError: the text cannot be read or is empty, the cache cannot be written, or something in
        it is damaged; the message says what to do.
    """
    _check_shared(spec, runner)
    corpora = [(open_corpus(corpus.source), _recipe(spec, corpus)) for corpus in spec.corpora]
    stores = []
    remote = RemoteCache(spec.remote_cache, spec.cache_dir, progress)
    with _explaining_write_errors(spec.cache_dir):
        tokenizer, is_new = _tokenizer(spec, corpora, remote, progress)
        for number, (corpus, recipe) in enumerate(corpora):
            where = f"corpus {number} of --config.data.mixture" if number else "--config.data"
            folder = _stores_folder(spec, corpus, recipe, tokenizer)
            is_new = is_new or not are_complete(folder)
            with remote.entry(folder, functools.partial(are_complete, folder)):
                train, heldout = build_stores(
                    folder,
                    corpus,
                    tokenizer,
                    recipe,
                    workers=spec.num_workers,
                    progress=progress,
                    runner=runner,
                )
            if not train.num_documents:
                raise UsageError(
                    f"There is no text to train on: {where} gave {heldout.num_documents} "
                    "documents, all of them held out (--config.data.validation_fraction="
                    f"{spec.validation_fraction}). Give more text."
                )
            _warn_about(train.index["counts"])
            if verify:
                _verify(corpus, train, heldout)
            stores.append((train, heldout))
    return Prepared(tokenizer, *stores[0], tuple(train for train, _ in stores[1:]), is_new)


def cached_heldout(spec: TextSpec, tokenizer: RobertaTokenizer) -> TokenStore:
    """Opens the held-out documents of a run that the cache still has; prepares nothing.

    Args:
      spec: from `text_spec.read_text_spec`.
      tokenizer: the run's.

    Raises:
      UsageError: the text of the run is not there, or has changed since; the cache does not have
        it; or no document was held out.
    """
    corpus = spec.corpora[0]
    folder = _stores_folder(spec, open_corpus(corpus.source), _recipe(spec, corpus), tokenizer)
    if not are_complete(folder):
        raise UsageError(f"{folder} does not exist or is not complete")
    heldout = TokenStore.open(folder / HELDOUT)
    if not heldout.num_documents:
        raise UsageError("no document was held out (--config.data.validation_fraction)")
    return heldout


def _stores_folder(
    spec: TextSpec, corpus: Corpus, recipe: Recipe, tokenizer: RobertaTokenizer
) -> pathlib.Path:
    """The folder of the token stores of a corpus, named by all that decides their contents."""
    name = _hash(
        version=VERSION,
        source=corpus.identity(),
        recipe=_identity(recipe),
        tokenizer=tokenizer.fingerprint(),
    )
    return spec.cache_dir / "tokens" / name


def _check_shared(spec: TextSpec, runner: Runner) -> None:
    """Refuses a cluster whose machines have a local cache each, since they write parts of one."""
    here = runner.is_local or (runner.name == "beam" and not runner.options)
    if spec.remote_cache is not None and not here:
        raise UsageError(
            f"--runner={runner.name} takes a cache folder that all machines of the cluster share. "
            f"With --config.data.cache_dir={spec.remote_cache} each has a folder of its own. Give "
            "a mounted folder, such as --config.data.cache_dir=/shared/prepared, also to the runs; "
            "or leave out --runner."
        )


def _recipe(spec: TextSpec, corpus: CorpusSpec) -> Recipe:
    source = corpus.source
    return Recipe(
        spec.validation_fraction, source.sentences, source.language, spec.validation_max_overlap
    )


def _identity(recipe: Recipe) -> dict[str, Any]:
    splitter = importlib.metadata.version("sentencex") if recipe.sentences == "split" else None
    identity = {**dataclasses.asdict(recipe), "splitter": splitter}
    if recipe.max_overlap == 1:
        del identity["max_overlap"]  # so that stores of versions without it are found
    return identity


def _training_identity(recipe: Recipe) -> dict[str, Any]:
    """What decides the training sentences; `max_overlap` does not."""
    return _identity(dataclasses.replace(recipe, max_overlap=1))


def _tokenizer(
    spec: TextSpec, corpora: Sequence[tuple[Corpus, Recipe]], remote: RemoteCache, progress: bool
) -> tuple[RobertaTokenizer, bool]:
    """The tokenizer, and whether it was trained just now."""
    # A model has its tokenizer beside its weights.
    for key in ("tokenizer", "init_from"):
        path = getattr(spec, key)
        if path:
            return _load(f"--config.{key}", tokenizer_folder(path)), False

    identities = [
        {"source": corpus.identity(), "recipe": _training_identity(recipe)}
        for corpus, recipe in corpora
    ]
    name = _hash(
        **(identities[0] if len(identities) == 1 else {"mixture": identities}),
        new_tokenizer={"vocab_size": spec.vocab_size, "min_frequency": spec.min_frequency},
        sample=TOKENIZER_SAMPLE_BYTES,
    )
    folder = spec.cache_dir / "tokenizers" / name
    was_there = folder.exists()
    with remote.entry(folder, folder.exists):
        tokenizer = _load_trained(folder)
        is_new = not was_there or tokenizer is None
        if tokenizer is None:
            with folder_lock(folder, progress):
                tokenizer = _load_trained(folder)
                if tokenizer is None:
                    _remove_leftovers(folder)
                    tokenizer = _train(corpora, spec, progress)
                    with create_folder(folder) as temporary:
                        tokenizer.save_pretrained(temporary)
                        files = {path.name: describe_file(path) for path in temporary.iterdir()}
                        write_json(temporary / _DIGESTS, with_digest({"files": files}))
    return tokenizer, is_new


def _load_trained(folder: pathlib.Path) -> RobertaTokenizer | None:
    """The tokenizer in a folder of the cache; None if it has to be trained (again)."""
    if not folder.exists():
        return None
    try:
        if (folder / _DIGESTS).exists():  # earlier versions wrote none
            check_files(folder, read_json(folder / _DIGESTS)[0]["files"], remember=False)
        return RobertaTokenizer.from_pretrained(folder)
    except (DamagedError, OSError, ValueError, KeyError, TypeError) as error:
        logging.warning("The tokenizer %s: %s. It is trained again.", folder, error)
        return None


def _train(
    corpora: Sequence[tuple[Corpus, Recipe]], spec: TextSpec, progress: bool
) -> RobertaTokenizer:
    # The same amount of each corpus, whatever their sizes.
    share = TOKENIZER_SAMPLE_BYTES // len(corpora)
    sentences = itertools.chain.from_iterable(
        training_sentences(
            corpus,
            sample_bytes=share,
            validation_fraction=recipe.validation_fraction,
            sentences=recipe.sentences,
            language=recipe.language,
            workers=spec.num_workers,
        )
        for corpus, recipe in corpora
    )
    first = next(sentences, None)
    if first is None:
        raise UsageError(
            "There is no text to train a tokenizer on: the corpus has no documents, or all are "
            "empty or held out. Give more text in --config.data, or lower "
            "--config.data.validation_fraction."
        )
    try:
        return RobertaTokenizer.train(
            itertools.chain([first], sentences),
            vocab_size=spec.vocab_size,
            min_frequency=spec.min_frequency,
            progress=progress and sys.stderr.isatty(),  # the bar needs a terminal
        )
    except UsageError:
        raise  # from the corpus, which is read at the same time
    except ValueError as error:
        raise UsageError(f"No tokenizer can be trained: {error}") from error


def _remove_leftovers(folder: pathlib.Path) -> None:
    """Removes a damaged folder, and what processes that were killed while saving have left."""
    for leftover in (folder, *folder.parent.glob(f"{folder.name}.*.tmp")):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def _load(what: str, path: PathLike) -> RobertaTokenizer:
    try:
        return RobertaTokenizer.from_pretrained(path)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"{what} ({path}) cannot be loaded: {error}") from error


def _verify(corpus: Corpus, train: TokenStore, heldout: TokenStore) -> None:
    for store in (train, heldout):
        store.verify()
        for folder in remove_damaged(store):
            logging.warning(
                "The packing index %s was damaged. It was removed; the next run packs it again.",
                folder,
            )
    if content_hash(corpus) != train.index["text_blake2b"]:
        raise UsageError(
            f"The text has changed since it was prepared, though its files' sizes and times have "
            f"not. Delete {train.folder.parent} and prepare it again."
        )


def _warn_about(counts: dict[str, int]) -> None:
    """Warns, each time, of text that was replaced or left out."""
    if counts.get("invalid_utf8"):
        logging.warning(
            "%d of %d documents hold invalid UTF-8, each such byte replaced by U+FFFD. If the text "
            "has another encoding, such as Latin-1, convert it and prepare it again: "
            "iconv -f LATIN1 -t UTF-8 OLD > NEW",
            counts["invalid_utf8"],
            counts["documents"],
        )
    if counts.get("empty"):
        logging.warning("%d empty documents were left out.", counts["empty"])


@contextlib.contextmanager
def _explaining_write_errors(cache: pathlib.Path) -> Iterator[None]:
    """Turns a failed write into a UsageError; the finished part of the cache stays usable."""
    try:
        yield
    except UsageError:
        raise  # a model that does not exist is an OSError as well
    except OSError as error:
        raise UsageError(
            f"Cannot write in {cache}: {error}. Free some space or give write permission there, or "
            f"choose another folder with --config.data.cache_dir=FOLDER. What is finished is kept: "
            f"the next run continues from there."
        ) from error


def _hash(**parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=10).hexdigest()


def summary(prepared: Prepared) -> str:
    """What was prepared, as lines of text."""
    stores = [("training", prepared.train), ("held out", prepared.heldout)]
    stores += [(f"mixed in {i}", store) for i, store in enumerate(prepared.more, start=1)]
    lines = [f"{'':11}{'documents':>12}{'sentences':>14}{'tokens':>16}{'shards':>8}"]
    for name, store in stores:
        # A document's closing `</s>` is stored as a sentence of its own.
        sentences = store.num_sentences - store.num_documents
        lines.append(
            f"{name:11}{store.num_documents:>12,}{sentences:>14,}{store.num_tokens:>16,}"
            f"{len(store.shards):>8}"
        )
    train = prepared.train
    counts = train.index["counts"]
    lines += [
        f"{counts['characters'] / counts['tokens']:.2f} characters per token, vocabulary of "
        f"{len(prepared.tokenizer)}; left out: {counts.get('empty', 0)} empty documents, "
        f"{counts.get('overlapping', 0)} held-out documents that occur in the training text; "
        f"invalid UTF-8 replaced in {counts.get('invalid_utf8', 0)}",
        f"In {train.folder.parent}",
    ]
    return "\n".join(lines)
