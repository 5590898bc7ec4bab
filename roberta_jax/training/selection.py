"""Keeps the parameters of the best evaluation of a run, and ends a run that no longer improves.

`best/` in the workdir holds parameters, one folder per step, in the format of the checkpoints. An
evaluation with a larger value of the selecting metric than all before writes its parameters there.
Each checkpoint saves which evaluation was the best when it was written, and only after the
parameters of that evaluation are on disk; `best/` keeps them for as long as the checkpoint is
there. So a run that goes back to any of its checkpoints finds the best parameters of that time. It
deletes those of later evaluations, and makes these evaluations again.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from roberta_jax.errors import UsageError, counted
from roberta_jax.storage.atomic import removal_command
from roberta_jax.training.agreement import exchange
from roberta_jax.training.checkpoints import Checkpoints

BEST = "best"  # the folder of the workdir


class Selection:
    """The best evaluation so far, and the parameters that it was made with.

    Besides those, it keeps the ones that were the best when a checkpoint on disk was saved. Use it
    as a context manager, which waits at its end until the parameters are written. With several
    processes, all of them call its methods alike.

    Attributes:
      metric: the name of the metric that selects; larger is better, and of equal values the first.
      best_step: updates made before the best evaluation; None before the first evaluation.
      best_metrics: all metrics of the best evaluation.
      evaluated: updates made before the last evaluation; 0 before the first one.
      since: evaluations after the best one.
      ended: whether the run ends before its last step.
    """

    def __init__(
        self,
        workdir: epath.Path,
        checkpoints: Checkpoints,
        *,
        metric: str,
        patience: int = 0,
        step: int = 0,
        saved: Mapping[str, Any] | None = None,
        ended: bool = False,
    ):
        """Starts where the restored checkpoint was saved, or anew.

        Args:
          workdir: parameters are kept in its folder `BEST`.
          checkpoints: those of the run.
          metric: see above.
          patience: evaluations without improvement after which the run ends; 0 is never.
          step: updates made so far.
          saved: what the checkpoint of that step has saved from `saved`.
          ended: whether the run has ended there, whatever the patience is now.

        Raises:
          UsageError: the checkpoint selects by another metric, or its best parameters are missing;
            or the folder cannot be used.
        """
        self.metric = metric
        self._patience, self._checkpoints, self._has_ended = patience, checkpoints, ended
        self._evaluated_at: dict[int, int] = {}  # checkpoint -> `evaluated` when it was saved
        self._store = Checkpoints(workdir / BEST, is_kept=self._is_kept)
        try:
            self.go_back(step, saved)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __enter__(self) -> "Selection":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._store.__exit__(kind, error, traceback)

    @property
    def ended(self) -> bool:
        return self._has_ended or 0 < self._patience <= self.since

    def take(self, step: int, values: Mapping[str, float], params: Any = None) -> str:
        """Takes the result of an evaluation.

        Args:
          step: updates made before.
          values: the metrics. With several processes those of the first one count.
          params: the evaluated parameters. None if they need not be kept, because the run has
            ended and its last checkpoint has them.

        Returns:
          A line that says what is the best.

        Raises:
          UsageError: the metric is not among the values, or the parameters cannot be written.
        """
        values = exchange("the metrics of the evaluation", dict(values))[0]
        if self.metric not in values:
            raise UsageError(
                f"the evaluation at step {step} has no {self.metric}, by which the best "
                f"parameters are to be selected. It has: {', '.join(values) or 'nothing'}."
            )
        self.evaluated = step
        if self.best_step is None or values[self.metric] > self.best_metrics[self.metric]:
            self.best_step, self.best_metrics, self.since = step, values, 0
            if params is not None:
                self._checkpoints.wait()  # `_is_kept` lists those on disk
                self._store.save(step, params)
        else:
            self.since += 1
        if self.ended and params is not None:
            ending = f"No improvement in {counted(self.since, 'evaluation')}: ending at step {step}"
            return f"{ending}. {self.describe_best()}"
        return self.describe_best()

    def describe_best(self) -> str:
        """Returns a sentence: "Best so far: accuracy 0.712 at step 300." or the like."""
        value = self.best_metrics[self.metric]
        return f"Best so far: {self.metric} {value:.4g} at step {self.best_step}."

    def saved(self, step: int) -> dict[str, Any]:
        """Returns what the checkpoint of a step has to save, as a JSON object.

        It waits until the best parameters are on disk.

        Raises:
          UsageError: they cannot be written.
        """
        self._store.wait()
        self.prune()
        self._evaluated_at[step] = self.evaluated
        return {
            "metric": self.metric,
            "evaluated": self.evaluated,
            "since": self.since,
            "best_step": self.best_step,
            "best_metrics": self.best_metrics,
        }

    def prune(self) -> None:
        """Deletes the parameters that no checkpoint on disk counts on any longer."""
        self._checkpoints.wait()
        steps = self._store.steps()
        kept = self._is_kept(steps)
        unused = [each for each, stays in zip(steps, kept, strict=True) if not stays]
        self._store.delete(exchange("the steps to delete in best", unused)[0])

    def go_back(self, step: int, saved: Mapping[str, Any] | None) -> None:
        """Goes back to what a checkpoint has saved, and deletes the parameters of later steps.

        Args:
          step: of the checkpoint.
          saved: what it has saved from `saved`; nothing if it is of a run without selection.

        Raises:
          UsageError: see `__init__`.
        """
        saved = saved or {}
        if saved.get("metric", self.metric) != self.metric:
            raise UsageError(
                f"the best parameters of {self._store.folder.parent} are selected by "
                f"{saved['metric']}, not by {self.metric}. Go on with the metric of the run, or "
                "choose another --workdir."
            )
        self.evaluated: int = saved.get("evaluated", 0)
        self.since: int = saved.get("since", 0)
        self.best_step: int | None = saved.get("best_step")
        self.best_metrics: dict[str, float] = dict(saved.get("best_metrics", {}))
        self._evaluated_at = {
            at: evaluated for at, evaluated in self._evaluated_at.items() if at < step
        } | {step: self.evaluated}
        self._store.wait()
        # All processes list the steps before the first one deletes.
        steps = exchange("the steps in best", self._store.steps())[0]
        if self.best_step is not None and self.best_step not in steps:
            raise UsageError(
                f"{self._store.folder / str(self.best_step)}, with the parameters of the best "
                f"evaluation so far, is missing.\n{self._advice(self.best_step)}"
            )
        self._store.delete(each for each in steps if each > self.evaluated)

    def restore(self, step: int, like: Any) -> Any:
        """Returns the parameters that were kept of the evaluation at a step.

        Args:
          step: that of the best evaluation.
          like: shapes, dtypes and shardings, a tree of `jax.ShapeDtypeStruct`s.

        Raises:
          UsageError: they are missing or damaged.
        """
        self._store.wait()
        return self._store.restore_step(step, like, self._advice(step))[0]

    def _advice(self, step: int) -> str:
        """What to do if the parameters of the best evaluation, at that step, are lost."""
        folder, steps = self._checkpoints.folder, self._checkpoints.steps()
        later = [folder / str(each) for each in steps if each >= step]
        if len(later) == len(steps):
            return "Restore the folder from a copy, or start again in a new --workdir."
        return (
            "Restore the folder from a copy. Or delete the checkpoints from then on and run the "
            "same command again, which repeats the training since the checkpoint before:\n  "
            f"{removal_command(*later)}"
        )

    def _is_kept(self, steps: Sequence[int]) -> list[bool]:
        """Whether each step of `best/`, in ascending order, stays on disk: see above."""
        kept = set(steps[-1:])
        for checkpoint in self._checkpoints.steps():
            # Whether the evaluation at the step of a checkpoint of an earlier process was made
            # before it was saved is not known; it is not, if the run was told to stop.
            evaluated = self._evaluated_at.get(checkpoint)
            limits = (checkpoint - 1, checkpoint) if evaluated is None else (evaluated,)
            for limit in limits:
                kept |= set([each for each in steps if each <= limit][-1:])
        return [each in kept for each in steps]


def selecting(
    workdir: epath.Path, checkpoints: Checkpoints, metric: str | None, **options: Any
) -> contextlib.AbstractContextManager[Selection | None]:
    """Returns the `Selection` of a run, or a context of None if it does not select."""
    if metric is None:
        return contextlib.nullcontext()
    return Selection(workdir, checkpoints, metric=metric, **options)
