"""Which errors are those of a file system or an object store."""

import asyncio
import sys
import types

import jax
import pytest

from roberta_jax.training.orbax_errors import (
    file_system_reason,
    hide_errors_of_background_tasks,
    store_reason,
)


def of_library(name, text):
    return type("Error", (Exception,), {"__module__": name})(text)


def caused_by(error):
    try:
        raise RuntimeError("the save failed") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (of_library("gcsfs.retry", "Forbidden,\n  403"), "Forbidden, 403"),
        (of_library("aiohttp.client_exceptions", ""), "Error"),
        (ConnectionRefusedError("no answer"), "no answer"),
        (
            ValueError(
                'UNAVAILABLE: Error writing "gs://b/x": CURL error Couldn\'t connect to server '
                "[tensorstore_spec='{...}']"
            ),
            'UNAVAILABLE: Error writing "gs://b/x": CURL error Couldn\'t connect to server',
        ),
        (ValueError("PERMISSION_DENIED: HTTP response code: 403"), "PERMISSION_DENIED: HTTP"),
        (KeyError("params"), None),
        (FileNotFoundError("gs://b/x"), None),
        (ValueError("the file is damaged"), None),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: a process has ended"), None),
    ],
)
def test_what_an_object_store_said(error, reason):
    for each in (error, caused_by(error)):
        found = store_reason(each)
        assert found is None if reason is None else found.startswith(reason)


def test_what_the_file_system_said():
    error = caused_by(ValueError("Error writing x: No space left on device [tensorstore_spec={}]"))
    assert file_system_reason(error) == "No space left on device"
    assert file_system_reason(ValueError("damaged")) is None


def test_what_threads_of_a_failed_save_print_is_hidden(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: seen.append(about.exc_type))
    hide_errors_of_background_tasks()
    hide_errors_of_background_tasks()  # once is enough
    loop = asyncio.new_event_loop()
    loop.close()
    try:
        loop.call_soon_threadsafe(print)
    except RuntimeError as error:
        caught = error

    def report(kind, error, traceback):
        sys.unraisablehook(
            types.SimpleNamespace(exc_type=kind, exc_value=error, exc_traceback=traceback)
        )

    # As of a thread of tensorstore: the frame of this test is not in the traceback.
    report(RuntimeError, caught, caught.__traceback__.tb_next)
    assert not seen
    report(RuntimeError, caught, caught.__traceback__)
    report(ValueError, ValueError("other"), None)
    assert seen == [RuntimeError, ValueError]
