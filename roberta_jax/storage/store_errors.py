"""Errors of object stores: which of them may pass, so that the same command succeeds later.

The libraries that read and write objects (gcsfs, google.cloud.storage, tensorstore) raise errors of
many types. A store that refuses a request, or does not have what was asked for, does so again. All
other errors count as an outage.
"""

import errno

from roberta_jax.errors import StoreUnavailable, UsageError, shortened

# Wrong request, no credentials, no permission, no such bucket.
_REFUSALS = (400, 401, 403, 404)
# The same in the text of tensorstore's exceptions, which are those of Python.
_REFUSALS_IN_TEXT = (
    "PERMISSION_DENIED", "UNAUTHENTICATED", *(f"HTTP response code: {code}" for code in _REFUSALS)
)  # fmt: skip
# Of the local disk, which a download writes to.
_LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def store_error(message: str, error: BaseException) -> UsageError:
    """Returns the error to raise in place of one that a library raised.

    Args:
      message: of the error.
      error: what the library raised.

    Returns:
      A `StoreUnavailable` if `may_pass`, otherwise a plain `UsageError`.
    """
    return StoreUnavailable(message) if may_pass(error) else UsageError(message)


def may_pass(error: BaseException | None) -> bool:
    """Whether the same request may succeed later, without a change by the user."""
    while error is not None:
        answer = _may_pass(error)
        if answer is not None:
            return answer
        error = error.__cause__ or error.__context__
    return True


def _may_pass(error: BaseException) -> bool | None:
    """The same, by the error itself; None if only its cause can tell."""
    status = _status(error)
    if status is not None:
        return status not in _REFUSALS
    if type(error).__module__.startswith("google.auth"):
        return _is_network_error(error)
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _LOCAL_ERRORS:
        return False
    text = str(error).split(" [tensorstore_spec")[0]
    # gcsfs raises an OSError without the status.
    if text.startswith("Forbidden: ") or any(code in text for code in _REFUSALS_IN_TEXT):
        return False
    return None


def _status(error: BaseException) -> int | None:
    """The HTTP status of the store's answer, if the error has one."""
    response = getattr(error, "response", None)
    for owner, name in ((error, "code"), (error, "status"), (response, "status_code")):
        try:
            return int(getattr(owner, name))
        except (AttributeError, TypeError, ValueError):
            continue
    return None


def _is_network_error(error: BaseException | None) -> bool:
    """Whether credentials could not be fetched because their server could not be reached."""
    while error is not None:
        if type(error).__name__ == "TransportError":
            return True
        error = error.__cause__ or error.__context__
    return False


def reason(error: BaseException) -> str:
    """Returns the first words of an error's message, without line breaks."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, 200)
