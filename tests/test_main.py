"""The command `roberta-jax`: its list of commands, and how it runs them."""

import os
import pathlib
import subprocess
import sys

import pytest

from roberta_jax import __main__, __version__, project_files

ROOT = pathlib.Path(__file__).parent.parent


def run(*arguments, cwd=None, code=None, **variables):
    """Runs `python -m roberta_jax` or a program in any folder, as with an installed package."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    program = ["-m", "roberta_jax"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_commands_are_listed_with_a_line_each(capsys, arguments):
    assert __main__.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (_, summary) in __main__.COMMANDS.items():
        assert any(line.split() == [name, *summary.split()] for line in lines), name
    assert max(map(len, lines)) <= 100


def test_every_module_that_is_a_command_is_listed():
    folders = {"roberta_jax": ROOT / "roberta_jax", "experiments": ROOT / "experiments"}
    modules = {
        f"{package}.{path.stem}"
        for package, folder in folders.items()
        for path in folder.glob("*.py")
        if 'if __name__ == "__main__":' in path.read_text()
    }
    internal = {"roberta_jax.__main__", "experiments.worker"}
    assert modules - internal == {module for module, _ in __main__.COMMANDS.values()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pretrian", "unknown command 'pretrian': did you mean pretrain?"),
        ("fill_masks", "unknown command 'fill_masks': did you mean fill-mask?"),
        ("zebra", "unknown command 'zebra': the commands are prepare, pretrain, "),
    ],
)
def test_unknown_command_names_the_nearest(capsys, name, message):
    assert __main__.main([name]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_commands_of_experiments_are_left_out_without_that_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(project_files, "_PACKAGE", tmp_path / "roberta_jax")
    __main__.main([])
    printed = capsys.readouterr().out
    assert "pretrain" in printed
    assert "sweep" not in printed
    assert __main__.main(["sweep"]) == 2


def test_version(capsys):
    assert __main__.main(["--version"]) == 0
    assert capsys.readouterr().out == f"roberta_jax {__version__}\n"


def test_listing_commands_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from roberta_jax.__main__ import main\n"
        "assert main([]) == 0 and main(['zebra']) == 2\n"
        "heavy = {'absl', 'flax', 'jax', 'ml_collections', 'numpy', 'tensorflow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    result = run(code=code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["fill-mask", "fill_mask"])
def test_arguments_and_exit_status_are_those_of_the_module(name, tmp_path):
    result = run(name, "--top_k=many", "folder", cwd=tmp_path)
    assert result.returncode == 2
    assert "invalid int value: 'many'" in result.stderr


def test_experiments_run_in_any_folder(tmp_path):
    result = run("sweep", "table1:tiny", "--out=runs", "--list", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "runs/" in result.stdout
    # The processes that a sweep starts can import `experiments`, too.
    code = (
        "import subprocess, sys\n"
        "from roberta_jax.__main__ import _make_importable\n"
        "_make_importable('experiments.sweep')\n"
        "program = 'import experiments.sweep, configs.pretrain'\n"
        "sys.exit(subprocess.run([sys.executable, '-c', program]).returncode)\n"
    )
    assert run(code=code, cwd=tmp_path).returncode == 0
