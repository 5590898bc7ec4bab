"""Activation functions by the names that `hidden_act` takes in Hugging Face's configs."""

import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU, x * Phi(x), which BERT and RoBERTa use."""
    return x * 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


def _tanh_gelu(x):
    return jax.nn.gelu(x, approximate=True)


def _laplace(x):
    # Mean 1/sqrt(2), standard deviation 1/sqrt(4 pi) (Ma et al. 2022, Mega), rounded as in HF.
    return 0.5 * (1 + jax.lax.erf((x - 0.707107) / (0.282095 * 2**0.5)))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_10": lambda x: jnp.clip(gelu(x), -10, 10),
    "gelu_accurate": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_python": gelu,
    "gelu_python_tanh": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "laplace": _laplace,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
