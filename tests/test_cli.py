"""The command line: what a user types wrong is answered with the right key or type."""

import pytest
from absl import flags

from roberta_jax import cli
from roberta_jax.errors import UsageError

CONFIG = """
import ml_collections
from ml_collections.config_dict import placeholder

def get_config(size):
    if size != "tiny":
        raise ValueError(f"unknown size {size!r}; the sizes are: tiny")
    config = ml_collections.ConfigDict({"seq_len": 32, "flag": True, "rate": 0.5})
    config.files = placeholder(str)
    config.workers = placeholder(int)
    config.train = ml_collections.ConfigDict({"steps": 10, "batch_size": 4})
    config.lock()
    return config
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "pretrain.py"
    path.write_text(CONFIG)
    return path


def define_workdir(values):
    flags.DEFINE_string("workdir", None, "The folder of the run.", flag_values=values)


def parse(config_file, *arguments):
    return cli.parse(["job", f"--config={config_file}:tiny", *arguments], define_workdir)


def test_overrides_reach_the_config(config_file):
    values = parse(
        config_file,
        "--workdir=w",
        "--config.train.steps=7",
        "--config.files=a/*.txt",
        "--config.flag=false",
        "--config.workers=3",
        "--config.rate=1",
    )
    assert values.workdir == "w"
    assert cli.flatten(values.config) == {
        "seq_len": 32,
        "flag": False,
        "rate": 1.0,
        "files": "a/*.txt",
        "workers": 3,
        "train.steps": 7,
        "train.batch_size": 4,
    }
    assert values.config.is_locked


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.train.stepz=5", "did you mean --config.train.steps?"),
        ("--config.tran.steps=5", "did you mean --config.train.steps?"),
        ("--config.batch_size=5", "did you mean --config.train.batch_size?"),
        ("--config.zebra=5", "the keys are: "),
        ("--config.train=5", "train.batch_size, train.steps"),
        ("--config.train.steps", "has no value"),
        ("--config.train.steps=ten", "--config.train.steps takes an integer, not 'ten'"),
        ("--config.train.steps=5.5", "takes an integer, not '5.5'"),
        ("--config.rate=half", "takes a number, not 'half'"),
        ("--config.flag=maybe", "takes true or false, not 'maybe'"),
        ("--config.workers=two", "'two'"),
        ("--wrokdir=w", "workdir"),
        ("stray", "unexpected argument 'stray'"),
    ],
)
def test_wrong_arguments_are_explained(config_file, argument, expected):
    with pytest.raises(UsageError) as caught:
        parse(config_file, argument)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) < 10


def test_unknown_size_shows_the_config_files_own_words(config_file):
    with pytest.raises(UsageError, match="the sizes are: tiny"):
        cli.parse(["job", f"--config={config_file}:huge"])


def test_missing_config_file_and_missing_flag(tmp_path):
    with pytest.raises(UsageError, match="no config file"):
        cli.parse(["job", f"--config={tmp_path}/none.py:tiny"])
    with pytest.raises(UsageError, match="configs/pretrain.py:tiny"):
        cli.parse(["job"])


def test_usage_error_exits_with_two_and_no_traceback(config_file, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run_config_job(lambda config, values: None, argv=["job", "--config=nowhere.py"])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: no config file")
    assert "Traceback" not in captured.err


def test_help_shows_the_jobs_docstring_and_flags(capsys):
    def job(config, values):
        """Does the work."""

    cli.run_config_job(job, define_workdir, argv=["job", "--help"])
    printed = capsys.readouterr().out
    assert "Does the work." in printed
    assert "--workdir" in printed
    assert "The folder of the run." in printed
