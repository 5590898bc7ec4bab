"""Runs a training on all hosts of Cloud TPU slices, through queued resources.

    python -m experiments.launch.tpu_pod keep --name=base --zone=us-west4-a --type=v5litepod-256 \\
        --spot --package=gs://BUCKET/roberta_jax-0.2.0-py3-none-any.whl \\
        --compile_cache=gs://BUCKET/jax_cache \\
        -- pretrain --config=configs/pretrain.py:base --workdir=gs://BUCKET/base ...

ACTION is one of
  create   request the slices; they may be granted hours later
  install  install the package on all hosts
  doctor   check all hosts (python -m roberta_jax.doctor --distributed), with the run's --workdir
  start    start the run on all hosts; it goes on when this machine is switched off
  logs     show the end of the log of each host
  stop     stop the run; it saves a checkpoint
  delete   delete the slices
  keep     do all of it until the run has finished: request the slices, wait for them, install,
           start, and request them anew when they were preempted. It deletes them at the end. It
           can be interrupted and started again at any time.

It needs gcloud, logged in. All commands with their options are printed by --dry_run.
"""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from experiments.command_line import command
from experiments.launch import supervised
from experiments.launch.supervised import Commands
from roberta_jax.errors import UsageError
from roberta_jax.launch import whole
from roberta_jax.launching import command as launched
from roberta_jax.launching.supervisor import STOP_STATUSES

