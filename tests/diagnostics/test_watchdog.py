"""The time limit of a check."""

import threading
import time

from roberta_jax.diagnostics.watchdog import time_limit


def test_a_check_that_does_not_return_ends_the_process_with_a_message(capsys):
    ended = threading.Event()
    with time_limit("hosts", 0.05, "look there.", ended.set):
        assert ended.wait(10)
    assert capsys.readouterr().out == (
        "problem  hosts            no answer after 0 s.\n                          -> look there.\n"
    )


def test_a_check_that_returns_in_time_goes_on():
    ended = threading.Event()
    with time_limit("hosts", 0.05, "", ended.set):
        pass
    time.sleep(0.2)
    assert not ended.is_set()
