"""Trains all points of a study: every setting with every seed.

    python -m experiments.sweep table2:tiny --out=runs/table2 --processes=2

Each point is checked before the first one starts. The same command again goes on after whatever
ended it, and leaves out what is finished; a workdir's name follows from its config, so another
config never goes on in it. `python -m experiments.report` makes a table of the results, also while
the sweep runs.

--list shows how far each point is. Several machines that share the folder --out take a part each
with --shard=1/4, --shard=2/4...; several GPUs of a machine likewise, each command with its own
CUDA_VISIBLE_DEVICES. For clusters, --print=slurm writes a script for sbatch and --print=tpu the
commands for a pod.

The exit status is 0 if nothing is left to do here, 1 if points failed or it was told to stop, and 2
if something is wrong with the study.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from experiments import launch, study_files, worker
from experiments.runner import Outcome, Runner
from experiments.study import Point
from roberta_jax import cli
from roberta_jax.errors import UsageError


def selected(
    points: Sequence[Point], shard: tuple[int, int] | None = None, name: str | None = None
) -> list[Point]:
    """The points of a shard (k, n), k from 1, or the one with a name; all if neither is given.

    Raises:
      UsageError: no point has this name.
    """
    if name is not None:
        found = [point for point in points if point.name == name]
        if not found:
            there = "\n  ".join(point.name for point in points)
            raise UsageError(
                f"no point {name!r}: with these --seeds and --set the study has\n  {there}"
            )
        return found
    k, n = shard or (1, 1)
    return list(points[k - 1 :: n])


def unfinished(points: Sequence[Point], out: str) -> list[Point]:
    """The points that are not finished, those with a wrong config among them."""

    def done(point: Point) -> bool:
        try:
            return point.progress(out).finished
        except UsageError:
            return False  # for the check to tell, together with all others

    return [point for point in points if not done(point)]


def listing(points: Sequence[Point], out: str) -> str:
    """A line a point: its workdir, and how far it is."""
    width = max((len(str(point)) for point in points), default=0)
    return "\n".join(
        f"{point!s:<{width}}  {point.workdir(out)}  {point.progress(out)}" for point in points
    )


def run(arguments: argparse.Namespace, points: Sequence[Point]) -> int:
    """Checks, prepares and trains the points; returns the exit status."""
    shared = study_files.arguments_of(arguments)
    runner = Runner(shared, arguments.out, processes=arguments.processes)
    waiting = unfinished(points, arguments.out)
    if waiting:
        status = runner.prepare(waiting)
        if status < 0:
            print("Stopped before the first point; the same command goes on.")
            return 1
        if status or arguments.prepare:
            return status
    elif arguments.prepare:
        print("All points are finished.")
        return 0
    outcome = runner.run(points)
    print(_summary(arguments, outcome))
    return outcome.status


def _summary(arguments: argparse.Namespace, outcome: Outcome) -> str:
    shared = study_files.arguments_of(arguments)
    lines = [f"finished: {len(outcome.finished)}"]
    for what, names in (
        ("failed", outcome.failed),
        ("running elsewhere", outcome.elsewhere),
        ("not finished", outcome.left),
    ):
        if names:
            lines.append(f"{what}: {len(names)}")
            lines += [f"  {arguments.out}/{name}" for name in names]
    if outcome.failed or outcome.left:
        again = ["python", "-m", "experiments.sweep", *shared, f"--out={arguments.out}"]
        if arguments.point:
            again.append(f"--point={arguments.point}")
        elif arguments.shard:
            again.append("--shard={}/{}".format(*arguments.shard))
        if arguments.processes > 1:
            again.append(f"--processes={arguments.processes}")
        lines.append(f"To go on: {shlex.join(again)}")
    if outcome.finished:
        report = ["python", "-m", "experiments.report", *shared, f"--runs={arguments.out}"]
        lines.append(f"To compare: {shlex.join(report)}")
    return "\n".join(lines)


def _shard(text: str) -> tuple[int, int]:
    k, n = (int(part) for part in text.split("/"))
    if not 1 <= k <= n:
        raise ValueError
    return k, n


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study_files.add_arguments(parser)
    parser.add_argument("--out", required=True, help="the folder of the workdirs")
    parser.add_argument(
        "--processes", type=_positive, default=1, metavar="N", help="points at a time (default: 1)"
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--shard", type=_shard, metavar="k/n", help="the k-th of n parts, k from 1")
    part.add_argument("--point", metavar="NAME", help="one point, by the name of its workdir")
    doing = parser.add_mutually_exclusive_group()
    doing.add_argument("--list", action="store_true", help="show the points, train nothing")
    doing.add_argument("--prepare", action="store_true", help="check and prepare text, no training")
    doing.add_argument("--print", choices=launch.PRINTERS, help="print commands, train nothing")
    doing.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes that train --point together, without its evaluations",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command; wrong input is printed without a traceback, with exit status 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.distributed and not arguments.point:
        parser.error("--distributed takes --point")
    with cli.usage_errors():
        points = study_files.study_of(arguments).points()
        points = selected(points, arguments.shard, arguments.point)
        if arguments.print:
            worker.check(points, here=False)
            shared = [*study_files.arguments_of(arguments), f"--out={arguments.out}"]
            print(launch.PRINTERS[arguments.print](shared, [point.name for point in points]))
        elif arguments.list:
            print(listing(points, arguments.out))
        elif arguments.distributed:
            worker.train(points[0], arguments.out, distributed=True)
        else:
            sys.exit(run(arguments, points))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
