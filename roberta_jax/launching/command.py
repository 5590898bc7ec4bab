"""The command that a supervisor runs, and the workdir that it names."""

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

from roberta_jax.errors import UsageError
from roberta_jax.storage import is_local

EXAMPLE = (
    "python -m roberta_jax.launch -- pretrain --config=configs/pretrain.py:tiny --workdir=runs/tiny"
)
DISTRIBUTED = "--distributed"  # makes one of several processes join the others
_TAKE_DISTRIBUTED = ("pretrain", "doctor")
_DISTRIBUTED = ("distributed", "nodistributed")
STORE_SECONDS = 120  # to list the checkpoints of a run on an object store

# Lists the complete checkpoints on an object store, in a process of its own: jax and the client are
# slow to import. jax is not to take the devices.
_LIST = """
import sys
from roberta_jax.storage.objects import check_readable
from roberta_jax.training.checkpoints import checkpoint_steps
check_readable(sys.argv[1])
print(*checkpoint_steps(sys.argv[1]))
"""


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits the arguments of a launcher at `--` into its own options and the command."""
    argv = list(argv)
    if "--" not in argv:
        return argv, []
    index = argv.index("--")
    return argv[:index], argv[index + 1 :]


def resolve(words: Sequence[str], commands: Sequence[str]) -> list[str]:
    """Returns the command line to execute.

    Args:
      words: `python -m roberta_jax.pretrain ...`, or `pretrain ...` for a command of roberta_jax.
      commands: the names of those commands.

    Raises:
      UsageError: there is no command, or its program does not exist.
    """
    words = list(words)
    if not words:
        raise UsageError(f"no command to run: write it after --, as in\n  {EXAMPLE}")
    if words[0].replace("_", "-") in commands:
        return [sys.executable, "-m", "roberta_jax", *words]
    if words[0] in ("python", "python3"):
        return [sys.executable, *words[1:]]  # the one that has the package
    if shutil.which(words[0]) is None:
        raise UsageError(
            f"{words[0]!r} is neither a program nor a command of roberta_jax "
            f"({', '.join(commands)}). Write the command after --, as in\n  {EXAMPLE}"
        )
    return words


def workdir(command: Sequence[str]) -> str | None:
    """Returns the workdir that a command names with --workdir, or None."""
    for index, word in enumerate(command):
        name, equals, value = word.partition("=")
        if name in ("--workdir", "-workdir"):
            return value if equals else "".join(command[index + 1 : index + 2]) or None
    return None


def joined(command: Sequence[str]) -> list[str]:
    """Returns a command with --distributed, if it takes that and has none, for several processes.

    Commands that do not take it are returned as they are.
    """
    command = list(command)
    takes = any(
        f"roberta_jax.{name}" in command or command[1:4] == ["-m", "roberta_jax", name]
        for name in _TAKE_DISTRIBUTED
    )
    given = any(word.lstrip("-").partition("=")[0] in _DISTRIBUTED for word in command)
    return [*command, DISTRIBUTED] if takes and not given else command


def newest_step(folder: str | None) -> int | None:
    """Returns the step of the newest checkpoint of a workdir; None if there is none to be seen."""
    if folder is None:
        return None
    checkpoints = f"{folder.rstrip('/')}/checkpoints"
    names = _local_names(checkpoints) if is_local(folder) else _remote_names(checkpoints)
    return max((int(name) for name in names if name.isdigit()), default=None)


def _local_names(folder: str) -> list[str]:
    try:
        return os.listdir(pathlib.Path(folder))
    except OSError:
        return []


def _remote_names(folder: str) -> list[str]:
    try:
        output = subprocess.run(
            [sys.executable, "-c", _LIST, folder],
            capture_output=True,
            text=True,
            timeout=STORE_SECONDS,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return output.split()
