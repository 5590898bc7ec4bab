import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from roberta_jax.errors import UsageError
from roberta_jax.storage import atomic
from roberta_jax.training.array_digests import digest
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.optimizer import adamw
from roberta_jax.training.partitioning import create_mesh
from roberta_jax.training.state import abstract_state, create_state
from tests.support import processes, toy

TX = adamw(lambda _: 1e-2)


@pytest.fixture(scope="module")
def state():
    return create_state(toy.init_params, TX, create_mesh())


@pytest.fixture(scope="module")
def like():
    return abstract_state(toy.init_params, TX, create_mesh())


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def shifted(state, by):
    return jax.tree.map(lambda x: x + jnp.asarray(by, x.dtype), state)


def test_a_saved_state_is_restored(tmp_path, state, like):
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore(like) is None
        checkpoints.save(3, state, {"tokenizer": "abc"})
        checkpoints.save(3, shifted(state, 1))  # has no effect: the step has a checkpoint
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step() == 3
        restored, extra = checkpoints.restore(like)
    assert equal(restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert extra == {"tokenizer": "abc"}
    for shape, array in zip(jax.tree.leaves(like), jax.tree.leaves(restored), strict=True):
        assert (array.dtype, array.sharding) == (shape.dtype, shape.sharding)


def test_the_state_may_be_donated_right_after_save(tmp_path, like):
    """The save runs in the background while the next step writes over the state's memory."""
    big = jax.jit(lambda: jnp.arange(3_000_000, dtype=jnp.float32))()
    shape = jax.ShapeDtypeStruct(big.shape, big.dtype, sharding=big.sharding)
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"x": big})
        for _ in range(5):
            big = overwrite(big)
        checkpoints.wait()
        restored, _ = checkpoints.restore({"x": shape})
    np.testing.assert_array_equal(restored["x"], np.arange(3_000_000, dtype=np.float32))


def test_only_the_newest_checkpoints_are_kept(tmp_path, state):
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for step in (1, 2, 5):
            checkpoints.save(step, state)
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.steps() == [2, 5]
    with pytest.raises(UsageError, match="--config.train.keep_checkpoints=0 must be at least 1"):
        Checkpoints(tmp_path / "c", keep=0)


# The digest.


def reference_digest(x):
    bits = x.reshape(-1).view(f"u{x.dtype.itemsize}").astype(np.uint64)
    index = np.arange(bits.size, dtype=np.uint64)
    weights = index * 0x9E3779B1 % 2**32
    weights = (weights ^ (weights >> np.uint64(15))) | np.uint64(1)
    return int(sum(int(b) * int(w) for b, w in zip(bits, weights, strict=True)) % 2**32)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4)])
def test_the_digest_matches_its_definition(dtype, shape):
    x = np.asarray(np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)
    assert int(jax.jit(digest)(x)) == reference_digest(np.atleast_1d(x))


def test_the_digest_changes_with_every_bit_and_every_swap():
    x = np.random.default_rng(0).normal(size=64).astype(np.float32)
    jitted = jax.jit(digest)
    original = int(jitted(x))
    bits = x.view(np.uint32)
    for element in range(0, 64, 5):
        for bit in range(32):
            altered = bits.copy()
            altered[element] ^= np.uint32(1 << bit)
            assert int(jitted(altered.view(np.float32))) != original
    for i in range(0, 64, 7):
        for j in range(i):
            swapped = x.copy()
            swapped[[i, j]] = x[[j, i]]
            assert int(jitted(swapped)) != original
    assert int(jitted(np.float32(0.0))) != int(jitted(np.float32(-0.0)))


def digests_on_eight_devices():
    x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    mesh = create_mesh(data=2, fsdp=2, tensor=2)
    for spec in ((), ("fsdp",), (None, "tensor"), ("data", ("fsdp", "tensor"))):
        placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
        print(int(jax.jit(digest)(placed)))


def test_the_digest_is_the_same_on_every_mesh():
    digests = processes.run(__name__, "digests_on_eight_devices", devices=8).split()
    x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    assert digests == [str(reference_digest(x))] * 4


# Damage. The state has few arrays, because every file of a checkpoint is damaged in turn.


