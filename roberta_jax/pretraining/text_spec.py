"""What the config says about text: the corpora, how they are split and tokenised, and the cache.

It is read apart from the rest of the config, so that `roberta_jax.prepare` runs on a machine that
has neither the accelerators nor the memory for the training.
"""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from roberta_jax.data.text.sentences import check_splitting
from roberta_jax.data.text.source import SOURCES, TextSource
from roberta_jax.dotted_keys import flatten
from roberta_jax.errors import UsageError
from roberta_jax.pretraining.config_values import VALUES, check_values
from roberta_jax.storage import cache_folder

# The keys of a corpus in `config.data.mixture`; keys that it leaves out are those of `config.data`.
_SOURCE_KEYS = tuple(field.name for field in dataclasses.fields(TextSource))
_KEYS_OF_SOURCES = {
    "files": ("files",),
    "tfds": ("tfds_name", "tfds_split", "tfds_field", "tfds_data_dir"),
}
MIXTURE_KEYS = (*_SOURCE_KEYS, "max_tokens", "weight")
_LARGEST_WEIGHT = 1e9


@dataclasses.dataclass(frozen=True)
class CorpusSpec:
    """One of the corpora to train on.

    Attributes:
      source: where the text is.
      weight: sampling weight relative to the first corpus.
      max_tokens: use only its first documents, up to so many tokens; None uses all.
    """

    source: TextSource
    weight: float = 1.0
    max_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """What text preparation needs to know.

    Attributes:
      corpora: to train on; the first one also gives the validation documents.
      validation_fraction: fraction of the first corpus' documents that are held out.
      validation_max_overlap: held-out documents of which a larger fraction also occurs in the
        training text of their corpus are not scored.
      tokenizer: a folder with a tokenizer or a hub id, or None.
      init_from: the model to start from, whose tokenizer is used if `tokenizer` is None; or None.
        With neither, a tokenizer is trained on the corpora.
      vocab_size: of a tokenizer that is trained.
      min_frequency: how often a pair must occur to be merged, in a tokenizer that is trained.
      cache_dir: where tokenizers and token stores are written.
      num_workers: processes that tokenise; None is one per core.
      remote_cache: a folder on an object store with copies of what is in `cache_dir`, or None.
    """

    corpora: tuple[CorpusSpec, ...]
    validation_fraction: float
    validation_max_overlap: float
    tokenizer: str | None
    init_from: str | None
    vocab_size: int
    min_frequency: int
    cache_dir: pathlib.Path
    num_workers: int | None
    remote_cache: str | None = None


def read_text_spec(config: ConfigDict) -> TextSpec:
    """Reads `data`, `tokenizer`, `init_from` and `new_tokenizer` of the config.

    Args:
      config: as `configs/pretrain.py` returns it.

    Raises:
      UsageError: any value of the config is out of its range, or corpora are described wrongly.
    """
    check_values(flatten(config))
    data = config.data
    is_remote = "://" in (data.cache_dir or "")
    return TextSpec(
        corpora=_read_corpora(data),
        validation_fraction=data.validation_fraction,
        validation_max_overlap=data.validation_max_overlap,
        tokenizer=config.tokenizer,
        init_from=config.init_from,
        vocab_size=config.new_tokenizer.vocab_size,
        min_frequency=config.new_tokenizer.min_frequency,
        cache_dir=cache_folder(None if is_remote else data.cache_dir),
        num_workers=data.num_workers,
        remote_cache=data.cache_dir.rstrip("/") if is_remote else None,
    )


def _read_corpora(data: ConfigDict) -> tuple[CorpusSpec, ...]:
    first = TextSource(**{key: data[key] for key in _SOURCE_KEYS})
    corpora = [CorpusSpec(first, max_tokens=data.max_tokens)]
    for number, entry in enumerate(data.mixture, start=1):
        corpora.append(_read_mixture_entry(first, entry, f"--config.data.mixture: corpus {number}"))
    for corpus in corpora:
        if corpus.source.source not in SOURCES:
            raise UsageError(
                f"--config.data.source={corpus.source.source} is unknown: use one of "
                f"{', '.join(SOURCES)}."
            )
        check_splitting(corpus.source.sentences, corpus.source.language)
    _check_used(data, {corpus.source.source for corpus in corpora})
    return tuple(corpora)


def _check_used(data: ConfigDict, sources: Collection[str]) -> None:
    """Refuses keys that say where text is, but belong to a source that no corpus has."""
    for source, keys in _KEYS_OF_SOURCES.items():
        for key in keys:
            if source not in sources and data[key] is not None:
                raise UsageError(
                    f"--config.data.{key}={data[key]} has no effect with --config.data.source="
                    f"{data.source}. Add --config.data.source={source}, or leave it out."
                )


def _read_mixture_entry(first: TextSource, entry: Any, where: str) -> CorpusSpec:
    if not isinstance(entry, Mapping):
        raise UsageError(
            f"{where} is {entry!r}, but it must be a dict of {', '.join(MIXTURE_KEYS)}."
        )
    unknown = [key for key in entry if key not in MIXTURE_KEYS]
    if unknown:
        raise UsageError(f"{where} has {unknown[0]!r}, but it takes {', '.join(MIXTURE_KEYS)}.")
    weight = entry.get("weight", 1.0)
    if not (isinstance(weight, int | float) and 0 < weight <= _LARGEST_WEIGHT):
        raise UsageError(f"{where}: weight is {weight!r}: give a number above 0, up to 1e9.")
    for key, value in entry.items():
        wanted = VALUES.get(f"data.{key}")  # None for the weight
        if wanted and not (wanted.fits(value) or (value is None and wanted.optional)):
            raise UsageError(f"{where}: {key} is {value!r}: give {wanted}.")
    changes = {key: entry[key] for key in _SOURCE_KEYS if key in entry}
    return CorpusSpec(dataclasses.replace(first, **changes), float(weight), entry.get("max_tokens"))
