"""Makes a plan: the formulas first, then, if asked for, the compiler, with few compilations."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from roberta_jax.planning.compiled import (
    CompiledStep,
    DoesNotFit,
    compile_step,
    compiler_name,
    platform_of,
)
from roberta_jax.planning.estimate import (
    ROWS,
    Attempt,
    Estimate,
    ReadSpec,
    estimate,
    estimate_of,
    fastest,
    possible_rows,
    remedies,
    with_rows,
)
from roberta_jax.planning.report import Plan, command_of
from roberta_jax.planning.topologies import Topology

# Compilations that look for the largest microbatch, besides that of the run as configured.
MOST_COMPILATIONS = 4

# Proposals for a run that does not fit that are compiled, until the compiler accepts one.
MOST_PROPOSALS = 2


class _Compiler:
    """Compiles runs, and notes by how much the compiler refuses what fits by formula.

    Attributes:
      name: of the compiler, with its version.
      limit: bytes that a run has to stay below by formula. Where the compiler needs more than the
        formula says, so will it after a change.
    """

    def __init__(self, read: ReadSpec, found: Estimate):
        self._read, self._topology, self._usable = read, found.topology, found.usable
        self._platform = platform_of(read({}))
        self.name = compiler_name(self._platform)
        self.limit = math.inf if found.usable is None else found.usable

    def __call__(
        self, changes: Mapping[str, Any], found: Estimate
    ) -> tuple[CompiledStep | None, float | None]:
        """Compiles the run with changes.

        Args:
          changes: of the config.
          found: what the formulas say about the run with them.

        Returns:
          (what was compiled, or None if it does not fit; the bytes that the compiler wants, or None
          where it does not say).
        """
        step: CompiledStep | None
        try:
            step = compile_step(self._read(changes), self._topology.chip)
        except DoesNotFit as overflow:
            step, needed = None, overflow.needed
        else:
            needed = step.needed
        # Only the compiler of TPUs knows how much memory there is.
        if step and self._platform != "tpu" and self._usable and step.needed > self._usable:
            step = None
        if step is None:
            share = min(1.0, self._usable / needed) if self._usable and needed else 1.0
            self.limit = min(self.limit, share * found.needed)
        return step, needed


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
      knobs: changes of the config to try, besides microbatches, `remat` and the mesh, if the run
        does not fit.

    Raises:
      UsageError: the mesh or the batch does not suit the topology, or a value of the config is
        wrong.
    """
    found = estimate(read({}), topology)
    compiler = None if compiled is None else _Compiler(compiled, found)
    tried: dict[int, float | None] = {}
    best: CompiledStep | None = None
    fits = found.fits
    if compiler is not None:

        def compiles(rows: int) -> bool:
            nonlocal best
            run = estimate_of(with_rows(found.work, rows), topology)
            step, tried[rows] = compiler({ROWS: rows}, run)
            if step and (best is None or step.rows > best.rows):
                best = step
            return step is not None

        fits = compiles(found.work.rows)
        if largest:
            candidates = possible_rows(found.work)
            guess = found.largest_rows or 1
            bisect(compiles, candidates, guess, dict(tried), fits, MOST_COMPILATIONS)
    attempts, proposal = [], None
    if not fits:
        attempts, proposal = _propose(read, compiler, found, best, knobs)
    return Plan(
        config=_config_name(arguments),
        estimate=found,
        compiler=compiler.name if compiler else "",
        compiled=best,
        tried=tried,
        attempts=attempts,
        limit=compiler.limit if compiler else found.usable,
        proposal=proposal,
        command=_command(arguments, given, found, proposal),
        notes=notes,
    )


def _propose(
    read: ReadSpec,
    compiler: _Compiler | None,
    found: Estimate,
    best: CompiledStep | None,
    knobs: Sequence[Mapping[str, Any]],
) -> tuple[list[Attempt], Attempt | None]:
    """What to try for a run that does not fit: (the attempts, the one to propose or None).

    Args:
      read: reads the specification with changes.
      compiler: compiles the proposal; None does not.
      found: what the formulas say about the run as configured.
      best: the run with the largest microbatch that was compiled, if one fits.
      knobs: changes of the config to try, besides microbatches, `remat` and the mesh.
    """
    known: list[Attempt] = []
    if best is not None:
        run = estimate_of(with_rows(found.work, best.rows), found.topology)
        known.append(Attempt({ROWS: best.rows}, run, True, compiled=best))
    for compilations in range(MOST_PROPOSALS + 1):
        limit = compiler.limit if compiler else found.usable
        attempts = remedies(read, found.topology, limit, knobs)
        if best is not None:  # other rows were compiled
            attempts = [each for each in attempts if set(each.changes) != {ROWS}]
        refused = [each.changes for each in known if not each.fits]
        attempts = known + [each for each in attempts if each.changes not in refused]
        proposal = fastest(attempts)
        is_known = compiler is None or proposal is None or proposal.compiled is not None
        if is_known or compilations == MOST_PROPOSALS:
            break
        step, needed = compiler(proposal.changes, proposal.estimate)
        if step is not None:
            accepted = dataclasses.replace(proposal, compiled=step)
            return [accepted if each is proposal else each for each in attempts], accepted
        size = "" if needed is None else f", which needs {needed / 1e9:.2f} GB"
        problem = f"does not fit by the compiler{size}"
        known.append(dataclasses.replace(proposal, fits=False, problem=problem))
    return attempts, proposal


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
    proposal: Attempt | None,
) -> str:
    """The command of what is proposed, or of the run as configured if nothing is."""
    changes = dict(proposal.changes) if proposal else {}
    work = proposal.estimate.work if proposal else found.work
    mesh = {f"mesh.{axis}": size for axis, size in work.mesh.items()}
    return command_of(arguments, {**given, **changes, **mesh, ROWS: work.rows})


def _config_name(arguments: Sequence[str]) -> str:
    names = [each.partition("=")[2] for each in arguments if each.startswith("--config=")]
    return names[0] if names else "the config"
