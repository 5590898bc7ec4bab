"""Runs a command and restarts it when it crashes, so that a run of weeks needs nobody to watch it.

    python -m roberta_jax.launch -- pretrain --config=configs/pretrain.py:base --workdir=runs/base
    python -m roberta_jax.launch --processes=2 -- python -m roberta_jax.pretrain --config=...

The command is a command of roberta_jax or any program. A run continues from its newest checkpoint,
so that a restart loses only the steps since then. The command is started again if a signal ended it
(out of memory, a driver, a lost partner on another host) or if it failed with another status than
2, and also if it makes no progress: no training step, no new record or checkpoint, and before the
first step no output. It is not started again after status 2, which is a mistake that the message
explains, unless the run says that it lost a partner or that an object store cannot be reached.
SIGTERM and Ctrl-C are passed on, so that the run saves a checkpoint; it is not restarted then.

Start one launcher on each host. It sets the folder of JAX's compiled programs, so that a restart
does not compile again, and recommended flags of the compiler. Each crash is described in a file in
WORKDIR/launch: what happened and the end of what the process printed, with the Python stack.

The exit status is that of the command: 0 if it has finished, 2 after a mistake, 130 or 143 if it
was stopped by Ctrl-C or SIGTERM, else that of the last crash.
"""

import argparse
import math
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence

from roberta_jax.errors import UsageError
from roberta_jax.launching import command, environment
from roberta_jax.launching.process import say
from roberta_jax.launching.supervisor import Policy, Supervisor
from roberta_jax.training import preemption
from roberta_jax.training.clusters import num_slices
from roberta_jax.training.compilation_cache import default_folder

DEFAULTS = Policy()


def launch(argv: Sequence[str]) -> int:
    """Supervises the command that the arguments name, and returns the exit status.

    Args:
      argv: the options of the launcher, `--` and the command.

    Raises:
      UsageError: an option or the command is wrong; nothing was started.
    """
    from roberta_jax.__main__ import COMMANDS

    own, words = command.split(argv)
    arguments = _parser().parse_args(own)
    full = command.resolve(words, list(COMMANDS))
    workdir = arguments.workdir or command.workdir(full)
    gpus = environment.count_gpus(os.environ)
    environment.check_processes(arguments.processes, gpus)
    if arguments.processes > 1:
        full = command.joined(full)
    cache = arguments.compile_cache
    variables = environment.shared_variables(
        os.environ,
        cache="" if cache == "none" else cache or str(default_folder()),
        flags=arguments.flags,
        gpus=gpus,
        slices=num_slices() if arguments.flags == "recommended" else 1,
    )
    if arguments.dry_run:
        for name, value in sorted(variables.items()):
            print(f"export {name}={shlex.quote(value)}")
        print(shlex.join(full))
        return 0
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
        if name in variables:
            say(f"{name}={variables[name]!r}")
    policy = Policy(
        max_restarts=arguments.max_restarts,
        backoff=arguments.backoff,
        max_backoff=max(DEFAULTS.max_backoff, arguments.backoff),
        stalled_after=arguments.stalled_after,
        stalled_at_start=arguments.stalled_at_start,
    )
    return Supervisor(
        full,
        policy=policy,
        processes=arguments.processes,
        variables=variables,
        gpus=gpus,
        workdir=workdir,
        log_folder=pathlib.Path(arguments.log_dir) if arguments.log_dir else None,
    ).run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m roberta_jax.launch",
        usage="%(prog)s [OPTIONS] -- COMMAND [ARGUMENTS]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--processes",
        type=whole(1),
        default=1,
        metavar="N",
        help="processes of the run on this machine, which share its GPUs (default: 1)",
    )
    parser.add_argument(
        "--max_restarts",
        type=whole(0),
        default=DEFAULTS.max_restarts,
        metavar="N",
        help="restarts in a row without a newer checkpoint (default: %(default)s)",
    )
    parser.add_argument(
        "--backoff",
        type=_seconds,
        default=DEFAULTS.backoff,
        metavar="SECONDS",
        help="wait before the first restart in a row; it doubles with each (default: %(default)g)",
    )
    parser.add_argument(
        "--stalled_after",
        type=_seconds,
        default=DEFAULTS.stalled_after,
        metavar="SECONDS",
        help="restart after so long without progress; 0 never does (default: %(default)g). It must "
        "be longer than a compilation, a checkpoint and the export of the model",
    )
    parser.add_argument(
        "--stalled_at_start",
        type=_seconds,
        default=DEFAULTS.stalled_at_start,
        metavar="SECONDS",
        help="the same before the first step, without output (default: %(default)g)",
    )
    parser.add_argument(
        "--workdir", help="the run's folder (default: the --workdir of the command)"
    )
    parser.add_argument(
        "--log_dir",
        metavar="FOLDER",
        help="where crashes are described (default: WORKDIR/launch, or launch_logs in the current "
        "folder if the workdir is on an object store)",
    )
    parser.add_argument(
        "--compile_cache",
        metavar="FOLDER|none",
        help="JAX_COMPILATION_CACHE_DIR, unless it is set; may be gs://... "
        "(default: roberta_jax/jax in the user's cache folder)",
    )
    parser.add_argument(
        "--flags",
        choices=("recommended", "none"),
        default="recommended",
        help="flags of the compiler to add to XLA_FLAGS on GPUs and to LIBTPU_INIT_ARGS on several "
        "TPU slices: those that the JAX documentation recommends, or none",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print the environment and the command, run nothing"
    )
    return parser


def whole(least: int) -> Callable[[str], int]:
    """Returns a parser of whole numbers from `least`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
        return number

    return parse


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not (number >= 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return number


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; exits with a message, without a traceback, on wrong input."""
    try:
        with preemption.checked_output():
            status = launch(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status)


if __name__ == "__main__":
    main()
