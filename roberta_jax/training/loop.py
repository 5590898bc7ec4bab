"""The training loop: the compiled update, the compiled evaluation, and `fit`, which runs them.

The same loop pretrains and fine-tunes. A model is anything with these two methods (the heads in
`modeling` describe them), which take the arrays of a batch as keyword arguments:

    loss(**batch, deterministic=...) -> {objective: summed loss}
    count(**batch)                   -> {objective: what to divide that sum by}

The loss is the sum over the objectives of sum / count, with both taken over the whole global batch:
all devices, hosts and microbatches. A mean of means would be another loss wherever the counts of
the parts differ.
"""

import contextlib
import dataclasses
import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from roberta_jax.errors import UsageError, listed
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.flops import peak_flops
from roberta_jax.training.metrics import Meter, MetricsWriter
from roberta_jax.training.partitioning import RULES, Rules, on_mesh
from roberta_jax.training.state import LARGEST_PARAMETER, TrainState, unsound_arrays

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
EvalStep = Callable[[Any, Batch], tuple[Sums, Sums]]

# Keys in a checkpoint, beside those of `fit`'s `extra`.
EVALUATION_DUE = "evaluation_due"
LOSSES = "losses_since_the_last_record"
RECORDS = "records"


class Diverged(UsageError):
    """A loss, the gradient, the state or an evaluation is not finite, or a parameter is huge."""


def stream_key(seed: int, stream: str, step: jax.Array) -> jax.Array:
    """The random key of a stream ("dropout", ...) at a step; a function of nothing else."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    *,
    seed: int,
    accumulation: int = 1,
    deterministic: bool = False,
    rules: Rules = RULES,
) -> TrainStep:
    """Compiles one update: `step(state, batch) -> (state, metrics)`; the old state is consumed.

    Args:
      model: has `loss` and `count`, see the module's docstring.
      optimizer: turns gradients into updates.
      schedule: updates made -> learning rate, for the metrics alone.
      mesh: the mesh of the state and of the batch [B, ...].
      seed: seed of the dropout.
      accumulation: number of microbatches, which are computed one after the other. Each has
        B / accumulation rows, the same share of every device's rows.
      deterministic: on a GPU, use only operations whose result does not vary from run to run, and
        do not select kernels by timing them. (CPUs and TPUs are deterministic as they are.)
      rules: the sharding of activations by logical axis, see `partitioning.RULES`.

    Returns:
      The step. Its metrics are float32 scalars: `loss`, `gradient_norm` (before clipping),
      `learning_rate` and, where there are several objectives, each one's part of the loss, such as
      `masked_lm_loss`.
    """

    def gradients(params, batch, key, counts):
        def loss_of(params):
            sums = apply(model, "loss", params, batch, key)
            means = {name: sums[name] / counts[name] for name in sums}
            return sum(means.values()), means

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    def accumulated(params, batch, key, counts):
        # Row r of a device goes to microbatch r % accumulation: no row changes its device.
        parts = {
            name: x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]).swapaxes(0, 1)
            for name, x in batch.items()
        }

        def add(total, microbatch):
            index, rows = microbatch
            part = gradients(params, rows, jax.random.fold_in(key, index), counts)
            return jax.tree.map(jnp.add, total, part), None

        first = {name: x[0] for name, x in parts.items()}
        sums = jax.eval_shape(lambda: apply(model, "loss", params, first, key))
        zero = jnp.zeros([], jnp.float32)
        zeros = ((zero, dict.fromkeys(sums, zero)), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(add, zeros, (jnp.arange(accumulation), parts))[0]

    def step(state: TrainState, batch: Batch):
        # A count of 0 (no target of an objective in the batch) comes with a sum of 0.
        counts = {name: jnp.maximum(n, 1) for name, n in model.count(**batch).items()}
        key = stream_key(seed, "dropout", state.step)
        compute = gradients if accumulation == 1 else accumulated
        (loss, means), grads = compute(state.params, batch, key, counts)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
        }
        if len(means) > 1:
            metrics |= {f"{name}_loss": mean for name, mean in means.items()}
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    options = {"xla_gpu_deterministic_ops": True, "xla_gpu_autotune_level": 0}
    return _compiled(
        step, mesh, rules, donate_argnums=0, compiler_options=options if deterministic else None
    )


def make_eval_step(
    model: nn.Module, mesh: Mesh, method: str = "loss", rules: Rules = RULES
) -> EvalStep:
    """Compiles `step(params, batch) -> (sums, counts)`, without dropout.

    Args:
      model: has `count` and the method.
      mesh: the mesh of the parameters and of the batch.
      method: the method of the model that gives the sums, "loss" or another with its contract.
      rules: as for `make_train_step`.
    """

    def step(params: Any, batch: Batch) -> tuple[Sums, Sums]:
        return apply(model, method, params, batch, None), model.count(**batch)

    return _compiled(step, mesh, rules)


def apply(
    model: nn.Module, method: str, params: Any, batch: Batch, dropout_key: jax.Array | None
) -> Sums:
    """Calls a method of the model on a batch; without a key there is no dropout."""
    return model.apply(
        {"params": params},
        **batch,
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        method=method,
    )


def _compiled(function: Callable, mesh: Mesh, rules: Rules, **options: Any) -> Callable:
    """`jax.jit` under the mesh and the sharding rules; `.lower` is that of jit's functions."""
    jitted = jax.jit(function, **options)

    def call(*args):
        with on_mesh(mesh, rules):
            return jitted(*args)

    def lower(*args):
        with on_mesh(mesh, rules):
            return jitted.lower(*args)

    call.lower = lower
    return call


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
) -> tuple[TrainState, bool]:
    """Trains from the state's step up to step `steps`.

    Step s is the s-th update. The host runs one step ahead of the device: the metrics of a step are
    read after the next step was dispatched. Before a checkpoint the host waits, so that a step is
    saved only after its own loss and gradient norm were found finite. The state to be saved is
    checked as well (see `state.unsound_arrays`), since the update itself could be what is wrong.

    Args:
      state: where to start; it is consumed.
      train_step: from `make_train_step`.
      batches: step s -> iterator over the batches of the updates s + 1, s + 2, ...
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
        losses of the steps since the last record, so that the next one is their mean; and
        `RECORDS`, how many records were written.
      evaluation_due: whether to evaluate first, as saved in the checkpoint of `state`.
      losses: those of the steps since the last record, as saved in the checkpoint of `state`.

    Returns:
      (the state, whether the run was stopped before its end). The state is saved in either case.

    Raises:
      Diverged: a loss, a gradient norm, the result of an evaluation or the state to be saved is not
        finite.
      UsageError: a checkpoint could not be written.
    """
    step = start = int(state.step)
    meter = Meter(tokens_per_step, losses)
    peak = peak_flops()
    pending: dict[str, jax.Array] | None = None  # the metrics of `step`, not read yet

    def read() -> None:
        nonlocal pending
        if pending is None:
            return
        values = {name: float(value) for name, value in jax.device_get(pending).items()}
        pending = None
        _check_finite(step, values, checkpoints)
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
        values = evaluation(state.params)
        if values is not None:
            check_evaluation(step, values, checkpoints)
            writer.write(step, values)
        meter.pause()
        return values is not None

    if evaluation and evaluation_due and step < steps and not evaluate():
        return state, True
    data = batches(step) if step < steps else iter(())
    try:
        while step < steps:
            writer.step = step + 1
            batch = next(data)
            with _announced_compilation(writer) if step == start else contextlib.nullcontext():
                state, metrics = train_step(state, batch)
            read()
            step, pending = step + 1, metrics
            stopping = should_stop()
            due = bool(evaluation) and step < steps and _due(step, cadence.evaluate)
            if due and not stopping:
                due = stopping = not evaluate()
            if stopping or step == steps or _due(step, cadence.checkpoint):
                read()
                _check_state(step, state, checkpoints)
                resume = {EVALUATION_DUE: due, LOSSES: meter.losses, RECORDS: writer.records}
                writer.publish()
                checkpoints.save(step, state, {**(extra or {}), **resume})
                meter.pause()
            if stopping:
                break
    finally:
        close = getattr(data, "close", None)
        if close is not None:
            close()
    checkpoints.wait()
    return state, step < steps


