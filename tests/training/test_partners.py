"""The threads that watch other processes, with several of them in this process."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import pytest

from roberta_jax.errors import RESTART_FILE, UsageError
from roberta_jax.training import distributed, ending, partners
from roberta_jax.training.agreement import CoordinatorLost, PartnerLost
from roberta_jax.training.partners import Partners, Timeouts
from tests.support import processes


class Store:
    """The key-value store of the coordination service."""

    def __init__(self):
        self.values = {}
        self.lock = threading.Lock()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.lock:
            if key in self.values and not allow_overwrite:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
            self.values[key] = value

    def key_value_dir_get(self, folder):
        with self.lock:
            return [(k, v) for k, v in self.values.items() if k.startswith(f"{folder}/")]


@pytest.fixture(autouse=True)
def _no_thread_ends_this_process(monkeypatch):
    """The threads of a test that fails could end the process of all tests."""
    started, verdicts = [], []
    start, end = Partners.start, Partners._end

    def start_and_note(watcher):
        started.append(watcher)
        start(watcher)

    def end_or_note(watcher, *verdict):
        if threading.current_thread() is threading.main_thread():
            end(watcher, *verdict)
        verdicts.append(verdict)

    monkeypatch.setattr(Partners, "start", start_and_note)
    monkeypatch.setattr(Partners, "_end", end_or_note)
    yield
    for each in started:
        each.close()
    assert verdicts == []


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand: `clock.now`."""
    clock = types.SimpleNamespace(now=100.0)
    fake = types.SimpleNamespace(monotonic=lambda: clock.now, sleep=time.sleep)
    monkeypatch.setattr(partners, "time", fake)
    return clock


def several(count, *, store=None, number=0, **timeouts):
    """The partners of each of several processes, the `number`-th ones of a store."""
    store = store or Store()
    common = {"client": store, "count": count, "interval": 0.003, "number": number}
    return [Partners(Timeouts(**timeouts), index=index, **common) for index in range(count)]


def listen(*watchers):
    for each in watchers:
        each._listen()


def test_nobody_is_lost_while_all_send_heartbeats(clock):
    everyone = several(3, heartbeat=10)
    for _ in range(5):
        clock.now += 9
        listen(*everyone)
        listen(*everyone)
        assert [each._loss(clock.now) for each in everyone] == [None] * 3


def test_a_silent_process_is_named_with_what_it_did_last(clock):
    first, second, third = several(3, heartbeat=10)
    third.doing = lambda: "step 7"
    listen(first, second, third, first, second)
    clock.now += 9
    listen(first, second)
    assert first._loss(clock.now) is None
    clock.now += 2
    listen(first, second)
    for each in (first, second):
        message, restart = each._loss(clock.now)
        assert message.startswith("lost host ")
        assert "(process 2)" in message
        assert "its last one was at step 7" in message
        assert restart


def test_a_process_that_never_sent_a_heartbeat_is_lost(clock):
    first, _ = several(2, heartbeat=10)
    clock.now += 11
    listen(first)
    assert "(process 1): no sign of life" in first._loss(clock.now)[0]


def test_a_coordinator_that_does_not_answer_is_lost(clock):
    first, second = several(2, heartbeat=10)
    listen(first, second, first, second)
    clock.now += 11
    message, restart = second._loss(clock.now)
    assert "(process 0), which coordinates the run: it has not answered for 11 s" in message
    assert restart


def test_nobody_else_is_lost_while_the_coordinator_does_not_answer(clock):
    first, second, third = several(3, heartbeat=10)
    listen(first, third, second)
    clock.now += 0.6
    listen(first, second)  # the coordinator's heartbeat is newer than that of the third process
    clock.now += 9.7
    assert second._loss(clock.now) is None
    clock.now += 0.5
    message, _ = second._loss(clock.now)
    assert "(process 0), which coordinates the run" in message


def test_a_process_that_stays_behind_is_late(clock):
    first, second = several(2, heartbeat=10, late=60)
    second.doing = lambda: "step 1"
    second.poll()
    first.poll()
    first.poll()
    for _ in range(7):
        listen(first, second, first)
        clock.now += 9
    listen(second, first)
    message, restart = first._loss(clock.now)
    assert "(process 1) is late: for 63 s it has been at step 1" in message
    assert restart
    assert second._loss(clock.now) is None  # it is the others that wait
    second.poll()
    listen(second, first)
    assert first._loss(clock.now) is None


def test_the_first_step_may_be_later(clock):
    first, second = several(2, heartbeat=10, late=6)
    first.poll()
    listen(first, second)
    for seconds, late in ((9, False), (9, False), (9, False), (9, False), (1, True)):
        clock.now += seconds
        listen(second, first)
        assert (first._loss(clock.now) is not None) is late


