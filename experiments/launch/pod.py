"""The gcloud commands for the TPU slices of a run, and what they run on the hosts."""

import hashlib
import shlex
from collections.abc import Sequence

from experiments.launch import supervised
from experiments.launch.supervised import Commands
from roberta_jax.errors import UsageError
from roberta_jax.launching import command as launched
from roberta_jax.launching.supervisor import STOP_STATUSES

# https://cloud.google.com/tpu/docs/runtimes
RUNTIMES = {
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
OLDER_RUNTIME = "tpu-ubuntu2204-base"
# Files in the home folder of each host: the output of the run, its process group, its exit status,
# and which command it is.
LOG, PID, DONE, RUN = (f"roberta_jax.{name}" for name in ("log", "pid", "status", "run"))
ANSWER = "roberta_jax="  # what a host says of the run follows it
RUNNING, IDLE, OTHER = "running", "idle", "other"
ENVIRONMENT = "$HOME/roberta_jax_env"
PYTHON = f"{ENVIRONMENT}/bin/python"
OLDEST_PYTHON = (3, 11)  # that the package supports
PYTHONS = ("python3.13", "python3.12", "python3.11", "python3")
NEW_PYTHON = "3.12"  # where a host has none of them
# A process group and a stop belong to the boot in which they were written.
_BOOT = '"$(cat /proc/sys/kernel/random/boot_id)"'


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

    def describe(self, field: str = "state.state") -> Commands:
        """Asks for the state of the request, or another field of it."""
        return [self._queued("describe", f"--format=value({field})")]

    def delete(self) -> Commands:
        """Deletes the slices and the request."""
        return [self._queued("delete", "--force", "--quiet")]

    def install(self, *, unless_running: bool = False) -> Commands:
        """Installs the package on all hosts.

        Args:
          unless_running: whether to leave the hosts as they are on which the run is running.

        Raises:
          UsageError: no package was named.
        """
        package = self._arguments.package
        if not package:
            raise UsageError(
                "name what to install: --package=gs://BUCKET/roberta_jax-VERSION.whl (pip wheel "
                "--no-deps . makes it), or the name of a package or a git+https address for pip."
            )
        setup = [f"{{ {each.rstrip('; ')}; }}" for each in self._arguments.setup]
        setup.append(_environment())
        source = package
        if package.startswith("gs://"):
            source = f"$HOME/{package.rsplit('/', 1)[1]}"
            setup.append(f"gcloud storage cp {shlex.quote(package)} $HOME/")
        elif "://" in package:  # pip takes extras of an address in this form only
            source = f"roberta_jax@{package}"
        name, at, address = source.partition("@")
        target = f"{name}[{self._arguments.extras}]{at}{address}"
        pip = f"{PYTHON} -m pip install --quiet"
        setup.append(f'{pip} "{target}"')
        # pip leaves an older build of the same version where it is.
        setup.append(f'{pip} --force-reinstall --no-deps "{target}"')
        script = " && ".join(setup)
        return self._on_all_hosts(f"{_running()} || {{ {script}; }}" if unless_running else script)

    def start(self, words: Sequence[str]) -> Commands:
        """Starts the run on all hosts, in the background, unless one is running there.

        Raises:
          UsageError: the command is none of roberta_jax, or its workdir is not shared.
        """
        full = self._supervised(words)
        run = f'"{PYTHON}" {shlex.join(full[1:])}'
        # A log-out must not end it. The shell outlives a SIGTERM, to keep the status for `keep`.
        script = f"trap : TERM; {run}; echo $? {_BOOT} > {DONE}"
        return self._on_all_hosts(
            f"{_running()} || (rm -f {DONE}; echo {_digest(full)} > {RUN}; setsid nohup bash -c "
            f"{shlex.quote(script)} >> {LOG} 2>&1 < /dev/null & echo $! {_BOOT} > {PID})"
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
        group = f'"-$(cut -d" " -f1 {PID})"'
        return self._on_all_hosts(f"{_running()} && kill -TERM -- {group} || true")

    def answers(self, words: Sequence[str]) -> Commands:
        """Prints on each host how far the run is, after `ANSWER`.

        It is its exit status, RUNNING, OTHER if another command is running, or IDLE if nothing is.
        A run that was stopped when its host was shut down has no status: it is to go on.

        Raises:
          UsageError: as in `start`.
        """
        same = f'[ "$(cat {RUN} 2>/dev/null)" = {_digest(self._supervised(words))} ]'
        stopped = " ".join(f'[ "$1" != {status} ] &&' for status in STOP_STATUSES)
        return self._on_all_hosts(
            f"set -- $(cat {DONE} 2>/dev/null); "
            f'if [ -n "$1" ] && {same} && {{ [ "$2" = {_BOOT} ] || {{ {stopped} true; }}; }}; '
            f"then state=$1; elif {_running()}; then {same} && state={RUNNING} || state={OTHER}; "
            f'else state={IDLE}; fi; echo "{ANSWER}$state"'
        )

    def _supervised(self, words: Sequence[str]) -> list[str]:
        """The command of a host, with PYTHON for its Python."""
        supervised.check_shared(words)
        return supervised.supervised(
            words, python="PYTHON", cache=self._arguments.compile_cache, distributed=True
        )

    def _on_all_hosts(self, script: str) -> Commands:
        return [
            [
                *("gcloud", "compute", "tpus", "tpu-vm", "ssh", node),
                *self._where,
                "--worker=all",
                "--ssh-flag=-oServerAliveInterval=30",  # ends when a host has gone
                f"--command={script}",
            ]
            for node in self.nodes
        ]

    def _queued(self, action: str, *options: str) -> list[str]:
        resources = ["gcloud", "compute", "tpus", "queued-resources", action, self.name]
        return [*resources, *self._where, *options]


def _environment() -> str:
    """A command of the shell that creates the environment on a host, unless there is one.

    The Python of many runtimes is too old for the package; `uv` gets one then.
    """
    return (
        f"{{ new() {{ \"$1\" -c 'import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})'; }}; "
        f"usable() {{ new {PYTHON} && {PYTHON} -m pip --version; }} >/dev/null 2>&1; "
        f"usable || {{ rm -rf {ENVIRONMENT}; for python in {' '.join(PYTHONS)}; do "
        f'new "$python" 2>/dev/null && "$python" -m venv {ENVIRONMENT} && break; done; }}; '
        "usable || { python3 -m pip install --quiet --user uv && rm -rf "
        f"{ENVIRONMENT} && $HOME/.local/bin/uv venv --quiet --python {NEW_PYTHON} --seed "
        f"{ENVIRONMENT}; }}; }}"
    )


def _running() -> str:
    """A command of the shell that succeeds if a run is running, thus has written no status."""
    return (
        f"( [ ! -s {DONE} ] && set -- $(cat {PID} 2>/dev/null) && "
        f'[ "$2" = {_BOOT} ] && kill -0 -- "-$1" 2>/dev/null )'
    )


def _digest(command: Sequence[str]) -> str:
    """What tells a command from others on the hosts."""
    return hashlib.sha256(shlex.join(command).encode()).hexdigest()[:16]
