"""A cache on an object store: copied between machines, made by one of them, and checked."""

import json
import pathlib
import shutil
import subprocess
import time

import pytest

from roberta_jax.data.executors import Runner
from roberta_jax.data.packing.index import load_or_pack
from roberta_jax.errors import UsageError
from roberta_jax.pretraining import remote_cache
from roberta_jax.pretraining import text as text_module
from roberta_jax.pretraining.text import check_sources, prepare
from roberta_jax.pretraining.text_spec import read_text_spec
from roberta_jax.storage import objects
from roberta_jax.storage.locks import exclusive_lock
from tests.support import object_store, processes, texts


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> pathlib.Path:
    """The folder in which the objects of gs://bucket lie."""
    monkeypatch.setattr(remote_cache, "_POLL_SECONDS", 0.1)
    return object_store.install(tmp_path / "objects", monkeypatch.setattr) / "bucket"


@pytest.fixture
def on_machine(tmp_path, monkeypatch):
    """A function that prepares the text on a machine with a cache folder of its own."""
    corpus = texts.write_corpus(tmp_path / "corpus.jsonl")

    def run(machine: str, url: str = "gs://bucket/cache/", **options):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        config = texts.small_config(corpus, pathlib.Path("unused"), **{"data.cache_dir": url})
        return prepare(read_text_spec(config), progress=False, **options)

    return run


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".lock", ".tmp") and path.name != "checked.json"
    }


def forbid_work(monkeypatch):
    def work(*arguments, **options):
        raise AssertionError("prepares what another machine has prepared")

    monkeypatch.setattr(text_module, "_train", work)
    monkeypatch.setattr("roberta_jax.data.store.build._build", work)


def test_what_one_machine_has_prepared_is_copied_by_the_others(
    bucket, on_machine, tmp_path, monkeypatch
):
    first = on_machine("a")
    assert first.is_new
    load_or_pack(first.train, "full_sentences", 32)
    names = objects.list_files("gs://bucket/cache")
    assert not [name for name in names if "packed" in name or "checked" in name or ".lock" in name]
    forbid_work(monkeypatch)
    second = on_machine("b", verify=True)
    assert second.is_new
    assert second.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    assert second.train.folder.is_relative_to(tmp_path / "b" / "roberta_jax")
    of_b = contents(tmp_path / "b")
    assert of_b == {k: v for k, v in contents(tmp_path / "a").items() if "packed" not in k}
    assert not on_machine("b").is_new


def test_a_cache_that_was_filled_before_is_copied_too(bucket, on_machine, monkeypatch):
    on_machine("a", url="")
    assert not list(bucket.iterdir())
    forbid_work(monkeypatch)
    on_machine("a")
    on_machine("b")


def test_only_what_is_missing_is_copied(bucket, on_machine, tmp_path, monkeypatch):
    folder = on_machine("a").train.folder
    forbid_work(monkeypatch)
    # A killed process of b has left the start of a build, and c that of a copy.
    left = tmp_path / "b" / "roberta_jax" / "tokens" / folder.parent.name / "building"
    left.mkdir(parents=True)
    (left / "00000000.npz").touch()
    assert contents(on_machine("b").train.folder) == contents(folder)
    copied = tmp_path / "c" / "roberta_jax" / "tokens" / f"{folder.parent.name}.download"
    shutil.copytree(folder.parent, copied)
    (copied / "train" / "index.json").unlink()
    copy, opened = objects._copy, []

    def counting(source, sink, on_bytes):
        opened.append(sink.name)
        return copy(source, sink, on_bytes)

    monkeypatch.setattr(objects, "_copy", counting)
    on_machine("c")
    of_store = [name for name in opened if "/tokens/" in name]
    assert [pathlib.Path(name).name for name in of_store] == ["index.json"]


def test_an_interrupted_upload_is_continued(bucket, on_machine, monkeypatch):
    with monkeypatch.context() as patch:

        def fails(*arguments, **options):
            raise KeyboardInterrupt

        patch.setattr(objects, "write_json", fails)
        with pytest.raises(KeyboardInterrupt):
            on_machine("a")
    on_machine("b")  # finds an incomplete entry, so makes it
    forbid_work(monkeypatch)
    on_machine("c")


