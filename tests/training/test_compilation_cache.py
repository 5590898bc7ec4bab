"""Compiled programs that are kept between starts."""

import os
import pathlib

import jax
import pytest

from roberta_jax.training import compilation_cache
from roberta_jax.training.compilation_cache import (
    VARIABLE,
    default_folder,
    use_compilation_cache,
)
from tests.support import processes


@pytest.fixture
def no_folder(monkeypatch):
    """JAX without a folder of compiled programs."""
    monkeypatch.setattr(compilation_cache, "_instruction_set", lambda: "cpu")
    former = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", former)


def test_programs_are_kept_in_the_users_cache_folder(no_folder, tmp_path):
    folder = use_compilation_cache({"XDG_CACHE_HOME": str(tmp_path)})
    assert folder == tmp_path / "roberta_jax" / "jax" / "cpu"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.is_dir()
    assert default_folder({}) == pathlib.Path.home() / ".cache" / "roberta_jax" / "jax"


@pytest.mark.parametrize("value", ["", "elsewhere"])
def test_the_variable_takes_precedence(no_folder, tmp_path, value):
    assert use_compilation_cache({VARIABLE: value, "XDG_CACHE_HOME": str(tmp_path)}) is None
    assert jax.config.jax_compilation_cache_dir is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_not_used(no_folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert use_compilation_cache({"XDG_CACHE_HOME": str(tmp_path / "file")}) is None
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert use_compilation_cache({"XDG_CACHE_HOME": str(tmp_path)}) is None

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", no_home)
    assert use_compilation_cache({}) is None
    assert jax.config.jax_compilation_cache_dir is None


def compile_something():
    """Prints how often a program was found in the folder, in a process of its own."""
    hits = []
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
    )
    del os.environ[VARIABLE]
    jax.config.update("jax_compilation_cache_dir", None)
    use_compilation_cache()
    jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((64, 64))).block_until_ready()
    print(len(hits))


def test_a_second_process_compiles_nothing(tmp_path):
    variables = {
        "XDG_CACHE_HOME": str(tmp_path),
        VARIABLE: "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    first = processes.run(__name__, "compile_something", **variables)
    kept = sorted(path.name for path in tmp_path.rglob("*-cache"))
    second = processes.run(__name__, "compile_something", **variables)
    assert int(first) == 0
    assert int(second) == len(kept) > 0
    assert sorted(path.name for path in tmp_path.rglob("*-cache")) == kept
