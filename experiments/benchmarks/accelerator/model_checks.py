"""Compares the whole model on the device with the plain kernels on a CPU: loss and gradients."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.benchmarks.accelerator.jax_step import make_batch
from experiments.benchmarks.accelerator.machine import Emit
from experiments.benchmarks.accelerator.workload import CONFIGS
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.training.optimizer import adamw
from roberta_jax.training.partitioning import create_mesh, on_mesh, to_global
from roberta_jax.training.state import create_state
from roberta_jax.training.steps import apply, stream_key

# The largest error of the gradient of a parameter, relative to the largest element of this
# gradient, or to `_LEAST` of the largest of all where that is more: the gradient of the keys' bias
# is 0 but for rounding, because a softmax is the same if a number is added to all scores.
TOLERANCE, _LEAST = 1e-4, 1e-4


@dataclasses.dataclass(frozen=True)
class _Shape:
    model: str
    rows: int
    length: int
    layers: int


def check(emit: Emit, *, attention: str, small: bool) -> None:
    """Emits how far a masked-LM loss and its gradients are from those of a CPU.

    On the device all kernels are those of a training step, with this implementation of attention.
    On the CPU they are the reference of attention and what XLA makes of the other ones. Both use
    float32, full products and dropout, whose bits are the same on all platforms.

    Args:
      emit: takes the record.
      attention: the implementation.
      small: whether to use a tiny model.
    """
    record = {
        "part": "whole model",
        "name": f"whole model {attention} against the CPU",
        "attention": attention,
        "tolerance": TOLERANCE,
    }
    try:
        cpu = jax.devices("cpu")[:1]
    except RuntimeError as error:
        reason = f"JAX has no CPU beside the device: {str(error).splitlines()[0]}"
        emit(record | {"status": "refused", "reason": reason})
        return
    shape = _Shape("tiny", 4, 32, 2) if small else _Shape("base", 4, 128, 2)
    params = _parameters(shape, create_mesh(devices=cpu))
    expected_loss, expected = _loss_and_gradients(shape, cpu, "reference", params)
    loss, gradients = _loss_and_gradients(shape, jax.devices()[:1], attention, params)
    sizes = {name: float(np.abs(x).max()) for name, x in expected.items()}
    least = _LEAST * max(sizes.values())
    errors = {
        name: float(np.abs(gradients[name] - x).max()) / max(sizes[name], least)
        for name, x in expected.items()
    }
    worst = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    error_of_loss = abs(loss - expected_loss) / abs(expected_loss)
    passed = errors[worst] <= TOLERANCE and error_of_loss <= TOLERANCE
    text = f"loss {error_of_loss:.1e}, gradients {errors[worst]:.1e} ({worst})"
    emit(
        record
        | {
            "status": "passed" if passed else "failed",
            "error_of_loss": error_of_loss if np.isfinite(error_of_loss) else None,
            "error_of_gradients": errors[worst] if np.isfinite(errors[worst]) else None,
            "worst": worst,
            "reason": f"errors: {text}",
        }
    )


def _module(shape: _Shape, attention: str) -> RobertaForMaskedLM:
    config = RobertaConfig(**CONFIGS[shape.model] | {"num_hidden_layers": shape.layers})
    return RobertaForMaskedLM(config, Execution(dtype=jnp.float32, attention=attention))


def _parameters(shape: _Shape, mesh: Mesh) -> Any:
    """Initial parameters as NumPy arrays."""
    module = _module(shape, "reference")

    def init():
        return module.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]

    state = create_state(init, adamw(lambda step: jnp.float32(0)), mesh)
    return jax.tree.map(np.asarray, state.params)


def _loss_and_gradients(
    shape: _Shape, devices: list[jax.Device], attention: str, params: Any
) -> tuple[float, dict[str, np.ndarray]]:
    """The mean loss, and {parameter: its gradient} in float32."""
    module, mesh = _module(shape, attention), create_mesh(devices=devices)
    batch = make_batch(shape.model, shape.length, shape.rows)
    batch = to_global(batch, mesh, shape.rows, np.arange(shape.rows))

    def mean_loss(params, batch):
        key = stream_key(0, "dropout", jnp.int32(0))
        return (
            apply(module, "loss", params, batch, key)["masked_lm"]
            / module.count(**batch)["masked_lm"]
        )

    with on_mesh(mesh), jax.default_matmul_precision("highest"):
        params = jax.device_put(params, devices[0])
        loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(params, batch)
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    name = jax.tree_util.keystr
    return float(loss), {
        name(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves
    }
