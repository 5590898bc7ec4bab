import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from roberta_jax.errors import UsageError
from roberta_jax.training.optimizer import adamw
from roberta_jax.training.partitioning import create_mesh
from roberta_jax.training.state import abstract_state, count_parameters, create_state
from tests.support import toy

TX = adamw(lambda _: 1e-2)


def values(tree):
    return jax.tree.map(np.array, tree)


def test_abstract_state_describes_the_real_one():
    mesh = create_mesh()
    abstract, state = (
        abstract_state(toy.init_params, TX, mesh),
        create_state(toy.init_params, TX, mesh),
    )
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for want, have in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (want.shape, want.dtype, want.sharding) == (have.shape, have.dtype, have.sharding)
    assert abstract.params["kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
    assert int(state.step) == 0
    assert count_parameters(abstract.params) == count_parameters(state.params) == 8 * 16 * 2 + 24


def test_boxes_are_gone():
    state = create_state(toy.init_params, TX, create_mesh())
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert isinstance(state.params["kernel"], jax.Array)


@pytest.mark.parametrize("put", [np.asarray, jnp.asarray])
def test_given_weights_are_used_and_outlive_training(put):
    mesh, fresh, step = toy.setting(rate=0.1)
    given = jax.tree.map(lambda p: put(np.array(p) + 1), fresh.params)
    before = values(given)
    state = create_state(toy.init_params, TX, mesh, params=given)
    jax.tree.map(np.testing.assert_array_equal, values(state.params), before)
    data = toy.batches(mesh, 8)(0)
    for _ in range(3):
        state, _ = step(state, next(data))
    jax.tree.map(np.testing.assert_array_equal, values(given), before)


def test_weights_of_another_model_are_named():
    params = create_state(toy.init_params, TX, create_mesh()).params
    other = {**params, "kernel": np.zeros((8, 4))}
    del other["bias"]
    with pytest.raises(UsageError) as told:
        create_state(toy.init_params, TX, create_mesh(), params=other)
    assert "bias: missing there, (16,) here" in str(told.value)
    assert "kernel: (8, 4) there, (8, 16) here" in str(told.value)
    assert "scale" not in str(told.value)
