"""Compiles the train step for chips that need not exist, and reads what the compiler made.

What is compiled is the train step of `roberta_jax.pretrain` itself, with shapes in place of arrays.
The memory is the compiler's own: on TPUs its peak, elsewhere the arguments, temporaries and outputs
together. Its temporary part is split by what the loops of the program carry. The collectives are
those of the optimised program with the loops' iterations counted.
"""

import contextlib
import dataclasses
import importlib.metadata
import math
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import jax

from roberta_jax.errors import counted, shortened
from roberta_jax.planning import memory
from roberta_jax.planning.chips import Chip
from roberta_jax.planning.hlo import Collective, Program, array_bytes, arrays_of, axes_of_groups
from roberta_jax.planning.traffic import Traffic
from roberta_jax.planning.workload import (
    Workload,
    batch_shapes,
    state_shapes,
    workload,
)
from roberta_jax.pretraining.spec import PretrainingSpec

OTHER = "other temporaries (of no loop: present layer, LM head, buffers of collectives)"
PROGRAM = "program"

# Cycles per second, for the compiler's estimates: the peak rate of chips.CHIPS divided by the
# operations of a cycle (two for each of the 128 x 128 cells of 4 matrix units; v5p has two cores;
# those of v6e have 256 x 256 cells).
CLOCKS = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([0-9.]+)([BKMGT]?)"


class DoesNotFit(Exception):
    """The compiler found no place for the program.

    Attributes:
      needed: bytes that it wants, or None where the compiler does not say.
    """

    def __init__(self, needed: float | None):
        super().__init__(f"needs {needed or 'an unknown number of'} bytes")
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The compiled train step.

    Attributes:
      rows: per chip and microbatch.
      memory: {use: bytes on a chip}; the sum is what the program holds at most.
      allocated: bytes that the compiler sets aside for temporaries, which is more than `memory`
        counts where their places in memory leave gaps.
      collectives: what each chip sends in a step, added up by axes, kind and network.
      cycles: that the compiler estimates for a step without collectives; None if it does not.
      compute_seconds: these cycles as time.
      seconds: spent compiling.
      problem: why the program could not be read, so that its collectives, its cycles and the split
        of its temporaries are missing; or "".
    """

    rows: int
    memory: dict[str, float]
    allocated: float
    collectives: list[Traffic]
    cycles: float | None
    compute_seconds: float | None
    seconds: float
    problem: str = ""

    @property
    def needed(self) -> float:
        """Bytes on a chip."""
        return sum(self.memory.values())


def compile_step(
    spec: PretrainingSpec, chip: Chip | None, progress: TextIO | None = sys.stderr
) -> CompiledStep:
    """Compiles the train step of a run for the devices of its mesh.

    Args:
      spec: read for the devices to compile for.
      chip: what is known of them.
      progress: where to say every few seconds that it is still compiling; None for nowhere.

    Raises:
      DoesNotFit: the compiler found no place for it in the chip's memory.
    """
    training = spec.training
    started = time.perf_counter()
    with _without_cache():
        program = _compiled(spec, progress)
    seconds = time.perf_counter() - started
    slices = len({getattr(each, "slice_index", 0) for each in training.mesh.devices.flat})
    cycles, collectives, problem, work = None, [], "", workload(spec)
    carried: dict[str, float] = {}
    try:
        read = Program(program.as_text())
        cycles, carried = read.estimated_cycles(), carried_by_use(read, work)
        collectives = added_up(read.collectives(), dict(training.mesh.shape), chip, slices)
    except ValueError as error:  # of a compiler that writes programs in another way
        problem = shortened(str(error), 300)
    clock = CLOCKS.get(chip.name) if chip else None
    stats = program.memory_analysis()
    return CompiledStep(
        rows=training.rows_per_microbatch,
        memory=_by_use(carried, work, stats, platform_of(spec)),
        allocated=stats.temp_size_in_bytes,
        collectives=collectives,
        cycles=cycles,
        compute_seconds=cycles / clock if cycles and clock else None,
        seconds=seconds,
        problem=problem,
    )


def memory_of_step(spec: PretrainingSpec, progress: TextIO | None = sys.stderr) -> float:
    """Bytes that the train step of a run takes on a device of this machine.

    The program is kept in JAX's compilation cache, if there is one, where the run finds it.

    Args:
      spec: read for the devices of this machine.
      progress: as for `compile_step`.

    Raises:
      DoesNotFit: the compiler found no place for it in the device's memory.
    """
    stats = _compiled(spec, progress).memory_analysis()
    return total_memory(stats, platform_of(spec)) + stats.generated_code_size_in_bytes


def _compiled(spec: PretrainingSpec, progress: TextIO | None) -> jax.stages.Compiled:
    training = spec.training
    step = training.train_step(spec.model_class(spec.model, spec.execution))
    what = f"{training.mesh.size} x {training.mesh.devices.flat[0].device_kind}"
    rows = counted(training.rows_per_microbatch, "row")
    with _progress(f"Compiling the train step for {what}, {rows} per chip", progress):
        try:
            return step.lower(state_shapes(spec), batch_shapes(spec)).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise DoesNotFit(size_of_overflow(str(error))) from error


def platform_of(spec: PretrainingSpec) -> str:
    """The platform of the devices of a run: "tpu", "cpu", ..."""
    return spec.training.mesh.devices.flat[0].platform


def compiler_name(platform: str) -> str:
    """The compiler for a platform with its version, such as "the TPU compiler (libtpu 0.0.42)"."""
    package = "libtpu" if platform == "tpu" else "jaxlib"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # of the machine's image
        package += f" {importlib.metadata.version(package)}"
    return f"the {platform.upper()} compiler ({package})"


def size_of_overflow(message: str) -> float | None:
    """The bytes needed by the compiler's message that memory is exhausted; None without them."""
    for pattern in (
        rf"\({_SIZE}\) exceeds available HBM",
        rf"Used {_SIZE} of {_SIZE} hbm",
        rf"{_SIZE} exceeds",
    ):
        match = re.search(pattern, message)
        if match:
            return float(match[1]) * _UNITS[match[2]]
    return None


