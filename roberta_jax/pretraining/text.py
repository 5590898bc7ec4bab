"""Text preparation: trains the tokenizer unless one is named, and builds the token stores.

Everything is in `config.data.cache_dir`, named by a hash of all that decides its contents, so no
text is prepared twice:

    tokenizers/<hash>/     a trained tokenizer, in Hugging Face's format
    tokens/<hash>/         the stores train/ and heldout/
"""

import collections
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from roberta_jax.data.store.build import Recipe, build_stores, content_hash, only_process
from roberta_jax.data.store.layout import VERSION, temporary_name
from roberta_jax.data.store.token_store import TokenStore
from roberta_jax.data.text.corpus import Corpus, Piece, is_heldout, open_corpus
from roberta_jax.data.text.sentences import check_splitting, split_sentences
from roberta_jax.data.text.sources import list_sources
from roberta_jax.errors import UsageError
from roberta_jax.storage.hub import tokenizer_folder
from roberta_jax.tokenizer import RobertaTokenizer

# More text than this would hardly change a vocabulary, and counting it takes memory and minutes.
TOKENIZER_SAMPLE_BYTES = 1_000_000_000
# A sample from text up to this size is kept from the pass that measures it.
_KEPT_BYTES = 1 << 27


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Text ready for packing.

    Attributes:
      tokenizer: The one named in the config, or trained.
      train: Documents to train on.
      heldout: Documents to evaluate on; empty if `config.data.validation_fraction` is 0.
      more: Documents to train on of each further corpus of `config.data.mixture`.
    """

    tokenizer: RobertaTokenizer
    train: TokenStore
    heldout: TokenStore
    more: tuple[TokenStore, ...] = ()


def prepare(config: ConfigDict, progress: bool = True, verify: bool = False) -> Prepared:
    """Makes what is missing in the cache and opens it.

    Safe to call from several processes, also on hosts that share the cache: one works, the others
    wait. After a kill the next call goes on where the last one was.

    Args:
      config: Of `configs/pretrain.py`; reads `data`, `tokenizer`, `new_tokenizer`, `init_from`.
      progress: Whether to show progress bars.
      verify: Whether to read the stores and the text again and compare their hashes.

    Raises:
      UsageError: A setting is wrong, the text cannot be read or holds nothing, the cache cannot be
        written, or something in it is damaged; the message says what to do.
    """
    cache = cache_folder(config.data)
    sources = [source.data for source in list_sources(config.data)]
    corpora = [(open_corpus(data), _recipe(data)) for data in sources]
    stores = []
    with _writing_below(cache):
        tokenizer = _tokenizer(config, corpora, cache, progress)
        for data, (corpus, recipe) in zip(sources, corpora, strict=True):
            name = _hash(
                version=VERSION,
                source=corpus.identity(),
                recipe=_identity(recipe),
                tokenizer=tokenizer.fingerprint(),
            )
            train, heldout = build_stores(
                cache / "tokens" / name,
                corpus,
                tokenizer,
                recipe,
                workers=config.data.num_workers,
                progress=progress,
            )
            if not train.num_documents:
                raise UsageError(
                    f"There is no text to train on: config.data.source={data.source!r} gave "
                    f"{heldout.num_documents} documents, all of them held out "
                    f"(config.data.validation_fraction={data.validation_fraction}). Name more text."
                )
            _report(train.index["counts"])
            if verify:
                _verify(corpus, train, heldout)
            stores.append((train, heldout))
    return Prepared(tokenizer, *stores[0], tuple(train for train, _ in stores[1:]))


def cache_folder(data: ConfigDict) -> pathlib.Path:
    """`config.data.cache_dir`, or `roberta_jax` in the user's cache folder."""
    if data.cache_dir:
        return pathlib.Path(data.cache_dir).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "roberta_jax"


def training_sentences(
    corpus: Corpus, recipe: Recipe, sample_bytes: int = TOKENIZER_SAMPLE_BYTES
) -> Iterator[str]:
    """Yields the sentences of training documents, from about `sample_bytes` of text at most.

    Of a larger corpus, pieces of some 1 MB are taken at even distances, so that each part of it is
    seen. The same corpus gives the same sentences.
    """
    total = 0
    kept: list[Piece] | None = []  # spares small corpora the second reading
    for piece in corpus.pieces():
        total += len(piece.data)
        if kept is not None:
            kept.append(piece)
        if total > _KEPT_BYTES:
            kept = None
    wanted = min(total, sample_bytes)
    counts: collections.Counter = collections.Counter()
    for number, piece in enumerate(corpus.pieces() if kept is None else kept):
        if (number + 1) * wanted // total == number * wanted // total:
            continue
        for text in corpus.documents(piece, counts):
            if not is_heldout(text, recipe.validation_fraction):
                yield from split_sentences(text, recipe.sentences, recipe.language)


