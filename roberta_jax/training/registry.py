"""Looks up a function by its name in the config, and checks the options it is called with.

Optimizers and learning rate schedules are functions in a table. The parameters after the first one
are the options of such a function, and each option is the config key of the same name.
"""

import inspect
import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any

from roberta_jax.errors import UsageError

_LARGEST_FLOAT32 = 3.4028235e38


def select(
    table: Mapping[str, Callable],
    group: str,
    name: str,
    options: Mapping[str, Any],
    common: Collection[str] = (),
) -> tuple[Callable, dict[str, Any]]:
    """Returns the function called `name`, and the options to call it with.

    An option that is None is unset: the function's default is used.

    Args:
      table: the functions by name.
      group: the group of the config that the name and the options come from ("optimizer").
      name: the value of `--config.{group}.name`.
      options: option -> value, None for unset.
      common: names of parameters that are not options.

    Raises:
      UsageError: the name is not in the table, an option is set that this function does not have,
        or an option without a default is unset.
    """
    if name not in table:
        raise UsageError(
            f"--config.{group}.name={name!r} is unknown: use one of {', '.join(table)}."
        )
    options_of = {each: _options(function, common) for each, function in table.items()}
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        if option not in options_of[name]:
            owners = [each for each, its_options in options_of.items() if option in its_options]
            used_by = f"it is an option of {', '.join(owners)}" if owners else f"no {group} has it"
            raise UsageError(
                f"--config.{group}.{option}={value!r} is not an option of the {group} {name!r} "
                f"({used_by}). Leave it unset (None), or choose another --config.{group}.name."
            )
    for option, default in options_of[name].items():
        if default is inspect.Parameter.empty and option not in given:
            raise UsageError(
                f"--config.{group}.{option} must be set for the {group} {name!r}: it has no "
                "default."
            )
    return table[name], given


def check_finite(group: str, **values: float) -> None:
    """Raises a UsageError that names the config key if one is not a number, infinite or NaN.

    Numbers beyond the range of float32 count as infinite, because the updates are computed in it.
    """
    for key, value in values.items():
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (is_number and abs(value) <= _LARGEST_FLOAT32):
            raise UsageError(f"--config.{group}.{key}={value} must be a finite number.")


def _options(function: Callable, common: Collection[str]) -> dict[str, Any]:
    """The options of a function, with their defaults."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {each.name: each.default for each in parameters if each.name not in common}
