"""What the ends of processes mean."""

import pytest

from roberta_jax.launching.endings import End, Kind, described, exit_status, judge

LOST = End(0, 2, partner_lost=True)


@pytest.mark.parametrize(
    ("ends", "kind", "process"),
    [
        ([End(1, 0), End(0, 0)], Kind.FINISHED, 1),
        ([End(0, 2, stderr=["error: wrong"])], Kind.MISTAKE, 0),
        ([LOST], Kind.CRASHED, 0),
        ([LOST, End(1, -9)], Kind.CRASHED, 1),
        ([LOST, End(1, 2, stderr=["error: wrong"])], Kind.MISTAKE, 1),
        ([End(1, -11), End(0, 2, stderr=["error: wrong"])], Kind.CRASHED, 1),
        ([End(1, 0), End(0, -6)], Kind.CRASHED, 0),
        ([End(0, 143)], Kind.CRASHED, 0),
    ],
)
def test_the_first_cause_decides(ends, kind, process):
    judged, end = judge(ends, stop_signal=None, stalled=False)
    assert (judged, end.process) == (kind, process)


def test_a_signal_that_was_passed_on_and_a_hang_come_first():
    ends = [End(0, 143)]
    assert judge(ends, stop_signal=15, stalled=False)[0] is Kind.STOPPED
    assert judge(ends, stop_signal=None, stalled=True)[0] is Kind.STALLED
    assert judge([End(0, 0)], stop_signal=15, stalled=False)[0] is Kind.FINISHED


def test_statuses_in_words():
    assert described(-9) == "was ended by SIGKILL"
    assert described(-127) == "was ended by signal 127"
    assert described(3) == "exited with status 3"
    assert [exit_status(status) for status in (-9, 3)] == [137, 3]
