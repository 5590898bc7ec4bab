"""A training run in a workdir, from its first step or newest checkpoint to the exported model.

This is the part that pretraining and fine-tuning share. The caller describes what is trained as a
`Job`; `run` opens the workdir, restores or creates the state, trains, evaluates and exports. A run
that is killed or told to stop continues when it is started again with the same workdir.
"""

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import optax
from etils import epath
from jax.sharding import Mesh

from roberta_jax.errors import UsageError
from roberta_jax.training import loop, preemption
from roberta_jax.training.agreement import together
from roberta_jax.training.checkpoints import ON_DAMAGE, Checkpoints, checkpoint_steps
from roberta_jax.training.distributed import failing_together, watched
from roberta_jax.training.metrics import MetricsWriter, read_metrics
from roberta_jax.training.partitioning import Rules
from roberta_jax.training.partners import current
from roberta_jax.training.same_start import check_shared, require_same_data
from roberta_jax.training.spikes import SpikePolicy
from roberta_jax.training.state import (
    InitParams,
    TrainState,
    abstract_state,
    create_state,
)
from roberta_jax.training.steps import Batch, TrainStep, make_train_step
from roberta_jax.training.workdir import (
    CHECKPOINTS,
    EXPORT,
    check_export,
    open_workdir,
    record_export,
    write_config,
)

Metrics = dict[str, float]
Evaluate = Callable[[Any, Callable[[], bool]], Metrics | None]


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
      final_metrics: () -> more metrics to record with the final evaluation.
      export: params -> None, writes the model to the folder `EXPORT` of the workdir.
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


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
      workdir: its folder.
      start: updates made before this call.
      step: updates made.
      finished: False if it was told to stop before its end; starting it again continues it.
      metrics: those of the final evaluation; empty unless finished.
      signal: the number of the signal that it was told to stop with: SIGINT (Ctrl-C), SIGTERM, or
        SIGPIPE if the reader of its output has ended; None where it was not told by a signal.
    """

    workdir: epath.Path
    start: int
    step: int
    finished: bool
    metrics: Metrics
    signal: int | None = None


def run(
    workdir: epath.PathLike,
    spec: TrainingSpec,
    make_job: Callable[[epath.Path], Job],
    *,
    config: Mapping[str, Any],
    may_change: Collection[str],
    on_damage: str = "stop",
    **changed: Mapping[str, Any],
) -> RunResult:
    """Starts or continues a training run.

    With several processes, all of them call this alike. Before the state is made they agree on the
    workdir, its newest checkpoint and the data; an error of one ends all, each with a message.

    Args:
      workdir: folder of the run, on a file system that all hosts share; created if needed.
      spec: how to train.
      make_job: (folder) -> what to train. It may take long (preparing data), so it is called after
        the checks of the workdir, and not at all for a finished run.
      config: the run's config as nested dictionaries, written to the workdir; a run continues only
        with an equal one.
      may_change: the keys in which it may differ, see `workdir.open_workdir`.
      on_damage: what to do if the newest checkpoint is damaged, see `Checkpoints.restore`.
      **changed: what changed since the version that started the run: `renamed`, `added` and
        `revalued` of `workdir.open_workdir`.

    Raises:
      UsageError: the workdir is of another run, is in use, is damaged, or cannot be written; or
        `make_job`'s, before which only the folder itself is created; or the hosts do not share the
        workdir, or differ in their data.
    """
    if on_damage not in ON_DAMAGE:
        raise UsageError(f"on_damage={on_damage!r} is not one of {', '.join(ON_DAMAGE)}.")
    primary = jax.process_index() == 0
    with watched(), contextlib.ExitStack() as stack:
        with together("opening the workdir"):
            folder = stack.enter_context(
                open_workdir(workdir, config, may_change, primary, **changed)
            )
        check_shared(folder)
        with together("reading the workdir"):
            latest_step = max(checkpoint_steps(folder / CHECKPOINTS), default=None)
            _check_not_beyond(latest_step, spec.steps)
            metrics = finished_metrics(folder, spec.steps)
            if metrics is not None:
                check_export(folder)
        if metrics is not None:
            return RunResult(folder, spec.steps, spec.steps, True, metrics)
        with together("preparing the data"):
            job = make_job(folder)
            sample = job.sample(latest_step or 0) if jax.process_count() > 1 else None
        require_same_data({**job.identity, "batch": sample, "newest checkpoint": latest_step})
        with together("writing the config"):
            if primary:
                write_config(folder, config)
        keep = (spec.keep_checkpoints, spec.keep_every)
        with Checkpoints(folder / CHECKPOINTS, *keep) as checkpoints, failing_together():
            return _train(folder, spec, job, checkpoints, on_damage)


def finished_metrics(folder: epath.PathLike, steps: int) -> Metrics | None:
    """The final metrics of a run of so many steps, or None if it has not finished."""
    folder = epath.Path(folder)
    exported = (folder / EXPORT / "config.json").exists()
    return _final_record(folder, steps) if exported else None


def say(text: str) -> None:
    """Prints a line, on the first of several processes."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _train(
    folder: epath.Path, spec: TrainingSpec, job: Job, checkpoints: Checkpoints, on_damage: str
) -> RunResult:
    state, saved = _restore_or_create(folder, spec, job, checkpoints, on_damage)
    start = int(state.step)
    evaluation_due = saved.get(loop.EVALUATION_DUE, False) and start < spec.steps
    say(job.describe(state))
    if start:
        say(f"Continuing from the checkpoint of step {start}.")
    primary = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(
            MetricsWriter(
                folder,
                step=start,
                steps=spec.steps,
                evaluation_due=evaluation_due,
                records=saved.get(loop.RECORDS, 0),
                primary=primary,
            )
        )
        notices = _StopNotices(writer, checkpoints)
        should_stop = stack.enter_context(
            preemption.stop_requests(notices.stopping, notices.quitting, current())
        )
        if current() is not None:
            current().doing = lambda: f"step {writer.step}"
        writer.on_closed_output = lambda: should_stop.request(preemption.SIGPIPE)

        def evaluate(params: Any) -> Metrics | None:
            with notices.doing("the evaluation is broken off, and made by the next run"):
                metrics = job.evaluate(params, should_stop)
            if metrics is not None:
                writer.say(f"held-out {job.summarize(metrics)}")
            return metrics

        state, stopped = loop.fit(
            state,
            job.train_step,
            job.batches,
            steps=spec.steps,
            cadence=spec.cadence,
            checkpoints=checkpoints,
            writer=writer,
            tokens_per_step=job.tokens_per_step,
            flops_per_step=job.flops_per_step,
            evaluation=evaluate if job.evaluate else None,
            should_stop=should_stop,
            extra=job.identity,
            evaluation_due=evaluation_due,
            losses=saved.get(loop.LOSSES, ()),
            spikes=spec.spikes,
            spikes_before=saved.get(loop.SPIKES),
        )
        step, metrics = int(state.step), None
        if not stopped:
            metrics = _final_record(folder, spec.steps)  # of a run whose export was deleted
            recorded = metrics is not None
            if not recorded:
                metrics = evaluate(state.params) if job.evaluate else {}
            # A model whose evaluation is not finite is not exported.
            if metrics is not None:
                loop.check_evaluation(step, metrics, checkpoints)
                with notices.doing("the model is exported first"):
                    job.export(state.params)
                    if primary:
                        record_export(folder)
                if not recorded:
                    metrics |= job.final_metrics()
                    writer.write(spec.steps, {**metrics, "finished": 1.0})
    if metrics is None:
        return RunResult(folder, start, step, False, {}, should_stop.signal)
    return RunResult(folder, start, step, True, metrics, should_stop.signal)


