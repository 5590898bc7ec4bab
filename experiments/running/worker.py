"""The child processes of a sweep. `experiments.sweep` is the command for people.

    python -m experiments.running.worker prepare STUDY --points=NAME,NAME
    python -m experiments.running.worker train STUDY --points=NAME --out=runs/table2
    python -m experiments.running.worker evaluate FOLDER COMMAND...

`--points` are names of workdirs. They hold a hash of the config, so that a worker does not train
another point if the study was changed since the sweep started. A worker receives SIGTERM when the
sweep that started it ends, even if it was killed; training then saves a checkpoint and exits.
"""

import argparse
import ctypes
import json
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

# Modules that take seconds to import are imported by the functions that use them, so that a worker
# ends with its sweep, and starts an evaluation, without delay.
if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from experiments.study.definition import Point

BUSY = 75  # the exit status if another process is working in the folder
LOCK = ".lock"  # in the folder of a point's evaluations, while one is running
PARENT = "SWEEP_PROCESS_ID"  # the environment variable with the process id of the sweep


def check(points: Sequence["Point"], *, this_machine: bool = True) -> None:
    """Checks the configs of the points, all of them before the first error is raised.

    Args:
      points: the points to check.
      this_machine: False leaves out what depends on the machine that trains: whether the mesh fits
        its devices, and whether it has the weights of `init_from`.

    Raises:
      UsageError: some configs are wrong; it lists all errors.
    """
    from roberta_jax.errors import UsageError

    errors: dict[str, list[Point]] = {}
    for point in points:
        try:
            _check_config(point.config(), this_machine)
        except UsageError as error:
            errors.setdefault(_without_point(point, str(error)), []).append(point)
    if errors:
        raise UsageError(_list_errors(errors))


def _check_config(config: "ConfigDict", this_machine: bool) -> None:
    from experiments.study.config_changes import finetunes

    if not this_machine:
        with config.unlocked():
            config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1, "slices": None})
    if not finetunes(config):
        from roberta_jax.pretraining.spec import read_spec

        if not this_machine:
            with config.unlocked():
                config.init_from = None
        read_spec(config)
        return
    from experiments.study.finetuned import check_has_data
    from roberta_jax.finetuning.spec import check_config, read_spec

    check_has_data(config)
    (read_spec if this_machine else check_config)(config)


def prepare(points: Sequence["Point"]) -> None:
    """Checks the points, then prepares the text of each, and warns of what they cannot show.

    For fine-tuning, the examples of each are read and encoded.

    Raises:
      UsageError: some configs are wrong, or some texts cannot be prepared; it lists all errors.
    """
    check(points)
    if points[0].study.finetunes:
        _prepare_examples(points)
        return
    from experiments.study.comparability import largest_number_of_epochs, mask_warnings
    from roberta_jax.errors import UsageError
    from roberta_jax.pretraining.text import prepare as prepare_text
    from roberta_jax.pretraining.text_spec import read_text_spec

    tokens, errors, epochs = {}, {}, {}
    for point in points:
        spec = read_text_spec(point.config())
        if spec not in tokens:
            try:
                prepared = prepare_text(spec)
                tokens[spec] = None if prepared.more else prepared.train.num_tokens
            except UsageError as error:
                tokens[spec] = None
                errors[str(error)] = [point]
        if tokens[spec]:
            epochs[point.setting] = largest_number_of_epochs(point, tokens[spec])
    if errors:
        raise UsageError(_list_errors(errors))
    for warning in mask_warnings(points[0].study, epochs):
        print(f"warning: {warning}", file=sys.stderr)


def _prepare_examples(points: Sequence["Point"]) -> None:
    """Reads and encodes the examples of fine-tuning runs, once for all that share them."""
    from roberta_jax.errors import UsageError
    from roberta_jax.finetuning.prepare import prepare as prepare_examples
    from roberta_jax.finetuning.spec import read_spec

    errors: dict[str, list[Point]] = {}
    prepared = set()
    for point in points:
        config = point.config()
        data = {key: config[key] for key in ("task", "init_from", "tokenizer")}
        text = json.dumps([data, config.data.to_dict(), config.format.to_dict()], sort_keys=True)
        if text in prepared:
            continue
        prepared.add(text)
        try:
            prepare_examples(read_spec(config))
        except UsageError as error:
            errors.setdefault(str(error), []).append(point)
    if errors:
        raise UsageError(_list_errors(errors))


def train(point: "Point", out: str, distributed: bool = False) -> None:
    """Trains a point.

    Args:
      point: the point.
      out: the folder of the study's runs.
      distributed: whether this is one of several processes of the run. They end together, after any
        error. A process alone exits with the status BUSY if another one is training the point.
    """
    from roberta_jax.training.distributed import join_processes
    from roberta_jax.training.workdir import WorkdirInUse

    if point.study.finetunes:
        from roberta_jax.finetune import finetune as run
    else:
        from roberta_jax.pretrain import pretrain as run
    if distributed:
        join_processes()
        run(point.config(), point.workdir(out))
        return
    try:
        run(point.config(), point.workdir(out))
    except WorkdirInUse as error:
        print(error, file=sys.stderr)
        sys.exit(BUSY)


def evaluate(folder: str, argv: Sequence[str]) -> None:
    """Replaces this process by a command, which holds the lock of the folder while it runs.

    The lock is taken with `fcntl` directly since the command has to inherit it. It is the same lock
    as that of `roberta_jax.storage.locks`.
    """
    import fcntl

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
    """Makes the system send SIGTERM to this process when its parent ends. Linux only.

    Exits if the process `parent` is not the parent any more, which means that it has ended.
    """
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)


def _without_point(point: "Point", message: str) -> str:
    """Removes the point's name from a message, so that equal errors of several seeds are equal."""
    return message.removeprefix(f"study {point.study.name}, {point}: ")


def _list_errors(errors: dict[str, list["Point"]]) -> str:
    """Returns a message with all errors: "SETTING, seed 0 1: MESSAGE" for each."""
    lines = []
    for message, points in errors.items():
        settings: dict[str, list[str]] = {}
        for point in points:
            settings.setdefault(point.setting, []).append(str(point.seed))
        names = "; ".join(f"{name}, seed {' '.join(seeds)}" for name, seeds in settings.items())
        lines.append(f"{names}: {message}")
    return "nothing was started, because these points have errors:\n" + "\n".join(lines)


def main() -> None:
    """Runs the task that the command line names."""
    if PARENT in os.environ:
        end_with(int(os.environ[PARENT]))
    task, *rest = sys.argv[1:] or [""]
    if task not in ("prepare", "train", "evaluate") or (task == "evaluate" and len(rest) < 2):
        sys.exit(f"{__doc__}\nTo train a study, run experiments.sweep.")
    if task == "evaluate":
        evaluate(rest[0], rest[1:])
    from absl import logging

    from experiments.study.arguments import add_study_arguments, parsed_study
    from experiments.study.selection import planned_points
    from roberta_jax import cli
    from roberta_jax.training.host_memory import use_one_heap

    parser = argparse.ArgumentParser()
    add_study_arguments(parser)
    parser.add_argument("--points", type=lambda text: text.split(","), required=True)
    parser.add_argument("--out", required=task == "train")
    arguments = parser.parse_args(rest)
    logging.set_verbosity(logging.WARNING)
    use_one_heap()
    with cli.usage_errors():
        selected = planned_points(parsed_study(arguments).points(), arguments.points)
        if task == "prepare":
            prepare(selected)
        else:
            train(selected[0], arguments.out)


if __name__ == "__main__":
    main()
