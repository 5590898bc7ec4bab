"""Types of command-line arguments of the benchmarks; argparse prints what is wrong with a value."""

import argparse
from collections.abc import Callable, Collection


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 999999999")
    return int(text)


def positives(text: str) -> list[int]:
    """Whole numbers from 1, separated by commas."""
    return [positive(part) for part in text.split(",")]


def some_of(names: Collection[str]) -> Callable[[str], str]:
    """One or more of the names, separated by commas."""

    def check(text: str) -> str:
        for name in text.split(","):
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name!r} is unknown: use {', '.join(names)}")
        return text

    return check
