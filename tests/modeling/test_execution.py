"""`Execution`: the options that it refuses."""

import jax.numpy as jnp
import pytest

from roberta_jax.modeling.execution import Execution


@pytest.mark.parametrize("dtype", [jnp.float32, "bfloat16", jnp.dtype("float16")])
def test_floating_point_types(dtype):
    assert Execution(dtype=dtype).dtype == dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float33"}, "floating-point type, not 'float33'"),
        ({"dtype": jnp.int32}, "floating-point type"),
        ({"dtype": object()}, "floating-point type"),
        ({"scan_layers": "no"}, "scan_layers must be True or False, not 'no'"),
        ({"scan_layers": 1}, "scan_layers must be True or False, not 1"),
        (
            {"scan_unroll": 0},
            "scan_unroll must be a whole number of at least 1, or -1 for all, not 0",
        ),
        ({"scan_unroll": float("nan")}, "scan_unroll .* not nan"),
        ({"scan_unroll": 1.5}, "scan_unroll .* not 1.5"),
        ({"scan_unroll": True}, "scan_unroll .* not True"),
        ({"scan_unroll": -2}, "scan_unroll .* not -2"),
        ({"remat": "some"}, "unknown remat 'some'; known: dots, full, none"),
        ({"remat": ["dots"]}, "unknown remat"),
        ({"attention": None}, "unknown attention None; known: auto, .*reference, xla"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Execution(**options)
