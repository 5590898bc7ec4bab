"""The status line of a sweep, and its exit status."""

import dataclasses
import time

import pytest

from experiments.running.display import Display
from experiments.running.jobs import Job, Outcome


@pytest.fixture
def clock(monkeypatch):
    times = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[0])
    return times


def test_the_estimate_of_the_time_left_counts_tokens(clock):
    jobs = [Job(point, point, 10 * (index + 1), 100) for index, point in enumerate("ab")]
    display = Display(jobs)
    clock[0] = 50.0
    assert display.status(0) == "0/2 points, 0/200 steps, 0:00:50 so far"
    jobs[0].step = 50  # a sixth of the tokens
    assert display.status(0) == "0/2 points, 50/200 steps, 0:00:50 so far, about 0:04:10 left"
    jobs[0].step = jobs[1].step = 100
    assert display.status(2) == "2/2 points, 200/200 steps, 0:00:50 so far"


def test_the_status_without_a_known_number_of_steps(clock):
    """Runs of so many epochs tell their steps at their end."""
    jobs = [Job(point, point, 16, None) for point in "ab"]
    display = Display(jobs)
    clock[0] = 50.0
    jobs[0].step = 30
    assert display.status(0) == "0/2 points, 30 steps, 0:00:50 so far"
    jobs[0].steps = 30
    assert display.status(1) == "1/2 points, 30 steps, 0:00:50 so far"
    jobs[1].step = jobs[1].steps = 40
    assert display.status(2) == "2/2 points, 70/70 steps, 0:00:50 so far"


def test_the_status_is_printed_once_a_minute_where_there_is_no_progress_bar(clock, capsys):
    display = Display([Job("a", "a", 10, 100)])
    for seconds, lines in ((30, 0), (61, 1), (90, 0), (122, 1)):
        clock[0] = seconds
        display.update(0)
        assert capsys.readouterr().out.count("0/1 points") == lines
    display.update(1, force=True)
    assert "1/1 points" in capsys.readouterr().out


def test_outcomes_have_their_status():
    nothing = Outcome([], [], [], [])
    assert nothing.status == dataclasses.replace(nothing, finished=["a"], elsewhere=["b"]).status
    assert nothing.status == 0
    assert dataclasses.replace(nothing, failed=["a"]).status == 1
    assert dataclasses.replace(nothing, left=["a"]).status == 1
