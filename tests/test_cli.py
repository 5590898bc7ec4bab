"""Command-line parsing: overrides, `--help`, and messages that name the correct key or type."""

import inspect
import re
import signal
import subprocess
import sys

import pytest
from absl import flags

from configs.pretrain import SIZES, get_config
from roberta_jax import cli, config_help, project_files
from roberta_jax.dotted_keys import flatten
from roberta_jax.errors import RESTART_FILE, UsageError
from roberta_jax.pretraining.config_keys import RENAMED
from roberta_jax.training.agreement import PartnerLost
from tests.support import processes

CONFIG = """
import ml_collections
from ml_collections.config_dict import placeholder

def get_config(size):
    if size != "tiny":
        raise ValueError(f"unknown size {size!r}; the sizes are: tiny")
    config = ml_collections.ConfigDict({"seq_len": 32, "flag": True, "rate": 0.5, "entries": ()})
    # A glob;
    # text files only.
    config.files = placeholder(str)  # None is stdin.
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
    flags.DEFINE_bool("distributed", False, "One of several processes.", flag_values=values)


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
        "--config.entries=[(1, None)]",
    )
    assert values.workdir == "w"
    assert flatten(values.config) == {
        "seq_len": 32,
        "flag": False,
        "rate": 1.0,
        "entries": ((1, None),),
        "files": "a/*.txt",
        "workers": 3,
        "train.steps": 7,
        "train.batch_size": 4,
    }
    assert values.config.is_locked


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (
            "--config.train.stepz=5",
            "unknown config key --config.train.stepz: did you mean --config.train.steps?",
        ),
        ("--config.tran.steps=5", "did you mean --config.train.steps?"),
        ("--config.batch_size=5", "did you mean --config.train.batch_size?"),
        ("--config.zebra=5", "the keys are: "),
        ("--config.train=5", "train.batch_size, train.steps"),
        ("--config.train.steps", "has no value"),
        ("--config.train.steps=ten", "--config.train.steps takes an integer, not 'ten'"),
        ("--config.train.steps=5.5", "takes an integer, not '5.5'"),
        ("--config.rate=half", "takes a number, not 'half'"),
        ("--config.flag=maybe", "takes true or false, not 'maybe'"),
        ("--config.workers=two", "--config.workers takes an integer, not 'two'"),
        ("--config.workers=", "--config.workers takes an integer, not ''"),
        ("--config.workers=1e3", "takes an integer, not '1e3'"),
        ("--config.train.steps=\u0663", "takes an integer, not '\u0663'"),
        ("--config.train.steps=0x10", "takes an integer, not '0x10'"),
        ("--config.train.steps=" + "9" * 5000, "999... (5000 characters)'"),
        ("--config.rate=1,5", "--config.rate takes a number, not '1,5'"),
        ("--config.flag=2", "takes true or false, not '2'"),
        ("--config.flag=none", "takes true or false, not 'none'"),
        ("--config.flag", "--config.flag has no value: write --config.flag=VALUE."),
        ("--noconfig.flag", "noconfig.flag"),
        ("--config.entries=3", "--config.entries takes a tuple such as '()', not '3'"),
        ("--config.entries=((", "takes a tuple such as '()', not '(('"),
        ("--config.entries={'a':1}", """not "{'a':1}"."""),
        ("--config.train", "is a group of keys and takes no value"),
        ("--config.=5", "unknown config key --config.: "),
        ("--config." + "x" * 5000 + "=5", "xxx... (5000"),
        ("--config=configs/pretrain.py:tiny", "--config is given 2 times. Give it once"),
        ("--flagfile=/nonexistent", "Unable to open flagfile"),
        ("--nodistributed=1", "distributed"),
        ("--distributed=maybe", "distributed"),
        ("--workdir", "workdir"),
        ("--wrokdir=w", "workdir"),
        ("stray", "unexpected argument 'stray': arguments have the form --name=value."),
        ("\u2014config.train.steps=3", "It begins with a dash; type two hyphens."),
        ("README.md", "It is a file: quote patterns, as in '--config.data.files=text/*.txt'"),
        ("", "unexpected argument ''"),
    ],
)
def test_wrong_arguments_are_explained(config_file, argument, expected):
    with pytest.raises(UsageError) as caught:
        parse(config_file, argument)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) < 10


def test_none_unsets_a_value(config_file):
    for none in ("none", "None"):
        arguments = ("--config.workers=3", f"--config.workers={none}", f"--config.files={none}")
        config = parse(config_file, *arguments).config
        assert config.workers is None
        assert config.files is None


def test_of_repeated_overrides_the_last_one_counts(config_file):
    arguments = ("--config.train.steps=7", "-config.train.steps=8", "--config.train.steps=9")
    assert parse(config_file, *arguments).config.train.steps == 9
    assert parse(config_file, *arguments[:2]).config.train.steps == 8


@pytest.mark.parametrize(
    "arguments", [["--config"], ["--config="], ["--config", "--workdir=x"], ["--config= "]]
)
def test_a_config_flag_without_a_file(arguments):
    with pytest.raises(UsageError, match="no config: pass one, such as --config=configs/pretrain"):
        cli.parse(["job", *arguments], define_workdir)


def test_renamed_keys_name_the_present_key(config_file):
    renamed = {"train.rows": "train.batch_size", "other": "missing"}
    with pytest.raises(UsageError) as error:
        cli.parse(["job", f"--config={config_file}:tiny", "--config.train.rows=3"], renamed=renamed)
    assert str(error.value) == "--config.train.rows was renamed: use --config.train.batch_size."
    with pytest.raises(UsageError, match="unknown config key --config.other:"):
        cli.parse(["job", f"--config={config_file}:tiny", "--config.other=3"], renamed=renamed)


@pytest.mark.parametrize(("former", "present"), RENAMED.items())
def test_former_keys_of_the_pretraining_config(former, present):
    argv = ["pretrain", "--config=configs/pretrain.py:tiny", f"--config.{former}=1"]
    with pytest.raises(UsageError, match=re.escape(f"use --config.{present}.")):
        cli.parse(argv, renamed=RENAMED)


def test_renamed_key_ends_the_command_with_two(config_file, capsys):
    argv = ["job", f"--config={config_file}:tiny", "--config.rows=3"]
    with pytest.raises(SystemExit) as ended:
        cli.run_config_job(
            lambda config, values: None, argv=argv, renamed={"rows": "train.batch_size"}
        )
    assert ended.value.code == 2
    error = "error: --config.rows was renamed: use --config.train.batch_size.\n"
    assert capsys.readouterr().err == error


def test_unknown_size_shows_the_message_of_the_config_file(config_file):
    with pytest.raises(UsageError, match="the sizes are: tiny"):
        cli.parse(["job", f"--config={config_file}:huge"])


def test_missing_config_file_and_missing_flag(tmp_path):
    with pytest.raises(UsageError, match="no config file"):
        cli.parse(["job", f"--config={tmp_path}/none.py:tiny"])
    with pytest.raises(UsageError, match="configs/pretrain.py:tiny"):
        cli.parse(["job"])


def test_usage_error_exits_with_two_and_no_traceback(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run_config_job(lambda config, values: None, argv=["job", "--config=nowhere.py"])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: no config file")
    assert "Traceback" not in captured.err


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """An installed package with a bundled config file; the current folder is empty."""
    package, folder = tmp_path / "site" / "roberta_jax", tmp_path / "empty"
    (package / "_bundled" / "configs").mkdir(parents=True)
    (package / "_bundled" / "configs" / "pretrain.py").write_text(CONFIG)
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(project_files, "_PACKAGE", package)
    return package / "_bundled"


@pytest.mark.parametrize("arguments", [["--config=FILE"], ["--config", "FILE"]])
def test_bundled_config_file_is_found_in_any_folder(bundled, capsys, arguments):
    arguments = [each.replace("FILE", "configs/pretrain.py:tiny") for each in arguments]
    values = cli.parse(["job", *arguments, "--config.train.steps=7"])
    assert values.config.train.steps == 7
    assert capsys.readouterr().err == f"Using {bundled / 'configs' / 'pretrain.py'}\n"
    cli.run_config_job(lambda config, values: None, argv=["job", "--help"])
    assert "--config.train.batch_size" in capsys.readouterr().out


def test_config_file_in_the_current_folder_wins_over_the_bundled_one(bundled, capsys, tmp_path):
    local = tmp_path / "empty" / "configs" / "pretrain.py"
    local.parent.mkdir()
    local.write_text(CONFIG.replace('"seq_len": 32', '"seq_len": 48'))
    assert cli.parse(["job", "--config=configs/pretrain.py:tiny"]).config.seq_len == 48
    assert capsys.readouterr().err == ""


def test_project_root_of_a_clone_is_its_own_root():
    root = project_files.project_root()
    assert (root / "configs" / "pretrain.py").is_file()
    assert (root / "experiments" / "sweep.py").is_file()


def help_text(capsys, *arguments):
    def job(config, values):
        """Does the work."""

    cli.run_config_job(job, define_workdir, argv=["job", *arguments, "--help"])
    return capsys.readouterr().out


def test_help_shows_docstring_flags_and_keys(capsys, config_file):
    printed = help_text(capsys, f"--config={config_file}:tiny")
    assert printed.startswith("Does the work.\n")
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "--workdir The folder of the run." in lines
    assert "--config.files A glob; text files only. None is stdin." in lines
    assert "--config.seq_len (default: 32)" in lines
    # The keys of the file come in its order, those without a source line after them.
    assert printed.index("--config.files") < printed.index("--config.workers")
    assert printed.index("--config.workers") < printed.index("--config.train.steps")


@pytest.mark.parametrize("size", [None, *SIZES])
def test_help_lists_every_key_with_its_default(capsys, size):
    arguments = [] if size is None else [f"--config=configs/pretrain.py:{size}"]
    printed = help_text(capsys, *arguments)
    assert max(map(len, printed.splitlines())) <= 100
    # One entry per key: from its name to the next one's.
    entry = re.compile(r"^  --config\.(\S+)\n?(.*?)(?=^  -|^\S|\Z)", re.M | re.S)
    entries = {name: " ".join(text.split()) for name, text in entry.findall(printed)}
    keys = flatten(get_config(size or "tiny"))
    assert set(entries) - {"KEY=VALUE"} == set(keys)
    for key, value in keys.items():
        assert entries[key].endswith(f"(default: {value})"), key
    for group in {key.rpartition(".")[0] for key in keys} - {""}:
        assert re.search(rf"^{group}: \S", printed, re.M), group


def test_help_of_a_missing_size_or_file_exits_with_two(capsys):
    for config, message in (("configs/pretrain.py:huge", "'huge'"), ("none.py", "no config file")):
        with pytest.raises(SystemExit) as ended:
            help_text(capsys, f"--config={config}")
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_comments_of_a_config_file():
    source = inspect.cleandoc("""
        def get_config():
            # Not about a key.

            # Above,
            # on two lines.
            config.a = 1  # Behind.
            config.b = (
                2,
            )  # After the last line.
            config.text = "# no comment"
            config.group = ConfigDict()  # A group.
            config.group.key = other.key = 3  # Two targets.
            config.group.last = 4
            other.key = 5  # Another object.
    """)
    assert config_help.key_comments(source) == {
        "a": "Above, on two lines. Behind.",
        "b": "After the last line.",
        "text": "",
        "group": "A group.",
        "group.last": "",
    }


@pytest.mark.parametrize("error", [UsageError, PartnerLost])
def test_a_supervisor_is_told_whether_a_restart_may_help(tmp_path, monkeypatch, capsys, error):
    monkeypatch.setenv(RESTART_FILE, str(tmp_path / "restart"))
    with pytest.raises(SystemExit) as end, cli.usage_errors():
        raise error("process 0 does not answer")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: process 0 does not answer\n"
    assert (tmp_path / "restart").exists() is (error is PartnerLost)


# A process that a shell starts in the background ignores Ctrl-C.
_INTERRUPTED_AT_EXIT = """
import atexit, os, signal, sys, time
from roberta_jax import cli

