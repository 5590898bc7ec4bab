"""Replaces lone surrogates, which Python strings may contain but UTF-8 cannot encode."""


def replace_surrogates(text: str) -> str:
    """Returns `text` with each lone surrogate replaced by U+FFFD and surrogate pairs joined."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
