"""Config keys as dotted names, such as "train.steps" for `config["train"]["steps"]`."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of a config as {dotted key: value}, in the order of the config."""
    values = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            values |= flatten(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def nearest(wrong: str, right: Sequence[str]) -> str | None:
    """Returns the dotted key of `right` that is most similar to `wrong`, or None."""
    matches = difflib.get_close_matches(wrong, right, n=1, cutoff=0.75)
    if matches:
        return matches[0]
    # The right name in the wrong group: `steps` for `train.steps`.
    last = wrong.rsplit(".", 1)[-1]
    by_name = {key.rsplit(".", 1)[-1]: key for key in right}
    matches = difflib.get_close_matches(last, list(by_name), n=1, cutoff=0.75)
    return by_name[matches[0]] if matches else None


def key_matches(key: str, patterns: Collection[str]) -> bool:
    """Returns whether a dotted key is one of `patterns`, or below one that ends in a dot."""
    return any(
        key == pattern or (pattern.endswith(".") and key.startswith(pattern))
        for pattern in patterns
    )
