"""Applies the formulas to a run: does it fit, which microbatch is the largest, what would help."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from roberta_jax.errors import UsageError, counted
from roberta_jax.planning.compiled import CompiledStep
from roberta_jax.planning.memory import memory_by_use
from roberta_jax.planning.speed import StepTime, step_time
from roberta_jax.planning.topologies import Topology
from roberta_jax.planning.traffic import Traffic, traffic
from roberta_jax.planning.workload import Workload, workload
from roberta_jax.pretraining.spec import PretrainingSpec
from roberta_jax.training.state import memory_limit

# Reads the specification with some config keys changed: {"mesh.fsdp": 8, ...} -> spec.
ReadSpec = Callable[[Mapping[str, Any]], PretrainingSpec]

ROWS = "train.per_device_batch_size"
REMAT = "execution.remat"
_REMATS = ("none", "dots", "full")  # from the largest memory to the smallest

# Changes whose times differ by less are equally fast: the formula is not better than that.
CLOSE = 1.05


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the formulas say about a run.

    Attributes:
      topology: what it is planned for.
      work: what it asks of a chip.
      memory: {use: bytes on a chip}.
      usable: bytes that a program can use on a chip; None if unknown.
      largest_rows: the largest microbatch in rows per chip that fits and divides the chip's share
        of the batch; 0 if even one row does not fit, None if `usable` is unknown.
      collectives: what each chip sends.
      time: of a step; None for a device of unknown speed.
    """

    topology: Topology
    work: Workload
    memory: dict[str, float]
    usable: float | None
    largest_rows: int | None
    collectives: list[Traffic]
    time: StepTime | None

    @property
    def needed(self) -> float:
        """Bytes on a chip."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.usable is None or self.needed <= self.usable


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A change of the config that was tried because the run does not fit.

    Attributes:
      changes: {config key: value}.
      estimate: what the formulas say about the run with it; None if it is not possible.
      fits: whether that fits, by the compiler if it was asked and by formula otherwise.
      problem: why it is not possible, or why it does not fit although its formula does; or "".
      compiled: what the compiler says about it; None if it was not asked or refused it.
    """

    changes: dict[str, Any]
    estimate: Estimate | None
    fits: bool
    problem: str = ""
    compiled: CompiledStep | None = None


def estimate(spec: PretrainingSpec, topology: Topology) -> Estimate:
    """Applies the formulas.

    Raises:
      UsageError: `data`, the only mesh axis that may cross TPU slices, is not divisible by their
        number, or the config names another number of them.
    """
    if topology.is_tpu:
        _check_slices(spec, topology)
    return estimate_of(workload(spec), topology)


def estimate_of(work: Workload, topology: Topology) -> Estimate:
    """Applies the formulas to a run that suits the topology."""
    usable, chip = usable_memory(topology), topology.chip
    collectives = traffic(work, chip, topology.slices)
    return Estimate(
        topology=topology,
        work=work,
        memory=memory_by_use(work),
        usable=usable,
        largest_rows=None if usable is None else largest_rows(work, usable),
        collectives=collectives,
        time=None if chip is None else step_time(work, chip, collectives),
    )


def _check_slices(spec: PretrainingSpec, topology: Topology) -> None:
    """Checks what the run checks by the devices' slices; planned devices have none."""
    slices, data = spec.config["mesh"]["slices"], spec.training.mesh.shape["data"]
    if slices not in (None, topology.slices):
        raise UsageError(
            f"--config.mesh.slices={slices}, but {topology} has "
            f"{counted(topology.slices, 'slice')}. Use "
            f"--config.mesh.slices=none, and --slices={slices} to plan for as many."
        )
    if data % topology.slices:
        raise UsageError(
            f"--config.mesh.data={data} is not divisible by the {topology.slices} slices of "
            f"{topology}: only `data` crosses the slow network between them. Choose fsdp and "
            f"tensor whose product divides {topology.per_slice}, such as "
            f"--mesh=data=-1,fsdp={topology.per_slice}."
        )


def usable_memory(topology: Topology) -> float | None:
    """Bytes that a program can use on each chip, or None if that is unknown."""
    if not topology.local:
        return topology.chip.usable
    device = topology.local[0]
    limit = memory_limit(device)
    shared = len(topology.local) if device.platform == "cpu" else 1
    return None if limit is None else limit / shared


