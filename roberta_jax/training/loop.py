"""The training loop: `fit` runs the compiled update, and `evaluate` the compiled evaluation.

The same loop pretrains and fine-tunes. `steps` compiles both for anything that has a loss.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from roberta_jax.errors import UsageError
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.divergence import (
    check_evaluation,
    check_finite,
    check_state,
    restore_before,
)
from roberta_jax.training.flops import peak_flops
from roberta_jax.training.host_memory import KeptMemory
from roberta_jax.training.metrics import Meter, MetricsWriter
from roberta_jax.training.selection import Selection
from roberta_jax.training.spikes import LossSpike, SpikePolicy, SpikeWatch
from roberta_jax.training.state import TrainState
from roberta_jax.training.steps import Batch, EvalStep, TrainStep

# Keys in a checkpoint, beside those of `fit`'s `extra`.
EVALUATION_DUE = "evaluation_due"
LOSSES = "losses_since_the_last_record"
RECORDS = "records"
SELECTION = "selection"
SPIKES = "spikes"


def evaluate(
    eval_step: EvalStep, params: Any, batches: Iterable[Batch], should_stop: Callable[[], bool]
) -> dict[str, float] | None:
    """Averages each objective over all batches: the sum of the sums over the sum of the counts.

    Returns:
      {objective: mean}, or None if `should_stop` returned True in between.
    """
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    pending = None
    for batch in batches:
        previous, pending = pending, eval_step(params, batch)
        _add(sums, counts, previous)
        if should_stop():
            return None
    _add(sums, counts, pending)
    return {name: sums[name] / counts[name] for name in sums if counts[name]}


def _add(sums, counts, results) -> None:
    # Python floats: a float32 total would round away small batches of a long evaluation.
    if results is not None:
        for total, part in zip((sums, counts), jax.device_get(results), strict=True):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + float(value)


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often things happen during training, in steps; 0 is never.

    Attributes:
      log: steps between records of the mean loss.
      evaluate: steps between evaluations. The one after the last step is the caller's.
      checkpoint: steps between checkpoints. There is always one after the last step.
    """

    log: int = 100
    evaluate: int = 0
    checkpoint: int = 0

    def __post_init__(self):
        if self.log < 1:
            raise UsageError(f"--config.train.log_every={self.log} must be at least 1.")
        for name, every in (("eval", self.evaluate), ("checkpoint", self.checkpoint)):
            if every < 0:
                raise UsageError(
                    f"--config.train.{name}_every={every} must be positive, or 0 for never."
                )


