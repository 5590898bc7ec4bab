"""What a training run is made from, and what it returns: see `run.run`."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import optax
from etils import epath
from jax.sharding import Mesh

from roberta_jax.errors import UsageError
from roberta_jax.training import loop
from roberta_jax.training.partitioning import Rules
from roberta_jax.training.spikes import SpikePolicy
from roberta_jax.training.state import InitParams, TrainState
from roberta_jax.training.steps import Batch, TrainStep, make_train_step

Metrics = dict[str, float]
Evaluate = Callable[[Any, Callable[[], bool]], Metrics | None]
Finish = Callable[[Any, Metrics, Callable[[], bool]], Metrics | None]

# Keys of the final record.
BEST_STEP, FINISHED, STOPPED_EARLY = "best_step", "finished", "stopped_early"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """How a model is trained, whatever it is trained on.

    Attributes:
      seed: of the parameters and the dropout.
      steps: updates of the whole run.
      batch_size: rows of the global batch.
      rows_per_microbatch: rows per device and microbatch.
      accumulation: microbatches per batch.
      cadence: when to log, evaluate and save.
      keep_checkpoints: how many of the newest checkpoints to keep.
      deterministic: see `steps.make_train_step`.
      optimizer: turns gradients into updates.
      schedule: updates made -> learning rate.
      warmup_steps: updates until the learning rate has its peak.
      mesh: the devices.
      rules: logical axis -> mesh axes, see `partitioning.RULES`.
      keep_every: checkpoints whose step is a multiple of this are milestones, see `Checkpoints`.
      spikes: what to do if the loss jumps.
      patience: evaluations in a row without improvement after which the run ends, if the job
        selects; 0 is never. It may change within a run, but a run that has finished early stays
        finished.

    Raises:
      UsageError: `patience` is negative, or there are no evaluations.
    """

    seed: int
    steps: int
    batch_size: int
    rows_per_microbatch: int
    accumulation: int
    cadence: loop.Cadence
    keep_checkpoints: int
    deterministic: bool
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    warmup_steps: int
    mesh: Mesh
    rules: Rules
    keep_every: int = 0
    spikes: SpikePolicy = dataclasses.field(default_factory=SpikePolicy)
    patience: int = 0

    def __post_init__(self):
        if self.patience < 0:
            raise UsageError(
                f"--config.train.patience={self.patience} must be positive, or 0 for never."
            )
        if self.patience and not self.cadence.evaluate:
            raise UsageError(
                f"--config.train.patience={self.patience} counts evaluations, but there are none "
                "before the last step. Set --config.train.eval_every."
            )

    def train_step(self, model: nn.Module) -> TrainStep:
        """The compiled update of a model, see `steps.make_train_step`."""
        return make_train_step(
            model,
            self.optimizer,
            self.schedule,
            self.mesh,
            seed=self.seed,
            accumulation=self.accumulation,
            deterministic=self.deterministic,
            rules=self.rules,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained.

    Attributes:
      train_step: from `TrainingSpec.train_step`.
      init_params: () -> new parameters, boxed with their logical axes.
      pretrained_params: () -> parameters on the host to start from in place of new ones; None
        starts from new ones. It is called only where there is no checkpoint.
      batches: position p -> endless iterator over the global batches at the positions p, p + 1,
        ..., see `loop.fit`.
      identity: what the run is made from, as values that JSON can hold. It is saved in each
        checkpoint, and a checkpoint with another one is refused. It must be the same on all hosts.
      sample: position p -> a digest of the batch there, which all hosts compute alike. They compare
        it at p = the step of the newest checkpoint, whether or not batches were skipped before.
      evaluate: (params, should_stop) -> metrics, or None if it was told to stop; None where there
        is nothing to evaluate on.
      final_metrics: () -> more metrics to record with the final evaluation; called at the very end,
        after the export.
      export: params -> None, writes the model to the folder `EXPORT` of the workdir.
      select: a metric of `evaluate`, by which the best parameters are selected: those of the
        evaluation with the largest value, the first of equal ones, are exported, and the final
        record holds its metrics and its step, `BEST_STEP`. None exports the last parameters.
      finish: (params, metrics, should_stop) -> more metrics to record, or None if it was told to
        stop. It is called before the export with the parameters to be exported and the metrics to
        be recorded, to evaluate and write what is made once. A run that is killed before its final
        record is written calls it again, as does one whose export was deleted.
      add_card: metrics -> None, adds files with the metrics of the run, including those of
        `finish`, to the exported model. It is also called after a deleted export was written again.
        With several processes only the first one calls it.
      describe: state -> a description of the run in a few lines.
      summarize: metrics of an evaluation -> a short text, such as "perplexity 40.0".
      tokens_per_step: tokens of a batch, padding included.
      flops_per_step: floating-point operations of one update over all devices.
    """

    train_step: TrainStep
    init_params: InitParams
    pretrained_params: Callable[[], Any] | None
    batches: Callable[[int], Iterator[Batch]]
    identity: Mapping[str, Any]
    evaluate: Evaluate | None
    final_metrics: Callable[[], Metrics]
    export: Callable[[Any], None]
    describe: Callable[[TrainState], str]
    summarize: Callable[[Metrics], str]
    tokens_per_step: int
    flops_per_step: float
    sample: Callable[[int], Any] = lambda step: None
    select: str | None = None
    finish: Finish | None = None
    add_card: Callable[[Metrics], None] | None = None


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
      workdir: its folder.
      start: updates made before this call.
      step: updates made, fewer than those of the spec if it ended early.
      finished: False if it was told to stop before its end; starting it again continues it.
      metrics: those of the final record; empty unless finished.
      signal: the number of the signal that it was told to stop with: SIGINT (Ctrl-C), SIGTERM, or
        SIGPIPE if the reader of its output has ended; None where it was not told by a signal.
    """

    workdir: epath.Path
    start: int
    step: int
    finished: bool
    metrics: Metrics
    signal: int | None = None
