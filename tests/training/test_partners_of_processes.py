"""Processes that watch each other and end together, in real processes of this machine."""

import json
import os
import signal
import time

import jax

from roberta_jax.training import distributed, preemption
from roberta_jax.training.partners import Timeouts
from tests.support import processes

TIMEOUTS = Timeouts(heartbeat=20)
POLLS = 300


# Runs in processes of their own.


def stop_the_first():
    """Three runs, one after the other; process 1 gets SIGTERM in the first one."""
    distributed.join_processes()
    stopped = []
    for run in range(3):
        with (
            distributed.watched(TIMEOUTS) as partners,
            preemption.stop_requests(partners=partners) as should_stop,
        ):
            for poll in range(POLLS):
                if run == 0 and poll == 20 and jax.process_index() == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                if should_stop():
                    stopped.append(poll)
                    break
            else:
                stopped.append(None)
    print(json.dumps(stopped))
    jax.distributed.shutdown()


def test_a_stop_ends_only_the_run_that_was_asked_to():
    first, second = (
        json.loads(output.splitlines()[-1])
        for output in processes.run_together(__name__, "stop_the_first", count=2)
    )
    assert first == second
    assert 20 <= first[0] < POLLS
    assert first[1:] == [None, None]
