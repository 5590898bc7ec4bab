"""Writes a plan as Markdown, which reads well on a terminal too.

For a run that does not fit, the tables of memory, collectives and time describe the run that is
proposed in its place, which is also that of the command.
"""

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence

from roberta_jax.errors import counted, spelled
from roberta_jax.planning import speed
from roberta_jax.planning.compiled import CompiledStep
from roberta_jax.planning.estimate import CLOSE, Attempt, Estimate, possible_rows
from roberta_jax.planning.speed import StepTime
from roberta_jax.planning.traffic import Traffic
from roberta_jax.planning.workload import Workload, mesh_text

_COMPILED = "Compiled by"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan, ready to be written.

    Attributes:
      config: the config as typed, such as "configs/pretrain.py:large".
      estimate: what the formulas say about the run as configured.
      compiler: the compiler's name and version; "" if it was not asked.
      compiled: what the compiler says about the run as configured, with the largest microbatch that
        was found to fit; or None.
      tried: {rows of a microbatch: bytes that the compiler wants, None where it does not say}, for
        every microbatch of this run that was compiled.
      attempts: what was tried because the run does not fit.
      limit: bytes that they had to stay below by formula; None if that is unknown.
      proposal: the one of them that is proposed; None if the run fits or nothing does.
      command: the command to type.
      notes: what the reader has to know besides.
    """

    config: str
    estimate: Estimate
    compiler: str
    compiled: CompiledStep | None
    tried: Mapping[int, float | None]
    attempts: Sequence[Attempt]
    limit: float | None
    proposal: Attempt | None
    command: str
    notes: Sequence[str] = ()

    @property
    def fits(self) -> bool:
        """Whether the run as configured fits, by the compiler if it was asked."""
        if self.tried:
            return self.compiled is not None and self.compiled.rows >= self.estimate.work.rows
        return self.estimate.fits

    @property
    def planned(self) -> Estimate:
        """What the formulas say about the run of the command."""
        return self.proposal.estimate if self.proposal else self.estimate

    @property
    def planned_step(self) -> CompiledStep | None:
        """What the compiler says about it."""
        return self.proposal.compiled if self.proposal else self.compiled


def command_of(
    arguments: Sequence[str], changes: Mapping[str, object], program: str = "pretrain"
) -> str:
    """The command that runs what was planned.

    Args:
      arguments: those of `plan` that begin with `--config`.
      changes: {config key: value} that replace or follow them.
      program: the command's name.
    """
    kept = [
        argument
        for argument in arguments
        if argument.partition("=")[0].removeprefix("--config.") not in changes
    ]
    added = [f"--config.{key}={spelled(value)}" for key, value in changes.items()]
    words = [*map(shlex.quote, kept), "--workdir=WORKDIR", *map(shlex.quote, added)]
    return f"python -m roberta_jax.{program} " + " \\\n    ".join(words)


def markdown(plan: Plan) -> str:
    """The report."""
    estimate, work = plan.estimate, plan.estimate.work
    model = work.model
    lines = [
        f"# {plan.config} on {estimate.topology}",
        "",
        f"{_COMPILED} {plan.compiler} and by formula." if plan.compiler else "By formula alone.",
        "",
        f"{work.parameters:,} parameters: {counted(model.num_hidden_layers, 'layer')} of width "
        f"{model.hidden_size}, {counted(model.num_attention_heads, 'head')}, vocabulary "
        f"{model.vocab_size:,}. {counted(estimate.topology.chips, 'chip')} "
        f"({mesh_text(work.mesh)}). Batches of {counted(work.batch_size, 'row')} of "
        f"{counted(work.length, 'token')}, in {_microbatches(work)}.",
        "",
        *[line for note in plan.notes for line in (note, "")],
        *_overflow(plan),
        *_memory(plan),
        *_collectives(plan),
        *_time(plan),
        _heading(plan, "Command"),
        "",
        *_how_to_start(estimate),
        "```bash",
        plan.command,
        "```",
        "",
    ]
    return "\n".join(lines)


def was_compiled(report: str) -> bool:
    """Whether a report that `markdown` wrote has the compiler's figures."""
    return any(line.startswith(_COMPILED) for line in report.splitlines())


def _microbatches(work: Workload) -> str:
    return (
        f"{counted(work.accumulation, 'microbatch', 'microbatches')} of "
        f"{counted(work.rows, 'row')} per chip; remat {work.execution.remat}, "
        f"{work.execution.dtype.__name__}"
    )


def _heading(plan: Plan, title: str) -> str:
    return f"## {title}, with the changes" if plan.proposal else f"## {title}"


