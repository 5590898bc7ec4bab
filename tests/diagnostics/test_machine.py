"""The checks of the compile cache and the memory."""

import pytest

from roberta_jax.diagnostics import machine
from roberta_jax.diagnostics.report import Level


def test_a_compile_cache_is_written_to_and_counted(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv(machine.CACHE, str(folder))
    assert machine.compile_cache()[0].text == f"{folder}, 0 entries"
    (folder / "program").write_text("")
    assert machine.compile_cache()[0].text == f"{folder}, 1 entries"


def test_without_the_variable_the_folder_is_the_one_of_the_commands(tmp_path, monkeypatch):
    monkeypatch.delenv(machine.CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (result,) = machine.compile_cache()
    assert result.level is Level.OK
    assert result.text == f"{tmp_path / 'roberta_jax' / 'jax'}, 0 entries"


def test_no_compile_cache_is_a_warning(monkeypatch):
    monkeypatch.setenv(machine.CACHE, "")
    (result,) = machine.compile_cache()
    assert result.level is Level.WARNING
    assert f"unset {machine.CACHE}" in result.advice


def test_no_home_for_the_compile_cache_is_a_warning(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(machine.CACHE, raising=False)
    monkeypatch.setattr(machine, "default_folder", no_home)
    (result,) = machine.compile_cache()
    assert result.level is Level.WARNING


def test_a_compile_cache_that_cannot_be_written_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(machine.CACHE, str(tmp_path / "file" / "cache"))
    assert machine.compile_cache()[0].level is Level.PROBLEM


@pytest.mark.parametrize(("free", "level"), [(4 << 20, Level.WARNING), (16 << 20, Level.OK)])
def test_little_memory_is_a_warning(tmp_path, free, level):
    file = tmp_path / "meminfo"
    file.write_text(f"MemTotal: {32 << 20} kB\nMemFree: 1 kB\nMemAvailable: {free} kB\n")
    (result,) = machine.memory(str(file))
    assert result.level is level
    assert result.text.rstrip(".") == f"{free >> 20}.0 of 32.0 GiB are free"


def test_where_the_memory_is_not_told_nothing_is_said(tmp_path):
    assert machine.memory(str(tmp_path / "missing")) == []
