"""How devices of several slices and hosts are arranged. The devices here are only numbers."""

import types

import jax
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.training.mesh import create_mesh
from tests.support import processes


def tpus(slices, per_slice):
    """TPU devices in lines, given in an order that mixes the slices."""
    return [
        types.SimpleNamespace(
            id=slice_index * per_slice + i,
            platform="tpu",
            device_kind="TPU v4",
            process_index=slice_index,
            slice_index=slice_index,
            coords=(i, 0, 0),
            core_on_chip=0,
        )
        for i in range(per_slice)
        for slice_index in range(slices)
    ]


@pytest.fixture
def arranged(monkeypatch):
    """(arguments of create_mesh) -> the devices as an array, in place of a mesh."""
    monkeypatch.setattr("roberta_jax.training.mesh.Mesh", lambda array, *_, **__: array)
    return create_mesh


def slices_along(array, axis):
    """Whether the lines of devices along an axis have members of several slices."""
    lines = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
    return {len({device.slice_index for device in line}) for line in lines}


@pytest.mark.parametrize("sizes", [(2, 4, 1), (-1, 2, 2), (8, 1, 1), (4, 1, 2)])
def test_only_data_crosses_tpu_slices(arranged, sizes):
    array = arranged(*sizes, devices=tpus(slices=2, per_slice=4))
    assert slices_along(array, 0) == {2}
    assert slices_along(array, 1) == slices_along(array, 2) == {1}
    assert len({device.id for device in array.flat}) == 8


def test_the_number_of_slices_that_the_config_gives_is_that_of_the_devices(arranged):
    array = arranged(4, devices=tpus(slices=4, per_slice=1), slices=4)
    assert [device.slice_index for device in array.flat] == [0, 1, 2, 3]
    with pytest.raises(UsageError, match=r"slices=2, but the 4 TPU devices .* are of 4 slice"):
        arranged(4, devices=tpus(slices=4, per_slice=1), slices=2)


def test_axes_that_would_cross_slices_are_refused(arranged):
    devices = tpus(slices=2, per_slice=4)
    with pytest.raises(UsageError, match="size 1 is not divisible by 2. .* the 4 devices of a sl"):
        arranged(1, 8, 1, devices=devices)
    with pytest.raises(UsageError, match="different numbers of devices: 4, 3"):
        arranged(7, devices=devices[:-1])


def gpus(count, per_host):
    return [
        types.SimpleNamespace(
            id=i, platform="gpu", device_kind="H200", process_index=i // per_host,
            slice_index=i // per_host,
        )
        for i in range(count)
    ]  # fmt: skip


def test_gpu_hosts_are_no_slices_unless_the_config_says_so(arranged):
    array = arranged(1, 16, 1, devices=gpus(16, per_host=8))
    assert [device.id for device in array.flat] == list(range(16))
    with pytest.raises(UsageError, match="the devices are of 2 slices"):
        arranged(1, 16, 1, devices=gpus(16, per_host=8), slices=2)
    array = arranged(-1, 8, 1, devices=gpus(16, per_host=8), slices=2)
    assert slices_along(array, 1) == {1}


@pytest.mark.parametrize(
    ("slices", "message"),
    [(3, "slices=3 does not divide the 8 cpu"), (0, "at least 1"), (2.5, "at least 1")],
)
def test_numbers_of_slices_that_do_not_fit(arranged, slices, message):
    devices = [types.SimpleNamespace(id=i, platform="cpu", device_kind="cpu") for i in range(8)]
    with pytest.raises(UsageError, match=message):
        arranged(devices=devices, slices=slices)


def on_eight_devices():
    """Two slices of 4 virtual devices: the first half of the axis `data` is the first slice."""
    mesh = create_mesh(-1, 2, 1, slices=2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert [device.id for device in mesh.devices[:2].flat] == [0, 1, 2, 3]
    assert mesh == create_mesh(-1, 2, 1)
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


def test_two_slices_of_four_virtual_devices():
    processes.run(__name__, "on_eight_devices", devices=8)
