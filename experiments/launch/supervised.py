"""What the launch commands share: the supervised command, and running or printing commands."""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from roberta_jax.errors import UsageError
from roberta_jax.launching import command
from roberta_jax.storage import is_local

Commands = list[list[str]]
TIMED_OUT = 124  # the status of a command that took too long, as timeout(1) reports it


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


def run(commands: Commands, *, dry_run: bool, seconds: float | None = None) -> None:
    """Prints the commands, or runs them at the same time and waits for all.

    Commands that belong to one another (a run on several slices) may wait for each other.

    Args:
      commands: what to run.
      dry_run: whether to print it only.
      seconds: how long the commands may take; they are ended after that. None waits for ever.

    Raises:
      UsageError: one of them failed or took too long, or its program is not installed.
    """
    if dry_run:
        for each in commands:
            print(shlex.join(each))
        return
    for each in commands:
        print(f"+ {shlex.join(each)}", file=sys.stderr, flush=True)
    deadline = None if seconds is None else time.monotonic() + seconds
    with _started(commands, own_session=seconds is not None) as running:
        try:
            statuses = [process.wait(_left(deadline)) for process in running]
        except subprocess.TimeoutExpired:
            raise UsageError(
                f"{commands[0][0]} did not end within {seconds:g} s and was ended."
            ) from None
    failed = [status for status in statuses if status]
    if failed:
        raise UsageError(f"{commands[0][0]} failed with status {failed[0]}; see above.")


def results(commands: Commands, *, seconds: float) -> list[subprocess.CompletedProcess]:
    """Runs commands at the same time, and returns their statuses and what they printed.

    Args:
      commands: what to run.
      seconds: how long the commands may take. One that takes longer is ended; its status is not 0,
        and its stderr says so.

    Raises:
      UsageError: their program is not installed.
    """
    deadline = time.monotonic() + seconds
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    finished = []
    with _started(commands, own_session=True, **options) as running:
        for each, process in zip(commands, running, strict=True):
            try:
                output, error = process.communicate(timeout=_left(deadline))
                status = process.returncode
            except subprocess.TimeoutExpired as expired:
                output, status = expired.stdout or b"", TIMED_OUT
                error = f"{each[0]} did not answer within {seconds:g} s.".encode()
            texts = [text.decode("utf-8", "replace") for text in (output, error)]
            finished.append(subprocess.CompletedProcess(each, status, *texts))
    return finished


@contextlib.contextmanager
def _started(
    commands: Commands, *, own_session: bool, **options
) -> Iterator[list[subprocess.Popen]]:
    """Starts commands, and waits for their ends when the context is left.

    Args:
      commands: what to start.
      own_session: whether each gets a session of its own, which Ctrl-C does not reach. What is left
        of it is ended with the context, and its children, such as gcloud's ssh, with it.
      **options: of `subprocess.Popen`.
    """
    running = []
    try:
        for each in commands:
            running.append(
                subprocess.Popen(
                    each, stdin=subprocess.DEVNULL, start_new_session=own_session, **options
                )
            )
        yield running
    except FileNotFoundError:
        raise UsageError(f"{commands[0][0]} is not installed.") from None
    finally:
        for process in running:
            if own_session and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def lines(command: Sequence[str]) -> Iterator[str]:
    """Yields a command of a shell with an argument a line."""
    for index, word in enumerate(command):
        end = " \\" if index < len(command) - 1 else ""
        yield f"{'  ' if index else ''}{shlex.quote(word)}{end}"
