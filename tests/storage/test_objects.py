import contextlib
import http.server
import json
import pathlib
import threading

import pytest
from etils import epath

from roberta_jax.errors import NotFoundError, StoreUnavailable, UsageError
from roberta_jax.storage import objects
from roberta_jax.storage.objects import (
    MANIFEST,
    download_folder,
    is_uploaded,
    list_files,
    upload_folder,
)
from tests.support import object_store

FILES = {"index.json": b"{}\n", "train/0.bin": bytes(range(256)) * 999, "train/1.bin": b""}


@pytest.fixture
def store(tmp_path, monkeypatch) -> pathlib.Path:
    """The folder in which the objects of gs:// lie."""
    return object_store.install(tmp_path / "objects", monkeypatch.setattr)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    folder = tmp_path / "made"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def read_all(folder: pathlib.Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in list_files(folder)}


def test_the_fake_store_forbids_what_object_stores_cannot_do(store):
    path = epath.Path("gs://bucket/a")
    path.write_bytes(b"whole")
    with pytest.raises(object_store.Forbidden):
        path.open("a")
    with pytest.raises(object_store.Forbidden):
        path.rename("gs://bucket/b")
    with pytest.raises(object_store.Forbidden):
        path.replace("gs://bucket/b")
    file = epath.Path("gs://bucket/c").open("wb")
    file.write(b"part")
    assert not epath.Path("gs://bucket/c").exists()
    file.close()
    assert epath.Path("gs://bucket/c").read_bytes() == b"part"
    with pytest.raises(FileNotFoundError):
        epath.Path("gs://other/a").write_bytes(b"")


@pytest.mark.parametrize("target", ["gs://bucket/cache/entry", "local"])
def test_a_folder_comes_back_as_it_was(store, folder, tmp_path, target):
    target = target if "://" in target else str(tmp_path / target)
    counts = []
    assert not is_uploaded(target)
    upload_folder(folder, target, on_bytes=counts.append)
    assert is_uploaded(target)
    assert sum(counts) == sum(map(len, FILES.values()))
    assert list_files(target).keys() == {*FILES, MANIFEST}
    counts.clear()
    download_folder(target, tmp_path / "copy", on_bytes=counts.append)
    assert read_all(tmp_path / "copy") == FILES
    assert sum(counts) == sum(map(len, FILES.values()))


def test_files_can_be_left_out(store, folder, tmp_path):
    upload_folder(folder, "gs://bucket/entry", skip=lambda name: name == "index.json")
    download_folder("gs://bucket/entry", tmp_path / "copy")
    assert read_all(tmp_path / "copy").keys() == FILES.keys() - {"index.json"}


def test_a_complete_folder_is_not_written_again(store, folder):
    upload_folder(folder, "gs://bucket/entry")
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    upload_folder(folder, "gs://bucket/entry")
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()} == before


