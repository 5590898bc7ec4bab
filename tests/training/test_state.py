import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from roberta_jax.errors import UsageError
from roberta_jax.training.optimizer import adamw
from roberta_jax.training.partitioning import create_mesh
from roberta_jax.training.state import (
    abstract_state,
    count_parameters,
    create_state,
    unsound_arrays,
)
from tests.support import toy

TX = adamw(lambda _: 1e-2)


def to_numpy(tree):
    return jax.tree.map(np.array, tree)


def test_abstract_state_describes_the_real_one():
    mesh = create_mesh()
    abstract, state = (
        abstract_state(toy.init_params, TX, mesh),
        create_state(toy.init_params, TX, mesh),
    )
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for shape, array in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (shape.shape, shape.dtype, shape.sharding) == (
            array.shape,
            array.dtype,
            array.sharding,
        )
    assert abstract.params["kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
    assert int(state.step) == 0
    assert count_parameters(abstract.params) == count_parameters(state.params) == 8 * 16 * 2 + 24


def test_the_state_has_arrays_without_boxes():
    state = create_state(toy.init_params, TX, create_mesh())
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert isinstance(state.params["kernel"], jax.Array)


@pytest.fixture(scope="module")
def setting():
    return toy.setting(rate=0.1)


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_initial_weights_are_used_and_not_changed_by_training(setting, as_array):
    mesh, initial_state, step = setting
    weights = jax.tree.map(lambda p: as_array(np.array(p) + 1), initial_state.params)
    expected = to_numpy(weights)
    state = create_state(toy.init_params, TX, mesh, params=weights)
    jax.tree.map(np.testing.assert_array_equal, to_numpy(state.params), expected)
    data = toy.batches(mesh, 8)(0)
    for _ in range(3):
        state, _ = step(state, next(data))
    jax.tree.map(np.testing.assert_array_equal, to_numpy(weights), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -(2.0**25)])
def test_unsound_arrays_are_named(setting, value):
    mesh, _, _ = setting
    state = create_state(toy.init_params, TX, mesh)
    assert unsound_arrays(state) == []
    params = dict(state.params)
    params["bias"] = params["bias"].at[3].set(value)
    assert unsound_arrays(state.replace(params=params)) == ["params/bias"]
    # Moments are squares and may be large, but not infinite.
    adam = state.opt_state[0]
    nu = dict(adam.nu, scale=adam.nu["scale"].at[0].set(value))
    bad = unsound_arrays(state.replace(opt_state=(adam._replace(nu=nu), *state.opt_state[1:])))
    assert len(bad) == (0 if np.isfinite(value) else 1)
    assert all(name.endswith("nu/scale") for name in bad)


def test_weights_of_another_model_are_named():
    params = create_state(toy.init_params, TX, create_mesh()).params
    other = {**params, "kernel": np.zeros((8, 4))}
    del other["bias"]
    with pytest.raises(UsageError, match="the initial weights do not fit the model") as raised:
        create_state(toy.init_params, TX, create_mesh(), params=other)
    assert "bias: missing in the weights, (16,) in the model" in str(raised.value)
    assert "kernel: (8, 4) in the weights, (8, 16) in the model" in str(raised.value)
    assert "scale" not in str(raised.value)