def _how_to_start(estimate: Estimate) -> list[str]:
    topology = estimate.topology
    if topology.local or topology.chips <= topology.chip.per_host:
        return []
    return [
        "Start the same command on every host. WORKDIR is a folder that all hosts share, such as "
        "gs://BUCKET/run.",
        "",
    ]


def _memory(plan: Plan) -> list[str]:
    estimate, compiled = plan.planned, plan.planned_step
    usable = estimate.usable
    columns = [("formula", estimate.memory)]
    if plan.proposal:
        columns.insert(0, ("formula, as configured", plan.estimate.memory))
    if compiled:
        columns.append((_compiled(compiled), compiled.memory))
    uses = list(dict.fromkeys(use for _, column in columns for use in column))
    lines = [
        _heading(plan, "Memory of a chip"),
        "",
        f"| GB | {' | '.join(name for name, _ in columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for use in uses:
        cells = [f"{column[use] / 1e9:.3f}" if use in column else "" for _, column in columns]
        lines.append(f"| {use} | {' | '.join(cells)} |")
    sums = [f"**{sum(column.values()) / 1e9:.2f}**" for _, column in columns]
    of = f" of {usable / 1e9:.2f} usable" if usable else ""
    lines += [f"| **together**{of} | {' | '.join(sums)} |", ""]
    if estimate.largest_rows is not None:
        rows, share = estimate.largest_rows, max(possible_rows(estimate.work))
        what = "no microbatch" if rows == 0 else counted(rows, "row")
        whole = " (the whole share of a chip)" if rows == share else ""
        lines += [f"Largest microbatch by formula: {what}{whole}.", ""]
    if plan.tried and not plan.proposal:
        lines += _tried(plan)
    if compiled:
        lines += _errors(plan)
    return lines


def _tried(plan: Plan) -> list[str]:
    results = []
    for rows, needed in sorted(plan.tried.items()):
        fits = plan.compiled is not None and rows <= plan.compiled.rows
        verb = ("fits" if rows == 1 else "fit") if fits else "do not fit"
        size = "" if needed is None else f" ({needed / 1e9:.2f} GB)"
        results.append(f"{counted(rows, 'row')} {verb}{size}")
    return [f"Compiled: {', '.join(results)}.", ""]


def _compiled(step: CompiledStep) -> str:
    return f"compiled, {counted(step.rows, 'row')}"


def _errors(plan: Plan) -> list[str]:
    compiled, estimate = plan.planned_step, plan.planned
    lines = []
    if compiled.rows == estimate.work.rows:
        error = estimate.needed / compiled.needed - 1
        lines.append(f"The formula's memory is {error:+.0%} against the compiler's.")
    lines.append(
        f"The compiler sets aside {compiled.allocated / 1e9:.2f} GB for temporaries. It took "
        f"{compiled.seconds:.0f} s."
    )
    if compiled.problem:
        lines.append(
            "Its collectives and its time are missing, because this version of the compiler writes "
            f"programs in another way: {compiled.problem}."
        )
    return [" ".join(lines), ""]


def _overflow(plan: Plan) -> list[str]:
    if plan.fits:
        return []
    estimate, proposal = plan.estimate, plan.proposal
    usable = "" if estimate.usable is None else f" of {estimate.usable / 1e9:.2f} GB usable"
    lines = [
        "## It does not fit",
        "",
        f"By formula the run as configured needs {estimate.needed / 1e9:.2f} GB{usable}.",
        "",
        *(_tried(plan) if plan.tried else []),
        *_limit(plan),
        "Tried, by formula unless it says otherwise:",
        "",
        "| change | GB | s per step | |",
        "|---|---:|---:|---|",
    ]
    for attempt in plan.attempts:
        run, size, seconds = attempt.estimate, "", ""
        if run is not None:
            size = f"{run.needed / 1e9:.2f}"
            result = attempt.problem or ("fits" if attempt.fits else "too much")
            if run.time is not None and attempt.fits:
                seconds = _seconds(run.time.seconds)
        else:
            result = f"not possible: {attempt.problem}"
        if attempt.compiled:
            result = f"fits, compiled: {attempt.compiled.needed / 1e9:.2f} GB"
        if attempt is proposal:
            result = f"**{result}**"
        lines.append(f"| `{_typed(attempt.changes)}` | {size} | {seconds} | {result} |")
    if proposal is None:
        lines += [
            "",
            "Nothing that was tried fits. Use more chips, or chips with more memory. Everything "
            "below is about the run as configured, which does not fit.",
        ]
        return [*lines, ""]
    which = "the only change that fits"
    if sum(attempt.fits for attempt in plan.attempts) > 1:
        share = f"{CLOSE - 1:.0%}"
        which = f"the fastest change that fits (of those that take up to {share} longer, the first)"
        if proposal.estimate.time is None:
            which = "the first change that fits"
    work = proposal.estimate.work
    lines += [
        "",
        f"Everything below is about the run with `{_typed(proposal.changes)}`, {which}: "
        f"{mesh_text(work.mesh)}, and a batch in {_microbatches(work)}.",
    ]
    if plan.compiler and not proposal.compiled:
        lines += [
            "",
            "This run was not compiled; the compiler may need more than the formula says.",
        ]
    return [*lines, ""]


def _limit(plan: Plan) -> list[str]:
    usable = plan.estimate.usable
    if not plan.compiler or usable is None or plan.limit >= usable:
        return []
    return [
        f"The compiler needs more memory than the formula says, so that a change has to stay below "
        f"{plan.limit / 1e9:.2f} GB by formula.",
        "",
    ]


def _typed(changes: Mapping[str, object]) -> str:
    return " ".join(f"--config.{key}={spelled(value)}" for key, value in changes.items())


def _collectives(plan: Plan) -> list[str]:
    estimate, compiled = plan.planned, plan.planned_step
    if not estimate.collectives and not (compiled and compiled.collectives):
        return []
    lines = [
        _heading(plan, "Collectives"),
        "",
        "What each chip sends in a step, by ring algorithms, and how long that takes at the "
        "network's full bandwidth.",
        "",
    ]
    lines += _traffic_table("formula", estimate.collectives)
    if compiled:
        lines += _traffic_table("compiled", compiled.collectives)
    return lines


def _traffic_table(source: str, collectives: Sequence[Traffic]) -> list[str]:
    lines = [f"| {source} | network | collective | GB | s |", "|---|---|---|---:|---:|"]
    for each in collectives:
        what = f"{each.kind}: {each.what}" if each.what else each.kind
        if each.bytes >= 1e6:
            lines.append(
                f"| {each.axes} | {each.network} | {what} | {each.bytes / 1e9:.3f} | "
                f"{_seconds(each.seconds)} |"
            )
    if len(lines) == 2:
        lines.append("| none above 1 MB | | | | |")
    return [*lines, ""]


def _time(plan: Plan) -> list[str]:
    estimate, compiled = plan.planned, plan.planned_step
    if estimate.time is None:
        return [
            _heading(plan, "Time"),
            "",
            "Unknown: no table has the speed of this device. Train a few steps to measure it.",
            "",
        ]
    rows = [("formula", estimate.time)]
    if compiled and compiled.compute_seconds:
        parts = {"compute": compiled.compute_seconds}
        waiting = sum(each.seconds for each in compiled.collectives)
        measured = dataclasses.replace(estimate.time, parts=parts | {"collectives": waiting})
        rows.append((_compiled(compiled), measured))
    steps, chips = estimate.work.steps, estimate.topology.chips
    share = speed.matmul_share(estimate.topology.chip)
    lines = [
        _heading(plan, "Time"),
        "",
        "| | s per step | tokens/s | share of the peak | hours | chip-hours |",
        "|---|---:|---:|---:|---:|---:|",
        *[_time_row(name, each, steps, chips) for name, each in rows],
        "",
        "Formula: "
        + ", ".join(f"{what} {_seconds(s)} s" for what, s in estimate.time.parts.items() if s > 0)
        + ".",
        "",
        f"Hours are those of {steps:,} steps, without compilation, evaluations and checkpoints. "
        f"The assumptions: matrix products at {share:.0%} of the peak, everything "
        "else at the bandwidth of the memory, no collective hidden behind computation. The "
        "constants are fitted to the TPU compiler's estimates for `base` on v5e; no step was "
        "measured.",
        "",
    ]
    if len(rows) > 1:
        error = rows[0][1].seconds / rows[1][1].seconds - 1
        lines += [
            "Compiled: the cycles that the compiler estimates for each operation, and the "
            f"collectives of the program. The formula is {error:+.0%} against it.",
            "",
        ]
    return lines


def _time_row(name: str, time: StepTime, steps: int, chips: int) -> str:
    hours = time.seconds * steps / 3600
    return (
        f"| {name} | {_seconds(time.seconds)} | {_short(time.tokens_per_second)} | "
        f"{time.share_of_peak:.0%} | {hours:,.0f} | {hours * chips:,.0f} |"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds >= 1 else f"{seconds:.3g}"


def _short(number: float) -> str:
    """Three digits: 1.23M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            digits = max(0, 2 - int(math.log10(number / unit)))
            return f"{number / unit:.{digits}f}{name}"
    return f"{number:.3g}"
