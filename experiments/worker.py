"""The processes that a sweep starts; `experiments.sweep` is the command for people.

    python -m experiments.worker prepare STUDY --points=0,1,2
    python -m experiments.worker train STUDY --points=1 --out=runs/table2
    python -m experiments.worker evaluate FOLDER COMMAND...

Each ends when the sweep that started it does, so that nothing runs on unseen; a training saves
first.
"""

import argparse
import ctypes
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.study import Point

BUSY = 75  # the exit status where another process is at work in the folder
PARENT = "SWEEP_PROCESS_ID"  # the variable with the id of the process to end with


def check(points: Sequence["Point"], here: bool = True) -> None:
    """Checks the configs of the points.

    Args:
      points: all are checked before the first error is told.
      here: False leaves out what only the machine that trains can say: whether its devices fit,
        and whether `init_from` is there.

    Raises:
      UsageError: with everything that is wrong.
    """
    from roberta_jax.errors import UsageError
    from roberta_jax.pretraining.spec import Plan

    wrong: dict[str, list[Point]] = {}
    for point in points:
        try:
            config = point.config()
            if not here:
                with config.unlocked():
                    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
                    config.init_from = None
            Plan(config)
        except UsageError as error:
            wrong.setdefault(_without(point, str(error)), []).append(point)
    if wrong:
        raise UsageError(_listed(wrong))


def prepare(points: Sequence["Point"]) -> None:
    """Checks the points, and prepares the text of those that pass.

    Raises:
      UsageError: with what is wrong with each of the configs, or with each of the texts.
    """
    check(points)
    import json

    from roberta_jax.errors import UsageError
    from roberta_jax.pretraining.text import prepare as prepare_text

    done, wrong = set(), {}
    for point in points:
        config = point.config()
        parts = [config.data.to_dict(), config.new_tokenizer.to_dict()]
        key = json.dumps([*parts, config.tokenizer, config.init_from], sort_keys=True)
        if key not in done:
            done.add(key)
            try:
                prepare_text(config)
            except UsageError as error:
                wrong[str(error)] = [point]
    if wrong:
        raise UsageError(_listed(wrong))


def train(point: "Point", out: str, distributed: bool = False) -> None:
    """Pretrains the point; leaves with the status BUSY if another process does."""
    from roberta_jax.pretrain import pretrain
    from roberta_jax.training.partitioning import join_processes
    from roberta_jax.training.workdir import WorkdirInUse

    if distributed:
        join_processes()
    try:
        pretrain(point.config(), point.workdir(out))
    except WorkdirInUse as error:
        print(error, file=sys.stderr)
        sys.exit(BUSY)


def evaluate(folder: str, argv: Sequence[str]) -> None:
    """Becomes the command, holding the lock of the folder for as long as the command runs."""
    import fcntl

    from roberta_jax.training.workdir import LOCK

    if "://" not in folder:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        lock = os.open(pathlib.Path(folder) / LOCK, os.O_RDWR | os.O_CREAT)
        os.set_inheritable(lock, True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(BUSY)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"error: cannot run {argv[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def end_with(parent: int) -> None:
    """Lets the system send SIGTERM to this process when its parent ends; on Linux alone."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before
        sys.exit(1)


def _without(point: "Point", message: str) -> str:
    """The message without the point's name, so that those of several seeds are told as one."""
    return message.removeprefix(f"study {point.study.name}, {point}: ")


def _listed(wrong: dict[str, list["Point"]]) -> str:
    lines = []
    for message, points in wrong.items():
        settings: dict[str, list[str]] = {}
        for point in points:
            settings.setdefault(point.setting, []).append(str(point.seed))
        names = "; ".join(f"{name}, seed {' '.join(seeds)}" for name, seeds in settings.items())
        lines.append(f"{names}: {message}")
    return "nothing was started, since something is wrong:\n" + "\n".join(lines)


def main() -> None:
    """The command."""
    if PARENT in os.environ:
        end_with(int(os.environ[PARENT]))
    task, *rest = sys.argv[1:]
    if task == "evaluate":
        evaluate(rest[0], rest[1:])
    from absl import logging

    from experiments import study_files
    from roberta_jax import cli
    from roberta_jax.training.host_memory import restart_with_huge_pages

    if task == "train":
        restart_with_huge_pages()
    parser = argparse.ArgumentParser()
    study_files.add_arguments(parser)
    parser.add_argument("--points", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--out")
    arguments = parser.parse_args(rest)
    logging.set_verbosity(logging.WARNING)
    with cli.usage_errors():
        every = study_files.study_of(arguments).points()
        points = [every[number] for number in arguments.points]
        if task == "prepare":
            prepare(points)
        else:
            train(points[0], arguments.out)


if __name__ == "__main__":
    main()
