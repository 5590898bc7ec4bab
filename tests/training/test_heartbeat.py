"""The sign of life of a run."""

import pytest

from roberta_jax.training import agreement, heartbeat
from roberta_jax.training.preemption import StopRequests


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "_last", float("-inf"))
    monkeypatch.setenv(heartbeat.VARIABLE, str(tmp_path / "beat"))
    return tmp_path / "beat"


def test_each_poll_of_a_run_touches_the_file(file, monkeypatch):
    requests = StopRequests()
    assert not requests()
    first = file.stat().st_mtime_ns
    requests()
    assert file.stat().st_mtime_ns == first  # not more often than once an interval
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.0)
    requests()
    assert file.stat().st_mtime_ns > first


def test_several_processes_touch_it_as_well(file):
    assert StopRequests(lambda: True)()
    assert file.exists()


def test_a_wait_for_another_process_is_no_first_beat_but_a_later_one(file, monkeypatch):
    class Service:
        def key_value_dir_get(self, folder):
            self.calls = getattr(self, "calls", 0) + 1
            return [(f"{folder}/{index}", "{}") for index in range(1 if self.calls < 4 else 2)]

    def wait():
        assert agreement._collect(Service(), "folder", 2, "the rows", None) == [{}, {}]

    wait()
    assert not file.exists()
    file.touch()
    before = file.stat().st_mtime_ns
    wait()
    assert file.stat().st_mtime_ns > before


def test_without_a_supervisor_nothing_is_written(file, monkeypatch):
    monkeypatch.delenv(heartbeat.VARIABLE)
    heartbeat.beat()
    assert not file.exists()


def test_a_file_that_cannot_be_written_does_not_end_the_run(file, monkeypatch):
    monkeypatch.setenv(heartbeat.VARIABLE, str(file / "not" / "there"))
    heartbeat.beat()
