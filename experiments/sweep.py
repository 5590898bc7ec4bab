"""Trains all points of a study: every setting with every seed.

    python -m experiments.sweep table2:tiny --out=runs/table2 --processes=2

All points are checked before the first one starts. Points that are finished are skipped, so that
the same command continues an interrupted sweep. The name of a point's workdir contains a hash of
its config, so that a workdir is never continued with another config. `python -m experiments.report`
compares the results, also while the sweep is running.

--data=FOLDER names a folder with the official files of tasks. A study of pretraining fine-tunes its
finished models on those of its tasks that are there, which fills columns of Tables 1 to 4; a study
of fine-tuning reads its examples there:

    python -m experiments.sweep table2:tiny --data=data --out=runs/table2
    python -m experiments.sweep glue:paper --data=data/glue --out=runs/glue

--list shows how far each point is. To share the work among machines that mount the same --out, run
the command with --shard=1/4 on the first, --shard=2/4 on the second, and so on; likewise for the
GPUs of one machine, with a different CUDA_VISIBLE_DEVICES for each command.

Clusters run a point as a task each: --runner=ray on the Ray cluster of this machine (RAY_ADDRESS
names another one; without a cluster, one is started on this machine), --print=slurm prints an array
job for sbatch, --print=k8s an indexed Job for kubectl, and --print=tpu the commands for a TPU pod.
All nodes share --out and the cache of prepared text. Prepare the text once with --prepare before
the points are submitted; otherwise the first ones prepare it, on nodes with accelerators.

Ctrl-C and SIGTERM stop a sweep after its points have saved checkpoints; a second one stops it at
once. The exit status is 0 if nothing is left to do here, 1 if points failed, 2 if the study or the
command line is wrong, 130 after Ctrl-C, and 143 after SIGTERM.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from experiments.command_line import check_runs_folder, command, create_folder
from experiments.running import launch, worker
from experiments.running.jobs import Outcome
from experiments.running.ray_runner import RayRunner
from experiments.running.runner import Runner
from experiments.study.arguments import (
    add_study_arguments,
    command_words,
    parsed_study,
    study_arguments,
)
from experiments.study.comparability import warnings
from experiments.study.definition import Point
from experiments.study.selection import progress_table, select_points, unfinished_points
from roberta_jax.errors import UsageError


def run(arguments: argparse.Namespace, points: Sequence[Point]) -> int:
    """Checks, prepares and trains the points; returns the exit status."""
    on_ray = None
    if arguments.runner == "ray":  # first, since Ray may not be installed
        on_ray = RayRunner(
            study_arguments(arguments),
            arguments.out,
            cpus=1.0 if arguments.cpus_per_point is None else arguments.cpus_per_point,
            gpus=arguments.gpus_per_point or 0.0,
        )
    processes = max(1, min(arguments.processes, len(points)))
    runner = Runner(study_arguments(arguments), arguments.out, processes=processes)
    unfinished = unfinished_points(points, arguments.out)
    if unfinished:
        status = runner.prepare(unfinished)
        if status < 0:
            print(f"Stopped before the first point.\nTo continue: {_again(arguments)}")
            return _stop_status(runner) or 1
        if status or arguments.prepare:
            return status
    elif arguments.prepare:
        print("All points are finished.")
        return 0
    create_folder(arguments.out, "--out")
    outcome = (on_ray or runner).run(points)
    print(_summary(arguments, outcome))
    return (_stop_status(on_ray or runner) if outcome.left else None) or outcome.status


def _stop_status(runner: Runner | RayRunner) -> int | None:
    """The exit status of a sweep that was asked to stop, else None."""
    return None if runner.stop_signal is None else 128 + runner.stop_signal


def _again(arguments: argparse.Namespace) -> str:
    """Returns the command that continues the sweep."""
    sweep = [*command_words("sweep"), *study_arguments(arguments)]
    sweep.append(f"--out={arguments.out}")
    if arguments.point:
        sweep.append(f"--point={arguments.point}")
    elif arguments.shard:
        sweep.append("--shard={}/{}".format(*arguments.shard))
    if arguments.processes > 1:
        sweep.append(f"--processes={arguments.processes}")
    if arguments.runner != "local":
        sweep.append(f"--runner={arguments.runner}")
        for name in ("cpus_per_point", "gpus_per_point"):
            if getattr(arguments, name) is not None:
                sweep.append(f"--{name}={getattr(arguments, name):g}")
    if arguments.prepare:
        sweep.append("--prepare")
    return shlex.join(sweep)


def _summary(arguments: argparse.Namespace, outcome: Outcome) -> str:
    """Lists the points that are not finished, and the commands that follow."""
    lines = [f"finished: {len(outcome.finished)}"]
    for state, names in (
        ("failed", outcome.failed),
        ("running elsewhere", outcome.elsewhere),
        ("not finished", outcome.left),
    ):
        if names:
            lines.append(f"{state}: {len(names)}")
            lines += [f"  {arguments.out}/{name}" for name in names]
    if outcome.failed or outcome.left:
        lines.append(f"To continue: {_again(arguments)}")
    if outcome.finished:
        report = [*command_words("report"), *study_arguments(arguments)]
        lines.append(f"To compare: {shlex.join([*report, f'--runs={arguments.out}'])}")
    return "\n".join(lines)


def _shard(text: str) -> tuple[int, int]:
    try:
        k, n = (int(part) for part in text.split("/"))
        if not 1 <= k <= n:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"invalid value {text!r}: give k/n with k from 1 to n, such as 1/4"
        ) from None
    return k, n


def _positive_int(text: str) -> int:
    try:
        number = int(text)
        if number < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"invalid value {text!r}: give a whole number from 1"
        ) from None
    return number


def _amount(text: str) -> float:
    try:
        number = float(text)
        if not 0 <= number < float("inf"):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"invalid value {text!r}: give a number from 0, such as 4 or 0.5"
        ) from None
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_study_arguments(parser)
    parser.add_argument("--out", required=True, help="the folder of the workdirs")
    parser.add_argument(
        "--processes",
        type=_positive_int,
        default=1,
        metavar="N",
        help="the number of points to run at a time (default: 1); Ray runs as many as fit",
    )
    parser.add_argument(
        "--runner",
        choices=("local", "ray"),
        default="local",
        help="run the points on this machine, or as tasks of a Ray cluster (default: local)",
    )
    parser.add_argument(
        "--cpus_per_point",
        type=_amount,
        metavar="N",
        help="CPU cores of a point on a cluster (Ray: 1); whole ones on Slurm",
    )
    parser.add_argument(
        "--gpus_per_point",
        type=_amount,
        metavar="N",
        help="GPUs of a point on a cluster (Ray: 0); parts of one, such as 0.5, on Ray only",
    )
    parser.add_argument("--image", help="of the container, for --print=k8s")
    parser.add_argument(
        "--volume",
        metavar="CLAIM:/PATH",
        help="a persistent volume claim and where it is mounted, for --print=k8s",
    )
    selection = parser.add_mutually_exclusive_group()
    selection.add_argument(
        "--shard", type=_shard, metavar="k/n", help="every n-th point from the k-th on, k from 1"
    )
    selection.add_argument("--point", metavar="NAME", help="one point, by the name of its workdir")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="show the points, train nothing")
    action.add_argument(
        "--prepare",
        action="store_true",
        help="check the points and prepare their data, no training",
    )
    action.add_argument("--print", choices=launch.PRINTERS, help="print commands, train nothing")
    action.add_argument(
        "--distributed",
        action="store_true",
        help="join the other processes that train --point; its evaluations are left out",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; exits with a message, without a traceback, on wrong input."""
    with command():
        _run_command(argv)


