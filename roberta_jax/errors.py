"""The one exception that means "the user can mend this"."""


class UsageError(ValueError):
    """Wrong input, with a message that says what is wrong and what to do about it.

    The commands print it on its own and exit with status 2; from Python it is an ordinary
    `ValueError`. Everything else that goes wrong keeps its traceback, because it is a bug.
    """