def with_rows(work: Workload, rows: int) -> Workload:
    """The same run with another microbatch, which divides a chip's share of the batch."""
    share = work.rows * work.accumulation
    return dataclasses.replace(work, rows=rows, accumulation=share // rows)


def possible_rows(work: Workload) -> list[int]:
    """The microbatches in rows per chip that divide a chip's share of the batch, ascending."""
    share = work.rows * work.accumulation
    small = [n for n in range(1, math.isqrt(share) + 1) if share % n == 0]
    return sorted({*small, *(share // n for n in small)})


def largest_rows(work: Workload, usable: float) -> int:
    """The largest microbatch in rows per chip that fits; 0 if one row does not."""
    fitting = [
        rows
        for rows in possible_rows(work)
        if sum(memory_by_use(with_rows(work, rows)).values()) <= usable
    ]
    return max(fitting, default=0)


def remedies(
    read: ReadSpec,
    topology: Topology,
    limit: float,
    knobs: Sequence[Mapping[str, Any]] = (),
) -> list[Attempt]:
    """Tries what makes a run smaller, each with the largest microbatch that fits.

    Tried are fewer rows in a microbatch, `execution.remat`, the changes of `knobs` and every size
    of `fsdp`; if none of them fits, also `tensor`. Microbatches have at most the rows of the run as
    configured. Without a batch that fits, an attempt has the smallest.

    Args:
      read: reads the specification with changes.
      topology: what it is planned for.
      limit: bytes that what is tried has to stay below by formula.
      knobs: other changes of the config to try.
    """
    start = workload(read({}))
    attempts = list(
        _attempts(read, topology, limit, start, [{}, *knobs, *_with_fsdp(start, topology)])
    )
    if not any(attempt.fits for attempt in attempts):
        attempts += _attempts(read, topology, limit, start, _with_tensor(start, topology))
    return attempts


def fastest(attempts: Sequence[Attempt]) -> Attempt | None:
    """The attempt that fits and takes the least time; None if none fits.

    Of those that are about equally fast, and of all of them on a device of unknown speed, it is the
    first.
    """
    fitting = [attempt for attempt in attempts if attempt.fits]
    if not fitting or fitting[0].estimate.time is None:
        return fitting[0] if fitting else None
    least = min(attempt.estimate.time.seconds for attempt in fitting)
    return next(each for each in fitting if each.estimate.time.seconds <= CLOSE * least)


def _with_fsdp(start: Workload, topology: Topology) -> Iterator[dict[str, Any]]:
    for parts in _divisors(topology.per_slice):
        if parts > start.mesh["fsdp"]:
            yield {"mesh.data": topology.chips // parts, "mesh.fsdp": parts, "mesh.tensor": 1}


def _with_tensor(start: Workload, topology: Topology) -> Iterator[dict[str, Any]]:
    for parts in _divisors(topology.per_slice):
        if parts > start.mesh["tensor"]:
            fsdp = topology.per_slice // parts
            yield {"mesh.data": topology.slices, "mesh.fsdp": fsdp, "mesh.tensor": parts}


def _divisors(number: int) -> list[int]:
    return [n for n in range(2, number + 1) if number % n == 0]


def _attempts(
    read: ReadSpec,
    topology: Topology,
    limit: float,
    start: Workload,
    bases: Iterable[Mapping[str, Any]],
) -> Iterator[Attempt]:
    """Each base with `execution.remat` as configured and with each value that saves memory."""
    smaller = _REMATS[_REMATS.index(start.execution.remat) + 1 :]
    for base in bases:
        for remat in ({}, *({REMAT: value} for value in smaller)):
            changes = {**base, **remat}
            try:
                work = estimate(read(changes), topology).work
            except UsageError as error:
                yield Attempt(changes, None, False, str(error).splitlines()[0])
                break
            most = start.rows if changes else start.rows - 1
            rows = [n for n in possible_rows(work) if n <= most]
            if not rows:  # the run as configured has one row
                continue
            runs = [estimate_of(with_rows(work, n), topology) for n in rows]
            found = max((run for run in runs if run.needed < limit), key=_rows, default=runs[0])
            if found.work.rows != work.rows:
                changes[ROWS] = found.work.rows
            yield Attempt(changes, found, found.needed < limit)


def _rows(run: Estimate) -> int:
    return run.work.rows
