import itertools
import json
import os
import pathlib
import signal
import subprocess
import time

import pytest
from etils import epath

from roberta_jax.errors import UsageError
from roberta_jax.storage import atomic
from tests.support import object_store, processes

SIZE = 4_000_000  # large enough for a reader to see a part of a file that is not written as a whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def in_process(function, *arguments):
    return subprocess.Popen(
        processes.command(__name__, function, *arguments), env=processes.environment()
    )


def write_and_fail(replacing, name=None):
    """Writes the temporary file, or a file of the temporary folder, and then raises."""
    with replacing as temporary:
        path = temporary / name if name else temporary
        path.write_text("part of the n")
        raise RuntimeError


# Files.


def test_files_hold_what_was_written(tmp_path):
    atomic.write_bytes(tmp_path / "bytes", b"\x00\xff\r\n")
    atomic.write_text(tmp_path / "text", "é\n\r\n")
    atomic.write_json(tmp_path / "json", {"a": [1, None]})
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff\r\n"
    assert (tmp_path / "text").read_bytes() == "é\n\r\n".encode()
    assert (tmp_path / "json").read_text() == json.dumps({"a": [1, None]}, indent=2) + "\n"
    assert names(tmp_path) == ["bytes", "json", "text"]


@pytest.mark.parametrize("existing", [True, False])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, existing):
    path = tmp_path / "file"
    if existing:
        path.write_text("old")
    with pytest.raises(RuntimeError):
        write_and_fail(atomic.replace_file(path))
    assert names(tmp_path) == (["file"] if existing else [])
    if existing:
        assert path.read_text() == "old"


def test_an_object_that_is_not_json_leaves_the_old_file(tmp_path):
    atomic.write_json(tmp_path / "file", "old")
    with pytest.raises(TypeError):
        atomic.write_json(tmp_path / "file", object())
    assert json.loads((tmp_path / "file").read_text()) == "old"
    assert names(tmp_path) == ["file"]


def write_forever(path):
    """Overwrites a file again and again, in a separate process."""
    for letter in itertools.cycle(b"ab"):
        atomic.write_bytes(path, bytes([letter]) * SIZE)


def test_readers_never_see_a_part_also_when_the_writer_is_killed(tmp_path):
    path = tmp_path / "file"
    writer = in_process("write_forever", path)
    try:
        deadline = time.monotonic() + 60
        seen = set()
        while len(seen) < 2:
            assert time.monotonic() < deadline
            if path.exists():
                seen.add(path.read_bytes())
    finally:
        writer.kill()
        writer.wait()
    seen.add(path.read_bytes())
    assert seen == {b"a" * SIZE, b"b" * SIZE}


