"""The types and ranges of config values, and the check of a config against a table of them.

Values out of these ranges would fail late or silently: a step counter of 32 bits overflows, a
number rounds to 0 in float32, a seed loses its upper half. What else a value must fulfil (names of
formats, sizes that divide each other) is checked by the modules that use it.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from roberta_jax.dotted_keys import nearest
from roberta_jax.errors import UsageError, shortened, spelled

LARGEST_INT32 = 2**31 - 1
MOST_ROWS = 10**6
_LONGEST_TEXT = 4096  # characters; no path is longer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """A number of the config.

    Attributes:
      low, high: the smallest and the largest value.
      above, below: whether `low` and `high` themselves are out of range.
      example: a good value; its type is that of the key.
      optional: whether the key may be unset (None).
    """

    low: float
    high: float
    example: float
    above: bool = False
    below: bool = False
    optional: bool = False

    def fits(self, value: Any) -> bool:
        kinds = int if isinstance(self.example, int) else int | float
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        is_above = value > self.low if self.above else value >= self.low
        return is_above and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        kind = "a whole number" if isinstance(self.example, int) else "a number"
        low, high = spelled(self.low), spelled(self.high)
        text = f"{kind} {f'above {low}' if self.above else f'from {low}'}"
        return f"{text} {f'and below {high}' if self.below else f'to {high}'}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A name, a path or a pattern: of at most 4096 characters, and valid Unicode.

    Attributes:
      example: a good value.
      optional: whether the key may be unset (None).
      may_be_empty: whether an empty text is the same as None.
    """

    example: str
    optional: bool = False
    may_be_empty: bool = False

    def fits(self, value: Any) -> bool:
        if not isinstance(value, str) or len(value) > _LONGEST_TEXT or "\0" in value:
            return False
        if not value and not self.may_be_empty:
            return False
        return not any("\ud800" <= character <= "\udfff" for character in value)

    def __str__(self) -> str:
        return f"a text of 1 to {_LONGEST_TEXT} characters in UTF-8"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """True or False."""

    example: bool = False
    optional: bool = False

    def fits(self, value: Any) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entries:
    """A tuple whose entries are checked where they are used."""

    example: tuple = ()
    optional: bool = False

    def fits(self, value: Any) -> bool:
        return isinstance(value, tuple | list)

    def __str__(self) -> str:
        return "a tuple"


def path(example: str) -> Text:
    return Text(example=example, optional=True)


def count(low: int, high: int, example: int, optional: bool = False) -> Number:
    return Number(low=low, high=high, example=example, optional=optional)


def fraction(example: float, **limits: Any) -> Number:
    return Number(**{"low": 0, "high": 1, "example": example, **limits})


SEED = count(0, 2**32 - 1, 0)
# With larger factors 1 - beta has less than three digits in float32.
BETA = fraction(0.9, high=0.99999)
DROPOUT = fraction(0.1, below=True)
# Smaller numbers are 0 in float32, or become 0 when they are multiplied.
EPSILON = fraction(1e-6, low=1e-20)
STEPS = count(1, LARGEST_INT32, 10_000)
INTERVAL = count(0, LARGEST_INT32, 1000)
# Not much less than the second in which heartbeats are sent, and not more than a week.
SECONDS = Number(low=3, high=604_800, example=60.0)
AXIS = count(-1, 10**6, -1)

Range = Number | Text | Flag | Entries

# The groups of keys that every config has.
SHARED: dict[str, Range] = {
    "execution.dtype": Text(example="auto"),
    "execution.scan_layers": Flag(example=True),
    "execution.scan_unroll": count(-1, 10_000, 1),
    "execution.remat": Text(example="dots"),
    "execution.attention": Text(example="xla"),
    "execution.layer_norm": Text(example="xla"),
    "optimizer.name": Text(example="adamw"),
    "optimizer.learning_rate": Number(low=0, high=1e30, example=6e-4),
    "optimizer.beta1": BETA,
    "optimizer.beta2": BETA,
    "optimizer.eps": EPSILON,
    "optimizer.weight_decay": Number(low=0, high=10, example=0.01),
    "optimizer.decay_mask": Text(example="all"),
    "optimizer.bias_correction": Flag(example=True),
    "optimizer.clip_norm": Number(low=0, high=1e6, example=1.0),
    "spikes.policy": Text(example="skip"),
    "spikes.window": count(2, 10**5, 100),
    "spikes.deviations": Number(low=0, high=1e6, example=6.0),
    "spikes.min_increase": Number(low=0, high=1e6, example=0.5),
    "spikes.skip_batches": INTERVAL,
    "spikes.max_rewinds": count(0, 10**6, 3),
    "mesh.data": AXIS,
    "mesh.fsdp": count(-1, 10**6, 1),
    "mesh.tensor": count(-1, 10**6, 1),
    "mesh.slices": count(1, 10**6, 2, optional=True),
    "mesh.shard_optimizer_state": Flag(),
    "mesh.rules": Entries(),
    "distributed.start_timeout": SECONDS,
    "distributed.heartbeat_timeout": SECONDS,
    "distributed.late_timeout": SECONDS,
}
"""Dotted key -> what its value must be."""


# So many unknown keys are no mistakes in keys, but those of another command's config.
_OF_ANOTHER_COMMAND = 10


def check_values(
    values: Mapping[str, Any], table: Mapping[str, Range], keys: Collection[str], file: str
) -> None:
    """Checks the keys of a config, and the type and range of each value.

    Args:
      values: the values by dotted key.
      table: dotted key -> what its value must be.
      keys: the keys that there must be.
      file: the config file that has all keys, for error messages.

    Raises:
      UsageError: a key is missing or unknown, or a value is not what the table says.
    """
    unknown = [key for key in values if key not in table]
    if len(unknown) >= _OF_ANOTHER_COMMAND:
        raise UsageError(
            f"this is the config of another command: it has keys such as --config.{unknown[0]}, "
            f"which {file} does not have. Start from that one."
        )
    for key in values:
        if key not in table:
            hint = nearest(key, list(table))
            advice = f"Did you mean --config.{hint}? " if hint else ""
            raise UsageError(
                f"the config has the unknown key --config.{shortened(key)}. {advice}Remove it; "
                f"{file} has all keys."
            )
    missing = [key for key in keys if key not in values]
    if missing:
        raise UsageError(
            f"the config has no key --config.{missing[0]}. Add it, such as "
            f"config.{missing[0]} = {table[missing[0]].example!r}, or start from "
            f"{file}, which has all keys."
        )
    for key, value in values.items():
        wanted = table[key]
        if not wanted.fits(value) and not (value is None and wanted.optional):
            raise UsageError(
                f"--config.{key}={shortened(spelled(value))}: give {wanted}"
                f"{', or none' if wanted.optional else ''}, such as "
                f"--config.{key}={spelled(wanted.example)}."
            )
