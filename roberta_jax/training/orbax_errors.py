"""What Orbax prints and raises when a checkpoint cannot be read or written.

Orbax writes in background threads and tasks, which log their errors with a traceback beside the
exception that `save` and `wait` raise. tensorstore passes errors of the file system on as text.
"""

import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from roberta_jax.errors import shortened


def _is_of_the_user(record: logging.LogRecord) -> bool:
    """Whether a log record is not one that Orbax or its tasks log about an error.

    A failed save logs its error with a traceback once for each task that takes part in it, while it
    runs or when the task is garbage collected. `save` and `wait` raise the same error.
    """
    if record.levelno < logging.ERROR:
        return True
    error = record.exc_info[1] if record.exc_info else None
    return not (
        "orbax" in record.pathname
        or "exception was never retrieved" in str(record.msg)
        or (isinstance(error, RuntimeError) and "Event loop is closed" in str(error))
    )


def hide_errors_of_background_tasks() -> None:
    """Keeps errors of failed saves, which `save` and `wait` raise, out of the log."""
    for name in ("absl", "asyncio", "concurrent.futures"):
        logger = logging.getLogger(name)
        if _is_of_the_user not in logger.filters:
            logger.addFilter(_is_of_the_user)
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


class _Hook:
    """Prints errors in threads of other libraries, but not tensorstore's after a failed save.

    Its writes end after the event loop of the save, which they tell of it. No Python function
    calls them, so that the traceback begins in asyncio.
    """

    def __init__(self, hook: Callable[[Any], None]):
        self._hook = hook

    def __call__(self, about: Any) -> None:
        traceback = about.exc_traceback
        begins_in = traceback.tb_frame.f_code.co_name if traceback else None
        if begins_in == "call_soon_threadsafe" and "Event loop is closed" in str(about.exc_value):
            return
        self._hook(about)


@contextlib.contextmanager
def silence_orbax() -> Iterator[None]:
    """Keeps Orbax's background tasks from printing errors that an exception reports anyway."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    hook = sys.unraisablehook
    sys.unraisablehook = lambda error: hook(error) if error.exc_type is KeyboardInterrupt else None
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            try:
                yield
            except Exception:
                gc.collect()  # failed tasks print their error when they are garbage collected
                raise
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# The operating system's names of the errors that a user can fix. tensorstore passes them on as text
# within its own exceptions.
FILE_SYSTEM_ERRORS = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "Permission denied",
    "Not a directory",
    "File too large",
    "Input/output error",
)


def file_system_reason(error: BaseException | None) -> str | None:
    """Returns the error of the file system that caused an exception, or None."""
    while error is not None:
        for reason in FILE_SYSTEM_ERRORS:
            if reason in str(error):
                return reason
        error = error.__cause__ or error.__context__
    return None


# Of the exceptions that gcsfs and google.cloud.storage raise.
_LIBRARIES = ("aiohttp", "gcsfs", "google", "requests", "urllib3")
# In the text of tensorstore's exceptions, which are those of Python.
_STATUS_CODES = (
    "CURL error", "DEADLINE_EXCEEDED", "HTTP response code", "PERMISSION_DENIED",
    "UNAUTHENTICATED", "UNAVAILABLE",
)  # fmt: skip


def store_reason(error: BaseException | None) -> str | None:
    """Returns what an object store said that caused an exception; None if it was something else.

    Args:
      error: raised by one of the libraries that read and write objects, or in consequence of it.
    """
    while error is not None:
        text = str(error).split(" [tensorstore_spec")[0]
        library = type(error).__module__.partition(".")[0]
        if library in _LIBRARIES or isinstance(error, ConnectionError | TimeoutError):
            return shortened(" ".join(text.split()) or type(error).__name__, 200)
        if library in ("builtins", "asyncio") and any(code in text for code in _STATUS_CODES):
            return shortened(" ".join(text.split()), 200)
        error = error.__cause__ or error.__context__
    return None
