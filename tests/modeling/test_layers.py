"""The layers: dropout as a module, and embedding look-ups."""

import jax
import jax.numpy as jnp
import numpy as np

from roberta_jax.modeling.layers import Dropout, lookup


def test_dropout_depends_on_its_key_alone():
    x = jnp.ones((4, 1000))
    module = Dropout(0.5)
    np.testing.assert_array_equal(module.apply({}, x, True), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, False), x)
    first, same, other = (
        module.apply({}, x, False, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_lookup_gives_no_gradient_to_the_padding_row():
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    ids = np.array([[1, 2, 2], [1, 0, 9]])

    @jax.jit
    def look_up_and_pull(table):
        vectors, pull = jax.vjp(lambda table: lookup(table, ids, 1), table)
        return vectors, *pull(jnp.ones_like(vectors))

    vectors, grad = (np.asarray(x) for x in look_up_and_pull(table))
    np.testing.assert_array_equal(vectors[0], table[ids[0]])
    assert np.isnan(vectors[1, 2]).all()  # past the end of the table
    np.testing.assert_array_equal(grad[:, 0], [1, 0, 2, 0])
