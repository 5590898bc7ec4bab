"""Builds the settings of a study from lists of config values."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.study.config_changes import Changes
from roberta_jax.errors import UsageError


def product(values: Mapping[str, Sequence[Any]]) -> dict[str, Changes]:
    """Returns a setting for every combination of the values.

    `product({"masking.scheme": ["token", "span"], "seq_len": [16, 32]})` returns four settings, the
    first of which is {"scheme=token, seq_len=16": {"masking.scheme": "token", "seq_len": 16}}.
    """
    return _named(
        [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]
    )


def zipped(values: Mapping[str, Sequence[Any]]) -> dict[str, Changes]:
    """Returns a setting for the first value of each key, one for the second value of each, etc.

    Raises:
      UsageError: the keys have different numbers of values.
    """
    lengths = {key: len(column) for key, column in values.items()}
    if len(set(lengths.values())) > 1:
        raise UsageError(f"zipped needs as many values for each key, but got {lengths}.")
    return _named(
        [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    )


def _named(settings: Sequence[Changes]) -> dict[str, Changes]:
    """Names each setting by its keys and values, with the last part of the keys if that is unique.

    Raises:
      UsageError: two settings are the same.
    """
    keys = list(settings[0]) if settings else []
    labels = {key: key.rsplit(".", 1)[-1] for key in keys}
    if len(set(labels.values())) < len(keys):
        labels = {key: key for key in keys}
    named = {
        ", ".join(f"{labels[key]}={value}" for key, value in changes.items()): changes
        for changes in settings
    }
    if len(named) < len(settings):
        raise UsageError(f"two settings are the same; the settings are {', '.join(named)}.")
    return named
