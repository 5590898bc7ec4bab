import pytest
from etils import epath

from roberta_jax.errors import UsageError
from roberta_jax.storage.published import PublishedFolder
from tests.support import object_store

TARGET = "gs://bucket/run"


@pytest.fixture
def files(tmp_path, monkeypatch):
    object_store.install(tmp_path, monkeypatch.setattr)
    return PublishedFolder(TARGET, lease=f"{TARGET}/.lock")


def fail(*_, **__):
    raise ConnectionError("no route")


def test_files_that_changed_are_written_whole(files):
    with (files.local / "a.txt").open("a") as file:
        file.write("1")
        file.flush()
        assert not (epath.Path(TARGET) / "a.txt").exists()
        files.publish()
        assert (epath.Path(TARGET) / "a.txt").read_text() == "1"
        file.write("2")
    (files.local / "below").mkdir()
    (files.local / "below" / "b.txt").write_text("b")
    files.publish()
    assert (epath.Path(TARGET) / "a.txt").read_text() == "12"
    assert (epath.Path(TARGET) / "below" / "b.txt").read_text() == "b"
    log = object_store.log()
    files.publish()
    assert object_store.log() == log == [("write", "a.txt"), ("write", "a.txt"), ("write", "b.txt")]


def test_closing_publishes_and_removes_the_local_folder(files):
    (files.local / "a.txt").write_text("1")
    files.close()
    assert (epath.Path(TARGET) / "a.txt").read_text() == "1"
    assert not files.local.exists()


def test_a_store_that_failed_is_not_tried_again_after_the_error(files, monkeypatch):
    (files.local / "a.txt").write_text("1")
    with monkeypatch.context() as context:
        context.setattr(object_store.ObjectFileSystem, "_open", fail)
        with pytest.raises(UsageError, match=r"cannot write gs://bucket/run/a.txt: no route"):
            files.publish()
        files.close(after_error=True)
    assert not files.local.exists()


def test_another_error_does_not_keep_files_from_being_published(files):
    (files.local / "a.txt").write_text("1")
    files.close(after_error=True)
    assert (epath.Path(TARGET) / "a.txt").read_text() == "1"


def test_on_a_disk_the_files_are_where_they_belong(tmp_path):
    files = PublishedFolder(tmp_path / "run", lease=tmp_path / "run" / ".lock")
    assert files.local == tmp_path / "run"
    (files.local / "a.txt").write_text("1")
    assert files.seconds_behind == 0
    files.close()
    assert (tmp_path / "run" / "a.txt").read_text() == "1"