def test_a_damaged_copy_is_refused(bucket, on_machine, tmp_path):
    on_machine("a")
    [path] = bucket.glob("cache/tokens/*/train/00000.tokens.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(UsageError, match=r"gs://bucket/cache/tokens/\w+ is damaged.*Delete"):
        on_machine("b")
    entries = (tmp_path / "b" / "roberta_jax" / "tokens").iterdir()
    assert {path.suffix for path in entries} == {".download", ".lock"}


def test_a_process_waits_while_another_one_prepares(bucket, on_machine, tmp_path):
    """One process on each of three machines: one prepares, the others wait and copy."""
    config = texts.small_config(
        texts.write_corpus(tmp_path / "corpus.jsonl"),
        pathlib.Path("unused"),
        **{"data.cache_dir": "gs://bucket/cache"},
    )
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    started = [
        subprocess.Popen(
            processes.command(__name__, "prepare_slowly", str(tmp_path)),
            env=processes.environment(XDG_CACHE_HOME=str(tmp_path / machine)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for machine in "abc"
    ]
    results = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], results
    assert sorted(out for out, _ in results) == ["", "", "made\n"]
    waited = [err for out, err in results if not out]
    assert all("Waiting for another process that prepares gs://bucket" in err for err in waited)
    caches = [contents(tmp_path / machine) for machine in "abc"]
    assert caches[0] == caches[1] == caches[2]
    assert len(caches[0]) > 8


def prepare_slowly(folder: str) -> None:
    """In a process of `test_a_process_waits_while_another_one_prepares`."""
    from ml_collections import ConfigDict

    from roberta_jax.data.store import build

    object_store.install(pathlib.Path(folder) / "objects")
    remote_cache._POLL_SECONDS = 0.2
    config = ConfigDict(json.loads((pathlib.Path(folder) / "config.json").read_text()))
    original = build._build

    def slow(*arguments):
        time.sleep(3)
        original(*arguments)
        print("made")

    build._build = slow
    prepare(read_text_spec(config), progress=True)


def test_the_lease_is_released_after_an_error(bucket, on_machine, monkeypatch):
    with monkeypatch.context() as patch:
        forbid_work(patch)
        with pytest.raises(AssertionError):
            on_machine("a")
    for path in bucket.rglob("*.lock"):
        with exclusive_lock(f"gs://bucket/{path.relative_to(bucket)}"):
            pass
    on_machine("a")


def test_the_bucket_is_checked_before_any_work(bucket, tmp_path):
    corpus = texts.write_corpus(tmp_path / "corpus.jsonl")
    for url, message in (
        ("gs://other/cache", r"--config\.data\.cache_dir=gs://other/cache: there is no bucket"),
        ("ftp://host/cache", r"--config\.data\.cache_dir=ftp://host/cache: .*not on ftp://"),
    ):
        config = texts.small_config(corpus, pathlib.Path("unused"), **{"data.cache_dir": url})
        with pytest.raises(UsageError, match=message):
            check_sources(read_text_spec(config))


@pytest.mark.parametrize("runner", [Runner("ray"), Runner("beam", ("--runner=FlinkRunner",))])
def test_a_cluster_needs_a_cache_that_its_machines_share(bucket, tmp_path, runner):
    corpus = texts.write_corpus(tmp_path / "corpus.jsonl")
    options = {"data.cache_dir": "gs://bucket/cache"}
    spec = read_text_spec(texts.small_config(corpus, pathlib.Path("unused"), **options))
    for refused in (lambda: check_sources(spec, runner), lambda: prepare(spec, runner=runner)):
        with pytest.raises(UsageError, match=rf"--runner={runner.name} takes a cache folder that"):
            refused()
    assert not list(bucket.iterdir())
    check_sources(spec, Runner("beam"))  # Beam's runner for one machine
    shared = texts.small_config(corpus, tmp_path / "shared")
    check_sources(read_text_spec(shared), runner)
