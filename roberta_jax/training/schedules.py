"""Learning rate schedules: linear warmup, then polynomial decay, cosine decay or a constant rate.

A schedule is a function of the number of updates made before the current one, as in fairseq. So
the first update of a run with warmup has the rate 0, update number `warmup_steps + 1` has the peak
rate, and update number `decay_steps + 1` and all later ones have the end rate.

To add a schedule, write a function with the parameters

    (peak, *, warmup_steps, decay_steps, end, <options of its own>) -> optax.Schedule

and add it to `SCHEDULES`. Each of its own options is the config key `schedule.<option>`.
"""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from roberta_jax.errors import UsageError
from roberta_jax.training.registry import check_finite, select


def make_schedule(
    name: str,
    peak: float,
    *,
    warmup_steps: int,
    decay_steps: int,
    end: float = 0.0,
    **options: Any,
) -> optax.Schedule:
    """Builds a learning rate schedule by its name.

    Args:
      name: a key of `SCHEDULES`.
      peak: the rate at the end of the warmup.
      warmup_steps: updates until the peak; 0 starts at the peak.
      decay_steps: updates until the end rate, warmup included.
      end: the rate after the decay.
      **options: the schedule's own options. None uses the schedule's default.

    Returns:
      A function from the number of updates made before (an integer or an int32 array) to the rate,
      a float32 scalar.

    Raises:
      UsageError: an unknown name, an option that this schedule does not have, or a value out of
        its range.
    """
    common = {"warmup_steps": warmup_steps, "decay_steps": decay_steps, "end": end}
    function, given = select(SCHEDULES, "schedule", name, options, common)
    return function(peak, **common, **given)


def polynomial_schedule(
    peak: float, *, warmup_steps: int, decay_steps: int, end: float = 0.0, power: float = 1.0
) -> optax.Schedule:
    """Linear warmup from 0, then polynomial decay to `end` (fairseq's `polynomial_decay`).

    Args:
      peak: the rate at the end of the warmup.
      warmup_steps: updates until the peak; 0 starts at the peak.
      decay_steps: updates until `end`, warmup included.
      end: the rate after the decay.
      power: the exponent of the decay; 1 is linear.

    Raises:
      UsageError: a value is out of its range.
    """
    _check(peak, warmup_steps, decay_steps, end)
    check_finite("schedule", power=power)
    if power <= 0:
        raise UsageError(f"--config.schedule.power={power} must be positive; 1 is linear decay.")

    def decay(left: jax.Array) -> jax.Array:
        return (peak - end) * left**power + end

    return _after_warmup(decay, peak, warmup_steps, decay_steps)


def cosine_schedule(
    peak: float, *, warmup_steps: int, decay_steps: int, end: float = 0.0
) -> optax.Schedule:
    """Linear warmup from 0, then half a period of a cosine down to `end` (no restarts).

    Args:
      peak: the rate at the end of the warmup.
      warmup_steps: updates until the peak; 0 starts at the peak.
      decay_steps: updates until `end`, warmup included.
      end: the rate after the decay.

    Raises:
      UsageError: a value is out of its range.
    """
    _check(peak, warmup_steps, decay_steps, end)

    def decay(left: jax.Array) -> jax.Array:
        return (peak - end) * 0.5 * (1.0 - jnp.cos(jnp.pi * left)) + end

    return _after_warmup(decay, peak, warmup_steps, decay_steps)


def constant_schedule(
    peak: float, *, warmup_steps: int, decay_steps: int, end: float = 0.0
) -> optax.Schedule:
    """Linear warmup from 0, then the peak rate for the rest of the run.

    Args:
      peak: the rate after the warmup.
      warmup_steps: updates until the peak; 0 starts at the peak.
      decay_steps: has no effect on the rate; the warmup must be shorter.
      end: must be 0, because there is no decay.

    Raises:
      UsageError: a value is out of its range.
    """
    _check(peak, warmup_steps, decay_steps, end)
    if end:
        raise UsageError(
            f"--config.schedule.end_learning_rate={end} has no effect on the constant schedule, "
            "which does not decay. Use --config.schedule.end_learning_rate=0, or another "
            "--config.schedule.name."
        )
    return _after_warmup(lambda left: jnp.full_like(left, peak), peak, warmup_steps, decay_steps)


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "polynomial": polynomial_schedule,
    "cosine": cosine_schedule,
    "constant": constant_schedule,
}
"""The values of `--config.schedule.name`."""


def _after_warmup(
    decay: Callable[[jax.Array], jax.Array], peak: float, warmup_steps: int, decay_steps: int
) -> optax.Schedule:
    """Joins the linear warmup to a decay.

    Args:
      decay: maps the part of the decay that is left, float32, from 1 at the peak to 0 at the end,
        to the rate.
      peak, warmup_steps, decay_steps: as in `make_schedule`.
    """

    def schedule(updates_before: jax.Array) -> jax.Array:
        n = jnp.asarray(updates_before, jnp.float32)
        rising = peak * n / max(warmup_steps, 1)
        left = jnp.clip(1.0 - (n - warmup_steps) / (decay_steps - warmup_steps), 0.0, 1.0)
        return jnp.where(n < warmup_steps, rising, decay(left))

    return schedule


def _check(peak: float, warmup_steps: int, decay_steps: int, end: float) -> None:
    check_finite("optimizer", learning_rate=peak)
    check_finite(
        "schedule", warmup_steps=warmup_steps, decay_steps=decay_steps, end_learning_rate=end
    )
    for key, value in (("warmup_steps", warmup_steps), ("decay_steps", decay_steps)):
        if not isinstance(value, numbers.Integral):
            raise UsageError(f"--config.schedule.{key}={value} must be a whole number of steps.")
    if warmup_steps < 0 or decay_steps <= warmup_steps:
        raise UsageError(
            f"--config.schedule.warmup_steps={warmup_steps} must be at least 0 and less than "
            f"{decay_steps}, the number of steps over which the learning rate decays "
            "(--config.schedule.decay_steps, or --config.train.steps where that is not set)."
        )
    if not 0 <= end <= peak:
        raise UsageError(
            f"--config.schedule.end_learning_rate={end} must be at least 0 and at most "
            f"--config.optimizer.learning_rate={peak}."
        )