def fit(
    state: TrainState,
    train_step: TrainStep,
    batches: Callable[[int], Iterator[Batch]],
    *,
    steps: int,
    cadence: Cadence,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    tokens_per_step: int,
    flops_per_step: float | None = None,
    evaluation: Callable[[Any], Mapping[str, float] | None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    extra: Mapping[str, Any] | None = None,
    evaluation_due: bool = False,
    losses: Sequence[Mapping[str, float]] = (),
    spikes: SpikePolicy | None = None,
    spikes_before: Mapping[str, Any] | None = None,
    selection: Selection | None = None,
) -> tuple[TrainState, bool]:
    """Trains from the state's step up to step `steps`.

    Step s is the s-th update. The host runs one step ahead of the device: the metrics of a step are
    read after the next step was dispatched. Before a checkpoint the host waits, so that a step is
    saved only after its own loss and gradient norm were found finite. The state to be saved is
    checked as well (see `state.unsound_arrays`), since the update itself could be what is wrong.

    Args:
      state: where to start; it is consumed.
      train_step: from `make_train_step`.
      batches: position p -> iterator over the batches at the positions p, p + 1, ... Step s trains
        on that at position s - 1, plus the number of batches that were skipped before.
      steps: the updates of the whole run.
      cadence: when to log, evaluate and save.
      checkpoints: where to save.
      writer: where to report.
      tokens_per_step: for tokens/s.
      flops_per_step: of one update over all devices, for the share of the chips' peak (`mfu`).
      evaluation: params -> values to record, or None if it was stopped.
      should_stop: polled after every step.
      extra: values to save in each checkpoint. More are saved with them: `EVALUATION_DUE`,
        whether the run was stopped before an evaluation that was due at this step; `LOSSES`, the
        losses of the steps since the last record, so that the next one is their mean; `RECORDS`,
        how many records were written; `SPIKES`, see `SpikeWatch.saved`; and with a `selection`
        `SELECTION`, see `Selection.saved`.
      evaluation_due: whether to evaluate first, as saved in the checkpoint of `state`.
      losses: those of the steps since the last record, as saved in the checkpoint of `state`.
      spikes: what to do if the loss jumps; nothing by default.
      spikes_before: what the checkpoint of `state` has saved as `SPIKES`.
      selection: takes the evaluations, and may end the run early.

    Returns:
      (the state, whether the run was stopped before its end). The state is saved in either case.

    Raises:
      Diverged: a loss, a gradient norm, the result of an evaluation or the state to be saved is not
        finite; or a loss is a spike, and the policy is to stop, or the run has gone back too often.
      UsageError: a checkpoint could not be written.
    """
    step = int(state.step)
    meter = Meter(tokens_per_step, losses)
    peak = peak_flops()
    watch = SpikeWatch(spikes or SpikePolicy(), spikes_before or {})
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    memory = KeptMemory()
    pending: dict[str, jax.Array] | None = None  # the metrics of `step`, not read yet

    def read() -> None:
        nonlocal pending
        if pending is None:
            return
        values = {name: float(value) for name, value in jax.device_get(pending).items()}
        pending = None
        watch.check(step, values)
        check_finite(step, values, checkpoints)
        meter.add({name: value for name, value in values.items() if name.endswith("loss")})
        writer.progress(step, values["loss"], meter.tokens_per_second, meter.seconds_per_step)
        if step % cadence.log == 0 or step == steps:
            mean, seconds = meter.take()
            values |= mean
            if seconds and flops_per_step and peak:
                values["mfu"] = flops_per_step / (seconds * peak)
            writer.write(step, values)
            writer.line(step, values, seconds)

    def evaluate() -> bool:
        """Evaluates and records; False if the evaluation was stopped."""
        read()
        with memory.running(evaluation):
            values = evaluation(state.params)
        if values is not None:
            check_evaluation(step, values, checkpoints)
            writer.write(step, values)
            if selection is not None:
                writer.say(selection.take(step, values, state.params))
        meter.pause()
        return values is not None

    def ended() -> bool:
        return step == steps or (selection is not None and selection.ended)

    def go_back(spike: LossSpike) -> tuple[TrainState, Mapping[str, float], bool]:
        """Restores the last checkpoint, to go on from there with later batches.

        Returns:
          (its state, the record of it, whether its step has to be evaluated again).
        """
        nonlocal step, meter, pending
        restored, saved = restore_before(spike, watch, checkpoints, cadence.checkpoint, like)
        step, pending = int(restored.step), None
        meter = Meter(tokens_per_step, saved.get(LOSSES, ()))
        record = watch.rewind(spike, step, saved.get(SPIKES, {}))
        again = selection is not None and saved.get(EVALUATION_DUE, False)
        if selection is not None:
            selection.go_back(step, saved.get(SELECTION))
        writer.rewind(step, evaluation_due=again)
        writer.say(
            f"At step {spike.step} {spike.what}. Going back to the checkpoint of step {step} and "
            f"skipping {record['skipped_batches']} batches ({watch.rewinds} of at most "
            f"{watch.policy.max_rewinds} times)."
        )
        return restored, record, again

    data: Iterator[Batch] = iter(())
    compiled = False
    try:
        if evaluation and evaluation_due and not ended() and not evaluate():
            return state, True
        if not ended():
            data = batches(step + watch.offset)
        while not ended():
            try:
                writer.step = step + 1
                batch = next(data)
                with (
                    contextlib.nullcontext() if compiled else _announced_compilation(writer),
                    memory.running(tuple(x.shape for x in jax.tree.leaves(batch))),
                ):
                    state, metrics = train_step(state, batch)
                compiled = True
                read()
                step, pending = step + 1, metrics
                stopping = should_stop()
                due = bool(evaluation) and step < steps and _due(step, cadence.evaluate)
                if due and not stopping:
                    due = stopping = not evaluate()
                if step == steps and selection is not None:  # in case the run is made longer
                    due = bool(evaluation) and _due(step, cadence.evaluate)
                if stopping or ended() or _due(step, cadence.checkpoint):
                    read()
                    check_state(step, state, checkpoints)
                    resume = {EVALUATION_DUE: due, LOSSES: meter.losses, RECORDS: writer.records}
                    resume |= {SPIKES: watch.saved()}
                    if selection is not None:
                        resume |= {SELECTION: selection.saved(step)}
                    writer.publish()
                    checkpoints.save(step, state, {**(extra or {}), **resume})
                    meter.pause()
                if stopping:
                    break
            except LossSpike as spike:
                del state, batch  # they may fill the devices
                state, record, again = go_back(spike)
                if again and not evaluate():
                    break  # the checkpoint says that it is due
                writer.write(step + 1, record)
                _close(data)
                data = batches(step + watch.offset)
    finally:
        _close(data)
        memory.close()
    checkpoints.wait()
    if selection is not None:
        selection.prune()
    return state, not ended()


def _close(iterator: Iterator[Batch]) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


@contextlib.contextmanager
def _announced_compilation(writer: MetricsWriter) -> Iterator[None]:
    """Says that the first call of the step compiles it, and how long that took."""
    writer.say("Compiling the train step...")
    started = time.perf_counter()
    yield
    writer.say(f"Compiled in {time.perf_counter() - started:.1f} s.")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