signal.signal(signal.SIGINT, signal.default_int_handler)

def job(config, values):
    def interrupt():
        for _ in range({times}):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
    atexit.register(interrupt)
    print("finished")

sys.argv = ["job", "--config=configs/pretrain.py:tiny"]
cli.run_config_job(job)
"""


@pytest.mark.parametrize(("times", "status"), [(1, 0), (2, -signal.SIGINT)])
def test_ctrl_c_at_the_exit_of_a_command_prints_nothing(times, status):
    process = run_program(_INTERRUPTED_AT_EXIT.format(times=times))
    assert (process.returncode, process.stdout, process.stderr) == (status, "finished\n", "")


_HANGS_AT_EXIT = """
import sys, threading
from roberta_jax import cli
from roberta_jax.errors import UsageError

def job(config, values):
    threading.Thread(target=threading.Event().wait).start()
    print("fails")
    raise UsageError("the store is gone")

cli._EXIT_SECONDS = 0.5
sys.argv = ["job", "--config=configs/pretrain.py:tiny"]
cli.run_config_job(job)
"""


def test_a_command_ends_after_its_message_though_a_thread_does_not():
    process = run_program(_HANGS_AT_EXIT)
    assert process.returncode == 2
    assert (process.stdout, process.stderr) == ("fails\n", "error: the store is gone\n")


_GOES_ON = """
import signal, sys, time
from roberta_jax import cli
from roberta_jax.errors import UsageError

def job(config, values):
    raise UsageError("the store is gone")

cli._EXIT_SECONDS = 0.1
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["job", "--config=configs/pretrain.py:tiny"]
try:
    cli.run_config_job(job)
except SystemExit:
    time.sleep(1)
print("goes on", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_a_process_may_go_on_after_a_command():
    process = run_program(_GOES_ON)
    assert (process.returncode, process.stdout) == (0, "goes on True\n")


def run_program(text):
    return subprocess.run(
        [sys.executable, "-c", text],
        env=processes.environment(),
        cwd=processes.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
