"""Activation functions by the names that `hidden_act` takes in Hugging Face's configs.

They are computed in float32 and rounded once, to the dtype of their input. In bfloat16 most of them
would lose all digits somewhere: x * 0.5 * (1 + erf(x / sqrt(2))) is 0 from x = -3.1 on, where GELU
is -3e-3. The conversions cost nothing, because XLA fuses them with the function, and only the input
is stored for the backward pass.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Activation = Callable[[jax.Array], jax.Array]


def in_float32(function: Activation) -> Activation:
    """Makes an elementwise function compute in float32 whatever the dtype of its input.

    The result has the input's dtype. For inputs of 16 bits the gradient is computed in float32 as
    well, from the input: storing the intermediate results would take several times the memory.
    """

    def rounded(x):
        return function(x.astype(jnp.float32)).astype(x.dtype)

    narrow = jax.custom_vjp(rounded)
    narrow.defvjp(lambda x: (rounded(x), x), lambda x, grad: jax.vjp(rounded, x)[1](grad))

    @functools.wraps(function)
    def computed(x):
        return narrow(x) if jnp.finfo(x.dtype).bits < 32 else function(x)

    return computed


@in_float32
def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU, x * Phi(x), which BERT and RoBERTa use.

    As in PyTorch, the absolute error is below 2e-6 everywhere, but below x = -5 the result has no
    correct digits. Computing it with erfc would give them, in one and a half times the time.
    """
    return x * 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


tanh = in_float32(jnp.tanh)
_tanh_gelu = in_float32(functools.partial(jax.nn.gelu, approximate=True))


@in_float32
def _laplace(x):
    # Mean 1/sqrt(2), standard deviation 1/sqrt(4 pi) (Ma et al. 2022, Mega), rounded as in HF.
    return 0.5 * (1 + jax.lax.erf((x - 0.707107) / (0.282095 * 2**0.5)))


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_10": in_float32(lambda x: jnp.clip(gelu(x), -10, 10)),
    "gelu_accurate": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_python": gelu,
    "gelu_python_tanh": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "laplace": _laplace,
    "leaky_relu": in_float32(jax.nn.leaky_relu),
    "linear": lambda x: x,
    "mish": in_float32(jax.nn.mish),
    "quick_gelu": in_float32(lambda x: x * jax.nn.sigmoid(1.702 * x)),
    "relu": jax.nn.relu,
    "relu2": in_float32(lambda x: jnp.square(jax.nn.relu(x))),
    "relu6": jax.nn.relu6,
    "sigmoid": in_float32(jax.nn.sigmoid),
    "silu": in_float32(jax.nn.silu),
    "swish": in_float32(jax.nn.silu),
    "tanh": tanh,
}