def kill_itself_in_replace_file(path):
    with atomic.replace_file(path) as temporary:
        temporary.write_text("part of the n")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_writer_leaves_the_old_file_and_does_not_disturb_the_next(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    assert in_process("kill_itself_in_replace_file", path).wait() == -signal.SIGKILL
    assert path.read_text() == "old"
    leftovers = set(names(tmp_path)) - {"file"}
    assert all(name.startswith("file.") and name.endswith(".tmp") for name in leftovers)
    atomic.write_text(path, "new")
    assert path.read_text() == "new"


# Folders whose contents follow from their name.


def test_a_created_folder_appears_complete(tmp_path):
    with atomic.create_folder(tmp_path / "cache" / "entry") as folder:
        (folder / "file").write_text("new")
        assert not (tmp_path / "cache" / "entry").exists()
    assert (tmp_path / "cache" / "entry" / "file").read_text() == "new"
    assert names(tmp_path / "cache") == ["entry"]


def test_an_exception_creates_no_folder(tmp_path):
    with pytest.raises(RuntimeError):
        write_and_fail(atomic.create_folder(tmp_path / "entry"), "file")
    assert names(tmp_path) == []


def test_a_folder_that_another_process_created_stays(tmp_path):
    with atomic.create_folder(tmp_path / "entry") as folder:
        (folder / "file").write_text("second")
        with atomic.create_folder(tmp_path / "entry") as other:
            (other / "file").write_text("first")
    assert (tmp_path / "entry" / "file").read_text() == "first"
    assert names(tmp_path) == ["entry"]


# Folders that are replaced.


def old_folder(path):
    path.mkdir()
    (path / "index").write_text("old")
    (path / "only_old").write_text("old")
    return path


@pytest.mark.parametrize("existing", [True, False])
def test_a_folder_is_replaced_as_a_whole(tmp_path, existing):
    target = tmp_path / "model"
    if existing:
        old_folder(target)
    with atomic.replace_folder(target, last="index") as folder:
        (folder / "index").write_text("new")
        assert target.exists() == existing
    assert names(target) == ["index"]
    assert (target / "index").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_an_exception_leaves_the_old_folder(tmp_path):
    target = old_folder(tmp_path / "model")
    with pytest.raises(RuntimeError):
        write_and_fail(atomic.replace_folder(target, last="index"), "index")
    assert names(target) == ["index", "only_old"]
    assert (target / "index").read_text() == "old"
    assert names(tmp_path) == ["model"]


def kill_itself_in_replace_folder(target, moment):
    """Is killed while writing, or between the two renames."""
    if moment == "renaming":
        rename = pathlib.Path.rename

        def rename_old_and_die(path, destination):
            rename(path, destination)
            os.kill(os.getpid(), signal.SIGKILL)

        pathlib.Path.rename = rename_old_and_die
    with atomic.replace_folder(pathlib.Path(target), last="index") as folder:
        (folder / "index").write_text("part of the n")
        if moment == "writing":
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_the_next_writer_repairs_what_a_killed_one_left(tmp_path, moment):
    target = old_folder(tmp_path / "model")
    process = in_process("kill_itself_in_replace_folder", target, moment)
    assert process.wait() == -signal.SIGKILL
    if moment == "writing":
        assert names(target) == ["index", "only_old"]
    with pytest.raises(RuntimeError):
        write_and_fail(atomic.replace_folder(target, last="index"), "index")
    assert (target / "index").read_text() == "old"
    assert names(target) == ["index", "only_old"]
    with atomic.replace_folder(target, last="index") as folder:
        (folder / "index").write_text("new")
    assert names(target) == ["index"]
    assert names(tmp_path) == ["model"]


def test_files_of_the_user_are_not_replaced(tmp_path):
    folder = old_folder(tmp_path / "model")
    atomic.check_replaceable(folder, lambda name: True)
    atomic.check_replaceable(tmp_path / "nothing", lambda name: False)
    with pytest.raises(UsageError, match=r"holds other files \(only_old\)"):
        atomic.check_replaceable(folder, lambda name: name == "index")
    with pytest.raises(UsageError, match="is a file"):
        atomic.check_replaceable(folder / "index", lambda name: True)


# Object stores.


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """An empty folder on an object store, whose objects are files in `tmp_path`."""
    object_store.install(tmp_path, monkeypatch.setattr)
    return epath.Path("gs://bucket")


def test_objects_are_written_under_their_own_name(bucket, tmp_path):
    assert not atomic.is_local(bucket)
    assert atomic.is_local(tmp_path)
    assert atomic.is_local("relative/path")
    atomic.write_json("gs://bucket/a.json", [1])
    atomic.write_text(bucket / "b.txt", "é")
    assert object_store.log() == [("write", "a.json"), ("write", "b.txt")]
    assert names(tmp_path / "bucket") == ["a.json", "b.txt"]
    assert (tmp_path / "bucket" / "b.txt").read_bytes() == "é".encode()


def test_the_marker_of_a_folder_of_objects_is_removed_first_and_written_last(bucket, tmp_path):
    old_folder(tmp_path / "bucket" / "model")
    with atomic.replace_folder(bucket / "model", last="index") as folder:
        for name in ("index", "weights", "vocab"):
            (folder / name).write_text("new")
        assert object_store.log() == []  # an exception here leaves the old folder
    assert object_store.log() == [
        ("remove", "index"),
        ("remove", "only_old"),
        ("write", "vocab"),
        ("write", "weights"),
        ("write", "index"),
    ]
    assert (tmp_path / "bucket" / "model" / "index").read_text() == "new"


def test_a_folder_of_objects_may_have_subfolders(bucket):
    with atomic.replace_folder(bucket / "model", last="index") as folder:
        (folder / "index").write_text("new")
        (folder / "variables").mkdir()
        (folder / "variables" / "0").write_text("x")
    assert (bucket / "model" / "variables" / "0").read_text() == "x"
    assert object_store.log() == [("write", "0"), ("write", "index")]


def test_a_folder_of_objects_is_copied_to_be_read(bucket, tmp_path):
    for name in ("a.json", "b.txt"):
        atomic.write_text(bucket / name, name)
    with atomic.local_copy(bucket, (".json",)) as folder:
        assert names(folder) == ["a.json"]
        assert (folder / "a.json").read_text() == "a.json"
    assert not folder.exists()
    with atomic.local_copy(tmp_path, ()) as folder:
        assert folder == tmp_path


def test_a_folder_that_cannot_be_written_is_refused_without_a_trace(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (
        ("file", "is a file"),
        ("file/below", "file is a file"),
        ("loop", "is a link to nothing"),
        ("x" * 300, "too long"),
    ):
        with pytest.raises(UsageError, match=message):
            atomic.check_replaceable(epath.Path(tmp_path / name), bool)
    atomic.check_replaceable(epath.Path(tmp_path / "new" / "folder"), bool)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop"}
    with pytest.raises(UsageError, match="cannot write /proc/"):
        atomic.check_replaceable(epath.Path("/proc/x"), bool)


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe is not a regular file"):
        atomic.write_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()
    assert len(list(tmp_path.iterdir())) == 1