def test_long_waits_of_all_are_nobodys_delay(clock):
    first, second = several(2, heartbeat=10, late=60)
    for _ in range(20):  # compiling
        listen(first, second)
        clock.now += 9
        listen(first, second)
        assert first._loss(clock.now) is None


@pytest.mark.parametrize(("status", "restart"), [(2, False), (2, True), (1, True), (0, True)])
def test_a_process_that_ended_before_the_others(clock, status, restart):
    first, _ = several(2, heartbeat=10)
    ended = {"status": status, "cause": "no such file", "restart": restart}
    first._client.key_value_set(f"{first._folder}/ended/1", json.dumps(ended))
    listen(first)
    assert first._loss(clock.now) is None  # it may be about to end itself
    clock.now += partners._GRACE + 1
    listen(first)
    message, may_restart = first._loss(clock.now)
    assert message.endswith("ended: no such file")
    assert may_restart is restart


@pytest.mark.parametrize(
    ("error", "status", "restart"),
    [
        (UsageError("no such file"), 2, False),
        (PartnerLost("no such file"), 2, True),
        (KeyboardInterrupt(), 130, True),
    ],
)
def test_a_process_says_whether_a_restart_may_help(clock, monkeypatch, error, status, restart):
    first, second = several(2, heartbeat=10)
    monkeypatch.setattr(partners, "_current", second)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as end, distributed.failing_together():
        raise error
    assert end.value.code == status
    listen(first)
    clock.now += partners._GRACE + 1
    listen(first)
    assert first._loss(clock.now)[1] is restart


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (jax.errors.JaxRuntimeError("INTERNAL: the slice has failed"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), False),
        # So raised by `multihost_utils.sync_global_devices` when a process ends during it.
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"), True),
        (ValueError("operands could not be broadcast together"), False),
    ],
)
def test_an_error_of_the_runtime_may_be_that_of_a_lost_process(monkeypatch, error, waits):
    first, _ = several(2, heartbeat=1)
    verdicts = []
    monkeypatch.setattr(first, "wait_for_verdict", lambda: verdicts.append(True))
    monkeypatch.setattr(partners, "_current", first)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as end, distributed.failing_together():
        raise error
    assert end.value.code == 1
    assert bool(verdicts) is waits


@pytest.mark.parametrize("restart", [False, True])
def test_why_the_coordinator_ended_is_passed_on(clock, restart):
    _, second = several(2, heartbeat=10)
    ended = {"status": 2, "cause": "lost host tpu-3", "restart": restart}
    second._client.key_value_set(f"{second._folder}/ended/0", json.dumps(ended))
    listen(second)
    clock.now += 11
    message, may_restart = second._loss(clock.now)
    assert message.endswith("(process 0) ended: lost host tpu-3")
    assert may_restart is restart


@pytest.mark.parametrize("restart", [False, True])
def test_why_the_coordinator_ended_is_said_if_an_exchange_fails(monkeypatch, capfd, restart):
    _, second = several(2)
    ended = {"status": 2, "cause": "no such file", "restart": restart}
    second._client.key_value_set(f"{second._folder}/ended/0", json.dumps(ended))
    listen(second)
    monkeypatch.setattr(partners, "_current", second)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as end, distributed.failing_together():
        raise CoordinatorLost("process 0 does not answer")
    assert end.value.code == 2
    errors = capfd.readouterr().err
    assert "(process 0) ended: no such file\n" in errors
    assert "does not answer" not in errors
    assert ("Start all processes again" in errors) is restart


def test_the_coordinator_stays_until_the_others_know_why_it_ends():
    first, second, third = several(3, heartbeat=10)
    listen(second, third, first)
    first.start()
    telling = threading.Thread(target=first._tell_the_end, args=(2, "no such file", False))
    telling.start()
    listen(second)
    telling.join(0.3)
    assert telling.is_alive()
    third._tell_the_end(1, "another mistake", True)  # it waits for nobody
    end = time.monotonic() + 4  # after 5 s it would end without knowing
    while telling.is_alive() and time.monotonic() < end:
        listen(second)
        telling.join(0.01)
    assert not telling.is_alive()
    assert second._others[0].ended["cause"] == "no such file"


def stops(everyone, requests, rng, polls=10_000):
    """Lets threads poll; returns at which poll each stopped, and for which signal."""
    stopped = [None] * len(everyone)

    def work(index):
        everyone[index].enter_run()
        for poll in range(1, polls + 1):
            number = everyone[index].poll()
            if number is not None:
                stopped[index] = (poll, number)
                return
            time.sleep(rng.uniform(0, 0.002))

    threads = [threading.Thread(target=work, args=[index]) for index in range(len(everyone))]
    for each in threads:
        each.start()
    for delay, index, number in requests:
        time.sleep(delay)
        everyone[index].request_stop(number)
    for each in threads:
        each.join(30)
        assert not each.is_alive()
    return stopped


