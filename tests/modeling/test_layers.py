"""The layers: dropout, embedding look-ups, what bfloat16 adds in float32, and products."""

import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.layers import (
    Dense,
    Dropout,
    Embeddings,
    LayerNorm,
    _sum_by_product,
    bias_gradient,
    kernel_gradient,
    lookup,
    product,
)
from tests.support.small_config import small_config


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
        vectors, pull = jax.vjp(lambda table: lookup(table, ids, 1, jnp.float32), table)
        return vectors, *pull(jnp.ones_like(vectors))

    vectors, grad = (np.asarray(x) for x in look_up_and_pull(table))
    np.testing.assert_array_equal(vectors[0], table[ids[0]])
    assert np.isnan(vectors[1, 2]).all()  # past the end of the table
    np.testing.assert_array_equal(grad[:, 0], [1, 0, 2, 0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_ids_outside_the_table_give_nan_and_no_gradient(dtype):
    table = jnp.arange(12.0).reshape(4, 3).astype(dtype)
    ids = np.array([0, -1, -4, -5, 3, 4, 2**31 - 1, -(2**31)], np.int32)
    inside = (ids >= 0) & (ids < 4)
    for look_up in (lookup, jax.jit(lookup, static_argnums=(2, 3))):
        vectors, pull = jax.vjp(lambda table, f=look_up: f(table, ids, None, dtype), table)
        np.testing.assert_array_equal(np.isnan(vectors).all(-1), ~inside)
        np.testing.assert_array_equal(vectors[inside], table[ids[inside]])
        (grad,) = pull(jnp.ones_like(vectors))
        np.testing.assert_array_equal(np.asarray(grad, np.float32)[:, 0], [1, 0, 0, 1])


# bfloat16 keeps 8 bits. Sums over many tokens, and the numbers that layers add, are float32's.


def bfloat16(*shape, seed=0):
    return np.random.default_rng(seed).normal(1, 1, shape).astype(ml_dtypes.bfloat16)


def test_the_gradient_of_a_bias_is_summed_in_float32():
    tokens = 5000  # a sum in bfloat16 stops growing at 256 times its terms
    dense = Dense(8, ("embed", "mlp"), 0.02, jnp.bfloat16)
    params = {"kernel": jnp.zeros((2, 8)), "bias": jnp.zeros(8)}
    grad = bfloat16(tokens, 8)
    _, pull = jax.vjp(
        lambda params: dense.apply({"params": params}, jnp.zeros((tokens, 2), jnp.bfloat16)), params
    )
    (grads,) = jax.jit(pull)(jnp.asarray(grad))
    assert grads["bias"].dtype == jnp.float32
    np.testing.assert_allclose(grads["bias"], grad.astype(np.float64).sum(0), rtol=1e-6)


def test_the_gradients_of_layer_norm_are_summed_in_float32():
    tokens = 5000
    norm = LayerNorm(1e-5, jnp.bfloat16)
    params = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    x, grad = bfloat16(tokens, 8), bfloat16(tokens, 8, seed=1)
    _, pull = jax.vjp(lambda params: norm.apply({"params": params}, x), params)
    (grads,) = jax.jit(pull)(jnp.asarray(grad))
    exact = x.astype(np.float64)
    exact -= exact.mean(-1, keepdims=True)
    exact /= np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    grad = grad.astype(np.float64)
    np.testing.assert_allclose(grads["bias"], grad.sum(0), rtol=1e-6)
    np.testing.assert_allclose(grads["scale"], (grad * exact).sum(0), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("given", ["input_ids", "inputs_embeds"])
def test_the_gradients_of_the_embedding_tables_are_summed_in_float32(given):
    """Every token has the same type and, with `inputs_embeds`, a row of positions serves all."""
    config = small_config(max_position_embeddings=12, layer_norm_eps=1.0)
    batch, length = 500, 10
    tables = {
        name: {"embedding": jnp.zeros((rows, config.hidden_size))}
        for name, rows in (
            ("word_embeddings", config.vocab_size),
            ("position_embeddings", 12),
            ("token_type_embeddings", config.type_vocab_size),
        )
    }
    norm = {"scale": jnp.ones(config.hidden_size), "bias": jnp.zeros(config.hidden_size)}
    x = {
        "input_ids": jnp.full((batch, length), 7),
        "inputs_embeds": jnp.zeros((batch, length, config.hidden_size)),
    }

    def pulled(dtype):
        module = Embeddings(config, Execution(dtype=dtype))
        arguments = {name: x[name] if name == given else None for name in x}
        positions = jnp.arange(2, 2 + length)[None]
        if given == "input_ids":
            positions = jnp.broadcast_to(positions, (batch, length))
        grad = jnp.asarray(bfloat16(batch, length, config.hidden_size), dtype)

        @jax.jit
        def gradients(tables):
            def embed(tables):
                params = {**tables, "LayerNorm": norm}
                return module.apply(
                    {"params": params},
                    token_type_ids=None,
                    position_ids=positions,
                    deterministic=True,
                    **arguments,
                )

            return jax.vjp(embed, tables)[1](grad)[0]

        return jax.tree.map(np.asarray, gradients(tables))

    exact = pulled(jnp.float32)
    for name, grad in pulled(jnp.bfloat16).items():
        # Rounded once to bfloat16 at the end.
        np.testing.assert_allclose(
            grad["embedding"], exact[name]["embedding"], rtol=2**-8, atol=0.3, err_msg=name
        )


# The products of dense layers.

WIDTHS = [(6, 16), (16, 6), (8, 8)]  # of input and output


def arrays_of_a_product(inputs, outputs, dtype=np.float32):
    """x [5, 7, inputs], a kernel and a gradient [5, 7, outputs]."""
    rng = np.random.default_rng(0)
    x, grad = (rng.normal(size=(5, 7, width)).astype(dtype) for width in (inputs, outputs))
    return x, rng.normal(size=(inputs, outputs)).astype(np.float32), grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (ml_dtypes.bfloat16, 2e-2)])
@pytest.mark.parametrize(("inputs", "outputs"), WIDTHS)
def test_a_product_and_its_gradients_are_those_of_the_definition(inputs, outputs, dtype, tolerance):
    x, kernel, grad = arrays_of_a_product(inputs, outputs, dtype)
    y, pull = jax.vjp(product, x, kernel)
    grad_x, grad_kernel = jax.jit(pull)(grad)
    assert (y.dtype, grad_x.dtype, grad_kernel.dtype) == (dtype, dtype, np.float32)
    x, grad = x.astype(np.float64), grad.astype(np.float64)
    expected = [x @ kernel, grad @ kernel.T, np.tensordot(x, grad, ((0, 1), (0, 1)))]
    for ours, exact in zip((y, grad_x, grad_kernel), expected, strict=True):
        atol = tolerance * np.abs(exact).max()
        np.testing.assert_allclose(np.asarray(ours, np.float64), exact, rtol=0, atol=atol)


def test_the_gradient_of_the_kernel_is_not_rounded():
    x, _, grad = arrays_of_a_product(6, 16, ml_dtypes.bfloat16)
    exact = np.tensordot(x.astype(np.float64), grad.astype(np.float64), ((0, 1), (0, 1)))
    np.testing.assert_allclose(jax.jit(kernel_gradient)(x, grad), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("inputs", "outputs"), WIDTHS)
def test_the_gradient_on_a_cpu_sums_over_the_last_axis_of_the_first_array(inputs, outputs):
    """The other products are slower; see the comment in `_with_transposed_copy`."""
    x, _, grad = arrays_of_a_product(32 * inputs, 32 * outputs)
    with jax.default_device(jax.devices("cpu")[0]):
        text = jax.jit(kernel_gradient).lower(x, grad).compile().as_text()
    assert "lhs_contracting_dims={1}" in text
    assert "lhs_contracting_dims={0}" not in text


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_one_plain_product(platform):
    x, _, grad = arrays_of_a_product(16, 6)
    text = jax.export.export(jax.jit(kernel_gradient), platforms=[platform])(x, grad).mlir_module()
    assert text.count("stablehlo.dot_general") == 1
    assert "optimization_barrier" not in text


@pytest.mark.parametrize("sum_up", [bias_gradient, _sum_by_product])
def test_the_gradient_of_the_bias_is_not_rounded(sum_up):
    _, _, grad = arrays_of_a_product(6, 16, ml_dtypes.bfloat16)
    exact = grad.astype(np.float64).sum((0, 1))
    found = jax.jit(sum_up)(grad)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)


def test_only_tpus_sum_up_the_gradient_of_the_bias_by_a_product():
    grads = {dtype: jnp.ones((5, 7, 16), dtype) for dtype in (jnp.bfloat16, jnp.float32)}
    products = {
        (platform, dtype): jax.export.export(jax.jit(bias_gradient), platforms=[platform])(grad)
        .mlir_module()
        .count("stablehlo.dot_general")
        for platform in ("tpu", "cuda", "cpu")
        for dtype, grad in grads.items()
    }
    assert [key for key, number in products.items() if number] == [("tpu", jnp.bfloat16)]


def test_products_have_second_derivatives():
    x, kernel, grad = arrays_of_a_product(6, 16)

    def norm(kernel):
        return jnp.sum(product(x, kernel) ** 2 * grad)

    direction = np.ones_like(kernel)
    _, along = jax.jvp(jax.grad(norm), (kernel,), (direction,))
    exact = 2 * np.tensordot(x, grad * (x @ direction), ((0, 1), (0, 1)))
    np.testing.assert_allclose(along, exact, rtol=1e-4, atol=1e-4)
