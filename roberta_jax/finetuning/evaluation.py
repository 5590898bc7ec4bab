"""Evaluation of a fine-tuned model: its outputs for every row, predictions, scores and loss."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from roberta_jax.finetuning.batches import evaluation_batches
from roberta_jax.finetuning.prepare import Split
from roberta_jax.finetuning.results import SplitResult, baseline_name, with_intervals
from roberta_jax.tasks.examples import Example
from roberta_jax.tasks.features import Features
from roberta_jax.tasks.kinds import Kind
from roberta_jax.tasks.kinds.base import Prediction
from roberta_jax.training.partitioning import Rules, on_mesh


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The result for a split.

    Attributes:
      predictions: one for each example, see `Kind.predictions`.
      scores: the task's metrics; {} where no example has a label.
      loss: the mean loss over all targets, None where there are none.
    """

    predictions: list[Prediction]
    scores: dict[str, float]
    loss: float | None

    def result(
        self, kind: Kind, split: str, examples: Sequence[Example], baseline: Any
    ) -> SplitResult:
        """What is reported: with the intervals of the scores and the simplest baseline.

        Args:
          kind: the kind of task.
          split: the name of the split.
          examples: its examples.
          baseline: what the baseline predicts, from `Kind.baseline`; None where there is none.
        """
        constant = None if baseline is None else kind.constant(baseline, examples)
        scores = {} if constant is None else kind.scores(examples, constant)
        result = SplitResult(
            split=split,
            examples=examples,
            predictions=self.predictions,
            scores=self.scores,
            baseline=scores or None,
            loss=self.loss,
            baseline_name=baseline_name(kind.task, constant),
        )
        return with_intervals(kind.task, kind.labels, result)


class Evaluator:
    """Runs a model over splits; each length of input is compiled once.

    Args:
      model: the head.
      kind: the kind of task.
      mesh: the devices, which share the rows of a batch.
      rules: logical axis -> mesh axes.
      batch_size: rows per step, over all devices.
      lengths: the lengths that inputs are padded to, ascending, for all splits: nothing is compiled
        anew for another one.
      pad_id: the token of padding.
      engine: what builds batches ahead, see `pipeline.train_batches`.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: Kind,
        mesh: Mesh,
        rules: Rules,
        *,
        batch_size: int,
        lengths: np.ndarray,
        pad_id: int,
        engine: str = "auto",
    ):
        self._kind, self._mesh, self._rules = kind, mesh, rules
        self._batch_size, self._lengths, self._pad_id = batch_size, lengths, pad_id
        self._engine = engine
        targets = type(model).TARGETS

        def forward(params: Any, batch: Mapping[str, jax.Array]):
            inputs = {name: x for name, x in batch.items() if name not in targets}
            labels = {name: x for name, x in batch.items() if name in targets}
            output = model.apply({"params": params}, **inputs, deterministic=True)
            counts = model.count(**batch)
            return kind.outputs(output), model.loss_of(output, **labels), counts

        # All processes need all outputs.
        self._forward = jax.jit(forward, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def outputs(
        self,
        features: Features,
        params: Any,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> tuple[dict[str, Sequence[np.ndarray]], float | None] | None:
        """The model's outputs for all rows, and the mean loss; None if it was told to stop.

        Returns:
          ({name: one array per row, see `Kind.predictions`}, loss).
        """
        batches = evaluation_batches(
            features,
            self._lengths,
            self._kind.fill(),
            self._pad_id,
            self._mesh,
            self._batch_size,
            self._engine,
        )
        rows_of: dict[str, list[Any]] = {}
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        sizes = features.row_lengths

        def take(rows: np.ndarray, result: Any) -> None:
            arrays, batch_sums, batch_counts = jax.device_get(result)
            for name, values in arrays.items():
                of_rows = rows_of.setdefault(name, [None] * features.num_rows)
                for row, value in zip(rows, values, strict=True):
                    if row >= 0:
                        of_rows[row] = value[: sizes[row]] if self._kind.per_token else value
            for total, part in ((sums, batch_sums), (counts, batch_counts)):
                for name, value in part.items():
                    total[name] = total.get(name, 0.0) + float(value)

        pending = None
        try:
            for rows, batch in batches:
                with on_mesh(self._mesh, self._rules):
                    result = self._forward(params, batch)
                if pending is not None:
                    take(*pending)
                pending = rows, result
                if should_stop():
                    return None
        finally:
            batches.close()
        if pending is not None:
            take(*pending)
        means = [sums[name] / counts[name] for name in sums if counts[name]]
        return rows_of, sum(means) if means else None

    def __call__(
        self,
        split: Split,
        params: Any,
        should_stop: Callable[[], bool] = lambda: False,
        kind: Kind | None = None,
    ) -> Evaluated | None:
        """Predicts and scores all examples of a split; None if it was told to stop.

        Args:
          split: the examples.
          params: the model's parameters.
          should_stop: polled after every batch.
          kind: predicts and scores in place of the evaluator's, see `Kind.with_choices`.
        """
        result = self.outputs(split.features, params, should_stop)
        if result is None:
            return None
        outputs, loss = result
        kind = kind or self._kind
        predictions = kind.predictions(split.examples, split.features, outputs)
        return Evaluated(predictions, kind.scores(split.examples, predictions), loss)
