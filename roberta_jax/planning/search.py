"""Makes a plan: the formulas first, then, if asked for, the compiler, with few compilations."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from roberta_jax.planning.compiled import CompiledStep, DoesNotFit, compile_step
from roberta_jax.planning.estimate import (
    Attempt,
    Estimate,
    ReadSpec,
    estimate,
    possible_rows,
    remedies,
)
from roberta_jax.planning.report import Plan, command_of
from roberta_jax.planning.topologies import Topology

# Compilations that look for the largest microbatch, besides that of the run as configured.
MOST_COMPILATIONS = 4
_ROWS = "train.per_device_batch_size"


@dataclasses.dataclass
class _Compiler:
    """Compiles a run with different microbatches and remembers the results."""

    read: ReadSpec
    topology: Topology
    tried: dict[int, float | None] = dataclasses.field(default_factory=dict)
    best: CompiledStep | None = None
    usable: float | None = None

    def __call__(self, rows: int) -> bool:
        """Whether the run fits with this microbatch, by the compiler."""
        try:
            compiled = compile_step(self.read({_ROWS: rows}), self.topology.chip)
        except DoesNotFit as overflow:
            self.tried[rows] = overflow.needed
            return False
        self.tried[rows] = compiled.needed
        if self.best is None or compiled.rows > self.best.rows:
            self.best = compiled
        return True


def plan(
    read: ReadSpec,
    topology: Topology,
    given: Mapping[str, int],
    arguments: Sequence[str],
    *,
    compiled: ReadSpec | None = None,
    largest: bool = False,
    notes: Sequence[str] = (),
    knobs: Sequence[Mapping[str, Any]] = (),
) -> Plan:
    """Makes the plan of a run.

    Args:
      read: reads the specification for planned devices, with some config keys changed.
      topology: what is planned for.
      given: mesh sizes that replace the config's, as config keys.
      arguments: the command-line arguments that describe the config.
      compiled: reads the specification for devices that programs can be compiled for; None does
        not compile.
      largest: whether to compile several microbatches, to find the largest that fits.
      notes: for the report.
      knobs: changes of the config to try first if the run does not fit.

    Raises:
      UsageError: the mesh or the batch does not suit the topology, or a value of the config is
        wrong.
    """
    found = estimate(read({}), topology)
    compiler = None
    fits, ratio = found.fits, 1.0
    if compiled is not None:
        compiler = _Compiler(compiled, topology)
        fits = compiler(found.work.rows)
        needed = compiler.tried[found.work.rows]
        # Where the compiler needs more than the formula says, so will it after a change.
        ratio = max(1.0, (needed or 0) / found.needed)
        if not fits or largest:
            rows, limit = possible_rows(found.work), MOST_COMPILATIONS if largest else 2
            bisect(compiler, rows, found.largest_rows or 1, dict(compiler.tried), fits, limit)
    attempts = [] if fits else remedies(read, topology, ratio, knobs)
    return Plan(
        config=_config_name(arguments),
        estimate=found,
        compiled=compiler and compiler.best,
        tried=compiler.tried if compiler else {},
        attempts=attempts,
        command=_command(arguments, given, found, attempts),
        notes=notes,
    )


def bisect(
    fits: Callable[[int], bool],
    candidates: Sequence[int],
    guess: int,
    known: Mapping[int, object],
    known_fit: bool,
    most: int,
) -> None:
    """Looks for the largest candidate that fits, beginning with a guess, in at most `most` calls.

    Args:
      fits: tries a candidate. If one fits, every smaller one does.
      candidates: ascending.
      guess: the candidate to try first, or one beside it.
      known: candidates that were tried before, which all fit or all did not.
      known_fit: which of the two.
      most: calls.
    """
    low = -1  # the index of the largest one that is known to fit
    high = len(candidates)  # of the smallest one that is known not to
    for candidate in known:
        index = list(candidates).index(candidate)
        low, high = (max(low, index), high) if known_fit else (low, min(high, index))
    start = [i for i, candidate in enumerate(candidates) if candidate <= guess]
    index = start[-1] if start else 0
    step = 1
    for _ in range(most):
        if high - low <= 1:
            return
        index = min(max(index, low + 1), high - 1)
        if fits(candidates[index]):
            low = index
        else:
            high = index
        if low >= 0 and high < len(candidates):
            index = (low + high) // 2
        else:  # further and further away from the guess, until it lies between two results
            index = low + step if low >= 0 else high - step
            step *= 2


def _command(
    arguments: Sequence[str],
    given: Mapping[str, int],
    found: Estimate,
    attempts: Sequence[Attempt],
) -> str:
    """The command of what fits, or of the run as configured if nothing does."""
    mesh = {f"mesh.{axis}": size for axis, size in found.work.mesh.items()}
    changes: dict[str, Any] = {**given, **mesh, _ROWS: found.work.rows}
    fitting = [attempt for attempt in attempts if attempt.fits]
    if fitting:
        changes |= fitting[-1].changes
    return command_of(arguments, changes)


def _config_name(arguments: Sequence[str]) -> str:
    names = [each.partition("=")[2] for each in arguments if each.startswith("--config=")]
    return names[0] if names else "the config"