def _recipe(data: ConfigDict) -> Recipe:
    if not 0 <= data.validation_fraction < 1:
        raise UsageError(
            f"config.data.validation_fraction is {data.validation_fraction}; it takes a share of "
            f"the documents from 0 up to, but not including, 1, such as 0.01."
        )
    if data.num_workers is not None and data.num_workers < 1:
        raise UsageError(
            f"config.data.num_workers is {data.num_workers}; it takes a number of processes "
            f"from 1, or nothing for one on each core."
        )
    check_splitting(data.sentences, data.language)
    return Recipe(data.validation_fraction, data.sentences, data.language)


def _identity(recipe: Recipe) -> dict[str, Any]:
    splitter = importlib.metadata.version("sentencex") if recipe.sentences == "split" else None
    return {**dataclasses.asdict(recipe), "splitter": splitter}


def _tokenizer(
    config: ConfigDict,
    corpora: Sequence[tuple[Corpus, Recipe]],
    cache: pathlib.Path,
    progress: bool,
) -> RobertaTokenizer:
    # Folders, workdirs and hub ids alike; a model has its tokenizer beside its weights.
    if config.tokenizer:
        return _load("config.tokenizer", tokenizer_folder(config.tokenizer))
    if config.init_from:
        return _load("config.init_from", tokenizer_folder(config.init_from))

    about = [{"source": corpus.identity(), "recipe": _identity(r)} for corpus, r in corpora]
    name = _hash(
        **(about[0] if len(about) == 1 else {"mixture": about}),
        new_tokenizer=config.new_tokenizer.to_dict(),
        sample=TOKENIZER_SAMPLE_BYTES,
    )
    folder = cache / "tokenizers" / name
    if not folder.exists():
        with only_process(folder, progress):
            if not folder.exists():
                _save_whole(_train(corpora, config.new_tokenizer, progress), folder)
    return _load("The tokenizer trained before", folder)


def _train(
    corpora: Sequence[tuple[Corpus, Recipe]], settings: ConfigDict, progress: bool
) -> RobertaTokenizer:
    # As much of each corpus, so that none is left out for the size of another.
    share = TOKENIZER_SAMPLE_BYTES // len(corpora)
    sentences = itertools.chain.from_iterable(
        training_sentences(corpus, recipe, share) for corpus, recipe in corpora
    )
    first = next(sentences, None)
    if first is None:
        raise UsageError(
            "There is no text to train a tokenizer on: the corpus has no documents, or all are "
            "empty or held out. Name more text in config.data, or lower "
            "config.data.validation_fraction."
        )
    try:
        return RobertaTokenizer.train(
            itertools.chain([first], sentences),
            vocab_size=settings.vocab_size,
            min_frequency=settings.min_frequency,
            progress=progress and sys.stderr.isatty(),  # it cannot draw elsewhere
        )
    except UsageError:
        raise  # from the corpus, which is read meanwhile
    except ValueError as error:
        raise UsageError(f"No tokenizer can be trained: {error}") from error


def _save_whole(tokenizer: RobertaTokenizer, folder: pathlib.Path) -> None:
    for old in folder.parent.glob(f"{folder.name}.*.tmp"):
        shutil.rmtree(old)  # of a process killed while saving
    temporary = temporary_name(folder)
    try:
        tokenizer.save_pretrained(temporary)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load(what: str, path: str | os.PathLike) -> RobertaTokenizer:
    try:
        return RobertaTokenizer.from_pretrained(path)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"{what} ({path}) cannot be loaded: {error}") from error


def _verify(corpus: Corpus, train: TokenStore, heldout: TokenStore) -> None:
    train.verify()
    heldout.verify()
    if content_hash(corpus) != train.index["text_blake2b"]:
        raise UsageError(
            f"The text has changed since it was prepared, though its files' sizes and times have "
            f"not. Delete {train.folder.parent} and prepare it again."
        )


def _report(counts: dict[str, int]) -> None:
    """Warns of what was mended or left out, each time: a model is about to be trained on it."""
    if counts.get("invalid_utf8"):
        logging.warning(
            "%d of %d documents hold invalid UTF-8, each such byte replaced by U+FFFD.",
            counts["invalid_utf8"],
            counts["documents"],
        )
    if counts.get("empty"):
        logging.warning("%d empty documents were left out.", counts["empty"])


@contextlib.contextmanager
def _writing_below(cache: pathlib.Path) -> Iterator[None]:
    """Explains why nothing can be written; what is there already stays usable."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"Cannot write in {cache}: {error}. Make room there or give write permission, or name "
            f"another folder with --config.data.cache_dir=FOLDER. What is finished is kept: the "
            f"next run goes on from there."
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
    tokens = train.num_tokens + prepared.heldout.num_tokens
    lines += [
        f"{counts['characters'] / tokens:.2f} characters per token, vocabulary of "
        f"{len(prepared.tokenizer)}; left out: {counts.get('empty', 0)} empty documents; invalid "
        f"UTF-8 replaced in {counts.get('invalid_utf8', 0)}",
        f"In {train.folder.parent}",
    ]
    return "\n".join(lines)
