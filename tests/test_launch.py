"""The command `launch`."""

import os
import subprocess
import sys

import pytest

from roberta_jax import launch
from tests.support import processes


def ends(*arguments):
    with pytest.raises(SystemExit) as error:
        launch.main(list(arguments))
    return error.value.code


def test_it_prints_what_it_would_run(capsys, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    options = ["--dry_run", "--compile_cache=gs://b/a cache", "--processes=2"]
    assert ends(*options, "--", "python", "-m", "roberta_jax.pretrain", "--workdir=a b") == 0
    assert capsys.readouterr().out.splitlines() == [
        "export JAX_COMPILATION_CACHE_DIR='gs://b/a cache'",
        "export PYTHONFAULTHANDLER=1",
        "export PYTHONUNBUFFERED=1",
        f"{sys.executable} -m roberta_jax.pretrain '--workdir=a b' --distributed",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command to run"),
        (["--", "pretrian"], "'pretrian' is neither a program nor a command"),
        (["--processes=0", "--", "true"], "'0' is no whole number from 1"),
        (["--backoff=soon", "--", "true"], "'soon' is no number of seconds"),
        (["--stalled_after=nan", "--", "true"], "'nan' is no number of seconds"),
        (["--proc=2", "--", "true"], "unrecognized arguments: --proc=2"),
    ],
)
def test_wrong_calls_start_nothing(capsys, arguments, message):
    assert ends(*arguments) == 2
    assert message in capsys.readouterr().err


def test_the_supervisor_imports_no_library():
    code = (
        "import sys\n"
        "from roberta_jax import launch\n"
        "assert launch.launch(['--', sys.executable, '-c', '']) == 0\n"
        "heavy = {'absl', 'etils', 'flax', 'jax', 'ml_collections', 'numpy', 'tensorflow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(processes.ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_the_status_is_that_of_the_command():
    assert launch.launch(["--", sys.executable, "-c", "import sys; sys.exit(2)"]) == 2