def test_an_upload_that_was_cut_short_is_not_complete(store, folder, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("killed")

    monkeypatch.setattr(objects, "write_json", fail)
    with pytest.raises(StoreUnavailable, match=r"cannot write gs://bucket/entry: killed"):
        upload_folder(folder, "gs://bucket/entry")
    assert not is_uploaded("gs://bucket/entry")
    with pytest.raises(NotFoundError, match="is not complete"):
        download_folder("gs://bucket/entry", tmp_path / "copy")
    monkeypatch.undo()


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_damage_is_named_and_leaves_no_folder(store, folder, tmp_path, damage):
    upload_folder(folder, "gs://bucket/entry")
    path = store / "bucket/entry/train/0.bin"
    if damage == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[5] ^= 1
        path.write_bytes(data if damage == "changed" else data[:-1])
    with pytest.raises(UsageError, match=r"gs://bucket/entry is damaged: .*train/0\.bin"):
        download_folder("gs://bucket/entry", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()

    epath.Path("gs://bucket/entry").rmtree()  # as the message says
    upload_folder(folder, "gs://bucket/entry")
    download_folder("gs://bucket/entry", tmp_path / "copy")
    assert read_all(tmp_path / "copy") == FILES


def test_a_download_that_was_cut_short_goes_on(store, folder, tmp_path, monkeypatch):
    upload_folder(folder, "gs://bucket/entry")
    partial = tmp_path / "copy.download"
    (partial / "train").mkdir(parents=True)
    (partial / "train/0.bin").write_bytes(FILES["train/0.bin"][:100])
    (partial / "index.json").write_bytes(FILES["index.json"])
    (partial / "of an earlier version").write_bytes(b"")
    # What is there need not be there to be downloaded.
    (store / "bucket/entry/index.json").unlink()
    download_folder("gs://bucket/entry", tmp_path / "copy")
    assert read_all(tmp_path / "copy") == FILES
    assert not partial.exists()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "files.json cannot be read"),
        ("[]", "files.json cannot be read"),
        (json.dumps({"version": 1, "files": {"../x": {"bytes": 1, "blake2b": ""}}}), "outside"),
        (json.dumps({"version": 1, "files": {"/x": {"bytes": 1, "blake2b": ""}}}), "outside"),
        (json.dumps({"version": 2, "files": {}}), "newer version"),
    ],
)
def test_a_damaged_manifest_is_refused(store, tmp_path, manifest, message):
    epath.Path(f"gs://bucket/entry/{MANIFEST}").write_text(manifest)
    with pytest.raises(UsageError, match=message):
        download_folder("gs://bucket/entry", tmp_path / "copy")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(objects, "_is_installed", lambda package: False)
    with pytest.raises(UsageError, match=r"pip install 'roberta_jax\[gcs\]'"):
        objects.check_readable("gs://bucket/x")
    with pytest.raises(UsageError, match="pip install s3fs"):
        objects.check_readable("s3://bucket/x")
    with pytest.raises(UsageError, match="ftp:// cannot be read"):
        objects.check_readable("ftp://host/x")
    objects.check_readable("a/local/folder")


def test_one_variable_names_the_server_of_all_libraries(monkeypatch):
    monkeypatch.setattr(objects, "_is_installed", lambda package: package != "gcsfs")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:9023")
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "")
    monkeypatch.delenv("TENSORSTORE_GCS_HTTP_URL")
    objects.check_readable("gs://bucket/x")
    assert objects.os.environ["TENSORSTORE_GCS_HTTP_URL"] == "http://localhost:9023"


@contextlib.contextmanager
def answering(monkeypatch, *statuses):
    """A server that answers with these statuses and then with the last one; yields its requests."""
    pytest.importorskip("google.cloud.storage")
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status = statuses[min(len(requests), len(statuses) - 1)]
            requests.append(self.command)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    objects._google_client.cache_clear()
    try:
        yield requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        objects._google_client.cache_clear()


def ask_for_bucket():
    objects._ask_for_bucket.__wrapped__("bucket", "run", True, "--workdir=gs://bucket/run")


def test_the_probe_of_a_bucket_outlasts_short_failures(monkeypatch):
    with answering(monkeypatch, 503, 200) as requests:
        ask_for_bucket()
    assert requests == ["GET", "GET", "POST", "DELETE"]


def test_a_probe_whose_deletion_was_made_but_not_confirmed(monkeypatch):
    with answering(monkeypatch, 200, 200, 503, 404) as requests:
        ask_for_bucket()
    assert requests == ["GET", "POST", "DELETE", "DELETE"]


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (503, StoreUnavailable, "cannot be reached: .*503.* run the same command again"),
        (404, UsageError, "there is no bucket"),
        (403, UsageError, "may not be read"),
        (401, UsageError, "needs credentials"),
        (400, UsageError, "cannot be used"),
    ],
)
def test_a_bucket_that_cannot_be_used(monkeypatch, status, kind, message):
    monkeypatch.setattr(objects, "_PATIENCE", 1.0)
    with answering(monkeypatch, status), pytest.raises(UsageError, match=message) as error:
        ask_for_bucket()
    assert type(error.value) is kind


def test_a_server_that_does_not_answer_may_do_so_later(monkeypatch):
    monkeypatch.setattr(objects, "_ANSWER_PATIENCE", 0.5)
    with pytest.raises(StoreUnavailable, match="does not answer at http://127.0.0.1:1 "):
        objects._check_answers.__wrapped__("http://127.0.0.1:1")
