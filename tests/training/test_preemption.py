import os
import signal
import threading

import pytest

from roberta_jax.training.preemption import stop_requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_requests_a_stop_and_the_handlers_are_restored(number):
    handler = signal.getsignal(number)
    with stop_requests() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), number)
        assert should_stop()
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert signal.getsignal(number) == handler


def test_handlers_are_restored_after_an_exception():
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), stop_requests():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) == handler


def test_outside_the_main_thread_nothing_requests_a_stop():
    answers = []

    def poll():
        with stop_requests() as should_stop:
            answers.append(should_stop())

    thread = threading.Thread(target=poll)
    thread.start()
    thread.join()
    assert answers == [False]