@contextlib.contextmanager
def _announced_compilation(writer: MetricsWriter) -> Iterator[None]:
    """Says that the first call of the step compiles it, and how long that took."""
    writer.say("Compiling the train step...")
    started = time.perf_counter()
    yield
    writer.say(f"Compiled in {time.perf_counter() - started:.1f} s.")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check_finite(step: int, values: Mapping[str, float], checkpoints: Checkpoints) -> None:
    bad = [name for name in ("loss", "gradient_norm") if not math.isfinite(values[name])]
    if bad:
        what = f"the {' and the '.join(bad).replace('_', ' ')} is not finite"
        raise _diverged(step, what, checkpoints)


def _check_state(step: int, state: TrainState, checkpoints: Checkpoints) -> None:
    bad = unsound_arrays(state)
    if bad:
        total = len(jax.tree.leaves(state))
        what = (
            f"the update left {len(bad)} of {total} arrays with values that are not finite, or "
            f"parameters above {LARGEST_PARAMETER:.2g}: {listed(bad)}"
        )
        raise _diverged(step, what, checkpoints)


def check_evaluation(step: int, values: Mapping[str, float], checkpoints: Checkpoints) -> None:
    """Raises `Diverged` if a result of the evaluation after `step` updates is not finite."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        what = (
            f"the evaluation is not finite ({', '.join(f'{name} {values[name]}' for name in bad)})"
        )
        raise _diverged(step, what, checkpoints)


def _diverged(step: int, what: str, checkpoints: Checkpoints) -> Diverged:
    checkpoints.wait()
    # The one of this step is what the evaluation after the last update has found to be bad.
    before = [saved for saved in checkpoints.steps() if saved < step]
    saved = (
        f"The checkpoint of step {before[-1]} was written before and is intact."
        if before
        else "No checkpoint was written before it."
    )
    return Diverged(
        f"training diverged: at step {step} {what}. {saved}\nStart in a new --workdir with a lower "
        "--config.optimizer.learning_rate, a longer --config.schedule.warmup_steps, or "
        "--config.optimizer.clip_norm=1."
    )
