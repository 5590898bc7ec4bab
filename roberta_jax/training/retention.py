"""Which checkpoints stay on disk when another one is saved."""

import json
from collections.abc import Callable, Sequence

import orbax.checkpoint as ocp
from etils import epath

from roberta_jax.errors import UsageError


class NewestAndMilestones:
    """Keeps the newest checkpoints and, for ever, those whose step is a multiple of a number."""

    def __init__(self, folder: epath.Path, keep: int, keep_every: int):
        """Checks the values.

        Args:
          folder: of the checkpoints; what was a milestone when it was saved stays one.
          keep: how many of the newest ones to keep.
          keep_every: a checkpoint whose step is a multiple of this is a milestone. 0 is none.

        Raises:
          UsageError: `keep` or `keep_every` is too small.
        """
        if keep < 1:
            raise UsageError(f"--config.train.keep_checkpoints={keep} must be at least 1.")
        if keep_every < 0:
            raise UsageError(
                f"--config.train.keep_every={keep_every} must be positive, or 0 for never."
            )
        self._folder, self._keep, self._keep_every = folder, keep, keep_every
        self._milestones: dict[int, bool] = {}

    def saving(self, step: int) -> bool:
        """Returns whether the checkpoint of a step that is being saved is a milestone."""
        self._milestones[step] = self._is_milestone(step)
        return self._milestones[step]

    def __call__(self, steps: Sequence[int]) -> list[bool]:
        """Returns whether each step, in ascending order, stays on disk."""
        newest = set(steps[-self._keep :])
        return [s in newest or self._is_milestone(s) or self._was_milestone(s) for s in steps]

    def _is_milestone(self, step: int) -> bool:
        return self._keep_every > 0 and step % self._keep_every == 0

    def _was_milestone(self, step: int) -> bool:
        """Whether the step was saved as a milestone, by another `keep_every` perhaps."""
        if step not in self._milestones:
            try:
                meta = json.loads((self._folder / str(step) / "meta" / "metadata").read_bytes())
                self._milestones[step] = bool(meta.get("milestone", False))
            except (OSError, ValueError, AttributeError):
                self._milestones[step] = True  # unreadable: it is not ours to delete it
        return self._milestones[step]


class Retention(ocp.checkpoint_managers.PreservationPolicy):
    """Tells Orbax which checkpoints stay when another one is saved."""

    def __init__(self, is_kept: Callable[[Sequence[int]], list[bool]]):
        self._is_kept = is_kept

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        return self._is_kept([each.step for each in checkpoints])
