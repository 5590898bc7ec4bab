"""Processes that watch each other and end together, in real processes of this machine."""

import json
import os
import re
import signal
import sys
import time

import jax
import pytest

from roberta_jax.errors import RESTART_FILE, UsageError
from roberta_jax.training import distributed, preemption
from roberta_jax.training.agreement import PartnerLost, exchange, require_equal, together
from roberta_jax.training.partners import Timeouts
from tests.support import processes

slow = pytest.mark.slow

TIMEOUTS = Timeouts(heartbeat=20)
POLLS = 300
LONG = 1000  # seconds that a process works on
SECONDS = 60  # within which all have ended, their start included


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


def end(folder, how, *working):
    """Three processes; one or more end in a block, those in `working` work on in it for long."""
    distributed.join_processes()
    index = jax.process_index()
    os.environ[RESTART_FILE] = f"{folder}/{index}"
    with distributed.watched(TIMEOUTS):
        exchange("the start", None)
        with together("preparing the data"):
            if how == "differ":
                require_equal({"seed": index})
            if how == f"exit {index}":
                sys.exit(0)
            if how == f"lost {index}":
                raise PartnerLost(f"no answer, says {index}")
            if how.startswith("fail") and str(index) in how:
                raise UsageError(f"no such file, says {index}")
            if str(index) in working:
                time.sleep(LONG)
    raise AssertionError("not reached")


@pytest.fixture
def ended(tmp_path):
    """Calls `end` in three processes; returns their statuses and what they print on stderr."""
    started = []

    def run(how, *working):
        began = time.monotonic()
        started.extend(
            processes.start_together(__name__, "end", str(tmp_path), how, *working, count=3)
        )
        errors = [each.communicate(timeout=2 * SECONDS)[1] for each in started]
        assert time.monotonic() - began < SECONDS, errors
        return [each.returncode for each in started], errors

    yield run
    for each in started:
        each.kill()


def messages(errors):
    """The messages of a process, without its host's name."""
    return [
        re.sub(r"host \S+ ", "host X ", line) for line in re.findall("^error: .*", errors, re.M)
    ]


@pytest.mark.parametrize(
    ("failing", "working"), [(1, [0]), (0, [2]), pytest.param(2, [0, 1], marks=slow)]
)
def test_an_error_ends_the_others_while_they_work(ended, tmp_path, failing, working):
    statuses, errors = ended(f"fail {failing}", *map(str, working))
    assert statuses == [2] * 3, errors
    for index in range(3):
        if index == failing:
            assert messages(errors[index]) == [f"error: no such file, says {index}"], errors
        else:
            message = f"error: host X (process {failing}) ended: no such file, says {failing}"
            assert messages(errors[index]) == [message], errors
    assert not list(tmp_path.iterdir())  # a mistake: nobody asks for a restart


@slow
@pytest.mark.parametrize("failing", [0, 1])
def test_all_ask_for_a_restart_if_the_one_that_failed_does(ended, tmp_path, failing):
    statuses, errors = ended(f"lost {failing}", "2")
    assert statuses == [2] * 3, errors
    for index in range(3):
        assert f"no answer, says {failing}" in (tmp_path / str(index)).read_text()
        assert len(messages(errors[index])) == 1, errors


@pytest.mark.parametrize(("failing", "others"), [("12", [0]), pytest.param("02", [1], marks=slow)])
def test_of_several_that_fail_each_says_its_own_cause(ended, failing, others):
    statuses, errors = ended(f"fail {failing}", *map(str, others))
    assert statuses == [2] * 3, errors
    for index in map(int, failing):
        assert messages(errors[index]) == [f"error: no such file, says {index}"], errors
    for index in others:
        (message,) = messages(errors[index])
        cause = re.fullmatch(
            r"error: host X \(process (\d)\) ended: no such file, says \1", message
        )
        assert cause[1] in failing


def test_an_error_of_all_is_one_message_of_each(ended, tmp_path):
    statuses, errors = ended("differ")
    assert statuses == [2] * 3, errors
    for each in errors:
        assert messages(each) == ["error: the hosts of this run differ in their settings:"]
        assert each.count("Start all processes with the same command") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("index", [pytest.param(0, marks=slow), 1])
def test_a_process_that_exits_early_ends_the_others(ended, index):
    statuses, errors = ended(f"exit {index}", "2")
    assert statuses == [0 if each == index else 2 for each in range(3)], errors
    for each in {0, 1, 2} - {index}:
        message = f"error: host X (process {index}) ended: it ended with status 0."
        assert messages(errors[each]) == [message], errors
