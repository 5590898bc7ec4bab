"""Checks of error messages."""


def one_screen(error: BaseException) -> str:
    """Returns the message of an error, which must fit on one screen."""
    message = str(error)
    assert len(message.splitlines()) <= 24
    assert all(len(line) < 500 for line in message.splitlines())
    return message
