"""Changes to a config by dotted keys, and which keys affect the results of a run."""

import ast
import copy
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from roberta_jax.dotted_keys import flatten, key_matches, nearest
from roberta_jax.errors import UsageError, shortened
from roberta_jax.finetuning import config_values as finetuning
from roberta_jax.pretraining.config_keys import MAY_CHANGE, RENAMED

Changes = Mapping[str, Any]  # dotted config key -> value

# Keys that a resumed run may change, although they do affect its results.
_AFFECTS_RESULTS = ("train.steps", "schedule.decay_steps")


def finetunes(config: ConfigDict) -> bool:
    """Whether a config is one of configs/finetune.py, and not of configs/pretrain.py."""
    return "task" in config


def values_that_affect_results(config: ConfigDict) -> dict[str, Any]:
    """Returns the values of the config's keys that affect the results, by dotted key.

    Cache folders, intervals and the like do not.
    """
    may_change = finetuning.MAY_CHANGE if finetunes(config) else MAY_CHANGE
    return {
        key: value
        for key, value in flatten(config).items()
        if key in _AFFECTS_RESULTS or not key_matches(key, may_change)
    }


def changed_config(base: ConfigDict, changes: Changes, where: str) -> ConfigDict:
    """Returns a locked copy of a config with some values changed.

    Args:
      base: the config to copy.
      changes: the new values by dotted key.
      where: what the changes belong to; error messages begin with it.

    Raises:
      UsageError: a key is unknown, or a value has the wrong type.
    """
    config = copy.deepcopy(base)
    values = flatten(config)
    for key, value in changes.items():
        if key not in values:
            raise UsageError(f"{where}: {_unknown_key(key, base)}")
        group, name, kind = _resolve(config, key)
        try:
            if isinstance(value, bool) and kind in (int, float):  # a bool is an int in Python
                raise TypeError
            group[name] = value
        except TypeError:
            raise UsageError(
                f"{where}: {key} takes a value like {values[key]!r} ({kind.__name__}), "
                f"not {shortened(repr(value))}."
            ) from None
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            raise UsageError(
                f"{where}: {key} is {shortened(repr(value))}, which config.json cannot hold: use "
                "numbers, strings, tuples, lists and dicts with strings as keys."
            ) from None
    config.lock()
    return config


def parse_change(base: ConfigDict, change: str) -> tuple[str, Any]:
    """Parses the "KEY=VALUE" of --set=KEY=VALUE.

    Returns:
      The dotted key, and the value converted to the type that the key has in `base`.

    Raises:
      UsageError: the key is unknown, or the value cannot be converted.
    """
    key, equals, text = change.partition("=")
    values = flatten(base)
    if not equals:
        raise UsageError(
            f"--set={shortened(change)}: write --set=KEY=VALUE, as in --set=train.steps=100."
        )
    if key not in values:
        raise UsageError(f"--set={shortened(change)}: {_unknown_key(key, base)}")
    _, _, kind = _resolve(base, key)
    if kind is str:
        return key, text
    if kind is bool and text.lower() in ("true", "false"):
        return key, text.lower() == "true"
    if text.lower() == "none":
        return key, None
    try:
        return key, kind(text) if kind in (int, float) else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UsageError(
            f"--set={shortened(change)}: {key} takes a value like {values[key]!r} "
            f"({kind.__name__})."
        ) from None


def _resolve(config: ConfigDict, key: str) -> tuple[ConfigDict, str, type]:
    """Returns the group that holds a dotted key, the key's name in that group, and its type."""
    *groups, name = key.split(".")
    group = config
    for each in groups:
        group = group[each]
    return group, name, group.get_type(name)


def _unknown_key(key: str, base: ConfigDict) -> str:
    """Returns a message that a config key does not exist, with the key that was probably meant."""
    known = list(flatten(base))
    if RENAMED.get(key) in known:
        return f"unknown config key {key!r}: it was renamed, use {RENAMED[key]}."
    group_keys = [each for each in known if each.startswith(f"{key}.")]
    suggestion = nearest(key, known)
    if suggestion and not group_keys:
        return f"unknown config key {key!r}: did you mean {suggestion}?"
    if group_keys:
        return f"unknown config key {key!r}: the keys are {', '.join(group_keys)}."
    groups = dict.fromkeys(each.partition(".")[0] for each in known)
    return (
        f"unknown config key {shortened(repr(key))}: configs/"
        f"{'finetune' if finetunes(base) else 'pretrain'}.py has the keys and groups "
        f"{', '.join(groups)}."
    )