def _run_command(argv: Sequence[str] | None) -> None:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.distributed and not arguments.point:
        parser.error("--distributed takes --point")
    where = arguments.print or arguments.runner
    if where not in ("ray", *launch.SCHEDULERS):
        for name in ("cpus_per_point", "gpus_per_point"):
            if getattr(arguments, name) is not None:
                parser.error(f"--{name} takes --runner=ray, --print=slurm or --print=k8s")
    if arguments.print and arguments.processes > 1 and where not in launch.SCHEDULERS:
        parser.error(f"--processes has no effect with --print={where}: run as many as you like")
    if arguments.runner == "ray" and arguments.processes > 1:
        parser.error("--processes takes --runner=local; --cpus_per_point says how many points fit")
    for name in ("image", "volume"):
        if getattr(arguments, name) and arguments.print != "k8s":
            parser.error(f"--{name} takes --print=k8s")
    check_runs_folder(arguments.out, "--out")
    study = parsed_study(arguments)
    points = select_points(study.points(), arguments.shard, arguments.point)
    for warning in warnings(study):
        print(f"warning: {warning}", file=sys.stderr)
    if not points:
        empty = "--shard={}/{}".format(*arguments.shard)
        message = f"{empty} has no points: the study has {len(study.points())}."
        if arguments.print:
            raise UsageError(message)
        print(message)
    elif arguments.print:
        worker.check(points, this_machine=False)
        shared = [*study_arguments(arguments), f"--out={arguments.out}"]
        resources = launch.Resources(
            cpus=arguments.cpus_per_point,
            gpus=arguments.gpus_per_point,
            processes=arguments.processes,
            image=arguments.image,
            volume=arguments.volume,
        )
        names = [each.name for each in points]
        print(launch.PRINTERS[arguments.print](shared, names, resources))
        if arguments.print in launch.NOTES:
            print(launch.NOTES[arguments.print](shared, names), file=sys.stderr)
    elif arguments.list:
        print(progress_table(points, arguments.out))
    elif arguments.distributed:
        worker.train(points[0], arguments.out, distributed=True)
    else:
        sys.exit(run(arguments, points))


if __name__ == "__main__":
    main()
