import json

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from roberta_jax.errors import UsageError
from roberta_jax.training import partitioning
from roberta_jax.training.partitioning import (
    create_mesh,
    local_batch_rows,
    parameter_spec,
    rows_and_accumulation,
    to_global,
)
from roberta_jax.training.state import create_state
from tests.support import processes, toy


def test_one_device_is_a_mesh():
    mesh = create_mesh(devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    np.testing.assert_array_equal(local_batch_rows(mesh, 6), np.arange(6))


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"data": 3}, "product of the sizes must be 1"),
        ({"fsdp": 2}, "mesh.fsdp=2"),
        ({"tensor": 0}, "positive"),
        ({"data": -1, "fsdp": -1}, "only one"),
        ({"data": -2}, "-1 for what is left"),
    ],
)
def test_sizes_that_do_not_fit(sizes, says):
    with pytest.raises(UsageError, match=says):
        create_mesh(**sizes, devices=jax.devices()[:1])


def test_parameters_follow_the_rules():
    assert parameter_spec(("vocab", "embed")) == PartitionSpec(None, "fsdp")
    assert parameter_spec(("layers", "embed", "heads")) == PartitionSpec(None, "fsdp", "tensor")
    assert parameter_spec(("layers", "mlp", "embed")) == PartitionSpec(None, "tensor", "fsdp")
    assert parameter_spec(("norm",)) == PartitionSpec(None)
    assert parameter_spec(()) == PartitionSpec()


def test_two_axes_on_one_mesh_axis_are_rejected():
    with pytest.raises(ValueError, match="two of the axes"):
        parameter_spec(("heads", "mlp"))
    with pytest.raises(ValueError, match="no rule"):
        parameter_spec(("emebd",))


def test_accumulation_is_the_least_that_fits():
    mesh = create_mesh(devices=jax.devices()[:1])
    assert rows_and_accumulation(mesh, 32) == (32, 1)
    assert rows_and_accumulation(mesh, 32, 64) == (32, 1)
    assert rows_and_accumulation(mesh, 8192, 16) == (16, 512)
    assert rows_and_accumulation(mesh, 24, 7) == (6, 4)
    for size, rows in ((0, None), (8, 0)):
        with pytest.raises(UsageError, match="at least"):
            rows_and_accumulation(mesh, size, rows)


def test_to_global_keeps_values():
    mesh = create_mesh(devices=jax.devices()[:1])
    batch = toy.host_batch(0, range(4))
    found = to_global(batch, mesh, 4, np.arange(4))
    for name, array in batch.items():
        np.testing.assert_array_equal(found[name], array)


def on_eight_devices():
    """What needs several devices, in one process: prints what the test below looks at."""
    mesh = create_mesh(data=2, fsdp=2, tensor=2)
    assert dict(create_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    with pytest.raises(UsageError, match=r"train.batch_size=8 or train.batch_size=12|=8 or 12"):
        rows_and_accumulation(mesh, 10)
    assert rows_and_accumulation(mesh, 16, 2) == (2, 2)

    # Each device holds its rows only, and a tensor pair holds the same ones.
    rows = local_batch_rows(mesh, 8)
    np.testing.assert_array_equal(rows, np.arange(8))
    x = to_global(toy.host_batch(3, rows), mesh, 8, rows)["x"]
    assert {shard.data.shape[0] for shard in x.addressable_shards} == {2}
    assert len({str(shard.index) for shard in x.addressable_shards}) == 4

    # Parameters and moments are split where the rules say.
    _, state, step = toy.setting(mesh=mesh)
    for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
        assert tree["kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
        assert tree["out"].sharding.spec == PartitionSpec("tensor", "fsdp")
        assert tree["kernel"].addressable_shards[0].data.size == tree["kernel"].size // 4
        assert tree["scale"].sharding.is_fully_replicated

    # The modules' constraints stand in the lowered text; linen drops them without the rules.
    lowered = step.lower(state, next(toy.batches(mesh, 8)(0))).as_text()
    constraints = [line for line in lowered.splitlines() if "sharding_constraint" in line]
    assert any("tensor" in line and "data" in line for line in constraints), constraints

    with pytest.raises(UsageError, match="does not divide the axis 'embed' of size 8"):
        create_state(toy.init_params, toy.adamw(lambda _: 1e-3), odd_mesh())

    print(json.dumps(losses(mesh)))


def odd_mesh():
    return create_mesh(data=1, fsdp=3, tensor=1, devices=jax.devices()[:3])


def losses(mesh, accumulation=1):
    _, state, step = toy.setting(mesh=mesh, accumulation=accumulation)
    data, found = toy.batches(mesh, 8)(0), []
    for _ in range(5):
        state, metrics = step(state, next(data))
        found.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    return found


def test_eight_devices_train_as_one():
    eight = json.loads(processes.run(__name__, "on_eight_devices", devices=8))
    one = losses(create_mesh(devices=jax.devices()[:1]))
    np.testing.assert_allclose(eight, one, rtol=1e-5)


def test_no_logical_axis_is_without_a_rule():
    names = [name for name, _ in partitioning.RULES]
    assert len(names) == len(set(names))
