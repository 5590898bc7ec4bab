"""Activation functions in bfloat16, against their definitions in float64."""

import math

import jax
import ml_dtypes
import numpy as np
import pytest

from roberta_jax.modeling.activations import ACTIVATIONS

# Every number of bfloat16 up to 64 whose square is not below the smallest normal number.
X = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
X = X[(np.abs(X.astype(np.float32)) <= 64) & (np.abs(X.astype(np.float32)) > 1e-18)]


def normal_cdf(x):
    return np.vectorize(lambda t: 0.5 * math.erfc(-t / math.sqrt(2)))(x)


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def gelu(x):
    return x * normal_cdf(x)


def tanh_gelu(x):
    return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def relu(x):
    return np.maximum(x, 0)


DEFINITIONS = {
    "gelu": gelu,
    "gelu_10": lambda x: np.clip(gelu(x), -10, 10),
    "gelu_accurate": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_new": tanh_gelu,
    "gelu_python": gelu,
    "gelu_python_tanh": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "laplace": lambda x: normal_cdf((x - 0.707107) / 0.282095),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "linear": lambda x: x,
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": relu,
    "relu2": lambda x: relu(x) ** 2,
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
}


# Errors are those of the programs that users compile, with LLVM's fused multiply-add.
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


def values_and_slopes(name):
    both = jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))
    return jax.jit(both, compiler_options=OPTIMIZED)(X)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_slopes_in_bfloat16_are_rounded_once(name):
    """Each is as close to the exact one as bfloat16 has a number, plus float32's error.

    That is largest where 1 + tanh cancels.
    """
    x = X.astype(np.float64)
    exact = DEFINITIONS[name](x)
    h = 1e-6 * np.maximum(1, np.abs(x))
    slopes = (DEFINITIONS[name](x + h) - DEFINITIONS[name](x - h)) / (2 * h)
    smooth = np.min(np.abs(x[:, None] - [-10, 0, 6, 10]), axis=1) > 1e-3
    value, slope = values_and_slopes(name)
    for actual, expected, compared, error in (
        (value, exact, np.full(len(x), True), 1e-6),
        (slope, slopes, smooth, 5e-6),
    ):
        assert actual.dtype == ml_dtypes.bfloat16
        nearest = np.abs(expected.astype(ml_dtypes.bfloat16).astype(np.float64) - expected)
        errors = np.abs(np.asarray(actual, np.float64) - expected)
        excess = (errors - nearest - 1e-6 * np.abs(expected))[compared]
        assert excess.max() < error, x[compared][excess.argmax()]


def test_gelu_has_its_tail_in_bfloat16():
    """In bfloat16, 1 + erf(-3.5 / sqrt(2)) is 0."""
    values = ACTIVATIONS["gelu"](np.array([-3.5, -4.0], ml_dtypes.bfloat16))
    np.testing.assert_allclose(values.astype(np.float32), [-8.14e-4, -1.267e-4], rtol=4e-3)


def test_only_the_input_is_stored_for_the_gradient_in_bfloat16():
    for name in ACTIVATIONS:
        _, pull = jax.vjp(ACTIVATIONS[name], X)
        stored = jax.tree.leaves(pull)
        assert all(leaf.dtype.itemsize <= 2 for leaf in stored), name
        assert sum(leaf.nbytes for leaf in stored) <= 2 * X.nbytes, name
