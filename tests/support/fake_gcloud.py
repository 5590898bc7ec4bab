"""A program in place of gcloud, with hosts that are folders of this machine."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time

# The files of the folder: `state` of the request, `reason` of its failure, `trouble-ACTION`: how
# often the action is to fail, or "hang"; `after-ACTION`: a script that runs after the action. A
# host with the file `down` does not answer.
_SCRIPT = """
here={here}
[ "$1" = compute ] || exit 0
action=$4
echo "$action" >> $here/actions
trouble=$(cat $here/trouble-$action 2>/dev/null || echo 0)
if [ "$trouble" = hang ]; then sleep 600; exit 1; fi
if [ "$trouble" -gt 0 ]; then
  echo $((trouble - 1)) > $here/trouble-$action
  echo "try again later" >&2
  exit 1
fi
for last; do true; done
status=0
case "$action" in
  create) cat $here/next-state 2>/dev/null > $here/state || echo ACTIVE > $here/state
          rm -f $here/next-state $here/hosts/*/roberta_jax.* $here/hosts/*/down;;
  delete) rm $here/state || exit 1;;
  describe) if [ ! -e $here/state ]; then echo NOT_FOUND >&2; exit 1; fi
            case "$last" in *state.state*) cat $here/state;; *) cat $here/reason;; esac;;
  ssh) for host in $here/hosts/*; do
         if [ -e $host/down ]; then echo "no route to host" >&2; status=255; continue; fi
         cd $host && HOME=$host bash -c "${{last#--command=}}" || status=1
       done;;
esac
if [ -e $here/after-$action ]; then . $here/after-$action; fi
exit $status
"""


def program(folder: pathlib.Path, name: str, script: str) -> None:
    """Writes a program of bash."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


class Gcloud:
    """The program, its request and its hosts."""

    def __init__(self, folder: pathlib.Path, programs: pathlib.Path, hosts: int):
        self.folder = folder
        self.hosts = [folder / "hosts" / str(index) for index in range(hosts)]
        for host in self.hosts:
            (host / "roberta_jax_env" / "bin").mkdir(parents=True)
        program(programs, "gcloud", _SCRIPT.format(here=folder))

    def run_is(self, script: str) -> None:
        """Makes the launcher of each host this script; all other programs of Python succeed."""
        for host in self.hosts:
            program(
                host / "roberta_jax_env" / "bin",
                "python",
                'if [ "$2" = pip ] && [ "$4" = --quiet ]; then echo >> installed; fi\n'
                f'if [ "$2" = roberta_jax.launch ]; then echo >> started; {script}\nfi',
            )

    def write(self, name: str, text: str = "") -> None:
        """Writes a file that the program reads, which sees all of it or nothing."""
        written = self.folder / f"{name}.new"
        written.write_text(f"{text}\n")
        written.replace(self.folder / name)

    @property
    def state(self) -> str | None:
        """The state of the request; None if there is none."""
        path = self.folder / "state"
        return path.read_text().strip() if path.exists() else None

    def actions(self) -> list[str]:
        """The actions that were asked for, without repetitions."""
        path = self.folder / "actions"
        lines = path.read_text().split() if path.exists() else []
        return [each for index, each in enumerate(lines) if index == 0 or lines[index - 1] != each]

    def count(self, name: str) -> list[int]:
        """How often something was `started` or `installed` on each host."""
        paths = [host / name for host in self.hosts]
        return [len(path.read_text().splitlines()) if path.exists() else 0 for path in paths]

    def status(self, host: int) -> str | None:
        """The exit status that a host has written."""
        path = self.hosts[host] / "roberta_jax.status"
        return (path.read_text().split() or [None])[0] if path.exists() else None

    def reboot(self, host: int, sent: int = signal.SIGKILL) -> None:
        """Ends what runs on a host, whose files belong to an earlier boot after that."""
        pid = self.hosts[host] / "roberta_jax.pid"
        group = int(pid.read_text().split()[0])
        _signal(group, sent)
        if sent != signal.SIGKILL:
            wait_for(lambda: self.status(host))
        for name in ("pid", "status"):
            path = self.hosts[host] / f"roberta_jax.{name}"
            if path.exists():
                path.write_text(f"{path.read_text().split()[0]} an-earlier-boot\n")

    def end(self) -> None:
        """Kills what is left on the hosts."""
        for host in self.hosts:
            pid = host / "roberta_jax.pid"
            if pid.exists() and pid.read_text().split():
                _signal(int(pid.read_text().split()[0]), signal.SIGKILL)
        running = subprocess.run(["pgrep", "-f", str(self.folder)], capture_output=True, text=True)
        for each in set(running.stdout.split()) - {str(os.getpid())}:
            _signal(int(each), signal.SIGKILL, group=False)


def _signal(pid: int, number: int, group: bool = True) -> None:
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if group else os.kill)(pid, number)


def wait_for(condition, seconds: float = 20) -> None:
    """Waits until a condition is true; fails after some time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
