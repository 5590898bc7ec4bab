"""The fused end of a sub-layer, interpreted on a CPU, against the plain operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.kernels import layer_norm
from roberta_jax.kernels.dispatch import interpreted
from roberta_jax.kernels.dropout import reference_dropout

KINDS = list(layer_norm.KINDS)
EPSILON, SEED = 1e-5, np.array([1, 2, 3, 4], np.uint32)


def plain(x, bias, residual, scale, shift, rate):
    x = x.astype(jnp.float32) + bias
    x = residual.astype(jnp.float32) + (reference_dropout(x, SEED, rate) if rate else x)
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON) * scale + shift


def fused(kind, rate):
    def function(*arrays):
        seed = SEED if rate else None
        with interpreted():
            return layer_norm.residual_layer_norm(
                *arrays, epsilon=EPSILON, kind=kind, dropout_seed=seed, dropout_rate=rate
            )

    return function


def inputs_of(shape, dtype=np.float32):
    """x, bias, residual, scale, shift, and a gradient of the result."""
    rng = np.random.default_rng(0)
    x, residual, grad = rng.standard_normal((3, *shape)).astype(dtype)
    bias, scale, shift = rng.standard_normal((3, shape[-1])).astype(np.float32)
    return x, bias, residual, scale, shift, grad


def values_and_gradients(function, *arrays):
    *arrays, grad = arrays
    value, pull = jax.vjp(function, *arrays)
    return value, *pull(grad)


# One block; several blocks of tokens in a row of the batch; a length that is no multiple of 8.
@pytest.mark.parametrize("shape", [(2, 32, 128), (2, 512, 1024), (3, 7, 256)])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_plain_operations(kind, rate, shape):
    arrays = inputs_of(shape)
    results = jax.jit(lambda *x: values_and_gradients(fused(kind, rate), *x))(*arrays)
    expected = jax.jit(lambda *x: values_and_gradients(lambda *y: plain(*y, rate), *x))(*arrays)
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_allclose(
            result, reference, rtol=1e-5, atol=1e-6 * np.abs(reference).max() + 1e-6
        )


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_rounded_once(kind):
    """The result is the float32 one, rounded: each element within half a unit in the last place."""
    *arrays, grad = inputs_of((2, 64, 256), jnp.bfloat16)
    result = fused(kind, 0.1)(*arrays)
    assert result.dtype == jnp.bfloat16
    exact = np.asarray(plain(*arrays, 0.1))
    np.testing.assert_allclose(result.astype(np.float32), exact, rtol=2**-8, atol=1e-6)
    grads = values_and_gradients(fused(kind, 0.1), *arrays, grad)[1:]
    assert [x.dtype for x in grads] == [x.dtype for x in arrays]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_drop_what_the_whole_batch_drops(kind):
    x, bias, residual, scale, shift, _ = inputs_of((4, 16, 128))
    whole = fused(kind, 0.3)(x, bias, residual, scale, shift)
    parts = [a.reshape(2, 2, *a.shape[1:]) for a in (x, residual)]

    def of_part(x, residual):
        return fused(kind, 0.3)(x, bias, residual, scale, shift)

    result = jax.jit(jax.vmap(of_part))(*parts)
    np.testing.assert_allclose(result.reshape(whole.shape), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_only_inputs_are_stored(kind):
    *arrays, _ = inputs_of((2, 32, 128))
    _, pull = jax.vjp(fused(kind, 0.1), *arrays)
    assert sum(leaf.size for leaf in jax.tree.leaves(pull)) < 2.2 * arrays[0].size


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((2, 32, 100), np.float32, "the width 100 is no multiple of 128"),
        ((2, 32, 128), np.float16, "the dtype is float16"),
        ((2, 500, 768), np.float32, "500 tokens of width 768 do not split"),
    ],
)
def test_what_cannot_be_computed_is_refused_or_left_to_xla(shape, dtype, reason):
    x = np.zeros(shape, dtype)
    with pytest.raises(ValueError, match=reason) as error:
        layer_norm.of_platform("pallas_tpu", x)
    assert "layer_norm=auto" in str(error.value)
    assert layer_norm.of_platform("auto", x) == "xla"


@pytest.mark.parametrize("kind", KINDS)
def test_it_lowers_for_its_platform_without_one(kind):
    x = jax.ShapeDtypeStruct((2, 512, 768), jnp.bfloat16)
    vector = jax.ShapeDtypeStruct((768,), jnp.float32)

    def total(*arrays):
        return (
            layer_norm.residual_layer_norm(
                *arrays, epsilon=EPSILON, kind=kind, dropout_seed=SEED, dropout_rate=0.1
            )
            .astype(jnp.float32)
            .sum()
        )

    traced = jax.jit(jax.grad(total, range(5))).trace(x, vector, x, vector, vector)
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
