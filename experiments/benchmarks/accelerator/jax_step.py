"""Measures the training step of this package: forward and backward pass in bfloat16, and AdamW.

The batch is what `roberta_jax.pretrain` makes of rows that hold one input each. One chip is
measured, also where there are several.

Array names carry their shape: B rows, L tokens of a row, K slots for masked tokens of a row.
"""

import math
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.accelerator import top_operations
from experiments.benchmarks.accelerator.machine import Emit
from experiments.benchmarks.accelerator.workload import CONFIGS, masked_rows, slots_of
from experiments.benchmarks.sides import peak_mb
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.training.optimizer import adamw
from roberta_jax.training.partitioning import create_mesh, to_global
from roberta_jax.training.state import create_state, memory_limit
from roberta_jax.training.steps import make_train_step

_WARM_UP, _TRACED = 2, 3  # steps
ROUND_SECONDS = 1.0  # a round has as many steps as fit, if their number is not given


class TrainingStep:
    """A training step of one chip with its batch.

    Args:
      model: a key of `workload.CONFIGS`.
      length: tokens of a row.
      rows: rows of the batch, one microbatch.
      attention, remat, unroll: values of `Execution`.
      changes: other values of the model's config.
      deterministic: as in `make_train_step`.

    Attributes:
      update: (state, batch) -> (state, metrics).
      batch: on the device.
    """

    def __init__(
        self,
        model: str,
        length: int,
        rows: int,
        attention: str,
        remat: str = "dots",
        unroll: int = 1,
        *,
        changes: dict[str, Any] | None = None,
        deterministic: bool = False,
    ):
        config = RobertaConfig(**CONFIGS[model] | (changes or {}))
        execution = Execution(
            dtype=jnp.bfloat16, remat=remat, attention=attention, scan_unroll=unroll
        )
        module = RobertaForMaskedLM(config, execution)
        self._module, self._mesh = module, create_mesh(devices=jax.devices()[:1])
        self._optimizer = adamw(_schedule, weight_decay=0.01)
        self.update = make_train_step(
            module, self._optimizer, _schedule, self._mesh, seed=0, deterministic=deterministic
        )
        self.batch = to_global(make_batch(model, length, rows), self._mesh, rows, np.arange(rows))

    def new_state(self) -> Any:
        """The state of step 0, always the same."""

        def init():
            return self._module.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]

        return create_state(init, self._optimizer, self._mesh)


def _schedule(step: jax.Array) -> jax.Array:
    del step
    return jnp.float32(1e-4)


def make_batch(model: str, length: int, rows: int) -> dict[str, np.ndarray]:
    """A batch as that of pretraining, by name: [B, L] and [B, K]."""
    ids_BL, positions_BN, labels_BN = masked_rows(model, rows, length)
    unused = ((0, 0), (0, slots_of(length) - positions_BN.shape[1]))
    return {
        "input_ids": ids_BL,
        "segment_ids": np.ones((rows, length), np.int32),
        "position_ids": np.tile(np.arange(2, length + 2, dtype=np.int32), (rows, 1)),
        "masked_positions": np.pad(positions_BN, unused),
        "masked_labels": np.pad(labels_BN, unused),
        "masked_weights": np.pad(np.ones(labels_BN.shape, np.float32), unused),
    }


