import json

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from roberta_jax.errors import UsageError
from roberta_jax.training.partitioning import (
    MESH_AXES,
    RULES,
    create_mesh,
    local_batch_rows,
    of_one_data_shard,
    optimizer_sharding,
    parameter_spec,
    rows_and_accumulation,
    rules_with,
    to_global,
)
from roberta_jax.training.state import abstract_state
from tests.support import processes, toy


def test_one_device_is_a_mesh():
    mesh = create_mesh(devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    np.testing.assert_array_equal(local_batch_rows(mesh, 6), np.arange(6))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "product of the sizes must be 1"),
        ({"fsdp": 2}, "--config.mesh.fsdp=2"),
        ({"tensor": 0}, "must be a positive whole number"),
        ({"tensor": float("nan")}, "must be a positive whole number"),
        ({"fsdp": "two"}, "must be a positive whole number"),
        ({"data": 10**30}, "product of the sizes must be 1"),
        ({"data": -1, "fsdp": -1}, "only one"),
        ({"data": -2}, "-1 for all other devices"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(UsageError, match=message):
        create_mesh(**sizes, devices=jax.devices()[:1])


def test_the_rules_give_the_specs_of_parameters():
    assert parameter_spec(("vocab", "embedding")) == PartitionSpec(None, ("fsdp", "tensor"))
    assert parameter_spec(("layers", "embed", "heads")) == PartitionSpec(None, "fsdp", "tensor")
    assert parameter_spec(("layers", "mlp", "embed")) == PartitionSpec(None, "tensor", "fsdp")
    assert parameter_spec(("norm",)) == PartitionSpec(None)
    assert parameter_spec(()) == PartitionSpec()


def test_two_axes_on_one_mesh_axis_are_rejected():
    with pytest.raises(UsageError, match="two of the axes .* are on the mesh axis 'tensor'"):
        parameter_spec(("heads", "mlp"))
    with pytest.raises(ValueError, match="no rule"):
        parameter_spec(("emebd",))


def test_accumulation_uses_as_few_microbatches_as_fit():
    mesh = create_mesh(devices=jax.devices()[:1])
    assert rows_and_accumulation(mesh, 32) == (32, 1)
    assert rows_and_accumulation(mesh, 32, 64) == (32, 1)
    assert rows_and_accumulation(mesh, 8192, 16) == (16, 512)
    assert rows_and_accumulation(mesh, 24, 7) == (6, 4)
    with pytest.raises(UsageError, match="--config.eval.batch_size=0 must be at least 1"):
        rows_and_accumulation(mesh, 0, key="eval.batch_size")
    with pytest.raises(UsageError, match="--config.train.per_device_batch_size=0 must be at least"):
        rows_and_accumulation(mesh, 8, 0)


def test_to_global_keeps_values():
    mesh = create_mesh(devices=jax.devices()[:1])
    batch = toy.host_batch(0, range(4))
    arrays = to_global(batch, mesh, 4, np.arange(4))
    for name, array in batch.items():
        np.testing.assert_array_equal(arrays[name], array)


def on_eight_devices():
    """All checks that need eight devices; prints the metrics that the test below compares."""
    mesh = create_mesh(data=2, fsdp=2, tensor=2)
    assert dict(create_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    with pytest.raises(
        UsageError, match="Use --config.train.batch_size=8 or --config.train.batch_size=12"
    ):
        rows_and_accumulation(mesh, 10)
    assert rows_and_accumulation(mesh, 16, 2) == (2, 2)

    # Each device holds its own rows only. The two devices along `tensor` hold the same rows.
    rows = local_batch_rows(mesh, 8)
    np.testing.assert_array_equal(rows, np.arange(8))
    x = to_global(toy.host_batch(3, rows), mesh, 8, rows)["x"]
    assert {shard.data.shape[0] for shard in x.addressable_shards} == {2}
    assert len({str(shard.index) for shard in x.addressable_shards}) == 4

    # Parameters and moments are split as the rules say.
    _, state, step = toy.setting(mesh=mesh)
    for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
        assert tree["kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
        assert tree["out"].sharding.spec == PartitionSpec("tensor", "fsdp")
        assert tree["kernel"].addressable_shards[0].data.size == tree["kernel"].size // 4
        assert tree["scale"].sharding.is_fully_replicated

    # The lowered program has the modules' constraints. (linen drops them without rules.)
    lowered = step.lower(state, next(toy.batches(mesh, 8)(0))).as_text()
    constraints = [line for line in lowered.splitlines() if "sharding_constraint" in line]
    assert any("tensor" in line and "data" in line for line in constraints), constraints

    print(json.dumps(losses(mesh)))


def losses(mesh, accumulation=1):
    _, state, step = toy.setting(mesh=mesh, accumulation=accumulation)
    data, values = toy.batches(mesh, 8)(0), []
    for _ in range(5):
        state, metrics = step(state, next(data))
        values.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    return values


def test_eight_devices_train_as_one():
    eight = json.loads(processes.run(__name__, "on_eight_devices", devices=8))
    one = losses(create_mesh(devices=jax.devices()[:1]))
    np.testing.assert_allclose(eight, one, rtol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "--config.mesh.fsdp = 3 does not divide the axis 'embed' of size 8 of .*kernel"),
        (
            [("mlp", None), ("embed", ["fsdp", "tensor"])],
            r"--config.mesh.fsdp \* --config.mesh.tensor = 6 does not divide the axis 'embed'",
        ),
    ],
)
def test_axes_that_are_not_divisible(overrides, message):
    mesh = AbstractMesh((1, 3, 2), MESH_AXES)
    with pytest.raises(UsageError, match=message):
        abstract_state(toy.init_params, toy.adamw(lambda _: 0.1), mesh, rules_with(overrides))


def test_every_logical_axis_has_one_rule():
    names = [name for name, _ in RULES]
    assert len(names) == len(set(names))


def test_rules_with_overrides():
    assert rules_with(()) == RULES
    rules = rules_with([("mlp", "fsdp"), ("embed", []), ("vocab", ("fsdp", "tensor"))])
    assert [name for name, _ in rules] == [name for name, _ in RULES]  # the priority stays
    changed = dict(rule for rule in rules if rule not in RULES)
    assert changed == {"mlp": "fsdp", "embed": None, "vocab": ("fsdp", "tensor")}
    assert parameter_spec(("layers", "embed", "mlp"), rules) == PartitionSpec(None, None, "fsdp")
    assert parameter_spec(("vocab", "embed"), rules) == PartitionSpec(("fsdp", "tensor"), None)
    with pytest.raises(UsageError, match=r"--config.mesh.rules: two of the axes .* 'fsdp'"):
        parameter_spec(("vocab", "mlp"), rules)


def sharding_of_state(spec, shape, **options):
    mesh = AbstractMesh((4, 2, 2), MESH_AXES)
    rules = rules_with((), **{"shard_optimizer_state": True, **options})
    return optimizer_sharding(NamedSharding(mesh, PartitionSpec(*spec)), shape, rules).spec


def test_the_optimizer_state_is_split_over_data_too():
    assert sharding_of_state((None, "fsdp", "tensor"), (12, 64, 256)) == PartitionSpec(
        None, "fsdp", ("tensor", "data")
    )
    assert sharding_of_state((None, ("fsdp", "tensor")), (301, 64)) == PartitionSpec(
        None, ("fsdp", "tensor", "data")
    )
    assert sharding_of_state((None,), (64,)) == PartitionSpec("data")
    # Nothing that 4 divides, a scalar, an axis that is on data already, and the option turned off.
    assert sharding_of_state((None,), (301,)) == PartitionSpec(None)
    assert sharding_of_state((), ()) == PartitionSpec()
    assert sharding_of_state(("data", None), (8, 8)) == PartitionSpec("data", None)
    off = sharding_of_state((None,), (64,), shard_optimizer_state=False)
    assert off == PartitionSpec(None)


def test_rules_of_a_data_shard():
    assert dict(of_one_data_shard(RULES)) == {**dict(RULES), "batch": "fsdp"}
    assert of_one_data_shard(rules_with([("mlp", ("data", "tensor"))])) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("emebd", "fsdp")], "'emebd' is not a logical axis that can be changed: .* embed"),
        ([("batch", "data")], "'batch' is not a logical axis that can be changed"),
        ([("optimizer_state", "data")], "'optimizer_state' is not a logical axis that can be ch"),
        ([("logits", "fsdp")], "'logits' cannot be split over 'fsdp', which splits the batch"),
        ([("mlp", "model")], "'model' .* is not a mesh axis: use data, fsdp, tensor"),
        ([("mlp", ["fsdp", "fsdp"])], "'mlp' has the mesh axis 'fsdp' twice"),
        ([("mlp", "fsdp"), ("mlp", None)], "'mlp' has two rules"),
        ([("mlp", 3)], "3 .for the logical axis 'mlp'. is not a mesh axis"),
        ([("mlp", [["data"]])], "is not a mesh axis"),
        ([(["mlp"], "data")], "is not a logical axis"),
        (["mlp"], "'mlp' is not a pair"),
        ([("mlp", "fsdp", "tensor")], "is not a pair"),
    ],
)
def test_wrong_overrides(overrides, message):
    with pytest.raises(UsageError, match=f"--config.mesh.rules: .*{message}"):
        rules_with(overrides)
