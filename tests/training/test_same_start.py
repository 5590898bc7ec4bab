"""Checks of three processes that they start from the same things."""

import contextlib
import json
import pathlib

import jax
import pytest
from etils import epath

import roberta_jax
from roberta_jax.errors import UsageError
from roberta_jax.storage import objects
from roberta_jax.training import distributed, same_start
from roberta_jax.training.same_start import (
    check_shared,
    code_digest,
    require_same_data,
    require_same_program,
)
from tests.support import processes


def test_one_process_checks_nothing(tmp_path):
    require_same_program({"seed": 0})
    require_same_data({"rows": 3})
    check_shared(epath.Path(tmp_path))
    assert not list(tmp_path.iterdir())


def attempt(function, *arguments):
    try:
        return function(*arguments)
    except UsageError as error:
        return str(error)


def start(folder):
    """What each of three processes runs."""
    distributed.join_processes()
    index = jax.process_index()
    config = {"seed": 0, "data": {"cache_dir": f"cache{index}", "mixture": ({"weight": 1},)}}
    same_start._VISIBLE_WITHIN = 1
    own = epath.Path(folder) / str(index)
    own.mkdir()
    results = {
        "same": attempt(require_same_program, config, ("data.cache_dir",)),
        "config": attempt(require_same_program, config),
        "shared": attempt(check_shared, epath.Path(folder)),
        "not shared": attempt(check_shared, epath.Path(folder) / str(min(index, 1))),
        "missing": attempt(check_shared, epath.Path(folder) / "missing"),
        "data": attempt(require_same_data, {"rows": 3, "text": "x" * (index + 1)}),
    }
    if index == 1:
        same_start.code_digest = lambda: "other"
    results["code"] = attempt(require_same_program, {})
    (own / "results.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    processes.run_together(__name__, "start", str(folder), count=3)
    assert not list(folder.rglob(".probe*"))
    return [json.loads(pathlib.Path(folder, str(n), "results.json").read_text()) for n in range(3)]


@pytest.mark.parametrize("name", ["same", "shared"])
def test_nothing_differs(results, name):
    assert [each[name] for each in results] == [None] * 3


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("config", ["--config.data.cache_dir: ", '"cache0" on', '"cache2" on']),
        ("not shared", [" is not the same folder on all hosts", "(process 1)", "(process 2)"]),
        ("missing", ["cannot write to --workdir="]),
        ("data", ["  text: ", '"xxx" on', "--config.data.cache_dir"]),
        ("code", ["code of roberta_jax: ", '"other" on', "(process 1)"]),
    ],
)
def test_what_differs_is_named_on_all(results, name, parts):
    for each in results:
        for part in parts:
            assert part in each[name]


class Probe:
    """A file on an object store whose errors are no OSErrors."""

    def __init__(self, fails):
        self.text, self.fails = "", fails

    def __truediv__(self, name):
        return self

    def __fspath__(self):
        return "gs://bucket/run/.probe"

    def write_text(self, text):
        if "write" in self.fails:
            raise RuntimeError("Forbidden, 403")
        self.text = text

    def read_text(self):
        if "read" in self.fails:
            raise RuntimeError("Not found, 404")
        return self.text

    def unlink(self):
        if "delete" in self.fails:
            raise RuntimeError("Forbidden, 403")


@pytest.fixture
def second_process(monkeypatch):
    """Makes this process the first one of two that do the same."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(same_start.agreement, "exchange", lambda what, value: [value, value])
    monkeypatch.setattr(same_start.agreement, "together", lambda what: contextlib.nullcontext())
    monkeypatch.setattr(objects, "check_readable", lambda path: None)
    monkeypatch.setattr(same_start, "_VISIBLE_WITHIN", 0.1)


def test_a_probe_that_an_object_store_does_not_delete_ends_no_run(second_process):
    check_shared(Probe(["delete"]))


@pytest.mark.parametrize(
    ("fails", "message"),
    [("write", "cannot write gs://bucket/run/.probe: Forbidden, 403"), ("read", "is missing on")],
)
def test_errors_of_an_object_store_are_explained(second_process, fails, message):
    with pytest.raises(UsageError, match=message):
        check_shared(Probe([fails]))


@pytest.fixture
def code(tmp_path):
    """A folder with two source files and another one."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "layers.py").write_text("x = 1\n")
    (tmp_path / "run.py").write_text("x = 2\n")
    (tmp_path / "notes.txt").write_text("three")
    return tmp_path


CHANGES = {
    "a byte": lambda code: (code / "run.py").write_text("x = 3\n"),
    "a name": lambda code: (code / "run.py").rename(code / "start.py"),
    "a folder": lambda code: (code / "model").rename(code / "models"),
    "another file": lambda code: (code / "empty.py").write_text(""),
    "a file less": lambda code: (code / "run.py").unlink(),
    "a line elsewhere": lambda code: (
        (code / "model" / "layers.py").write_text(""),
        (code / "run.py").write_text("x = 1\nx = 2\n"),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_of_the_code_changes_its_digest(code, change):
    before = code_digest(code)
    assert code_digest(code) == before
    change(code)
    assert code_digest(code) != before


def test_other_files_are_no_code(code):
    before = code_digest(code)
    (code / "notes.txt").write_text("four")
    assert code_digest(code) == before


def test_the_digest_is_that_of_the_package(code):
    package = pathlib.Path(roberta_jax.__file__).parent
    assert code_digest() == code_digest(package) != code_digest(code)
