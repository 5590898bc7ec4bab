"""Checks a machine, or all hosts of a pod, in under a minute before a long run is started there.

    python -m roberta_jax.doctor --workdir=runs/base
    python -m roberta_jax.doctor --workdir=gs://bucket/base --distributed   # on every host
    python -m roberta_jax.launch --processes=2 --max_restarts=0 -- doctor    # as two processes here

Each line is ok, a warning, or a problem with what to do. Checked are the versions of the libraries
and their known faults; the devices and the hosts; whether the workdir can be written, is shared by
all hosts, and takes appended files and locks; an all-reduce over all devices and its bandwidth; a
checkpoint that is written, read and compared; the gradient of an embedding against a reference;
the cache of compiled programs; free disk and memory. What the checks write is removed again.

The exit status is 0 if there are no problems, 1 if there are, and 2 after a wrong call.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from roberta_jax import __version__, cli
from roberta_jax.diagnostics.report import Level, Result, formatted, merged, problem, worst
from roberta_jax.errors import UsageError

CHECK_SECONDS = 60.0  # for one check, starting included

_ADVICE = {
    "hosts": "see whether the command runs on all hosts and whether they reach each other.",
    "devices": "end other processes that hold the devices, or restart the hosts.",
    "workdir": "see whether the file system of the workdir answers: ls on every host.",
}
_OTHER_ADVICE = "see what the other hosts print: one of them may have failed. Restart the hosts."


def examine(
    workdir: str | None, say: Callable[[str], None] = print, seconds: float = CHECK_SECONDS
) -> list[Result]:
    """Makes all checks. With several processes, each has to call it after they have joined.

    Args:
      workdir: the run's folder, local or on an object store; None leaves its checks out.
      say: is called with each line of the report, on the first process.
      seconds: how long one check may take; the process is ended with status 1 then.

    Returns:
      The results of the first process, and those of the others that are not ok.
    """
    from roberta_jax.diagnostics.watchdog import time_limit

    with time_limit("devices", seconds, _ADVICE["devices"]):
        import jax

        from roberta_jax.diagnostics import devices, files, hosts, machine, versions
        from roberta_jax.training.agreement import exchange

        platform = jax.devices()[0].platform
    found: list[Result] = []

    def check(name: str, function: Callable[[], list[Result]]) -> bool:
        """Makes a check on all processes; returns whether it found no problem on any."""
        with time_limit(name, seconds, _ADVICE.get(name, _OTHER_ADVICE)):
            mine = [result.to_json() for result in _results(name, function)]
            by_process = exchange(f"the check {name!r}", mine)
        results = [[Result.from_json(each) for each in values] for values in by_process]
        for where, result in merged(results):
            found.append(result)
            if jax.process_index() == 0:
                say(formatted(result, where))
        return all(worst(values) is not Level.PROBLEM for values in results)

    installed = versions.installed(__version__)
    check("versions", lambda: versions.check(installed, platform))
    check("devices", devices.devices)
    check("hosts", lambda: hosts.check(installed))
    check("all-reduce", devices.all_reduce)
    check("embedding", devices.embedding)
    if workdir is None:
        if jax.process_count() == 1:  # several have no folder that they share
            check("checkpoint", lambda: files.checkpoint(None, None))
    else:
        with files.probe_folder(workdir) as folder:
            if check("workdir", lambda: files.shared(workdir, folder)):
                check("append", lambda: files.append(workdir, folder))
                check("lock", lambda: files.lock(workdir, folder))
                check("checkpoint", lambda: files.checkpoint(workdir, folder))
    check("compile cache", machine.compile_cache)
    check("free disk", lambda: files.disk(_folders(workdir)))
    check("memory", machine.memory)
    return found


def _results(name: str, function: Callable[[], list[Result]]) -> list[Result]:
    """The results of a check; an error of a library is one of them."""
    try:
        return function()
    except Exception as error:  # whatever a device, a file system or a library raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        return [problem(name, f"the check failed: {reason}", "see the libraries' documentation.")]


def _folders(workdir: str | None) -> dict[str, str]:
    from roberta_jax.training.compilation_cache import default_folder

    folders = {"prepared text": str(default_folder().parent)}
    return folders if workdir is None else {"the run": workdir, **folders}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; exits with a message, without a traceback, on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m roberta_jax.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", help="the folder of the run, local or gs://...")
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="whether this is one of several processes, as for pretraining; start it on all hosts",
    )
    with cli.usage_errors():
        arguments = parser.parse_args(argv)
        if arguments.workdir is not None and not arguments.workdir.strip():
            raise UsageError("--workdir= is empty: give a folder, such as --workdir=runs/base")
        if arguments.distributed:
            from roberta_jax.training.distributed import join_processes

            join_processes()
        results = examine(arguments.workdir, lambda line: print(line, flush=True))
        sys.exit(1 if worst(results) is Level.PROBLEM else 0)


if __name__ == "__main__":
    main()