class _StopNotices:
    """What a signal prints while a run is training."""

    def __init__(self, writer: MetricsWriter, checkpoints: Checkpoints):
        self._writer, self._checkpoints = writer, checkpoints
        self._doing: str | None = None

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Says what happens to work other than training steps if a signal arrives meanwhile."""
        self._doing = what
        try:
            yield
        finally:
            self._doing = None

    def stopping(self, number: int) -> str:
        writer = self._writer
        saves = writer.step != self._checkpoints.last_saved
        text = f"saving step {writer.step} and stopping" if saves else "stopping"
        if self._doing is not None:
            text += f"; {self._doing}."
        elif writer.seconds_per_step is None:
            text += " as soon as the step is finished, which may have to be compiled first."
        else:
            seconds = 2 * writer.seconds_per_step + self._checkpoints.save_seconds
            text += f", in about {max(1, round(seconds))} s."
        name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
        again = " Ctrl-C again quits at once, without saving." if number == signal.SIGINT else ""
        return f"{name}: {text}{again}"

    def quitting(self) -> str:
        last = self._checkpoints.last_saved
        last = (
            "there is no checkpoint" if last is None else f"the last checkpoint is of step {last}"
        )
        return f"Quit without saving: {last}. The same command continues the run."


def _restore_or_create(
    folder: epath.Path, spec: TrainingSpec, job: Job, checkpoints: Checkpoints, on_damage: str
) -> tuple[TrainState, Mapping[str, Any]]:
    """The newest checkpoint's state, and what was saved with it; or a new state, and nothing."""
    abstract = abstract_state(job.init_params, spec.optimizer, spec.mesh, rules=spec.rules)
    restored = checkpoints.restore(abstract, on_damage)
    if restored is None:
        with together("reading the pretrained weights"):
            params = None if job.pretrained_params is None else job.pretrained_params()
        state = create_state(job.init_params, spec.optimizer, spec.mesh, params, rules=spec.rules)
        return state, {}
    state, saved = restored
    changed = [name for name in job.identity if saved.get(name) != job.identity[name]]
    if changed:
        raise UsageError(
            f"the checkpoints in {folder} were trained on other data: the "
            f"{' and the '.join(changed)} changed since. Restore the data and the tokenizer that "
            "the run was started with, or choose another --workdir."
        )
    return state, saved


def _final_record(folder: epath.Path, steps: int) -> Metrics | None:
    for record in reversed(read_metrics(folder)):
        if record["step"] == steps and record.get("finished"):
            return {key: value for key, value in record.items() if key not in ("step", "finished")}
    return None


def _check_not_beyond(step: int | None, steps: int) -> None:
    if step is not None and step > steps:
        raise UsageError(
            f"the run is already at step {step}, beyond --config.train.steps={steps}. Use at least "
            f"{step} steps, or another --workdir."
        )
