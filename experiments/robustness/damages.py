"""Ways to damage a file."""

import os
import pathlib
import shutil
from collections.abc import Callable

_TEXT = b"This is not what the file should hold.\n"


def _flip(place: float) -> Callable[[pathlib.Path], None]:
    """Returns a function that inverts the lowest bit of the byte at a relative place of a file."""

    def damage(path: pathlib.Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(int(place * len(data)), len(data) - 1)] ^= 1
        path.write_bytes(data)

    return damage


def _resize(new_size: Callable[[int], int]) -> Callable[[pathlib.Path], None]:
    def damage(path: pathlib.Path) -> None:
        os.truncate(path, new_size(path.stat().st_size))

    return damage


def _zero_a_block(path: pathlib.Path) -> None:
    """Overwrites an eighth of the file, from 3/8 on, with zero bytes."""
    data = bytearray(path.read_bytes())
    size = max(len(data) // 8, 1)
    start = 3 * len(data) // 8
    data[start : start + size] = bytes(len(data[start : start + size]))
    path.write_bytes(data)


def _append(data: bytes) -> Callable[[pathlib.Path], None]:
    def damage(path: pathlib.Path) -> None:
        with path.open("ab") as file:
            file.write(data)

    return damage


def _make_folder(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
    "missing": pathlib.Path.unlink,
    "empty": _resize(lambda size: 0),
    "half": _resize(lambda size: size // 2),
    "one byte short": _resize(lambda size: size - 1),
    "one byte more": _append(b"\x01"),
    "bit at start": _flip(0),
    "bit at 1/3": _flip(1 / 3),
    "bit at 2/3": _flip(2 / 3),
    "bit at end": _flip(1),
    "zeroed block": _zero_a_block,
    "a folder": _make_folder,
    "other text": lambda path: path.write_bytes(_TEXT),
    "unreadable": lambda path: path.chmod(0),
}
"""Name -> function that damages a file in place. "unreadable" has no effect for root."""

ANOTHER = "another file"
"""The damage that replaces the file by another one of its kind."""


def apply(damage: str, path: pathlib.Path, another: pathlib.Path | None) -> None:
    """Damages a file.

    Args:
      damage: A key of `DAMAGES`, or `ANOTHER`.
      path: The file.
      another: The file to replace it by, for `ANOTHER`.
    """
    if damage == ANOTHER:
        shutil.copyfile(another, path)
    else:
        DAMAGES[damage](path)