def small(by):
    x = jax.random.normal(jax.random.key(0), (50, 20))
    return {"n": jnp.int32(7 + by), "x": x + by}


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "c"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, small(1))
        checkpoints.save(2, small(2))
    return folder


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 0x10
    path.write_bytes(data)


def truncate(path, at):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, pytest.param(truncate, marks=pytest.mark.slow)])
def test_damage_is_reported_or_harmless(tmp_path, two_steps, damage, capfd):
    """No damaged file of the newest step leads to wrong values or to a traceback."""
    reports = []
    files = sorted(p for p in (two_steps / "2").rglob("*") if p.is_file() and p.stat().st_size)
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(two_steps, folder)
        damage(folder / file.relative_to(two_steps), at=37 * number + 11)
        with Checkpoints(folder) as checkpoints:
            try:
                restored, _ = checkpoints.restore(shapes(small(0)))
                assert equal(restored, small(2)), file
            except UsageError as error:
                reports.append((folder, str(error)))
    assert len(reports) >= 3
    for folder, message in reports:
        assert f"{folder / '2'} is damaged" in message
        assert "The checkpoint of step 1 is intact" in message
        assert f"rm -r {folder / '2'}" in message
        assert len(message) < 900
    assert "Traceback" not in capfd.readouterr().err
    folder = reports[0][0]
    shutil.rmtree(folder / "2")  # as the message says
    with Checkpoints(folder) as checkpoints:
        assert equal(checkpoints.restore(shapes(small(0)))[0], small(1))


def test_every_step_damaged(tmp_path, two_steps):
    shutil.copytree(two_steps, tmp_path / "c")
    for step in (1, 2):
        (tmp_path / "c" / str(step) / "meta" / "metadata").write_text("{}")
    with (
        Checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(UsageError, match="No earlier checkpoint is intact"),
    ):
        checkpoints.restore(shapes(small(0)))


def test_another_model_or_dtype_is_an_error(tmp_path, state, like):
    half = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=leaf.sharding),
        like.params,
    )
    wider = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=like.params["kernel"].sharding)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        with pytest.raises(UsageError, match=r"saved float32\[16\], this run has bfloat16\[16\]"):
            checkpoints.restore(like.replace(params=half))
        with pytest.raises(UsageError, match=r"kernel: saved float32\[8, 16\]"):
            checkpoints.restore(like.replace(params={**like.params, "kernel": wider}))


# Errors of the file system.


def tmpfs(folder, size):
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")


def save_eight(folder, x):
    with Checkpoints(folder) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(step, {"x": x * step})


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    tmpfs(disk, "6m")
    try:
        x = jax.random.normal(jax.random.key(0), (600_000,))
        with pytest.raises(UsageError, match="No space left on device") as raised:
            save_eight(disk / "c", x)
        assert "make room" in str(raised.value)
        step = int([word for word in str(raised.value).split() if word.isdigit()][-1])
        with Checkpoints(disk / "c") as checkpoints:
            assert checkpoints.latest_step() == step
            np.testing.assert_array_equal(checkpoints.restore(shapes({"x": x}))[0]["x"], x * step)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Not a directory"):
        Checkpoints(tmp_path / "file" / "c")


# Going back to an older checkpoint.


def save_steps(folder, steps, **options):
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, small(step), {"of": step})


def damage_array(folder):
    for file in (folder / "state" / "d").iterdir():
        truncate(file, 0)


