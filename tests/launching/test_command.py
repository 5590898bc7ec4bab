"""The command that is supervised."""

import sys

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.launching import command
from tests.support.processes import ROOT


def test_the_command_follows_the_first_double_dash():
    assert command.split(["--a", "--", "b", "--", "c"]) == (["--a"], ["b", "--", "c"])
    assert command.split(["--a"]) == (["--a"], [])


def test_commands_of_roberta_jax_need_no_python():
    assert command.resolve(["fill_mask", "x"], ["fill-mask"]) == [
        *(sys.executable, "-m", "roberta_jax"),
        *("fill_mask", "x"),
    ]
    assert command.resolve(["python", "-m", "a"], []) == [sys.executable, "-m", "a"]
    assert command.resolve(["sh", "-c", "true"], []) == ["sh", "-c", "true"]


@pytest.mark.parametrize("words", [[], ["pretrian", "--config=x"]])
def test_what_is_no_command_is_an_error_with_an_example(words):
    with pytest.raises(UsageError, match="python -m roberta_jax.launch -- pretrain"):
        command.resolve(words, ["pretrain"])


def test_the_workdir_is_found_in_the_command():
    assert command.workdir(["x", "--workdir=a b"]) == "a b"
    assert command.workdir(["x", "--workdir", "a", "--b"]) == "a"
    assert command.workdir(["x", "--workdir"]) is None
    assert command.workdir(["x", "--config=a"]) is None


def test_several_processes_of_pretraining_are_told_to_join():
    for words in (["python", "-m", "roberta_jax.pretrain"], ["p", "-m", "roberta_jax", "pretrain"]):
        assert command.joined(words) == [*words, command.DISTRIBUTED]
        for given in ("--distributed", "--nodistributed", "--distributed=on"):
            assert command.joined([*words, given]) == [*words, given]
    assert command.joined(["python", "other.py"]) == ["python", "other.py"]


def test_the_newest_checkpoint_is_the_one_with_the_largest_step(tmp_path):
    assert command.newest_step(None) is None
    assert command.newest_step(str(tmp_path)) is None
    for name in ("5", "40", "7.orbax-checkpoint-tmp", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert command.newest_step(str(tmp_path)) == 40


def test_complete_checkpoints_on_an_object_store_are_listed_by_another_process(
    tmp_path, monkeypatch
):
    for step, complete in ((30, True), (40, False)):
        folder = tmp_path / "bucket" / "run" / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        (folder / "_CHECKPOINT_METADATA").write_text("{}")
        if complete:
            (folder / "commit_success.txt").write_text("")
    install = f"from tests.support import object_store\nobject_store.install({str(tmp_path)!r})\n"
    monkeypatch.setattr(command, "_LIST", install + command._LIST)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert command.newest_step("gs://bucket/run") == 30
    assert command.newest_step("gs://bucket/missing") is None
