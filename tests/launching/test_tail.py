"""The end of what a process writes."""

import pytest

from roberta_jax.launching.tail import Tail


def tail(*pieces, size=1000):
    kept = Tail(size)
    for piece in pieces:
        kept.add(piece.encode())
    return kept.lines()


def test_the_last_lines_are_kept():
    assert tail() == []
    assert tail("a\n", "b", "c\nd") == ["a", "bc", "d"]
    assert tail("a\n\nb\n") == ["a", "", "b"]
    assert tail("long line\nabc\n", size=6) == ["e", "abc"]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("start\n\r 10%\r 20%\r 30%\ndone\n", ["start", " 30%", "done"]),
        ("start\n 10%\r 20%\r", ["start", " 20%"]),
        (" 10%\r 20%\r    \r", [" 20%"]),  # the bar was removed
        ("a\r\nb\r\n\r\nc", ["a", "b", "", "c"]),  # the ends of lines in Windows
        ("\r\r\n", [""]),
        ("\r 10%\nfailed\n", [" 10%", "failed"]),
    ],
)
def test_of_a_line_that_is_drawn_again_the_last_state_is_kept(text, lines, length):
    pieces = [text[start : start + length] for start in range(0, len(text), length)]
    assert tail(*pieces) == lines


def test_a_progress_bar_displaces_no_other_line():
    assert tail("warning\n", *(f"\rstep {step}" for step in range(1000)), size=50) == [
        "warning",
        "step 999",
    ]


def test_bytes_that_are_no_text_are_replaced():
    kept = Tail()
    kept.add(b"\xff\n")
    assert kept.lines() == ["\ufffd"]
