"""The checks of the workdir, in one process; test_doctor.py has several."""

import contextlib

import pytest

from roberta_jax.diagnostics import files
from roberta_jax.diagnostics.report import Level
from roberta_jax.errors import UsageError
from roberta_jax.storage import leases
from tests.support import object_store


@pytest.fixture
def workdir(tmp_path):
    return str(tmp_path / "runs" / "base")


def test_a_good_workdir_is_left_as_it_was(workdir, tmp_path):
    with files.probe_folder(workdir) as folder:
        checks = (files.shared, files.append, files.lock, files.checkpoint)
        results = [result for check in checks for result in check(workdir, folder)]
        assert folder.exists()
    assert [result.level for result in results] == [Level.OK] * 4
    assert not list(tmp_path.iterdir())


def test_a_run_in_the_workdir_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with files.probe_folder(str(tmp_path)) as folder:
        files.shared(str(tmp_path), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_workdir_that_cannot_be_written_is_a_problem(tmp_path):
    (tmp_path / "file").write_text("")
    workdir = str(tmp_path / "file" / "run")
    with files.probe_folder(workdir) as folder:
        (result,) = files.shared(workdir, folder)
    assert result.level is Level.PROBLEM
    assert result.text == f"{workdir} cannot be written: Not a directory."


def test_a_missing_file_of_another_process_is_a_problem(workdir, monkeypatch):
    monkeypatch.setattr(files, "SEEN_SECONDS", 0.1)
    monkeypatch.setattr(files, "exchange", lambda what, value: [value, value])
    (result,) = files.shared(workdir, files.epath.Path(workdir))
    assert result.level is Level.PROBLEM
    assert f"{workdir} is not shared: files of process 1 are not seen here" in result.text


def test_files_that_cannot_be_appended_to_are_a_problem(workdir, monkeypatch):
    path = files.pathlib.Path
    real = path.open

    def no_append(self, mode="r", *rest, **keywords):
        if mode == "a":
            raise OSError(95, "Operation not supported")
        return real(self, mode, *rest, **keywords)

    with files.probe_folder(workdir) as folder:
        files.shared(workdir, folder)
        monkeypatch.setattr(path, "open", no_append)
        (result,) = files.append(workdir, folder)
    assert result.level is Level.PROBLEM
    assert "Operation not supported" in result.text


def test_a_lock_that_nobody_sees_is_a_warning(workdir, monkeypatch):
    monkeypatch.setattr(files, "exclusive_lock", lambda path: contextlib.nullcontext())
    with files.probe_folder(workdir) as folder:
        files.shared(workdir, folder)
        assert files.lock(workdir, folder)[0].level is Level.WARNING


def test_a_file_system_without_locks_is_a_problem(workdir, monkeypatch):
    def refuse(path):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files, "exclusive_lock", refuse)
    with files.probe_folder(workdir) as folder:
        files.shared(workdir, folder)
        (result,) = files.lock(workdir, folder)
    assert result.level is Level.PROBLEM
    assert "cannot be locked: No locks available." in result.text


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    return object_store.install(tmp_path, monkeypatch.setattr)


def test_a_good_bucket_is_left_as_it_was(store):
    workdir = "gs://bucket/run"
    with files.probe_folder(workdir) as folder:
        checks = (files.shared, files.append, files.lock, files.checkpoint)
        results = [result for check in checks for result in check(workdir, folder)]
    assert [result.level for result in results] == [Level.OK] * 4, results
    assert not [path for path in (store / "bucket").rglob("*") if path.is_file()]


def test_a_bucket_that_cannot_be_used_is_explained_without_trying_it(store, monkeypatch):
    def used(*_, **__):
        raise AssertionError("the store was used")

    monkeypatch.setattr(object_store.ObjectFileSystem, "_open", used)
    monkeypatch.setattr(object_store.ObjectFileSystem, "rm", used)
    with files.probe_folder("gs://nobucket/run") as folder:
        (result,) = files.shared("gs://nobucket/run", folder)
    assert result.level is Level.PROBLEM
    assert result.text == "--workdir=gs://nobucket/run: there is no bucket 'nobucket'."


def test_a_lease_that_cannot_be_taken_is_a_problem(store, monkeypatch):
    def refuse(self, *_):
        raise PermissionError("403 forbidden")

    with files.probe_folder("gs://bucket/run") as folder:
        monkeypatch.setattr(object_store.FakeObject, "write", refuse)
        (result,) = files.lock("gs://bucket/run", folder)
    assert result.level is Level.PROBLEM
    assert "403 forbidden" in result.text
    assert "Storage Object User" in result.advice


def test_a_lease_that_is_not_renewed_is_a_problem(store, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECONDS", 60.0)
    monkeypatch.setattr(leases, "EXPIRE_SECONDS", 0.2)
    with files.probe_folder("gs://bucket/run") as folder:
        (result,) = files.lock("gs://bucket/run", folder)
    assert result.level is Level.PROBLEM
    assert "is not renewed in time" in result.text


def test_an_object_store_needs_no_appending():
    assert files.append("gs://bucket/run", None)[0].level is Level.OK


def test_a_checkpoint_that_cannot_be_read_is_a_problem(workdir, monkeypatch):
    def fail(self, like):
        raise UsageError("the checkpoint is damaged.")

    monkeypatch.setattr(files.Checkpoints, "restore", fail)
    with files.probe_folder(workdir) as folder:
        (result,) = files.checkpoint(workdir, folder)
    assert result.level is Level.PROBLEM
    assert result.text.endswith("the checkpoint is damaged.")


def test_without_a_workdir_the_checkpoint_is_temporary():
    (result,) = files.checkpoint(None, None)
    assert result.level is Level.OK
    assert result.text.startswith("16 MiB in a temporary folder: written in ")


def test_little_space_is_a_warning(tmp_path, monkeypatch):
    folders = {"the run": str(tmp_path / "not" / "there"), "the bucket": "gs://bucket"}
    monkeypatch.setattr(files, "LOW_BYTES", 1)
    (result,) = files.disk(folders)
    assert result.level is Level.OK
    monkeypatch.setattr(files, "LOW_BYTES", 1 << 60)
    (result,) = files.disk(folders)
    assert result.level is Level.WARNING
    assert f"GiB for the run in {tmp_path}/not/there." in result.text
