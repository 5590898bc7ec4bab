"""Notices a loss that jumps, and counts what was skipped because of it.

Large runs now and then meet a batch after which the loss jumps and recovers late or never. The
remedy of Chowdhery et al. (2022, PaLM, section 5.1) is to go back to a checkpoint from before the
jump and to leave out the batches around it; with other batches the same weights train on normally.

Batches are a function of their position in the endless sequence of training batches, and step s
trains on the batch at position s - 1 + `offset`. Skipping batches therefore only raises the offset,
which each later checkpoint saves. Losses are the same on all processes, and so are all decisions.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import Any

from roberta_jax.errors import UsageError

POLICIES = ("none", "stop", "skip")
_SPREAD = 1.4826  # standard deviation / median absolute deviation of a normal distribution


@dataclasses.dataclass(frozen=True)
class SpikePolicy:
    """When a loss is a spike, and what to do about it.

    A spike is a loss above the median of the last `window` losses by more than both `min_increase`
    and `deviations` standard deviations of them, which the median absolute deviation estimates. No
    loss is one before there are `window` losses. With the policy "skip", a loss or a gradient norm
    that is not finite is always a spike; otherwise it ends the run as `divergence.Diverged`.

    Attributes:
      policy: "none"; "stop" ends the run with an error; "skip" goes back to the last checkpoint and
        skips the batches since then, that of the spike, and `skip_batches` more.
      window: how many losses a loss is compared with.
      deviations: see above.
      min_increase: see above, in nats per token.
      skip_batches: see `policy`.
      max_rewinds: how often a run may go back. One more spike ends it with an error.
    """

    policy: str = "none"
    window: int = 100
    deviations: float = 6.0
    min_increase: float = 0.5
    skip_batches: int = 100
    max_rewinds: int = 3

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise UsageError(
                f"--config.spikes.policy={self.policy} is not one of {', '.join(POLICIES)}."
            )


def not_finite(values: Mapping[str, float]) -> str:
    """Says which of `loss` and `gradient_norm` are not finite; empty if both are."""
    bad = [name for name in ("loss", "gradient_norm") if not math.isfinite(values[name])]
    return f"the {' and the '.join(bad).replace('_', ' ')} is not finite" if bad else ""


class LossSpike(Exception):
    """The loss of a step is a spike.

    Attributes:
      step: the step.
      loss: its loss, which may not be finite.
      what: a description, such as "the loss jumped to 9.12 from a median of 3.05".
    """

    def __init__(self, step: int, loss: float, what: str):
        super().__init__(what)
        self.step, self.loss, self.what = step, loss, what


class SpikeWatch:
    """The losses that the next one is compared with, and what was skipped so far.

    Attributes:
      policy: the policy.
      offset: position of the batch of a step minus the number of updates before it.
      rewinds: how often the run has gone back.
    """

    def __init__(self, policy: SpikePolicy, saved: Mapping[str, Any]):
        """Starts from what `saved` returned, or from an empty mapping in a new run."""
        self.policy = policy
        self.offset: int = saved.get("offset", 0)
        self.rewinds: int = saved.get("rewinds", 0)
        self._losses: list[float] = []
        self._take_losses(saved)

    def saved(self) -> dict[str, Any]:
        """What a checkpoint has to save, as a JSON object; empty if nothing happened."""
        values = {"offset": self.offset, "rewinds": self.rewinds}
        if self.policy.policy == "none":
            return values if self.rewinds else {}
        return {**values, "losses": list(self._losses)}

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the loss of a step.

        Args:
          step: the step.
          values: its `loss` and `gradient_norm`.

        Raises:
          LossSpike: it is a spike.
        """
        policy, loss = self.policy, values["loss"]
        if policy.policy == "none":
            return
        what = not_finite(values)
        if what:
            if policy.policy == "skip":
                raise LossSpike(step, loss, what)
            return  # ends the run as it does without a policy
        if len(self._losses) == policy.window:
            median = statistics.median(self._losses)
            spread = _SPREAD * statistics.median(abs(each - median) for each in self._losses)
            limit = median + max(policy.min_increase, policy.deviations * spread)
            if loss > limit:
                raise LossSpike(
                    step,
                    loss,
                    f"the loss jumped to {loss:.4g}, above {limit:.4g}, from a median of "
                    f"{median:.4g} over the last {policy.window} steps",
                )
            del self._losses[0]
        self._losses.append(loss)

    def rewind(self, spike: LossSpike, step: int, saved: Mapping[str, Any]) -> dict[str, float]:
        """Skips the batches from step `step` to the spike's, and those that the policy says.

        Args:
          spike: the spike.
          step: of the checkpoint that the run goes back to.
          saved: what that checkpoint has saved from `saved`.

        Returns:
          The record of it, for step `step` + 1: that is the first step with other batches, so that
          a run that is resumed from a checkpoint before or after it has the record once.
        """
        skipped = spike.step - step + self.policy.skip_batches
        self.offset += skipped
        self.rewinds += 1
        self._take_losses(saved)
        record = {"spike_step": spike.step, "skipped_batches": skipped, "rewinds": self.rewinds}
        return record | ({"spike_loss": spike.loss} if math.isfinite(spike.loss) else {})

    def _take_losses(self, saved: Mapping[str, Any]) -> None:
        self._losses = list(saved.get("losses", ()))[-self.policy.window :]
