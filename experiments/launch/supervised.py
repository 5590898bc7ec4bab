"""What the launch commands share: the supervised command, and running or printing commands."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence

from roberta_jax.errors import UsageError
from roberta_jax.launching import command
from roberta_jax.storage import is_local

Commands = list[list[str]]


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """Returns a parser with the options that all launch commands have.

    Args:
      module: the name of the command's module in `experiments.launch`.
      description: what it does.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.launch.{module}",
        usage="%(prog)s [OPTIONS] -- pretrain --config=... --workdir=...",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print what would be run, and run nothing"
    )
    parser.add_argument(
        "--compile_cache",
        metavar="FOLDER",
        help="JAX's compiled programs, such as gs://BUCKET/jax_cache, which new hosts find again "
        "(default: a folder of each host)",
    )
    return parser


def supervised(
    words: Sequence[str], *, python: str, cache: str | None, distributed: bool
) -> list[str]:
    """Returns the command that one host runs.

    Args:
      words: the command after `--`, such as `pretrain --config=...`.
      python: the Python of the hosts.
      cache: the folder of compiled programs; None leaves the default.
      distributed: whether several processes run it.

    Raises:
      UsageError: there is no command, or it is not one of roberta_jax.
    """
    from roberta_jax.__main__ import COMMANDS

    words = list(words)
    if words[:2] == ["python", "-m"] and len(words) > 2:
        words = [words[2].removeprefix("roberta_jax."), *words[3:]]
    if not words or words[0].replace("_", "-") not in COMMANDS:
        raise UsageError(
            "name a command of roberta_jax after --, such as\n"
            "  -- pretrain --config=configs/pretrain.py:base --workdir=gs://BUCKET/base"
        )
    full = [python, "-m", "roberta_jax", *words]
    if distributed:
        full = command.joined(full)
    options = [f"--compile_cache={cache}"] if cache else []
    return [python, "-m", "roberta_jax.launch", *options, "--", *full[3:]]


def check_shared(words: Sequence[str]) -> None:
    """Checks that the workdir can be seen by all hosts.

    Raises:
      UsageError: there is none, or it is a relative path, which each host understands differently.
    """
    workdir = command.workdir(words)
    if workdir is None:
        if words and words[0] == "pretrain":
            raise UsageError("name the folder of the run: --workdir=gs://BUCKET/NAME")
        return
    if is_local(workdir) and not workdir.startswith("/"):
        raise UsageError(
            f"--workdir={workdir} is a folder of each host. Give one that all hosts share: "
            "gs://BUCKET/NAME, or the full path of a mounted folder."
        )


def run(commands: Commands, *, dry_run: bool) -> None:
    """Prints the commands, or runs them at the same time and waits for all.

    Commands that belong to one another (a run on several slices) may wait for each other.

    Raises:
      UsageError: one of them failed, or its program is not installed.
    """
    if dry_run:
        for each in commands:
            print(shlex.join(each))
        return
    running = []
    try:
        for each in commands:
            print(f"+ {shlex.join(each)}", file=sys.stderr, flush=True)
            running.append(subprocess.Popen(each, stdin=subprocess.DEVNULL))
    except FileNotFoundError:
        raise UsageError(f"{commands[0][0]} is not installed.") from None
    finally:
        statuses = [process.wait() for process in running]
    failed = [status for status in statuses if status]
    if failed:
        raise UsageError(f"{commands[0][0]} failed with status {failed[0]}; see above.")


def lines(command: Sequence[str]) -> Iterator[str]:
    """Yields a command of a shell with an argument a line."""
    for index, word in enumerate(command):
        end = " \\" if index < len(command) - 1 else ""
        yield f"{'  ' if index else ''}{shlex.quote(word)}{end}"
