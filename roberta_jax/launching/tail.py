"""The end of what a process writes to a stream."""

KEPT_BYTES = 64 << 10


class Tail:
    """Keeps the end of a stream as a terminal would show it.

    A progress bar begins its line anew with a carriage return, some thousand times in a run. Only
    the last state of each line is kept, so that the bar does not displace the lines before it.
    """

    def __init__(self, size: int = KEPT_BYTES):
        """Starts empty.

        Args:
          size: how many bytes to keep.
        """
        self._size = size
        self._kept = bytearray()

    def add(self, piece: bytes) -> None:
        """Appends what the stream has written; a piece may end within a line."""
        start = self._kept.rfind(b"\n") + 1  # of the line that goes on with this piece
        lines = bytes(self._kept[start:]) + piece
        if b"\r" in lines:
            lines = b"\n".join(map(_last_states, lines.split(b"\n")))
        self._kept[start:] = lines
        del self._kept[: -self._size]

    def lines(self) -> list[str]:
        """Returns the lines, the last of which may not be finished."""
        if not self._kept:
            return []
        lines = self._kept.decode("utf-8", "replace").removesuffix("\n").split("\n")
        return [line.partition("\r")[0] for line in lines]


def _last_states(line: bytes) -> bytes:
    """The last state of a line that is not blank, and what follows, of which more may follow."""
    *former, current = line.split(b"\r")
    if not former or current.strip():
        return current
    shown = [state for state in former if state.strip()]
    return (shown[-1] if shown else b"") + b"\r" + current
