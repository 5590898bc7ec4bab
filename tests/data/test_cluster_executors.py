"""Tests that Ray and Beam give the stores of one process, and of what goes wrong on a cluster."""

import os
import pathlib
import subprocess
import sys
import types

import pytest

from roberta_jax.data import cluster_executors, executors
from roberta_jax.data.executors import Runner, check_runner, open_executor
from roberta_jax.data.store import build
from roberta_jax.data.store.build import Recipe, build_stores
from roberta_jax.data.store.token_store import TokenStore
from roberta_jax.data.text import corpus as corpora
from roberta_jax.errors import UsageError
from roberta_jax.tokenizer import RobertaTokenizer
from tests.support import processes, texts

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = Recipe(validation_fraction=0.2, sentences="split", language="en", max_overlap=0.5)


class FragileCorpus(corpora.FilesCorpus):
    """A corpus whose first worker to parse a certain piece dies, as one whose node is lost."""

    def __init__(self, paths, died: pathlib.Path):
        super().__init__(paths, "text")
        self._died = died

    def documents(self, piece, counts):
        if piece.line > 200 and not self._died.exists():
            self._died.touch()
            os._exit(9)
        yield from super().documents(piece, counts)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return texts.write_corpus(tmp_path_factory.mktemp("text") / "text.jsonl", 400)


@pytest.fixture(scope="module")
def tokenizer():
    return RobertaTokenizer.train(texts.documents(200), vocab_size=300)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(corpora, "PIECE_BYTES", 2000)
    monkeypatch.setattr(build, "CHUNK_BYTES", 8000)
    # Ray and Beam start processes with this module's classes.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)


@pytest.fixture
def expected(tmp_path, text, tokenizer):
    """The files of stores that one process builds."""
    build_stores(
        tmp_path / "expected", corpora.FilesCorpus([text], "text"), tokenizer, RECIPE, workers=1
    )
    return contents(tmp_path / "expected")


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "checked.json"
    }


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


def test_ray_gives_the_same_stores_though_a_worker_dies(tmp_path, text, tokenizer, expected, ray):
    corpus = FragileCorpus([text], tmp_path / "died")
    build_stores(tmp_path / "x", corpus, tokenizer, RECIPE, workers=2, runner=Runner("ray"))
    assert (tmp_path / "died").exists()
    assert contents(tmp_path / "x") == expected


def test_errors_of_ray_workers_are_raised(tmp_path, text, tokenizer, ray):
    corpus = corpora.FilesCorpus([text], "body")
    with pytest.raises(UsageError, match=r"^\S*text\.jsonl:\d+: no field 'body'"):
        build_stores(tmp_path / "x", corpus, tokenizer, RECIPE, workers=2, runner=Runner("ray"))
    assert ray.is_initialized()  # a connection of the caller's stays


def test_beam_gives_the_same_stores(tmp_path, text, tokenizer, expected, monkeypatch):
    pytest.importorskip("apache_beam")
    from roberta_jax.data import cluster_executors

    monkeypatch.setattr(cluster_executors._Beam, "max_pending", 4)  # several pipelines
    corpus = corpora.FilesCorpus([text], "text")
    build_stores(tmp_path / "x", corpus, tokenizer, RECIPE, workers=2, runner=Runner("beam"))
    assert contents(tmp_path / "x") == expected


def test_a_beam_worker_that_dies_or_fails_leaves_parts_to_continue_from(
    tmp_path, text, tokenizer, expected
):
    pytest.importorskip("apache_beam")
    in_process = Runner("beam", ("--runner=FnApiRunner",))
    wrong = corpora.FilesCorpus([text], "body")
    with pytest.raises(UsageError, match=r"^\S*text\.jsonl:\d+: no field 'body'"):
        build_stores(tmp_path / "x", wrong, tokenizer, RECIPE, runner=in_process)
    with pytest.raises(UsageError, match=r"pipeline failed: .*Finished parts are kept"):
        build_stores(
            tmp_path / "x", BrokenCorpus([text], "text"), tokenizer, RECIPE, runner=in_process
        )
    assert list((tmp_path / "x" / "building").glob("*.npz"))
    # Continued by the other runner.
    build_stores(tmp_path / "x", corpora.FilesCorpus([text], "text"), tokenizer, RECIPE, workers=1)
    assert contents(tmp_path / "x") == expected


