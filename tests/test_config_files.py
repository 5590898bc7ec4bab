"""Config files that cannot be loaded, and what is said about them."""

import random

import pytest

from experiments.robustness.wrong_files import CONFIG_FILES
from roberta_jax import cli, config_files
from roberta_jax.errors import UsageError
from roberta_jax.pretraining.spec import read_spec
from roberta_jax.pretraining.text_spec import read_text_spec
from tests.support.messages import one_screen

# Name in CONFIG_FILES -> what the message says.
MESSAGES = {
    "syntax-error": r"cannot be loaded: line 2: SyntaxError: '\(' was never closed\. Correct",
    "indentation": "line 2: IndentationError: expected an indented block",
    "import-error": "line 1: ModuleNotFoundError: No module named 'no_such_module'",
    "name-error": "line 1: NameError: name 'ConfigDict' is not defined",
    "no-get-config": "is no config file: it does not define get_config",
    "empty": "is no config file: it does not define get_config",
    "raises": "line 2: KeyError: 'tiny'",
    "exits": "line 2: SystemExit: 0",
    "exits-later": "line 3: SystemExit: 0",
    "returns-none": r"returns NoneType, but it must return an ml_collections\.ConfigDict",
    "returns-dict": "returns dict, but it must return",
    "no-parameter": r"takes no size: leave it out, as in --config=\S+\.py\.$",
    "variable": "does not define get_config",
}
# These are configs, but not of pretraining.
MESSAGES_OF_READERS = {
    "no-keys": r"the config has no key --config\.seed\. Add it, such as config\.seed = 0,",
    "fewer-keys": r"the config has no key --config\.train\.steps",
    "more-keys": r"unknown key --config\.train\.stepz\. Did you mean --config\.train\.steps\?",
    "other-types": r"--config\.train\.steps=many: give a whole number from 1",
    "group-is-a-number": r"unknown key --config\.train\.",
}


def test_every_wrong_file_is_named_here():
    assert set(MESSAGES) | set(MESSAGES_OF_READERS) == set(CONFIG_FILES)


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("form", [(), ("--help",)])
def test_files_that_cannot_be_loaded(tmp_path, name, form):
    file = tmp_path / "config.py"
    file.write_text(CONFIG_FILES[name])
    argv = ["job", f"--config={file}:tiny", *form]
    with pytest.raises(UsageError, match=MESSAGES[name]) as error:
        cli._help(lambda config, values: None, None, argv) if form else cli.parse(argv)
    assert str(file) in one_screen(error.value)


@pytest.mark.parametrize("name", MESSAGES_OF_READERS)
@pytest.mark.parametrize("read", [read_spec, read_text_spec])
def test_configs_of_another_kind(tmp_path, name, read):
    file = tmp_path / "config.py"
    file.write_text(CONFIG_FILES[name])
    config = cli.parse(["job", f"--config={file}:tiny"]).config
    with pytest.raises(UsageError, match=MESSAGES_OF_READERS[name]) as error:
        read(config)
    one_screen(error.value)


def test_files_that_are_no_text(tmp_path):
    file = tmp_path / "config.py"
    for contents in (b"x = '\xe9'\n", b"a\0b", random.Random(0).randbytes(3000)):
        file.write_bytes(contents)
        with pytest.raises(UsageError, match=r"cannot be loaded: .*Error") as error:
            config_files.load(f"{file}:tiny")
        one_screen(error.value)


def test_what_is_no_file(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for name in (tmp_path / "none.py", tmp_path / "loop", "/dev/null", "x" * 5000, ":tiny"):
        with pytest.raises(UsageError, match="^no config file .*: pass the path") as error:
            cli.parse(["job", f"--config={name}"])
        one_screen(error.value)
    with pytest.raises(UsageError, match="is a folder"):
        cli.parse(["job", f"--config={tmp_path}"])


def test_a_file_without_a_size(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(size='b'):\n    return ConfigDict({'size': size})\n"
    )
    assert config_files.load(str(file)).size == "b"
    assert config_files.load(f"{file}:c").size == "c"
    assert config_files.load(str(file)).is_locked
    file.write_text("def get_config(size):\n    return None\n")
    with pytest.raises(UsageError, match=r"takes a size: add one, as in --config=\S+:SIZE\.$"):
        config_files.load(str(file))


def test_the_message_of_an_error_in_an_imported_file_names_the_line_of_the_import(tmp_path):
    (tmp_path / "imported_by_a_config.py").write_text("\n\n1 / 0\n")
    file = tmp_path / "config.py"
    file.write_text(
        f"import sys\nsys.path.append({str(tmp_path)!r})\nimport imported_by_a_config\n"
    )
    with pytest.raises(UsageError, match="line 3: ZeroDivisionError: division by zero"):
        config_files.load(str(file))
