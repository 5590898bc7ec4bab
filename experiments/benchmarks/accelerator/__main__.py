"""Checks and measures the training step on one accelerator, within a time limit.

    python -m experiments.benchmarks.accelerator                    # on a machine with a GPU or TPU
    python -m experiments.benchmarks.accelerator --models=base --lengths=512 --attentions=xla
    python -m experiments.benchmarks.accelerator --smoke            # tiny sizes, also on a CPU

It prints one table and writes one JSON file (--output), which is complete after every measurement.
The most important measurements come first, and those for which no time is left are listed as
skipped. The exit status is 1 if a check or a job failed.

    exactness  each attention implementation against the reference: values, gradients, masks,
               dropped elements; the gradient of embeddings; steps that give the same bits again,
               also through a checkpoint
    jax        training steps of this package in bfloat16 with dropout 0.1, the head on 15% of the
               tokens, and AdamW; their peak memory, compile time and longest operations
    torch      the same of Hugging Face's class with SDPA, `torch.compile` and the fused AdamW
    tests      the tests that are marked for accelerators

Each measurement is a process of its own, so that the whole memory is free for it. It needs no
TensorFlow and no ml-collections; PyTorch, transformers and pytest are used where they are
installed. `experiments/benchmarks/results/accelerator.md` says more.
"""

import argparse
import datetime
import pathlib
import shlex
import signal
import sys
import time

from experiments.benchmarks.accelerator import jobs, report
from experiments.benchmarks.accelerator.running import Results, Runner
from experiments.benchmarks.accelerator.torch_step import BACKENDS
from experiments.benchmarks.accelerator.workload import CONFIGS, LONGEST
from experiments.benchmarks.arguments import positive, positives, some_of
from roberta_jax.errors import UsageError
from roberta_jax.modeling.execution import REMAT_POLICIES

PARTS = ("exactness", "jax", "torch", "tests")
_SMOKE = {
    "models": "tiny", "lengths": [16, 32], "tokens": [128, 64], "rounds": 2, "steps": 1,
    "width": 128, "torch_backend": "aot_eager",
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parse(argv)
    about = {
        "command": shlex.join(
            ["python", "-m", "experiments.benchmarks.accelerator", *sys.argv[1:]]
        ),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "minutes": arguments.minutes,
    }
    results = Results(arguments.output, about)
    # A time limit from outside, as of `timeout`, still gets the table.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    runner = Runner(results, 60 * arguments.minutes, _tell)
    try:
        _run(runner, results, _choices(arguments))
    finally:
        print(report.table(results.records()))
        print(f"written: {arguments.output}", flush=True)
    return int(any(record["status"] == "failed" for record in results.records()))


def _run(runner: Runner, results: Results, choices: jobs.Choices) -> None:
    runner.run(jobs.machine_job(choices))
    machines = results.records("machine")
    if not machines:
        return
    for job in jobs.exactness_jobs(choices, machines[0]):
        runner.run(job)
    failed = {
        record["attention"]
        for record in results.records("attention")
        if record["status"] == "failed"
    }
    for job in jobs.measuring_jobs(choices, machines[0], failed):
        runner.run(job)
        _add_shares(results)


def _add_shares(results: Results) -> None:
    """Adds goals and shares to the steps."""
    [machine] = results.records("machine")
    for each in results.records("step"):
        shared = report.with_shares(each, machine)
        if shared != each:
            results.add(shared)


def _parse(argv: list[str]) -> argparse.Namespace:
    from roberta_jax.kernels import attention

    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=_minutes, default=9.0, help="time limit of the command (default 9)")
    add("--output", type=pathlib.Path, default="accelerator.json", help="the JSON file to write")
    add("--parts", type=some_of(PARTS), default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    add("--models", type=some_of(CONFIGS), default="large,base", help=f"of {', '.join(CONFIGS)}")
    add("--lengths", type=_lengths, default=[128, 512], help="tokens of a row (default 128,512)")
    add(
        "--tokens",
        type=positives,
        default=[65536, 32768, 16384, 8192, 4096],
        help="microbatches to try, in tokens: the largest that fits is measured (default "
        "65536,32768,16384,8192,4096)",
    )
    add(
        "--attentions",
        type=some_of(attention.IMPLEMENTATIONS),
        help="attention implementations (default: all that the platform can run)",
    )
    add(
        "--remats",
        type=some_of(REMAT_POLICIES),
        help="values of execution.remat, in this order (default: all)",
    )
    add(
        "--unroll",
        type=_unrolls,
        default=[1, -1],
        help="values of execution.scan_unroll: all for the step that should be fastest, the first "
        "one for everything else (default 1,-1)",
    )
    add("--rounds", type=positive, default=5, help="of each step; the median counts (default 5)")
    add("--steps", type=positive, help="of a round (default: as many as take a second)")
    add("--torch_backend", choices=BACKENDS, default="inductor", help="of torch.compile")
    add("--width", type=positive, default=8192, help="of the matrices of the measured product")
    add("--smoke", action="store_true", help="tiny sizes, to try the command")
    if parser.parse_args(argv).smoke:
        parser.set_defaults(**_SMOKE)
    return parser.parse_args(argv)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.5 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0.5 to 10000")
    return value


def _unrolls(text: str) -> list[int]:
    return [-1 if part == "-1" else positive(part) for part in text.split(",")]


def _lengths(text: str) -> list[int]:
    lengths = positives(text)
    if max(lengths) > LONGEST:
        raise argparse.ArgumentTypeError(f"rows have at most {LONGEST} tokens, not {max(lengths)}")
    return lengths


def _choices(arguments: argparse.Namespace) -> jobs.Choices:
    return jobs.Choices(
        models=arguments.models.split(","),
        lengths=arguments.lengths,
        attentions=arguments.attentions and arguments.attentions.split(","),
        remats=arguments.remats and arguments.remats.split(","),
        tokens=arguments.tokens,
        unrolls=arguments.unroll,
        rounds=arguments.rounds,
        steps=arguments.steps,
        backend=arguments.torch_backend,
        small=arguments.smoke,
        width=arguments.width,
        parts=arguments.parts.split(","),
    )


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
