import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from roberta_jax.errors import StoreUnavailable, UsageError
from roberta_jax.storage import leases
from roberta_jax.storage.leases import Held, check_held, lease
from tests.support import object_store, processes

PATH = "gs://bucket/run/.lock"
COUNT = epath.Path("gs://bucket/run/count")


def hold(root):
    """Holds the lease in a separate process until the process is killed."""
    object_store.install(root)
    with lease(PATH):
        print("held", flush=True)
        time.sleep(600)


def write_while_held(root):
    """Counts in an object while the lease is held; its thread that renews the lease never does."""
    object_store.install(root)
    leases.RENEW_SECONDS, leases.EXPIRE_SECONDS = 1000.0, 1.0
    with lease(PATH):
        for count in range(1_000_000):
            check_held(PATH)
            COUNT.write_text(str(count))
            print(count, flush=True)
            time.sleep(0.3)  # it is suspended here


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """The lease's object; leases are renewed every 50 ms and expire after a second."""
    root = object_store.install(tmp_path, monkeypatch.setattr)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(leases, "EXPIRE_SECONDS", 1.0)
    return object_store.FakeObject(PATH, root)


def of_another_machine(count=0) -> bytes:
    return json.dumps({"host": "tpu-7", "machine": "x", "process": 5, "renewed": count}).encode()


def test_a_lease_is_renewed_and_released(stored):
    with lease(PATH):
        data, first = stored.read()
        assert json.loads(data)["process"] == os.getpid()
        time.sleep(0.5)
        assert stored.read()[1] != first
        check_held(PATH)
    assert stored.read() is None
    with lease(PATH):
        pass


def test_a_lease_that_another_machine_renews_is_refused(stored):
    generation = stored.write(of_another_machine(), 0)
    stop = threading.Event()

    def renew():
        nonlocal generation
        while not stop.wait(0.1):
            generation = stored.write(of_another_machine(1), generation)

    thread = threading.Thread(target=renew)
    thread.start()
    waited_for = []
    with pytest.raises(Held, match="process 5 on tpu-7 holds the lease"), \
         lease(PATH, on_wait=waited_for.append):  # fmt: skip
        pass
    stop.set()
    thread.join()
    assert waited_for == ["process 5 on tpu-7"]
    assert stored.read()[1] == generation  # it was left alone


def test_a_lease_that_is_not_renewed_is_taken_over(stored):
    stored.write(of_another_machine(), 0)
    started = time.monotonic()
    with lease(PATH):
        assert time.monotonic() - started >= 1
        assert json.loads(stored.read()[0])["process"] == os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell machines apart")
def test_the_lease_of_a_killed_process_of_this_machine_is_taken_over_at_once(stored, tmp_path):
    holder = subprocess.Popen(
        processes.command("tests.storage.test_leases", "hold", str(tmp_path)),
        env=processes.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    assert not leases._has_ended(stored.read()[0])
    holder.kill()
    holder.wait()
    with lease(PATH, on_wait=pytest.fail):
        pass


def test_one_who_lost_the_lease_is_told_and_leaves_it_to_the_other(stored):
    with lease(PATH):
        other = take_over(stored)
        time.sleep(0.5)
        with pytest.raises(UsageError, match="another one has taken it over"):
            check_held(PATH)
    assert stored.read() == (of_another_machine(), other)


def take_over(stored) -> int:
    while (generation := stored.write(of_another_machine(), stored.read()[1])) is None:
        pass  # it was renewed in between
    return generation


def test_a_lease_that_was_not_renewed_for_long_is_renewed_before_writing(stored, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECONDS", 1000.0)
    with lease(PATH):
        first = stored.read()[1]
        check_held(PATH)
        assert stored.read()[1] == first
        time.sleep(0.6)
        check_held(PATH)
        renewed = stored.read()[1]
        assert renewed != first
        check_held(PATH)
        assert stored.read()[1] == renewed
        other = take_over(stored)
        time.sleep(0.6)
        with pytest.raises(UsageError, match="another one has taken it over"):
            check_held(PATH)
    assert stored.read() == (of_another_machine(), other)


def test_a_store_that_cannot_be_reached_is_asked_again_before_writing(stored, monkeypatch):
    write, failures = object_store.FakeObject.write, []

    def fail(self, data, generation):
        failures.append(generation)
        if len(failures) % 3:
            raise ConnectionError("no route")
        return write(self, data, generation)

    monkeypatch.setattr(leases, "RENEW_SECONDS", 1000.0)
    monkeypatch.setattr(leases, "_INSIST_SECONDS", 5.0)
    with lease(PATH):
        monkeypatch.setattr(object_store.FakeObject, "write", fail)
        time.sleep(0.6)
        check_held(PATH)
        assert len(failures) == 3
        time.sleep(0.6)
        monkeypatch.setattr(leases, "_INSIST_SECONDS", 0.0)
        with pytest.raises(StoreUnavailable, match=f"cannot write {PATH}: no route"):
            check_held(PATH)
    assert stored.read() is None


@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be suspended")
def test_a_process_that_was_suspended_writes_no_more(stored, tmp_path):
    writer = subprocess.Popen(
        processes.command("tests.storage.test_leases", "write_while_held", str(tmp_path)),
        env=processes.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert [writer.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
        writer.send_signal(signal.SIGSTOP)
        time.sleep(1.1)  # as long as another process waits
        other = take_over(stored)
        COUNT.write_text("of the other process")
        writer.send_signal(signal.SIGCONT)
        _, errors = writer.communicate(timeout=60)
    finally:
        writer.kill()
    assert "another one has taken it over" in errors
    assert COUNT.read_text() == "of the other process"
    assert stored.read() == (of_another_machine(), other)


def test_an_answer_that_was_lost_does_not_lose_the_lease(stored, monkeypatch):
    write, failures = object_store.FakeObject.write, []

    def write_and_lose_the_answer(self, data, generation):
        written = write(self, data, generation)
        if len(failures) < 3 and json.loads(data)["renewed"]:
            failures.append(written)
            raise ConnectionError
        return written

    monkeypatch.setattr(object_store.FakeObject, "write", write_and_lose_the_answer)
    with lease(PATH):
        time.sleep(0.6)
        assert len(failures) == 3
        check_held(PATH)
    assert stored.read() is None


def test_a_damaged_lease_is_waited_for_and_taken_over(stored):
    stored.write(b"\xff not json", 0)
    with lease(PATH):
        pass


def test_a_store_that_cannot_be_written_is_a_usage_error(stored, monkeypatch):
    def fail(self):
        raise ConnectionError("no route")

    monkeypatch.setattr(object_store.FakeObject, "read", fail)
    with pytest.raises(StoreUnavailable, match="cannot write gs://bucket/run/.lock: no route"), \
         lease(PATH):  # fmt: skip
        pass
