"""Which jobs there are, and in which order: the most important first, because time is limited."""

import dataclasses
import importlib.util
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from experiments.benchmarks.accelerator.torch_step import HEADS
from experiments.benchmarks.accelerator.workload import CONFIGS, rungs
from roberta_jax.errors import UsageError

# Guesses for a GPU, until a job of the kind was run.
EXPECTED_SECONDS = {
    "machine": 20.0,
    "attention": 60.0,
    "bits": 60.0,
    "embeddings": 20.0,
    "model": 40.0,
    "jax": 60.0,
    "torch": 75.0,
    "tests": 60.0,
}
MARKER = "accelerator"  # of tests that are run on a device
_ROOT = pathlib.Path(__file__).parents[3]


@dataclasses.dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
      kind: a key of `EXPECTED_SECONDS`.
      title: for the reader.
      command: the command line.
      env: environment variables to set.
      summarize: (exit status, lines printed) -> a record, for a process that does not print
        records itself.
      refusal: why it cannot be run, or None.
    """

    kind: str
    title: str
    command: Sequence[str]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    summarize: Callable[[int, list[str]], dict] | None = None
    refusal: str | None = None


@dataclasses.dataclass(frozen=True)
class Choices:
    """What is to be measured.

    Attributes:
      models: keys of `workload.CONFIGS`.
      lengths: tokens of a row.
      attentions: implementations, or None for all that the machine can run.
      remats: values of `Execution.remat`, or None for all, those that store most first.
      tokens: of the microbatches to try.
      unrolls: values of `Execution.scan_unroll`. Everything is measured with the first one, and the
        step that should be fastest with the others as well.
      rounds, steps: as in `jax_step.measure`.
      backend: as in `torch_step.measure`.
      small: whether the checks use small arrays.
      width: of the matrices whose product is measured.
      parts: of "exactness", "jax", "torch" and "tests".
    """

    models: list[str]
    lengths: list[int]
    attentions: list[str] | None
    remats: list[str] | None
    tokens: list[int]
    unrolls: list[int]
    rounds: int
    steps: int | None
    backend: str
    small: bool
    width: int
    parts: list[str]


def _job(kind: str, title: str, **arguments: Any) -> Job:
    module = "experiments.benchmarks.accelerator.child"
    return Job(kind, title, [sys.executable, "-m", module, kind, json.dumps(arguments)])


def machine_job(choices: Choices) -> Job:
    """The job that says what the machine is."""
    return _job("machine", "machine", width=choices.width)


def exactness_jobs(choices: Choices, machine: dict) -> list[Job]:
    """The jobs that check kernels on the device; `measuring_jobs` has those that check steps."""
    if "exactness" not in choices.parts:
        return []
    names = choices.attentions or list(machine["attentions"])
    small = choices.small
    return [
        _job("attention", "attention checks", attentions=names, small=small),
        _job("embeddings", "embedding checks", small=small),
    ]


def measuring_jobs(choices: Choices, machine: dict, failed: set[str]) -> Iterator[Job]:
    """The other jobs, the most important first.

    Args:
      choices: what is to be measured.
      machine: the record of the machine.
      failed: attention implementations that are not exact, which are measured last.
    """
    shapes = [
        (model, length)
        for length in sorted(choices.lengths, reverse=True)
        for model in CONFIGS
        if model in choices.models
    ]
    main = [shape for shape in shapes if shape[1] == max(choices.lengths)]
    rest = [shape for shape in shapes if shape not in main]
    best, *others = [(*each, choices.unrolls[0]) for each in _variants(choices, machine, failed)]
    unrolled = [(*best[:2], unroll) for unroll in choices.unrolls[1:]]
    # Another implementation matters more than another remat.
    implementations = [each for each in others if each[1] == best[1]]
    remats = [each for each in others if each[1] != best[1]]

    def jax(shapes, *variants):
        if "jax" in choices.parts:
            yield from (_jax_job(choices, *shape, *each) for each in variants for shape in shapes)

    def torch(shapes, head):
        if "torch" in choices.parts:
            yield from (_torch_job(choices, machine, *shape, head) for shape in shapes)

    def checks(*variants):
        if "exactness" in choices.parts:
            for name in dict.fromkeys(attention for attention, *_ in variants):
                yield _job("model", f"whole model {name}", attention=name, small=choices.small)
                yield _job("bits", f"same bits {name}", attention=name, small=choices.small)

    masked_only, shipped = HEADS
    yield from checks(best)
    yield from jax(main, best)
    yield from torch(main, masked_only)
    yield from jax(main, *unrolled)
    if "tests" in choices.parts:
        yield tests_job()
    yield from jax(main, *implementations)
    yield from checks(*implementations)
    yield from jax(rest, best)
    yield from torch(rest, masked_only)
    yield from jax(main, *remats)
    yield from torch(shapes, shipped)
    yield from jax(rest, *implementations, *remats)


def attentions_by_preference(names: Sequence[str], machine: dict, failed: set[str]) -> list[str]:
    """The implementations that the platform can run: its own first, those that failed last."""
    platforms = machine["attentions"]
    usable = [name for name in names if platforms.get(name) in (None, machine["platform"])]
    order = {"xla": 1, "reference": 2}
    return sorted(usable, key=lambda name: (name in failed, order.get(name, 0)))


def _variants(choices: Choices, machine: dict, failed: set[str]) -> list[tuple[str, str]]:
    """(attention, remat), the one that should be fastest first."""
    names = choices.attentions or list(machine["attentions"])
    attentions = attentions_by_preference(names, machine, failed)
    # On a chip with little memory, storing all leaves too little for a microbatch.
    is_large = (machine.get("memory_bytes") or 0) > 60 * 2**30
    default = ["none", "dots", "full"] if is_large else ["dots", "full", "none"]
    remats = choices.remats or default
    if not attentions:
        usable = attentions_by_preference(list(machine["attentions"]), machine, failed)
        raise UsageError(
            f"--attentions={','.join(names)}: none of these runs on a {machine['platform']}. Use "
            f"some of {', '.join(usable)}."
        )
    places = sorted(itertools.product(range(len(attentions)), range(len(remats))), key=_sum_first)
    return [(attentions[i], remats[j]) for i, j in places]


def _sum_first(places: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    return sum(places), places


def _jax_job(
    choices: Choices, model: str, length: int, attention: str, remat: str, unroll: int
) -> Job:
    title = f"{model} {length} jax {attention}/{remat}"
    if unroll != 1:
        title += "/unrolled" if unroll == -1 else f"/unroll {unroll}"
    return _job(
        "jax",
        title,
        name=title,
        model=model,
        length=length,
        rows=rungs(choices.tokens, length),
        attention=attention,
        remat=remat,
        unroll=unroll,
        rounds=choices.rounds,
        steps=choices.steps,
        trace=length == max(choices.lengths),
    )


def _torch_job(choices: Choices, machine: dict, model: str, length: int, head: str) -> Job:
    title = f"{model} {length} torch {head}"
    return _job(
        "torch",
        title,
        name=title,
        model=model,
        length=length,
        rows=rungs(choices.tokens, length),
        head=head,
        backend=choices.backend,
        device="cpu" if machine["platform"] == "cpu" else "cuda",
        rounds=choices.rounds,
        steps=choices.steps,
    )


def tests_job() -> Job:
    """Runs the tests that are marked for accelerators, on the device."""
    title, files = f"tests marked {MARKER}", marked_files()
    if not files:
        return Job("tests", title, (), refusal=f"no test is marked {MARKER!r}")
    if importlib.util.find_spec("pytest") is None:
        return Job("tests", title, (), refusal="pytest is not installed")
    options = ("-q", "-p", "no:cacheprovider", "-m", MARKER)
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    # tests/conftest.py chooses the CPU unless a platform is set; empty stands for the device.
    env = {"JAX_PLATFORMS": "", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    return Job("tests", title, command, env, summarize=_tests_record)


def marked_files() -> list[pathlib.Path]:
    """The test files that name the marker."""
    text = f"mark.{MARKER}"
    return sorted(path for path in (_ROOT / "tests").rglob("test_*.py") if text in path.read_text())


def _tests_record(code: int, lines: list[str]) -> dict:
    shown = [line for line in lines if line.startswith(("FAILED", "ERROR"))][:8]
    return {
        "part": "tests",
        "name": f"tests marked {MARKER}",
        "status": "passed" if code == 0 else "failed",
        "reason": "; ".join([*shown, *lines[-1:]]),
    }
