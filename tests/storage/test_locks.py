import subprocess
import threading
import time

import pytest

from roberta_jax.storage import leases
from roberta_jax.storage.locks import AlreadyLocked, exclusive_lock, is_locked
from tests.support import object_store, processes


def hold(path):
    """Holds the lock in a separate process until the process is killed."""
    with exclusive_lock(path):
        print("locked", flush=True)
        time.sleep(600)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock `tmp_path / "lock"`."""
    process = subprocess.Popen(
        processes.command(__name__, "hold", tmp_path / "lock"),
        env=processes.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lock_excludes_others_until_the_block_ends(tmp_path):
    path = tmp_path / "lock"
    assert not is_locked(path)
    with exclusive_lock(path):
        assert is_locked(path)
        with pytest.raises(AlreadyLocked, match="lock"), exclusive_lock(path):
            pass
    assert not is_locked(path)
    with pytest.raises(RuntimeError), exclusive_lock(path):
        raise RuntimeError
    assert not is_locked(path)


def test_another_process_excludes_this_one_until_it_is_killed(tmp_path, holder):
    path = tmp_path / "lock"
    assert is_locked(path)
    with pytest.raises(AlreadyLocked), exclusive_lock(path):
        pass
    holder.kill()
    holder.wait()
    assert not is_locked(path)
    with exclusive_lock(path):
        pass


def test_waiting_for_another_process(tmp_path, holder):
    waiting = threading.Event()
    threading.Thread(target=lambda: waiting.wait(60) and holder.kill()).start()
    with exclusive_lock(tmp_path / "lock", on_wait=waiting.set):
        assert holder.wait(60) != 0  # it held the lock until it was killed
    assert waiting.is_set()


def test_waiting_is_not_announced_where_the_lock_is_free(tmp_path):
    with exclusive_lock(tmp_path / "lock", on_wait=pytest.fail):
        pass


def test_on_object_stores_a_lease_takes_the_place_of_the_lock(tmp_path, monkeypatch):
    object_store.install(tmp_path, monkeypatch.setattr)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    path = "gs://bucket/run/.lock"
    assert not is_locked(path)
    with exclusive_lock(path):
        assert is_locked(path)
        with pytest.raises(AlreadyLocked, match="holds the lease gs://bucket/run/.lock"):
            exclusive_lock(path).__enter__()
    assert not is_locked(path)
    with exclusive_lock(path):
        pass
