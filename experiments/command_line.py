"""What the commands of `experiments` share: how they end on errors, and checks of folders."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator

from etils import epath

from roberta_jax import cli
from roberta_jax.errors import UsageError, shortened
from roberta_jax.storage.atomic import is_local
from roberta_jax.training import preemption
from roberta_jax.training.workdir import CONFIG


@contextlib.contextmanager
def command() -> Iterator[None]:
    """Ends the command with a message in place of a traceback, where the user can act on it.

    A `UsageError` and an error of the file system exit with status 2, Ctrl-C with 130. If the
    reader of the output has gone (`... | head`), the command exits silently with status 141.
    Unlike `cli.usage_errors`, this leaves a second Ctrl-C to the command, which has processes to
    end.
    """
    cli.escape_unprintable()
    try:
        with preemption.checked_output(), cli.usage_messages(), _file_errors():
            yield
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(preemption.INTERRUPTED)


@contextlib.contextmanager
def _file_errors() -> Iterator[None]:
    try:
        yield
    except (BrokenPipeError, UsageError):
        raise
    except OSError as error:
        where = f"{shortened(str(error.filename))}: " if error.filename else ""
        raise UsageError(f"{where}{error.strerror or error}.") from error


def check_runs_folder(folder: str, flag: str, *, writable: bool = True) -> None:
    """Checks the folder of a study's workdirs, which need not exist; creates nothing.

    Args:
      folder: the folder, local or on an object store.
      flag: the flag that names it; error messages begin with it.
      writable: whether to check that it can be written.

    Raises:
      UsageError: it is a file, is the workdir of a run itself, or cannot be created.
    """
    if not folder:
        raise UsageError(f"{flag}= is empty: give the folder of the workdirs, such as runs/table2.")
    if not is_local(folder):
        return
    path = pathlib.Path(folder)
    try:
        if path.exists() and not path.is_dir():
            raise UsageError(f"{flag}={folder} is a file: give the folder of the workdirs.")
        if (path / CONFIG).is_file():
            raise UsageError(
                f"{flag}={folder} is the workdir of a run (it has {CONFIG}). Give the folder of "
                "the workdirs, one level up or another one."
            )
        for each in (path, *path.parents):
            if each.is_symlink() and not each.exists():
                raise UsageError(f"{flag}={folder}: {each} is a link to nothing, or to itself.")
        existing = next(each for each in (path, *path.absolute().parents) if each.exists())
        if not existing.is_dir():
            raise UsageError(f"{flag}={folder}: {existing} is a file, and no folder.")
        if writable and not os.access(existing, os.W_OK | os.X_OK):
            raise UsageError(f"{flag}={folder}: no permission to write in {existing}.")
    except OSError as error:
        raise UsageError(f"{flag}={shortened(folder)}: {error.strerror or error}.") from None


def create_folder(folder: str, flag: str) -> None:
    """Creates a folder if it does not exist.

    Raises:
      UsageError: it cannot be created.
    """
    try:
        epath.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{flag}={shortened(folder)}: {error.strerror or error}.") from None
