import contextlib
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
    check_export,
    in_use,
    open_workdir,
    read_config,
    record_export,
    trained_config,
    write_config,
)
from tests.support import processes

CONFIG = {"seed": 0, "train": {"steps": 10, "batch_size": 8}, "mesh": {"data": -1, "fsdp": 1}}
MAY_CHANGE = ("train.steps", "mesh.")


def changed(**groups):
    """`CONFIG` with some keys of some groups changed."""
    return {**CONFIG, **{name: {**CONFIG[name], **keys} for name, keys in groups.items()}}


def trained_run(folder, config=CONFIG):
    """Makes a workdir that has trained up to step 2."""
    (folder / "checkpoints" / "2").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def start(folder, config, may_change=(), **changed):
    """Opens a workdir and writes the config, as a run does; returns the config in the workdir."""
    with open_workdir(folder, config, may_change, **changed) as opened:
        write_config(opened, config)
        return read_config(folder)


def test_a_new_workdir_holds_the_config(tmp_path):
    with open_workdir(tmp_path / "a" / "run", CONFIG, MAY_CHANGE) as folder:
        assert str(folder) == str(tmp_path / "a" / "run")
        assert {path.name for path in folder.iterdir()} <= {".lock"}
        write_config(folder, CONFIG)
        text = (folder / "config.json").read_text()
    assert text == json.dumps(CONFIG, indent=2) + "\n"
    assert read_config(folder) == CONFIG
    assert {path.name for path in folder.iterdir()} <= {"config.json", ".lock"}


def test_no_config_of_no_run(tmp_path):
    assert read_config(tmp_path / "nothing") is None


def test_some_keys_may_change_within_a_run(tmp_path):
    trained_run(tmp_path / "run")
    config = changed(train={"steps": 20}, mesh={"fsdp": 2})
    assert start(tmp_path / "run", config, MAY_CHANGE) == config


def test_another_config(tmp_path):
    folder = trained_run(tmp_path / "run")
    config = {**changed(train={"batch_size": 16}, mesh={"fsdp": 2}), "seed": 1, "seq_len": 32}
    with pytest.raises(UsageError) as raised:
        start(folder, config, MAY_CHANGE)
    message = str(raised.value)
    assert message.splitlines()[1:4] == [
        "  --config.seed: 0 there, 1 here",
        "  --config.seq_len: None there, 32 here",
        "  --config.train.batch_size: 8 there, 16 here",
    ]
    assert "another --workdir" in message
    assert message.endswith("within a run, after --config.: train.steps, mesh.*.")
    assert read_config(folder) == CONFIG


@pytest.mark.parametrize("saved", [json.dumps(CONFIG), '{"seed": 0, ', "", "[1]"])
def test_a_workdir_in_which_nothing_was_trained_takes_any_config(tmp_path, capsys, saved):
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)  # never completed
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (tmp_path / "config.json").write_text(saved)
    assert trained_config(tmp_path) is None
    config = {**CONFIG, "seed": 1}
    assert start(tmp_path, config) == config
    printed = capsys.readouterr().out
    assert printed == f"Replacing {tmp_path / 'config.json'}: nothing was trained with it.\n"
    assert start(tmp_path, config) == config
    assert capsys.readouterr().out == ""


def test_an_exported_model_without_checkpoints_was_trained(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UsageError, match="seed: 0 there, 1 here"):
        start(tmp_path, {**CONFIG, "seed": 1})


