"""Which errors of an object store may pass by themselves."""

import errno

import pytest

from roberta_jax.errors import StoreUnavailable, UsageError
from roberta_jax.storage.store_errors import store_error


def of_library(module, text="", name="Error", **attributes):
    return type(name, (Exception,), {"__module__": module, **attributes})(text)


def answered(status):
    return of_library("requests", response=type("Response", (), {"status_code": status}))


def raised_from(cause, error):
    error.__cause__ = cause
    return error


OUTAGES = [
    ConnectionError("no route"),
    TimeoutError(),
    answered(503),
    answered(429),
    of_library("gcsfs.retry", code="503"),
    of_library("aiohttp", status=500),
    OSError("the connection was lost"),
    ValueError("UNAVAILABLE: CURL error Couldn't connect to server [tensorstore_spec='{}']"),
    ValueError("UNAVAILABLE: HTTP response code: 503 [tensorstore_spec='PERMISSION_DENIED']"),
    of_library("google.auth.exceptions", name="TransportError"),
    raised_from(
        of_library("google.auth.exceptions", name="TransportError"),
        of_library("google.auth.exceptions", name="RefreshError"),
    ),
    # While a missing object was looked for.
    raised_from(answered(404), ConnectionError("no route")),
]
REFUSALS = [
    *map(answered, (400, 401, 403, 404)),
    of_library("gcsfs.retry", code="403"),
    OSError("Forbidden: gs://bucket/x\nthe account has no permission"),
    ValueError("PERMISSION_DENIED: HTTP response code: 403 [tensorstore_spec='{}']"),
    ValueError("NOT_FOUND: HTTP response code: 404"),
    of_library("google.auth.exceptions", name="DefaultCredentialsError"),
    raised_from(answered(403), RuntimeError("the save failed")),
    OSError(errno.ENOSPC, "No space left on device"),
]


@pytest.mark.parametrize("error", OUTAGES, ids=repr)
def test_an_outage_may_pass(error):
    assert isinstance(store_error("cannot read", error), StoreUnavailable)
    assert isinstance(
        store_error("cannot read", raised_from(error, RuntimeError())), StoreUnavailable
    )


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_a_refusal_is_a_mistake(error):
    raised = store_error("cannot read", error)
    assert type(raised) is UsageError
    assert not raised.restart
    assert str(raised) == "cannot read"


def test_the_errors_of_the_real_libraries():
    retry = pytest.importorskip("gcsfs.retry")
    exceptions = pytest.importorskip("google.api_core.exceptions")
    assert not store_error("", retry.HttpError({"code": 403, "message": "no"})).restart
    assert store_error("", retry.HttpError({"code": 503, "message": "no"})).restart
    assert not store_error("", exceptions.Forbidden("no")).restart
    outage = exceptions.RetryError("timeout", cause=exceptions.ServiceUnavailable("later"))
    assert store_error("", outage).restart
    with pytest.raises(OSError, match="Forbidden") as refusal:
        retry.validate_response(403, b"{}", "gs://bucket/x")
    assert not store_error("", refusal.value).restart
