"""Checks that files hold text in UTF-8."""

import logging
import pathlib

from roberta_jax.errors import UsageError

# Share of zero bytes, or of characters that are no UTF-8, from which a file is not taken for text.
# Latin-1 has some 5% in French; Greek or Chinese in its former encodings has over 50%.
_MAX_WRONG = 0.2
_CONVERT = (
    "If it is text, convert it first, such as from Latin-1: iconv -f LATIN1 -t UTF-8 OLD > NEW"
)


def check_encoding(path: pathlib.Path, data: bytes, warn: bool) -> bool:
    """Checks that the start of a file is UTF-8.

    Args:
      path: The file.
      data: Its start.
      warn: Whether to warn of bytes that are not UTF-8.

    Returns:
      Whether it is.

    Raises:
      UsageError: It is no text at all, or its encoding is so different that little is left.
    """
    if data.count(0) > _MAX_WRONG * len(data):
        raise UsageError(
            f"{path} holds zero bytes: it is UTF-16 without a mark, an archive or another binary "
            f"file. {_CONVERT}, or leave it out of --config.data.files."
        )
    try:
        data.decode()
        return True
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
    text = data.decode(errors="replace")
    wrong = text.count("\ufffd") / len(text)
    if wrong > _MAX_WRONG:
        raise UsageError(
            f"{path} is not UTF-8: {wrong:.0%} of its start cannot be read. {_CONVERT}, or leave "
            "it out of --config.data.files."
        )
    if warn:
        logging.warning(
            "%s is not UTF-8: line %d has the byte 0x%02x. Such bytes are replaced by U+FFFD. %s.",
            *(path, line, byte, _CONVERT),
        )
    return False