def test_on_request_a_damaged_checkpoint_is_set_aside(tmp_path, capsys):
    folder = tmp_path / "c"
    save_steps(folder, (1, 2, 3), keep=5)
    damage_array(folder / "3")
    (folder / "2" / "meta" / "metadata").unlink()
    damaged = {path.name: path.stat().st_size for path in (folder / "3").rglob("*")}
    with Checkpoints(folder, keep=5) as checkpoints:
        with pytest.raises(UsageError, match=r"--on_damage=older"):
            checkpoints.restore(shapes(small(0)))
        assert checkpoints.steps() == [1, 2, 3]
        restored, extra = checkpoints.restore(shapes(small(0)), "older")
        assert equal(restored, small(1))
        assert extra == {"of": 1}
        assert checkpoints.last_saved == 1
        printed = capsys.readouterr().out
        assert "The checkpoint of step 3 is damaged (" in printed
        assert "It was renamed to damaged.3." in printed
        assert "It was renamed to damaged.2." in printed
        assert "Going back to the checkpoint of step 1." in printed
        assert checkpoints.steps() == [1]
        # The steps can be saved again, and be damaged again.
        for step in (2, 3):
            checkpoints.save(step, small(step))
        checkpoints.wait()
    assert {path.name: path.stat().st_size for path in (folder / "damaged.3").rglob("*")} == damaged
    damage_array(folder / "3")
    with Checkpoints(folder, keep=5) as checkpoints:
        assert equal(checkpoints.restore(shapes(small(0)), "older")[0], small(2))
    names = {path.name for path in folder.iterdir()}
    assert names == {"1", "2", "damaged.2", "damaged.3", "damaged.3.2"}


def test_without_an_intact_checkpoint_nothing_is_renamed(tmp_path):
    save_steps(tmp_path / "c", (1, 2))
    for step in (1, 2):
        damage_array(tmp_path / "c" / str(step))
    with (
        Checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(UsageError, match="No earlier checkpoint is intact"),
    ):
        checkpoints.restore(shapes(small(0)), "older")
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"1", "2"}


def test_folders_are_set_aside_without_a_rename(tmp_path, monkeypatch):
    """As on an object store."""
    save_steps(tmp_path / "c", (1,))
    before = {
        path.relative_to(tmp_path / "c" / "1"): path.read_bytes()
        for path in (tmp_path / "c" / "1").rglob("*")
        if path.is_file()
    }
    monkeypatch.setattr(atomic, "is_local", lambda path: False)
    assert atomic.move_aside(epath.Path(tmp_path / "c" / "1"), "damaged") == "damaged.1"
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["damaged.1"]
    after = {
        path.relative_to(tmp_path / "c" / "damaged.1"): path.read_bytes()
        for path in (tmp_path / "c" / "damaged.1").rglob("*")
        if path.is_file()
    }
    assert after == before


# Retention.


def test_milestones_are_kept_besides_the_newest(tmp_path):
    folder = tmp_path / "c"
    save_steps(folder, range(2, 15, 2), keep=2, keep_every=4)
    assert on_disk(folder) == [4, 8, 12, 14]


def test_milestones_stay_when_the_retention_changes(tmp_path):
    """Also those of a former `keep_every`; others are deleted as the present values say."""
    folder = tmp_path / "c"
    save_steps(folder, range(1, 8), keep=3, keep_every=3)
    assert on_disk(folder) == [3, 5, 6, 7]
    save_steps(folder, (8,), keep=1, keep_every=0)
    assert on_disk(folder) == [3, 6, 8]
    save_steps(folder, (9, 10, 11), keep=2, keep_every=5)
    assert on_disk(folder) == [3, 6, 10, 11]


def test_a_checkpoint_of_an_earlier_version_is_no_milestone(tmp_path):
    folder = tmp_path / "c"
    save_steps(folder, (1, 2), keep=2)
    metadata = folder / "1" / "meta" / "metadata"
    values = json.loads(metadata.read_text())
    del values["milestone"]
    metadata.write_text(json.dumps(values))
    save_steps(folder, (3,), keep=2)
    assert on_disk(folder) == [2, 3]


def test_an_unreadable_checkpoint_is_not_deleted(tmp_path):
    folder = tmp_path / "c"
    save_steps(folder, (1, 2), keep=2)
    (folder / "1" / "meta" / "metadata").write_text("{")
    save_steps(folder, (3,), keep=2)
    assert on_disk(folder) == [1, 2, 3]


def on_disk(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def test_a_negative_interval_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--config.train.keep_every=-1 must be positive"):
        Checkpoints(tmp_path / "c", keep_every=-1)


def test_the_command_that_deletes_damaged_checkpoints_suits_where_they_are(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.folder = epath.Path("gs://bucket/run/checkpoints")
        message = checkpoints._damage_message({2: ValueError("bad"), 3: ValueError("worse")}, 1)
    assert message.endswith(
        "\n  gcloud storage rm -r gs://bucket/run/checkpoints/2 gs://bucket/run/checkpoints/3"
    )
