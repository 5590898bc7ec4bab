"""Stops a run before it saves a state with which training cannot go on."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from roberta_jax.errors import UsageError, listed
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.spikes import LossSpike, SpikeWatch, not_finite
from roberta_jax.training.state import LARGEST_PARAMETER, TrainState, unsound_arrays

_ADVICE_FOR_THE_RUN = (
    "Start in a new --workdir with a lower --config.optimizer.learning_rate, a longer "
    "--config.schedule.warmup_steps, or --config.optimizer.clip_norm=1"
)
_ADVICE = f"{_ADVICE_FOR_THE_RUN}; or continue on other batches with --config.spikes.policy=skip."


class Diverged(UsageError):
    """A loss, the gradient, the state or an evaluation is not finite, or a parameter is huge."""


def check_finite(step: int, values: Mapping[str, float], checkpoints: Checkpoints) -> None:
    """Raises `Diverged` if the loss or the gradient norm of a step is not finite."""
    what = not_finite(values)
    if what:
        raise diverged(step, what, checkpoints)


def check_state(step: int, state: TrainState, checkpoints: Checkpoints) -> None:
    """Raises `Diverged` if the state after `step` updates must not be saved."""
    bad = unsound_arrays(state)
    if bad:
        total = len(jax.tree.leaves(state))
        what = (
            f"the update left {len(bad)} of {total} arrays with values that are not finite, or "
            f"parameters above {LARGEST_PARAMETER:.2g}: {listed(bad)}"
        )
        raise diverged(step, what, checkpoints)


def check_evaluation(step: int, values: Mapping[str, float], checkpoints: Checkpoints) -> None:
    """Raises `Diverged` if a result of the evaluation after `step` updates is not finite."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        what = (
            f"the evaluation is not finite ({', '.join(f'{name} {values[name]}' for name in bad)})"
        )
        raise diverged(step, what, checkpoints)


def diverged(step: int, what: str, checkpoints: Checkpoints, advice: str = _ADVICE) -> Diverged:
    """Returns the error of a run whose step `step` is not to be saved."""
    checkpoints.wait()
    # The one of this step is what the evaluation after the last update has found to be bad.
    before = [saved for saved in checkpoints.steps() if saved < step]
    saved = (
        f"The checkpoint of step {before[-1]} was written before and is intact."
        if before
        else "No checkpoint was written before it."
    )
    return Diverged(f"training diverged: at step {step} {what}. {saved}\n{advice}")


def restore_before(
    spike: LossSpike, watch: SpikeWatch, checkpoints: Checkpoints, every: int, like: Any
) -> tuple[TrainState, Mapping[str, Any]]:
    """Restores the last checkpoint before a spike, if the policy is to go back to it.

    A checkpoint of a run that was told to stop counts only if there is no other: so the run goes
    back to the same step wherever it was interrupted.

    Args:
      spike: the spike.
      watch: has the policy.
      checkpoints: those of the run; the ones after the restored one are deleted.
      every: steps between those that are due; 0 has none.
      like: as for `Checkpoints.restore`.

    Returns:
      (state, what was saved with it).

    Raises:
      Diverged: the policy is to stop, there is no checkpoint, or the run has gone back too often.
      UsageError: the checkpoint is damaged.
    """
    policy = watch.policy
    if policy.policy == "stop":
        advice = (
            "The same command continues from there. With --config.spikes.policy=skip it leaves out "
            "the batches since then; --config.spikes.deviations and --config.spikes.min_increase "
            "say what counts as a spike."
        )
        raise diverged(spike.step, spike.what, checkpoints, advice)
    if watch.rewinds >= policy.max_rewinds:
        advice = (
            f"The run went back {watch.rewinds} times because of that "
            f"(--config.spikes.max_rewinds={policy.max_rewinds}). {_ADVICE_FOR_THE_RUN}."
        )
        raise diverged(spike.step, spike.what, checkpoints, advice)
    checkpoints.wait()
    saved = [step for step in checkpoints.steps() if step < spike.step]
    if not saved:
        advice = (
            "So there is nothing to go back to. Save more often with a smaller "
            f"--config.train.checkpoint_every, or: {_ADVICE_FOR_THE_RUN}."
        )
        raise diverged(spike.step, spike.what, checkpoints, advice)
    due = [step for step in saved if every and step % every == 0]
    return checkpoints.go_back(max(due or saved), like)