def test_checkpoints_without_a_config_are_refused(tmp_path):
    trained_run(tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(UsageError, match=r"holds a run without its config\.json"):
        start(tmp_path / "run", CONFIG)


def test_tuples_are_the_lists_of_the_file(tmp_path):
    trained_run(tmp_path / "run", {"mixture": [{"weight": 2}]})
    start(tmp_path / "run", {"mixture": ({"weight": 2},)})


# A config.json of an earlier version.

OLD = {"seed": 0, "train": {"steps": 10, "rows": 8}, "devices": {"data": -1, "fsdp": 1}}
RENAMED = {"train.rows": "train.batch_size", "devices.": "mesh."}


def test_renamed_keys_with_the_same_values_resume(tmp_path):
    trained_run(tmp_path / "run", OLD)
    assert start(tmp_path / "run", CONFIG, renamed=RENAMED) == CONFIG


def test_renamed_keys_with_other_values_do_not(tmp_path):
    trained_run(tmp_path / "run", OLD)
    config = changed(train={"batch_size": 16}, mesh={"fsdp": 2})
    with pytest.raises(UsageError) as raised:
        start(tmp_path / "run", config, renamed=RENAMED)
    assert "  --config.train.batch_size: 8 there, 16 here" in str(raised.value)
    assert "  --config.mesh.fsdp: 1 there, 2 here" in str(raised.value)
    assert read_config(tmp_path / "run") == OLD


def test_added_keys_have_the_value_of_earlier_versions(tmp_path):
    trained_run(tmp_path / "run")
    added = {"schedule.name": "polynomial"}
    other, same = ({**CONFIG, "schedule": {"name": name}} for name in ("cosine", "polynomial"))
    with pytest.raises(UsageError, match="schedule.name: 'polynomial' there, 'cosine' here"):
        start(tmp_path / "run", other, added=added)
    assert start(tmp_path / "run", same, added=added) == same


@pytest.mark.parametrize(
    "content", [b'{"seed": 0, ', b"[1]", b"", b'{"s\xf3ed": 0}', b"[" * 100_000, None]
)
def test_a_damaged_config(tmp_path, content):
    trained_run(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    for read in (read_config, trained_config):
        with pytest.raises(UsageError, match=r"config.json is not readable as a config"):
            read(tmp_path / "run")


# The export.


@pytest.fixture
def exported(tmp_path):
    folder = trained_run(tmp_path / "run")
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text("{}")
    (folder / "hf" / "model.safetensors").write_bytes(bytes(range(256)))
    record_export(folder)
    return folder


def test_an_export_that_is_as_it_was_written(exported):
    (exported / "hf" / "README.md").write_text("Added by the user.")
    assert check_export(exported)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_export_is_reported_with_the_way_to_write_it_again(exported, name):
    path = exported / "hf" / name
    good = path.read_bytes()
    damages = [good[:-1], b"", None]
    damages += [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(len(good))]
    for damaged in damages:
        path.unlink(missing_ok=True)
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(UsageError, match=f"damaged: hf/{name}") as error:
            check_export(exported)
        assert str(error.value).endswith(f"\n  rm -r {exported / 'hf'}")
    (exported / "checkpoints" / "2").rmdir()
    with pytest.raises(UsageError, match="restore it from a copy"):
        check_export(exported)


@pytest.mark.parametrize("text", [None, "", "[1]", '{"config.json"'])
def test_without_readable_digests_nothing_is_known_of_an_export(exported, text):
    (exported / ".export.json").unlink()
    if text is not None:
        (exported / ".export.json").write_text(text)
    assert not check_export(exported)


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


@pytest.mark.parametrize("name", ["x" * 5000, "loop", "loop/run", "dangling", "\udcff", "a\0b"])
def test_a_name_that_cannot_be_used(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("missing")
    folder = f"{tmp_path}/{name}"
    with pytest.raises(UsageError, match=r"cannot (be used|write)|Choose another"):
        start(folder, CONFIG)
    with contextlib.suppress(UsageError):
        assert trained_config(folder) is None


def test_errors_that_a_user_can_fix_are_usage_errors(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "metrics.jsonl"))
    with (
        pytest.raises(UsageError, match=r"cannot write .*metrics.jsonl: No space left on device"),
        open_workdir(tmp_path, CONFIG, ()),
    ):
        raise full
    with pytest.raises(ConnectionError), open_workdir(tmp_path, CONFIG, ()):
        raise ConnectionError(errno.ECONNRESET, "a bug or a network")
