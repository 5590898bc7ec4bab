import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from roberta_jax.training.preemption import StopRequests, stop_requests
from tests.support import processes


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


def test_a_stop_can_be_requested_without_a_signal():
    with stop_requests() as should_stop:
        assert should_stop.signal is None
        assert should_stop.request(signal.SIGINT)
        assert not should_stop.request(signal.SIGTERM)
        assert should_stop()
        assert should_stop.signal == signal.SIGINT


def test_a_fake_is_polled():
    answers = iter([False, True])
    should_stop = StopRequests(lambda: next(answers))
    assert [should_stop(), should_stop()] == [False, True]


def test_the_notice_is_printed_once_and_names_the_signal(capfd):
    with stop_requests(lambda number: f"signal {number}", lambda: "quit"):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == f"\nsignal {int(signal.SIGTERM)}\n"


class FakePartners:
    """The other processes of a run; `stop` is what they agreed to stop for."""

    def __init__(self):
        self.requests, self.stop, self.runs = [], None, 0
        self.tell = None

    def enter_run(self):
        self.runs += 1

    def poll(self):
        return self.stop

    def request_stop(self, number):
        self.requests.append(number)

    @contextlib.contextmanager
    def telling_of_stops(self, tell):
        self.tell = tell
        yield


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_all_processes_to_stop(number, capfd):
    partners = FakePartners()
    with stop_requests(lambda number: "Saving.", partners=partners) as should_stop:
        assert partners.runs == 1
        os.kill(os.getpid(), number)
        assert not should_stop()  # not before all have agreed when
        partners.stop = number
        assert should_stop()
        assert should_stop.signal == number
    assert set(partners.requests) == {number}
    assert capfd.readouterr().err == "\nSaving.\n"


def test_a_stop_for_a_signal_to_another_process(capfd):
    partners = FakePartners()
    with stop_requests(lambda number: "Saving.", partners=partners) as should_stop:
        partners.tell(signal.SIGINT, "tpu-3")
        partners.stop = signal.SIGINT
        assert should_stop()
        # Ctrl-C in a terminal reaches this process as well, a little later.
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == "\nOn host tpu-3: Saving.\n"
    assert should_stop.signal == signal.SIGINT


# Commands. The work of each is one call that takes minutes and in which no signal handler runs.

# It says that it begins. Nothing between the two calls is an instruction of Python, after which a
# signal handler could run.
WORK = """collections.deque(map(
    operator.call,
    [
        functools.partial(os.write, 1, b"ready\\n"),
        functools.partial(hashlib.pbkdf2_hmac, "sha256", b"", b"", 10**9),
    ],
))"""

WAIT = """print("ready", flush=True); time.sleep(60)"""


def start(body):
    """Starts a command in which Ctrl-C works, also if it is ignored here."""
    program = (
        "import collections, functools, hashlib, operator, os, signal, sys, time\n"
        "from roberta_jax.training.preemption import *\n"
        "from roberta_jax.training.preemption import checked_output, interruptible_command\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n" + body
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=processes.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(process, times=1):
    """Sends Ctrl-C when the process has printed a line; returns what it prints until it waits."""
    assert process.stdout.readline() == "ready\n"
    lines = []
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        lines += [process.stderr.readline(), process.stderr.readline()]
    return [line for line in lines if line != "\n"]


COMMAND = """
with interruptible_command("Stopping."):
    WORK
"""


def test_ctrl_c_ends_a_command_with_130_and_one_line():
    process = start(COMMAND.replace("WORK", WAIT))
    assert interrupt(process) == ["Stopping.\n"]
    assert process.communicate() == ("", "")
    assert process.returncode == 130


def test_a_second_ctrl_c_ends_a_command_that_is_busy():
    process = start(COMMAND.replace("WORK", WORK))
    assert interrupt(process, times=2) == ["Stopping.\n", "Quit.\n"]
    assert process.communicate() == ("", "")
    assert process.returncode == 130


COLLECTING = """
import gc

def callback(*_):
    gc.callbacks.clear()
    os.kill(os.getpid(), signal.SIGINT)
    sum(range(1000))

with interruptible_command("Stopping."):
    gc.callbacks.append(callback)
    gc.collect()
    time.sleep(600)
"""


def test_ctrl_c_during_a_garbage_collection_is_not_lost():
    process = start(COLLECTING)
    assert process.communicate(timeout=120) == ("", "\nStopping.\n")
    assert process.returncode == 130


TRAINING = """
with interruptible_command("Stopping."):
    with stop_requests(lambda number: "Saving.", lambda: "Not saved.") as should_stop:
        WORK
"""


def test_ctrl_c_during_a_step_is_answered_at_once_and_a_second_one_quits():
    process = start(TRAINING.replace("WORK", WORK))
    assert interrupt(process, times=2) == ["Saving.\n", "Not saved.\n"]
    assert process.communicate() == ("", "")
    assert process.returncode == 130


TERMINATED = """
from roberta_jax.training.preemption import terminated_by

def end():
    print("ending", flush=True)
    os._exit(143)

with interruptible_command("Stopping."), terminated_by(end):
    WORK
"""


def test_sigterm_is_answered_at_once_by_a_busy_process():
    process = start(TERMINATED.replace("WORK", WORK))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate() == ("ending\n", "")
    assert process.returncode == 143


def test_ctrl_c_works_where_sigterm_is_answered():
    process = start(TERMINATED.replace("WORK", WAIT))
    assert interrupt(process) == ["Stopping.\n"]
    assert process.wait() == 130


STOPPING_WHERE_TERMINATED = """
from roberta_jax.training.preemption import terminated_by

with terminated_by(lambda: os._exit(1)), stop_requests() as should_stop:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    assert should_stop()
"""


def test_in_a_run_sigterm_is_a_request():
    process = start(STOPPING_WHERE_TERMINATED)
    assert process.communicate() == ("", "")
    assert process.returncode == 0


PRINTING = """
with checked_output():
    for number in range(100_000):
        print(number, flush=FLUSH)
"""


@pytest.mark.parametrize("flush", ["True", "False"])
def test_a_closed_output_ends_a_command_quietly(flush):
    process = start(PRINTING.replace("FLUSH", flush))
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_other_errors_of_files_are_not_hidden():
    process = start("with checked_output():\n    print('out')\n    open('/missing/file')\n")
    output, errors = process.communicate()
    assert "FileNotFoundError" in errors
    assert output.strip() == "out"
    assert process.returncode == 1