# https://cloud.google.com/tpu/docs/runtimes
RUNTIMES = {
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
OLDER_RUNTIME = "tpu-ubuntu2204-base"
PENDING = {
    "WAITING_FOR_RESOURCES", "ACCEPTED", "PROVISIONING", "CREATING", "DELETING", "SUSPENDING",
    "STATE_UNSPECIFIED",
}  # fmt: skip
LOST = {"SUSPENDED", "FAILED"}  # preempted, or never granted
LOG, PID, DONE = "roberta_jax.log", "roberta_jax.pid", "roberta_jax.status"
LOOKS_AFTER_STOP = 5  # until a run that was stopped counts as stopped by a person
PYTHON = "$HOME/roberta_jax_env/bin/python"


class Pod:
    """The commands for the slices of one run."""

    def __init__(self, arguments):
        self.name, self.slices = arguments.name, arguments.slices
        self._arguments = arguments
        self._where = [f"--zone={arguments.zone}"]
        if arguments.project:
            self._where.append(f"--project={arguments.project}")

    @property
    def nodes(self) -> list[str]:
        """The names of the slices."""
        if self.slices == 1:
            return [self.name]
        return [f"{self.name}-{index}" for index in range(self.slices)]

    def create(self) -> Commands:
        """Requests the slices."""
        arguments = self._arguments
        generation = arguments.type.split("-")[0]
        nodes = [f"--node-id={self.name}"]
        if self.slices > 1:
            nodes = [f"--node-count={self.slices}", f"--node-prefix={self.name}"]
        return [
            self._queued(
                "create",
                *nodes,
                f"--accelerator-type={arguments.type}",
                f"--runtime-version={arguments.runtime or RUNTIMES.get(generation, OLDER_RUNTIME)}",
                *(["--spot"] if arguments.spot else []),
            )
        ]

    def describe(self) -> list[str]:
        """Asks for the state of the request."""
        return self._queued("describe", "--format=value(state.state)")

    def delete(self) -> Commands:
        """Deletes the slices and the request."""
        return [self._queued("delete", "--force", "--quiet")]

    def install(self) -> Commands:
        """Installs the package on all hosts."""
        package = self._arguments.package
        if not package:
            raise UsageError(
                "name what to install: --package=gs://BUCKET/roberta_jax-VERSION.whl (pip wheel "
                "--no-deps . makes it), or the name of a package or a git+https address for pip."
            )
        setup = [*self._arguments.setup, "python3 -m venv $HOME/roberta_jax_env"]
        source = package
        if package.startswith("gs://"):
            source = f"$HOME/{package.rsplit('/', 1)[1]}"
            setup.append(f"gcloud storage cp {shlex.quote(package)} $HOME/")
        elif "://" in package:  # pip takes extras of an address in this form only
            source = f"roberta_jax@{package}"
        name, at, address = source.partition("@")
        target = f"{name}[{self._arguments.extras}]{at}{address}"
        setup.append(f'{PYTHON} -m pip install --quiet "{target}"')
        return self._on_all_hosts(" && ".join(setup))

    def start(self, words: Sequence[str]) -> Commands:
        """Starts the run on all hosts, in the background, unless it is running there."""
        supervised.check_shared(words)
        full = supervised.supervised(
            words, python="PYTHON", cache=self._arguments.compile_cache, distributed=True
        )
        run = f'"{PYTHON}" {shlex.join(full[1:])}'
        # A log-out must not end it. The shell outlives a SIGTERM, to keep the status for `keep`.
        script = f"trap : TERM; {run}; echo $? > {DONE}"
        return self._on_all_hosts(
            f"{_running()} || (rm -f {DONE}; setsid nohup bash -c {shlex.quote(script)} "
            f">> {LOG} 2>&1 < /dev/null & echo $! > {PID})"
        )

    def doctor(self, words: Sequence[str]) -> Commands:
        """Checks all hosts together."""
        workdir = launched.workdir(words)
        options = [f"--workdir={workdir}"] if workdir else []
        check = shlex.join(["-m", "roberta_jax.doctor", "--distributed", *options])
        return self._on_all_hosts(f'"{PYTHON}" {check}')

    def logs(self) -> Commands:
        """Shows the end of the log of each host."""
        return self._on_all_hosts(f"hostname; tail -n 40 {LOG}")

    def stop(self) -> Commands:
        """Stops the run on all hosts, since a host that is not told to would start again."""
        # The group of the shell: the launcher gets the signal and passes it on.
        return self._on_all_hosts(f"{_running()} && kill -TERM -- -$(cat {PID}) || true")

    def statuses(self) -> Commands:
        """Prints the exit status of the run on each host, or `running`."""
        return self._on_all_hosts(f"cat {DONE} 2>/dev/null || ({_running()} && echo running)")

    def _on_all_hosts(self, script: str) -> Commands:
        return [
            [
                *("gcloud", "compute", "tpus", "tpu-vm", "ssh", node),
                *self._where,
                "--worker=all",
                f"--command={script}",
            ]
            for node in self.nodes
        ]

    def _queued(self, action: str, *options: str) -> list[str]:
        resources = ["gcloud", "compute", "tpus", "queued-resources", action, self.name]
        return [*resources, *self._where, *options]


def keep(pod: Pod, words: Sequence[str], *, every: float, dry_run: bool) -> int:
    """Requests, installs, starts and requests again until the run has finished.

    Args:
      pod: its commands.
      words: the command of the run.
      every: seconds between two looks at the state.
      dry_run: prints the commands in their order.

    Returns:
      The exit status: 0 if the run finished, else that of the run.
    """
    begin = [pod.install(), pod.start(words)]
    if dry_run:
        print("# until the run has finished; again from the top when it was preempted:")
        steps = [pod.create(), [pod.describe()], *begin, pod.statuses(), pod.delete()]
        for commands in steps:
            supervised.run(commands, dry_run=True)
        return 0
    started, stopped = False, 0
    shown = ""
    while True:
        state = _state(pod)
        if state != shown:
            print(f"{time.strftime('%H:%M:%S')} {pod.name}: {state}", flush=True)
            shown = state
        if state in LOST:
            supervised.run(pod.delete(), dry_run=False)
            started = False
        elif state == "MISSING":
            supervised.run(pod.create(), dry_run=False)
            started = False
        elif state == "ACTIVE":
            if not started:
                started = all(_try(commands) for commands in begin)
            status = _status(pod) if started else None
            # The hosts of a preempted slice stop as well, shortly before the state says so.
            stopped = stopped + 1 if status in STOP_STATUSES else 0
            if stopped >= LOOKS_AFTER_STOP:
                print("The run was stopped; the slices are kept.", flush=True)
                return status
            if status is not None and status not in STOP_STATUSES:
                if status:
                    _try(pod.logs())
                supervised.run(pod.delete(), dry_run=False)
                return status
        _pause(every)


def _state(pod: Pod) -> str:
    """The state of the request; MISSING if there is none."""
    try:
        result = subprocess.run(pod.describe(), capture_output=True, text=True)
    except FileNotFoundError:
        raise UsageError("gcloud is not installed.") from None
    if result.returncode:
        if "NOT_FOUND" in result.stderr or "not found" in result.stderr.lower():
            return "MISSING"
        # Such as a network that is down for a moment.
        print(f"gcloud: {result.stderr.strip()[-300:]}", file=sys.stderr, flush=True)
        return "unknown"
    found = re.findall("[A-Z_]{6,}", result.stdout)
    known = [state for state in found if state in {"ACTIVE", *LOST, *PENDING}]
    return known[0] if known else "unknown"


def _status(pod: Pod) -> int | None:
    """The exit status of the run: 0 once it has finished on all hosts, or that of a host.

    None while it runs, or while a host does not answer.
    """
    statuses, complete = [], True
    for each in pod.statuses():
        result = subprocess.run(each, capture_output=True, text=True)
        words = result.stdout.split()
        complete &= result.returncode == 0 and bool(words) and "running" not in words
        statuses += [int(word) for word in words if word.isdigit()]
    failed = sorted(status for status in statuses if status)
    if failed:  # the cause, where others were told to stop
        return next((status for status in failed if status not in STOP_STATUSES), failed[0])
    return 0 if complete else None


def _try(commands: Commands) -> bool:
    """Runs commands that fail while a slice is being preempted; returns whether they did not."""
    try:
        supervised.run(commands, dry_run=False)
    except UsageError as error:
        print(f"{error} Trying again.", file=sys.stderr, flush=True)
        return False
    return True


_pause = time.sleep


def _running() -> str:
    """A command of the shell that succeeds if the run is running."""
    return f"kill -0 -- -$(cat {PID} 2>/dev/null) 2>/dev/null"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; exits with a message, without a traceback, on wrong input."""
    own, words = launched.split(sys.argv[1:] if argv is None else argv)
    parser = supervised.parser("tpu_pod", __doc__)
    actions = ("create", "install", "doctor", "start", "logs", "stop", "delete", "keep")
    parser.add_argument("action", metavar="ACTION", choices=actions, help=", ".join(actions))
    parser.add_argument("--name", required=True, help="of the slices")
    parser.add_argument("--zone", required=True, help="such as us-west4-a")
    parser.add_argument("--project", help="of Google Cloud (default: gcloud's)")
    parser.add_argument("--type", default="v5litepod-16", help="of a slice (default: %(default)s)")
    parser.add_argument("--runtime", help="software of the hosts (default: that of the type)")
    parser.add_argument("--slices", type=whole(1), default=1, metavar="N")
    parser.add_argument("--spot", action="store_true", help="cheaper slices that can be preempted")
    parser.add_argument("--package", help="what to install: a wheel on gs://, or pip's name for it")
    parser.add_argument(
        "--extras", default="tpu,gcs,data", help="its extras (default: %(default)s)"
    )
    parser.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="COMMAND",
        help="what `install` runs first on each host, such as a mount of the text (repeatable)",
    )
    parser.add_argument(
        "--every",
        type=whole(1),
        default=60,
        metavar="SECONDS",
        help="how often `keep` looks",
    )
    with command():
        arguments = parser.parse_args(own)
        if not re.fullmatch("[a-z][a-z0-9-]{0,60}", arguments.name):
            parser.error(f"--name={arguments.name}: use small letters, digits and hyphens")
        pod = Pod(arguments)
        if arguments.action == "keep":
            if status := keep(pod, words, every=arguments.every, dry_run=arguments.dry_run):
                sys.exit(status)
            return
        takes_words = arguments.action in ("start", "doctor")
        commands = getattr(pod, arguments.action)(*([words] if takes_words else []))
        supervised.run(commands, dry_run=arguments.dry_run)


if __name__ == "__main__":
    main()