def test_all_stop_at_the_same_poll_whenever_and_wherever_a_signal_arrives():
    rng = random.Random(0)
    everyone = several(3)
    for each in everyone:
        each.start()
    for _ in range(40):
        requests = [
            (rng.uniform(0, 0.05), rng.randrange(3), signal.SIGTERM)
            for _ in range(rng.choice([1, 1, 3]))
        ]
        stopped = stops(everyone, requests, rng)
        assert stopped[0] is not None
        assert stopped == [stopped[0]] * 3
        assert stopped[0][1] == signal.SIGTERM
        time.sleep(0.02)


def test_all_stop_at_the_same_poll_although_the_service_fails_now_and_then(monkeypatch):
    rng = random.Random(0)
    everyone = several(3)
    store = everyone[0]._client

    def failing(call):
        def called(*arguments, **options):
            if rng.random() < 0.2:
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return call(*arguments, **options)

        return called

    for name in ("key_value_set", "key_value_dir_get"):
        monkeypatch.setattr(store, name, failing(getattr(store, name)))
    for each in everyone:
        each.start()
    for _ in range(10):
        stopped = stops(everyone, [(0.01, rng.randrange(3), signal.SIGTERM)], rng)
        assert stopped[0] is not None
        assert stopped == [stopped[0]] * 3


def test_a_request_after_the_last_poll_stops_nobody():
    everyone = several(2)
    for each in everyone:
        each.start()
    rng = random.Random(0)
    assert stops(everyone, [(0.2, 0, signal.SIGINT)], rng, polls=3) == [None, None]
    assert stops(everyone, [], rng, polls=3) == [None, None]  # the next run


def test_a_stop_is_one_of_the_run_that_was_asked_to():
    """What is posted stays in the store, and a later run of the same processes finds it there."""
    rng, store = random.Random(0), Store()
    for number, requests in enumerate([[(0.01, 0, signal.SIGTERM)], [], []]):
        everyone = several(2, store=store, number=number)
        for each in everyone:
            each.start()
        try:
            stopped = stops(everyone, requests, rng, polls=10_000 if requests else 50)
        finally:
            for each in everyone:
                each.close()
        assert [stop is not None for stop in stopped] == [bool(requests)] * 2


def test_what_a_process_posts_has_keys_of_its_own_each_time():
    store = Store()
    for _ in range(3):
        Partners(Timeouts(), client=store, index=0, count=2, interval=0.1)._listen()
    assert len(store.values) == 3


def test_other_processes_are_told_of_the_signal():
    everyone = several(2)
    told = []
    for each in everyone:
        each.start()
    for each in everyone:
        each.enter_run()

    def tell(number, host):
        told.append(number)
        raise OSError("stderr is closed")

    with everyone[1].telling_of_stops(tell):
        everyone[0].request_stop(signal.SIGTERM)
        end = time.monotonic() + 10
        while everyone[1].poll() is None:
            assert time.monotonic() < end
    assert told == [signal.SIGTERM]


# Runs in processes of their own.


def lose_the_coordinator():
    watcher = Partners(Timeouts(), client=Store(), index=1, count=2, interval=0.1)
    with ending.handled_aborts(watcher.check_coordinator):
        os.abort()


def fail_otherwise():
    watcher = Partners(Timeouts(), client=Store(), index=1, count=2, interval=0.1)
    with ending.handled_aborts(watcher.check_coordinator):
        watcher.start()  # the service answers
        time.sleep(0.5)
        os.abort()


def hang():
    watcher = Partners(Timeouts(), client=Store(), index=1, count=2, interval=0.1)
    with ending.handled_aborts(watcher.check_coordinator):
        watcher.start()
        print("hangs", flush=True)
        time.sleep(1000)


def run_alone(function, **variables):
    return subprocess.run(
        processes.command(__name__, function),
        env=processes.environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_an_abort_without_a_coordinator_ends_with_a_message(tmp_path):
    result = run_alone("lose_the_coordinator", **{RESTART_FILE: str(tmp_path / "restart")})
    assert result.returncode == 2
    assert "(process 0), which coordinates the run: it has ended" in result.stderr
    assert "which coordinates the run" in (tmp_path / "restart").read_text()


def test_other_aborts_stay_aborts():
    assert run_alone("fail_otherwise").returncode == -signal.SIGABRT


def test_a_process_that_hangs_ends_by_a_signal_to_abort_and_shows_its_stacks():
    process = subprocess.Popen(
        processes.command(__name__, "hang"),
        env=processes.environment(PYTHONFAULTHANDLER="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGABRT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in errors
    assert " in hang\n" in errors
