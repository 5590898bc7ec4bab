import json
import os
import subprocess
import sys
import threading
import time

import pytest

from roberta_jax.errors import StoreUnavailable, UsageError
from roberta_jax.storage import leases
from roberta_jax.storage.leases import Held, check_held, lease
from tests.support import object_store, processes

PATH = "gs://bucket/run/.lock"


def hold(root):
    """Holds the lease in a separate process until the process is killed."""
    object_store.install(root)
    with lease(PATH):
        print("held", flush=True)
        time.sleep(600)


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
        other = stored.write(of_another_machine(), stored.read()[1])
        while other is None:  # it was renewed in between
            other = stored.write(of_another_machine(), stored.read()[1])
        time.sleep(0.5)
        with pytest.raises(UsageError, match="another one has taken it over"):
            check_held(PATH)
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
