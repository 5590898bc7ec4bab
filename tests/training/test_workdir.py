import errno
import json
import os
import signal
import subprocess

import pytest

from roberta_jax.dotted_keys import key_matches
from roberta_jax.errors import UsageError
from roberta_jax.training.workdir import (
    WorkdirInUse,
    in_use,
    open_workdir,
    read_config,
)
from tests.support import processes

CONFIG = {"seed": 0, "train": {"steps": 10, "batch_size": 8}, "mesh": {"data": -1, "fsdp": 1}}
MAY_CHANGE = ("train.steps", "mesh.")


def changed(**groups):
    """`CONFIG` with some keys of some groups changed."""
    return {**CONFIG, **{name: {**CONFIG[name], **keys} for name, keys in groups.items()}}


def write_config(folder, config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))


def test_a_new_workdir_holds_the_config(tmp_path):
    with open_workdir(tmp_path / "a" / "run", CONFIG, MAY_CHANGE) as folder:
        assert str(folder) == str(tmp_path / "a" / "run")
        text = (folder / "config.json").read_text()
    assert text == json.dumps(CONFIG, indent=2) + "\n"
    assert read_config(folder) == CONFIG
    assert {path.name for path in folder.iterdir()} <= {"config.json", ".lock"}


def test_no_config_of_no_run(tmp_path):
    assert read_config(tmp_path / "nothing") is None


def test_some_keys_may_change_within_a_run(tmp_path):
    with open_workdir(tmp_path, CONFIG, MAY_CHANGE):
        pass
    config = changed(train={"steps": 20}, mesh={"fsdp": 2})
    with open_workdir(tmp_path, config, MAY_CHANGE):
        assert read_config(tmp_path) == config


def test_another_config(tmp_path):
    with open_workdir(tmp_path, CONFIG, MAY_CHANGE):
        pass
    config = {**changed(train={"batch_size": 16}, mesh={"fsdp": 2}), "seed": 1, "seq_len": 32}
    with pytest.raises(UsageError) as raised, open_workdir(tmp_path, config, MAY_CHANGE):
        pass
    message = str(raised.value)
    assert message.splitlines()[1:4] == [
        "  --config.seed: 0 there, 1 here",
        "  --config.seq_len: None there, 32 here",
        "  --config.train.batch_size: 8 there, 16 here",
    ]
    assert "another --workdir" in message
    assert message.endswith("within a run: --config.train.steps, --config.mesh.*.")
    assert read_config(tmp_path) == CONFIG


def test_tuples_are_the_lists_of_the_file(tmp_path):
    for _ in range(2):
        with open_workdir(tmp_path, {"mixture": ({"weight": 2},)}, ()):
            pass


# A config.json of an earlier version.

OLD = {"seed": 0, "train": {"steps": 10, "rows": 8}, "devices": {"data": -1, "fsdp": 1}}
RENAMED = {"train.rows": "train.batch_size", "devices.": "mesh."}


def test_renamed_keys_with_the_same_values_resume(tmp_path):
    write_config(tmp_path / "run", OLD)
    with open_workdir(tmp_path / "run", CONFIG, (), renamed=RENAMED):
        assert read_config(tmp_path / "run") == CONFIG


def test_renamed_keys_with_other_values_do_not(tmp_path):
    write_config(tmp_path / "run", OLD)
    config = changed(train={"batch_size": 16}, mesh={"fsdp": 2})
    with (
        pytest.raises(UsageError) as raised,
        open_workdir(tmp_path / "run", config, (), renamed=RENAMED),
    ):
        pass
    assert "  --config.train.batch_size: 8 there, 16 here" in str(raised.value)
    assert "  --config.mesh.fsdp: 1 there, 2 here" in str(raised.value)
    assert read_config(tmp_path / "run") == OLD


def test_added_keys_have_the_value_of_earlier_versions(tmp_path):
    write_config(tmp_path / "run", CONFIG)
    added = {"schedule.name": "polynomial"}
    other, same = ({**CONFIG, "schedule": {"name": name}} for name in ("cosine", "polynomial"))
    with (
        pytest.raises(UsageError, match="schedule.name: 'polynomial' there, 'cosine' here"),
        open_workdir(tmp_path / "run", other, (), added=added),
    ):
        pass
    with open_workdir(tmp_path / "run", same, (), added=added):
        assert read_config(tmp_path / "run") == same


@pytest.mark.parametrize("text", ['{"seed": 0, ', "[1]"])
def test_a_damaged_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config.json is not readable as a config"):
        read_config(tmp_path)


def test_keys_and_groups_match():
    assert key_matches("train.steps", MAY_CHANGE)
    assert key_matches("mesh.fsdp", MAY_CHANGE)
    assert not key_matches("train.steps_per_epoch", MAY_CHANGE)
    assert not key_matches("mesh", MAY_CHANGE)


# The lock.


def hold(folder):
    """Opens the workdir in a separate process and waits to be killed."""
    with open_workdir(folder, CONFIG, ()):
        print("open", flush=True)
        signal.pause()


def test_one_run_at_a_time_until_its_process_is_killed(tmp_path):
    assert not in_use(tmp_path)
    process = subprocess.Popen(
        processes.command(__name__, "hold", tmp_path),
        env=processes.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "open\n"
        assert in_use(tmp_path)
        with (
            pytest.raises(WorkdirInUse, match="another run is writing to"),
            open_workdir(tmp_path, CONFIG, ()),
        ):
            pass
        with open_workdir(tmp_path, CONFIG, (), primary=False):
            pass  # other processes of a run do not lock
    finally:
        process.kill()
        process.communicate()
    assert not in_use(tmp_path)
    with open_workdir(tmp_path, CONFIG, ()):
        assert in_use(tmp_path)
    assert not in_use(tmp_path)


# The file system.


def test_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(UsageError, match="run is a file. Choose another name"),
        open_workdir(tmp_path / "run", CONFIG, ()),
    ):
        pass


def test_errors_that_a_user_can_fix_are_usage_errors(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "metrics.jsonl"))
    with (
        pytest.raises(UsageError, match=r"cannot write .*metrics.jsonl: No space left on device"),
        open_workdir(tmp_path, CONFIG, ()),
    ):
        raise full
    with pytest.raises(ConnectionError), open_workdir(tmp_path, CONFIG, ()):
        raise ConnectionError(errno.ECONNRESET, "a bug or a network")
