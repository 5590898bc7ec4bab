"""The corpora that a run mixes: `config.data` itself, and those of `config.data.mixture`."""

import copy
import dataclasses
import math
from collections.abc import Mapping

from ml_collections import ConfigDict

from roberta_jax.errors import UsageError

# What a dict of the mixture may say; what it does not say is as in `config.data`.
KEYS = (
    "source",
    "files",
    "text_field",
    "sentences",
    "language",
    "tfds_name",
    "tfds_split",
    "tfds_field",
    "tfds_data_dir",
    "max_tokens",
    "weight",
)


@dataclasses.dataclass(frozen=True)
class Source:
    """One corpus of a mixture.

    Attributes:
      data: a config like `config.data`, for this corpus alone.
      weight: how often its rows are seen for once that the first corpus's are.
      max_tokens: use its first documents, up to so many tokens; None uses all.
    """

    data: ConfigDict
    weight: float
    max_tokens: int | None


def list_sources(data: ConfigDict) -> list[Source]:
    """The corpora in order; the first is `data`'s own.

    Raises:
      UsageError: an unknown key in a mixture's dict, or a weight or size out of its range.
    """
    sources = [Source(data, 1.0, data.max_tokens)]
    for number, entry in enumerate(data.mixture, start=1):
        where = f"config.data.mixture: corpus {number}"
        if not isinstance(entry, Mapping):
            raise UsageError(f"{where} is {entry!r}, but it must be a dict of {', '.join(KEYS)}.")
        unknown = [key for key in entry if key not in KEYS]
        if unknown:
            raise UsageError(f"{where} has {unknown[0]!r}, but it takes {', '.join(KEYS)}.")
        weight = entry.get("weight", 1.0)
        if not (isinstance(weight, int | float) and 0 < weight < math.inf):
            raise UsageError(f"{where}: weight is {weight!r}: give a number above 0.")
        own = ConfigDict(copy.deepcopy(data.to_dict()))
        own.mixture = ()
        with own.ignore_type():
            own.update({key: value for key, value in entry.items() if key != "weight"})
            if "max_tokens" not in entry:
                own.max_tokens = None
        sources.append(Source(own.lock(), float(weight), own.max_tokens))
    for number, source in enumerate(sources):
        where = f"config.data.mixture: corpus {number}: " if number else "config.data."
        size = source.max_tokens
        if size is not None and not (isinstance(size, int) and size >= 1):
            raise UsageError(f"{where}max_tokens is {size!r}: give a whole number from 1.")
    return sources