def total_memory(stats: Any, platform: str) -> float:
    """Bytes that the arguments, the temporaries and the outputs of a program take on a device.

    On TPUs it is the compiler's peak. Elsewhere the temporaries are one block that is allocated for
    the whole program, next to the arguments and to the outputs that reuse none of them, and the
    peak does not count it.

    Args:
      stats: the result of `memory_analysis` of a compiled program.
      platform: "tpu", "cpu", ...
    """
    peak = getattr(stats, "peak_memory_in_bytes", 0)
    if platform == "tpu" and peak > stats.argument_size_in_bytes:  # old compilers have no peak
        return peak
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes + stats.temp_size_in_bytes + max(0, outputs)


def _by_use(
    carried: Mapping[str, float], work: Workload, stats: Any, platform: str
) -> dict[str, float]:
    """Splits `total_memory` by use; see `carried_by_use` for the temporary part."""
    arguments = stats.argument_size_in_bytes
    optimizer, batch = work.optimizer_bytes, work.batch_bytes
    # The layouts of TPUs pad arrays; the padding is counted with the batch, whose rows it is.
    uses = {
        memory.PARAMETERS: work.parameter_bytes,
        memory.OPTIMIZER: optimizer,
        memory.BATCH: max(batch, arguments - work.parameter_bytes - optimizer),
    }
    temporary = max(0, total_memory(stats, platform) - arguments)
    scale = min(1.0, temporary / sum(carried.values())) if any(carried.values()) else 1.0
    uses |= {use: scale * size for use, size in carried.items()}
    uses[OTHER] = temporary - scale * sum(carried.values())
    uses[PROGRAM] = stats.generated_code_size_in_bytes
    return uses


