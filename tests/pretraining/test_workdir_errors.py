"""Workdirs that a run cannot use: of another run, damaged, full or read-only.

Each message says what to do, and no earlier checkpoint is harmed.
"""

import json
import shutil
import subprocess

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.pretrain import pretrain
from roberta_jax.training.checkpoints import Checkpoints
from tests.support import texts
from tests.support.messages import one_screen


@pytest.fixture
def workdir(finished_run, tmp_path):
    """A copy of a run of four steps, with checkpoints 2 and 4 and without its export."""
    copy = shutil.copytree(finished_run.workdir, tmp_path / "run")
    shutil.rmtree(copy / "hf")
    return copy


def checkpoint_steps(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.steps()


# Another run, other data.


def test_another_config(four_steps, workdir):
    config = four_steps(**{"optimizer.learning_rate": 0.5, "seq_len": 8, "mesh.fsdp": 1})
    with pytest.raises(UsageError) as error:
        pretrain(config, workdir)
    message = one_screen(error.value)
    assert "optimizer.learning_rate: 0.002 there, 0.5 here" in message
    assert "seq_len: 16 there, 8 here" in message
    assert "train.steps" not in message.splitlines()[1:3]
    assert "another --workdir" in message
    assert checkpoint_steps(workdir) == [2, 4]


def test_fewer_steps_than_the_run_has_made(four_steps, workdir):
    with pytest.raises(UsageError, match=r"already at step 4, beyond --config\.train\.steps=3"):
        pretrain(four_steps(**{"train.steps": 3}), workdir)


def test_other_text(four_steps, workdir, tmp_path):
    corpus = texts.write_corpus(tmp_path / "corpus.jsonl", count=150)
    saved_config = json.loads((workdir / "config.json").read_text())
    saved_config["data"]["files"] = str(corpus)
    (workdir / "config.json").write_text(json.dumps(saved_config))
    with pytest.raises(UsageError, match="trained on other data"):
        pretrain(four_steps(**{"data.files": str(corpus)}), workdir)


def test_unreadable_config(four_steps, workdir):
    (workdir / "config.json").write_text('{"seed": 0, ')
    with pytest.raises(UsageError, match=r"config.json is not readable"):
        pretrain(four_steps(), workdir)


# Damaged checkpoints.


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_a_bit, truncate])
def test_damaged_checkpoint(four_steps, workdir, damage):
    checkpoint = workdir / "checkpoints" / "4"
    damage(largest_file(checkpoint))
    with pytest.raises(UsageError) as error:
        pretrain(four_steps(), workdir)
    message = one_screen(error.value)
    assert f"{checkpoint} is damaged" in message
    assert "The checkpoint of step 2 is intact" in message
    # The run continues from there after what the message recommends.
    assert f"rm -r {checkpoint}" in message
    shutil.rmtree(checkpoint)
    assert pretrain(four_steps(), workdir).finished


# Workdirs that cannot be written.


@pytest.fixture
def mount(tmp_path):
    """Returns a function that mounts a disk of a size ("3m") and returns its folder."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount_disk(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small disk needs root")
        return disk

    yield mount_disk
    if disk.is_mount():
        subprocess.run(["umount", "-l", str(disk)], check=True)


def remount(disk, option):
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def test_full_disk(four_steps, mount, capfd):
    disk = mount("2m")  # a checkpoint takes 0.5 MB
    config = four_steps(
        **{"train.steps": 20, "train.checkpoint_every": 1, "train.keep_checkpoints": 4}
    )
    with pytest.raises(UsageError) as error:
        pretrain(config, disk / "run")
    message = one_screen(error.value)
    assert "No space left on device" in message
    assert "make room" in message.lower()
    assert "Traceback" not in capfd.readouterr().err
    steps = checkpoint_steps(disk / "run")
    assert steps
    assert steps[-1] >= 1
    remount(disk, "size=64m")
    config.train.checkpoint_every = 0
    assert pretrain(config, disk / "run").finished


def test_read_only_workdir(four_steps, finished_run, mount):
    disk = mount("64m")
    shutil.copytree(finished_run.workdir, disk / "run")
    shutil.rmtree(disk / "run" / "hf")
    remount(disk, "ro")
    for workdir in (disk / "run", disk / "new"):
        with pytest.raises(UsageError) as error:
            pretrain(four_steps(), workdir)
        message = one_screen(error.value)
        assert "Read-only file system" in message
        assert "--workdir" in message


def test_workdir_is_a_file(four_steps, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        pretrain(four_steps(), tmp_path / "run")
    with pytest.raises(UsageError, match="Not a directory|is a file"):
        pretrain(four_steps(), tmp_path / "run" / "below")


def test_sources_are_checked_before_anything_is_written(four_steps, tmp_path):
    """So the corrected command can use the same workdir."""
    more = ({"files": str(tmp_path / "none*.txt")},)
    (tmp_path / "folder.jsonl").mkdir()
    for changes, message in (
        ({"data.files": str(tmp_path / "none*.txt")}, "no file matches"),
        ({"data.files": str(tmp_path / "folder.jsonl")}, "only a folder does"),
        (
            {"data.source": "tfds", "data.files": None},
            r"tfds_name=... and \S+tfds_split=... and \S+tfds_field=",
        ),
        ({"data.text_field": "body"}, "no field 'body'"),
        ({"data.mixture": more}, "no file matches"),
    ):
        with pytest.raises(UsageError, match=message):
            pretrain(four_steps(**changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_finished_run_needs_no_text(four_steps, finished_run, tmp_path):
    config = four_steps(**{"data.files": str(tmp_path / "corpus.jsonl")})
    texts.write_corpus(tmp_path / "corpus.jsonl", 60)
    workdir = shutil.copytree(finished_run.workdir, tmp_path / "run")
    saved = json.loads((workdir / "config.json").read_text())
    saved["data"]["files"] = str(tmp_path / "corpus.jsonl")
    (workdir / "config.json").write_text(json.dumps(saved))
    (tmp_path / "corpus.jsonl").unlink()
    assert pretrain(config, workdir).metrics == finished_run.metrics