class BrokenCorpus(corpora.FilesCorpus):
    """A corpus with a bug."""

    def documents(self, piece, counts):
        if piece.line > 200:
            raise ZeroDivisionError("a bug")
        yield from super().documents(piece, counts)


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        (Runner("spark"), "--runner=spark is unknown: use one of local, ray, beam"),
        (Runner("ray", ("--a=b",)), "--beam_options=--a=b has no effect with --runner=ray"),
    ],
)
def test_wrong_runners(runner, message):
    with pytest.raises(UsageError, match=message):
        check_runner(runner)


@pytest.mark.parametrize("name", ["ray", "beam"])
def test_an_engine_that_is_not_installed(monkeypatch, name):
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda package: None)
    with (
        pytest.raises(UsageError, match=rf"pip install 'roberta_jax\[{name}\]'"),
        open_executor(print, 2, Runner(name)),
    ):
        pass


def test_a_folder_that_workers_do_not_share(tmp_path, text, tokenizer, monkeypatch):
    """Their parts never appear here."""

    class Elsewhere:
        max_pending = 2

        def submit(self, folder, number, pieces):
            future = build.concurrent.futures.Future()
            future.set_result(number)
            return future

        def flush(self):
            pass

        def result(self, future):
            return future.result()

    module = types.ModuleType("roberta_jax.data.cluster_executors")
    module.open_cluster = lambda *arguments: build.contextlib.nullcontext(Elsewhere())
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(executors, "check_runner", lambda runner: None)
    monkeypatch.setattr(build, "_SECONDS_TO_APPEAR", 0)
    with pytest.raises(UsageError, match=r"part \d+ .* share with --config\.data\.cache_dir"):
        build_stores(
            tmp_path / "x",
            corpora.FilesCorpus([text], "text"),
            tokenizer,
            RECIPE,
            runner=Runner("ray"),
        )


def test_the_command_names_a_wrong_runner(tmp_path, text):
    command = [
        sys.executable,
        "-m",
        "roberta_jax.prepare",
        "--config=configs/pretrain.py:tiny",
        f"--config.data.cache_dir={tmp_path}",
    ]
    for flag, message in (
        ("--runner=cloud", "--runner=cloud is unknown: use one of local, ray, beam"),
        ("--beam_options=--a=1", "has no effect with --runner=local"),
        ("--beam_options='", "cannot be parsed"),
    ):
        result = subprocess.run([*command, flag], capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_stores_open_where_no_engine_is_installed(tmp_path, text, tokenizer):
    """What a cluster has built is an ordinary store."""
    corpus = corpora.FilesCorpus([text], "text")
    build_stores(tmp_path / "x", corpus, tokenizer, RECIPE, workers=1)
    build_stores(tmp_path / "x", corpus, tokenizer, RECIPE, runner=Runner("ray"))
    assert TokenStore.open(tmp_path / "x" / "train").num_documents


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_nobody_listens_at_the_address_of_a_ray_cluster(monkeypatch, scheme):
    fake = types.SimpleNamespace(is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "ray", fake)
    address = f"{scheme}127.0.0.1:{processes.free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(UsageError, match=rf"{address} \(RAY_ADDRESS\) cannot be used.*refused"),
        cluster_executors.connected_to_ray(),
    ):
        pass


def test_a_ray_cluster_that_cannot_be_used(monkeypatch):
    def init(**options):
        raise Exception("The current node timed out during startup.")

    fake = types.SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(executors, "check_runner", lambda runner: None)
    monkeypatch.setenv("RAY_ADDRESS", "tpu-head")
    with (
        pytest.raises(UsageError, match=r"tpu-head \(RAY_ADDRESS\) cannot be used.*unset"),
        open_executor(print, 2, Runner("ray")),
    ):
        pass
