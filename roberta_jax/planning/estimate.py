"""Applies the formulas to a run: does it fit, which microbatch is the largest, what would help."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from roberta_jax.errors import UsageError
from roberta_jax.planning.memory import memory_by_use
from roberta_jax.planning.speed import StepTime, step_time
from roberta_jax.planning.topologies import Topology
from roberta_jax.planning.traffic import Traffic, traffic
from roberta_jax.planning.workload import Workload, workload
from roberta_jax.pretraining.spec import PretrainingSpec
from roberta_jax.training.state import memory_limit

# Reads the specification with some config keys changed: {"mesh.fsdp": 8, ...} -> spec.
ReadSpec = Callable[[Mapping[str, Any]], PretrainingSpec]


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
      needed: bytes on a chip with it; None if the change is not possible.
      fits: whether that fits.
      problem: why it is not possible, or "".
    """

    changes: dict[str, Any]
    needed: float | None
    fits: bool
    problem: str = ""


def estimate(spec: PretrainingSpec, topology: Topology) -> Estimate:
    """Applies the formulas.

    Raises:
      UsageError: `data`, the only mesh axis that may cross TPU slices, is not divisible by their
        number, or the config names another number of them.
    """
    if topology.is_tpu:
        _check_slices(spec, topology)
    work, usable = workload(spec), usable_memory(topology)
    chip = topology.chip
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
            f"--config.mesh.slices={slices}, but {topology} has {topology.slices} slice(s). Use "
            f"--config.mesh.slices=none, and --slices={slices} to plan for as many slices."
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
    ratio: float = 1.0,
    first: Sequence[Mapping[str, Any]] = (),
) -> list[Attempt]:
    """Tries what makes a run smaller, from the cheapest change to the dearest, until one fits.

    Args:
      read: reads the specification with changes.
      topology: what it is planned for.
      ratio: how many times more memory the compiler needs than the formula says.
      first: changes of the config to try before all others.

    Returns:
      What was tried; the last one fits, unless nothing does.
    """
    attempts: list[Attempt] = []
    memory = usable_memory(topology)
    if memory is None:
        return []
    usable = memory / ratio
    for changes in itertools.chain(first, _changes(read, topology, usable)):
        try:
            found = estimate(read(changes), topology)
        except UsageError as error:
            attempts.append(Attempt(dict(changes), None, False, str(error).splitlines()[0]))
            continue
        fits = found.needed <= usable
        attempts.append(Attempt(dict(changes), found.needed * ratio, fits))
        if fits:
            break
    return attempts


def _changes(read: ReadSpec, topology: Topology, usable: float) -> Iterator[dict[str, Any]]:
    start = workload(read({}))
    full = {"execution.remat": "full"}
    for base in ({}, full) if start.execution.remat != "full" else ({},):
        if base:
            yield dict(base)
        rows = largest_rows(workload(read(base)), usable)
        if 0 < rows < start.rows:
            yield {**base, "train.per_device_batch_size": rows}
        elif rows == 0:
            yield {**base, "train.per_device_batch_size": 1}
    total = topology.per_slice
    sizes = [n for n in range(2, total + 1) if total % n == 0]
    for parts in sizes:
        if parts > start.mesh["fsdp"]:
            mesh = {"mesh.data": -1, "mesh.fsdp": parts, "mesh.tensor": 1}
            yield mesh
            yield {**mesh, **full, "train.per_device_batch_size": 1}
    for parts in sizes:
        if parts > start.mesh["tensor"]:
            mesh = {"mesh.data": topology.slices, "mesh.fsdp": total // parts}
            yield {
                **mesh, "mesh.tensor": parts, **full, "train.per_device_batch_size": 1,
            }  # fmt: skip