def carried_by_use(read: Program, work: Workload) -> dict[str, float]:
    """Bytes of what the program's loops carry: gradients, copies of parameters, activations.

    An array belongs to the gradients if it is float32 and has the shape of a parameter's shard, and
    to the copies if it is bfloat16 and has such a shape or is the whole word table. It belongs to
    the saved activations if its first axes are the layers and the microbatch.
    """
    shards = {shard for _, shard, _ in work.shards.values()}
    whole = {shape for shape, _, _ in work.shards.values()}
    layers, rows = work.model.num_hidden_layers, work.rows
    found: Counter[tuple[str, str, int]] = Counter()
    for number, (loop, _, _) in enumerate(read.carries()):
        for dtype, shape in arrays_of(loop.shape):
            use = None
            plain = tuple(n for n in shape if n != 1)
            if dtype == "f32" and _like(shards, shape, plain) and math.prod(shape) > 4096:
                use = memory.GRADIENTS
            elif dtype in ("bf16", "f16") and _like(shards | whole, shape, plain):
                use = memory.COPIES
            elif plain[:2] == (layers, rows) and len(plain) > 2:
                use = memory.SAVED
            if use:
                found[use, f"{dtype}{shape}", number] += array_bytes(dtype, shape)
    # The forward and the backward loop carry the same activations and copies.
    largest: dict[str, float] = {memory.GRADIENTS: 0.0, memory.COPIES: 0.0, memory.SAVED: 0.0}
    for use in (memory.COPIES, memory.SAVED):
        per_array: dict[str, int] = {}
        for (of_use, array, _), size in found.items():
            if of_use == use:
                per_array[array] = max(per_array.get(array, 0), size)
        largest[use] = float(sum(per_array.values()))
    largest[memory.GRADIENTS] = float(
        sum(size for (use, _, _), size in found.items() if use == memory.GRADIENTS)
    )
    return largest


def _like(known: set[tuple[int, ...]], shape: tuple[int, ...], plain: tuple[int, ...]) -> bool:
    return shape in known or plain in known


def added_up(
    collectives: list[Collective], mesh: Mapping[str, int], chip: Chip | None, slices: int
) -> list[Traffic]:
    """Adds collectives up by axes, kind and network.

    Args:
      collectives: of the program.
      mesh: {axis: size}, of all slices together.
      chip: gives the bandwidths.
      slices: over which the first axis is spread. The program is then that of one slice.
    """
    first, *others = mesh
    of_slice = {first: mesh[first] // slices} | {axis: mesh[axis] for axis in others}
    sent: Counter[tuple[str, str, str]] = Counter()
    for each in collectives:
        if each.groups is None:
            key = (first, each.kind, chip.outer if chip else "network")
        elif each.groups.shape[1] == 1:
            continue
        else:
            axes = None
            if each.kind != "collective-permute":
                axes = axes_of_groups(each.groups, of_slice)
            name = "several" if axes is None else " and ".join(axes)
            key = (name, each.kind, chip.inner if chip else "devices")
        sent[key] += each.sent(slices)
    rows = []
    for (axes, kind, network), size in sorted(sent.items(), key=lambda item: -item[1]):
        bandwidth = math.inf
        if chip:
            bandwidth = chip.network if network == chip.outer else chip.link
        rows.append(Traffic(axes, kind, "", network, size, size / bandwidth))
    return rows


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """JAX writes such programs to its persistent cache and cannot read them again."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


@contextlib.contextmanager
def _progress(what: str, stream: TextIO | None) -> Iterator[None]:
    """Says on `stream` how long the block has been running: in one line on a terminal."""
    if stream is None:
        yield
        return
    done, is_terminal = threading.Event(), stream.isatty()
    started = time.perf_counter()

    def seconds() -> str:
        return f"{time.perf_counter() - started:.0f} s"

    def tell() -> None:
        while not done.wait(1 if is_terminal else 30):
            end = "\r" if is_terminal else "\n"
            print(f"{what}... {seconds()}", end=end, file=stream, flush=True)

    print(f"{what} (minutes)...", end="\r" if is_terminal else "\n", file=stream, flush=True)
    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print(f"{what}: {seconds()}. ", file=stream, flush=True)
