"""Which implementation "auto" takes, and where arrays are one device's."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from roberta_jax.kernels import attention, dispatch, layer_norm

X = np.zeros((2, 128, 256), np.float32)


@pytest.fixture
def on_a_tpu(monkeypatch):
    """As if JAX's backend were a TPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


def chosen():
    return attention.of_platform("auto"), layer_norm.of_platform("auto", X)


def a_mesh(size):
    return AbstractMesh((size,), ("data",), axis_types=(AxisType.Auto,))


def test_auto_takes_the_kernels_of_the_platform(on_a_tpu, monkeypatch):
    assert chosen() == ("pallas_tpu", "pallas_tpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "cuda")
    assert chosen() == ("pallas_gpu", "xla")
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert chosen() == ("xla", "xla")
    assert attention.of_platform("auto", "tpu") == "pallas_tpu"


def test_auto_takes_no_kernels_where_arrays_may_be_split_in_any_way(on_a_tpu, monkeypatch):
    """The partitioner refuses to split a kernel."""
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert chosen() == ("xla", "xla")
    with jax.sharding.use_abstract_mesh(a_mesh(8)):
        assert chosen() == ("xla", "xla")
        with nn.logical_axis_rules((("batch", "data"),)):
            assert chosen() == ("pallas_tpu", "pallas_tpu")
            assert dispatch.axes_of("batch") == ("data",)
            assert dispatch.dividing_axes("batch", 12) is None
            assert dispatch.dividing_axes("batch", 16) == ("data",)
    with jax.sharding.use_abstract_mesh(a_mesh(1)):
        assert chosen() == ("pallas_tpu", "pallas_tpu")
    # What is chosen by name is taken all the same.
    assert attention.of_platform("pallas_tpu") == "pallas_tpu"


def test_inside_shard_map_arrays_are_one_devices(on_a_tpu):
    with jax.sharding.use_abstract_mesh(a_mesh(8)):
        assert dispatch.mesh_to_split_over() is not None
    inside = AbstractMesh((8,), ("data",), axis_types=(AxisType.Manual,))
    with jax.sharding.use_abstract_mesh(inside):
        assert dispatch.mesh_to_split_over() is None
        assert chosen() == ("pallas_tpu", "pallas_tpu")