def measure(
    emit: Emit,
    *,
    name: str,
    model: str,
    length: int,
    rows: list[int],
    attention: str,
    remat: str,
    unroll: int,
    rounds: int,
    steps: int | None,
    trace: bool,
) -> None:
    """Emits the record of one step, after every round; then that of its longest operations.

    Args:
      emit: takes a record; one of the same name replaces an earlier one.
      name: of the record.
      rows: microbatches to try, descending. The first that fits in memory is measured.
      rounds: to measure; the record has their median.
      steps: of a round, or None for about `ROUND_SECONDS`.
      trace: whether to profile some steps.
      model, length, attention, remat, unroll: see `TrainingStep`.
    """
    jax.config.update("jax_enable_compilation_cache", False)  # the compile time is measured
    record = {
        "part": "step", "name": name, "side": "jax", "model": model, "length": length,
        "attention": attention, "remat": remat, "unroll": unroll,
    }  # fmt: skip
    too_large: list[dict] = []
    needed = 0.0  # bytes of a row, by the program that did not fit
    limit = memory_limit(jax.devices()[0])
    for number in rows:
        if number != rows[-1] and limit and needed * number > limit:
            continue  # what the larger program needs for each row says that this is too large
        measured = None  # frees the state of the last attempt
        try:
            measured = _Compiled(model, length, number, attention, remat, unroll)
            if limit and measured.program_bytes > limit:
                needed = (measured.program_bytes - measured.state_bytes) / number
                limit_text = f"{measured.program_bytes / 2**30:.1f} GiB of {limit / 2**30:.1f}"
                too_large.append({"rows": number, "reason": limit_text})
                continue
            measured.warm_up()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            too_large.append({"rows": number, "reason": str(error).splitlines()[0][:300]})
            continue
        measured.run_rounds(emit, record | {"too_large": too_large}, rounds, steps)
        if trace:
            _trace(emit, record, measured)
        return
    reason = "; ".join(f"{each['rows']} rows: {each['reason']}" for each in too_large)
    emit(record | {"status": "refused", "reason": f"does not fit in memory: {reason}"})


class _Compiled:
    """A compiled step with its state.

    Attributes:
      state_bytes, program_bytes: of the state and the batch, and of all arrays at the peak, as the
        compiler says.
    """

    def __init__(self, model, length, rows, attention, remat, unroll):
        self._step = TrainingStep(model, length, rows, attention, remat, unroll)
        self._tokens, self._rows = rows * length, rows
        self._state = self._step.new_state()
        start = time.perf_counter()
        lowered = self._step.update.lower(self._state, self._step.batch)
        self._trace_seconds = time.perf_counter() - start
        start = time.perf_counter()
        self._compiled = lowered.compile()
        self._compile_seconds = time.perf_counter() - start
        memory = self._compiled.memory_analysis()
        self.state_bytes = memory.argument_size_in_bytes
        self.program_bytes = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )
        self._losses: list[float] = []

    def text(self) -> str:
        """The optimised program."""
        return self._compiled.as_text()

    def run(self, steps: int) -> float:
        """Makes steps; returns the seconds, waiting for the last one."""
        start = time.perf_counter()
        for _ in range(steps):
            self._state, metrics = self._compiled(self._state, self._step.batch)
        jax.block_until_ready((self._state, metrics))
        seconds = time.perf_counter() - start
        self._losses.append(float(metrics["loss"]))
        return seconds

    def warm_up(self) -> None:
        self.run(_WARM_UP)

    def run_rounds(self, emit: Emit, record: dict, rounds: int, steps: int | None) -> None:
        steps = steps or max(1, math.ceil(ROUND_SECONDS / self.run(1)))
        rates = []
        for _ in range(rounds):
            seconds = self.run(steps) / steps
            rates.append(self._tokens / seconds)
            is_finite = all(map(math.isfinite, self._losses))
            emit(
                record
                | {
                    "status": "measured" if is_finite else "failed",
                    "reason": None if is_finite else "the loss is not finite",
                    "rows": self._rows,
                    "steps": steps,
                    "tokens_per_second": statistics.median(rates),
                    "tokens_per_second_of_rounds": rates,
                    "peak_bytes": _peak_bytes(),
                    "program_bytes": self.program_bytes,
                    "trace_seconds": self._trace_seconds,
                    "compile_seconds": self._compile_seconds,
                    "first_loss": self._losses[0] if is_finite else None,
                    "last_loss": self._losses[-1] if is_finite else None,
                }
            )


def _peak_bytes() -> float | None:
    """The most memory that this process had on the device; on a CPU, that of the process."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return peak_mb() * 2**20
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def _trace(emit: Emit, record: dict, measured: _Compiled) -> None:
    profile = {key: record[key] for key in ("model", "length", "attention", "remat", "unroll")}
    profile |= {"part": "profile", "name": f"profile of {record['name']}", "step": record["name"]}
    try:
        events = top_operations.profile(lambda: measured.run(_TRACED))
        busy, operations = top_operations.summarize(events, measured.text(), _TRACED)
        emit(profile | {"status": "measured", "busy_seconds": busy, "operations": operations})
    except Exception as error:  # the measurement of the step stands
        reason = f"{type(error).__name__}: {error}"
        emit(profile | {"status": "refused", "reason": reason[:1000]})
