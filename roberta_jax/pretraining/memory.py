"""Compares the memory that a training needs at least with that of the devices."""

import jax.numpy as jnp

from roberta_jax.errors import UsageError
from roberta_jax.modeling.flops import num_parameters
from roberta_jax.pretraining.spec import PretrainingSpec
from roberta_jax.training.state import memory_limit


def check_memory(spec: PretrainingSpec) -> None:
    """Refuses a model or batch that cannot fit, since allocating it would abort the process.

    Raises:
      UsageError: a device has less memory than `least_memory` says.
    """
    mesh = spec.training.mesh
    device = mesh.local_devices[0]
    limit = memory_limit(device)
    is_cpu = device.platform == "cpu"
    sharers = len(mesh.local_devices) if is_cpu else 1  # CPU devices share the machine's memory
    least = {name: sharers * size for name, size in least_memory(spec).items()}
    if limit is None or sum(least.values()) <= limit:
        return
    parts = ", ".join(f"{_gigabytes(size)} of {name}" for name, size in least.items())
    where = "this machine has" if is_cpu else f"each {device.device_kind} has"
    raise UsageError(
        f"the training does not fit into memory: it needs at least {parts}, but {where} "
        f"{_gigabytes(limit)}. Use a smaller model (--config.model.hidden_size, "
        "--config.model.num_hidden_layers), vocabulary (--config.new_tokenizer.vocab_size), "
        "--config.seq_len or --config.train.per_device_batch_size, or split the parameters over "
        "more devices (--config.mesh.data=1 --config.mesh.fsdp=-1)."
    )


def least_memory(spec: PretrainingSpec) -> dict[str, int]:
    """Returns a lower bound of the bytes that a training step needs on each device, by what for."""
    model, training = spec.model, spec.training
    sizes = training.mesh.shape
    rows = training.rows_per_microbatch
    item = jnp.dtype(spec.execution.dtype).itemsize
    return {
        # Each parameter with its gradient and two moments, in float32.
        "parameters and optimizer state": (
            16 * num_parameters(model) // (sizes["fsdp"] * sizes["tensor"])
        ),
        # The backward pass begins at the inputs of the layers, whatever it recomputes.
        "inputs of the layers": (
            rows * spec.seq_len * model.hidden_size * model.num_hidden_layers * item
        ),
        # Of one layer at a time.
        "attention scores": (
            rows * model.num_attention_heads * spec.seq_len**2 * item // sizes["tensor"]
        ),
        "token ids": rows * training.accumulation * spec.seq_len * 4,
    }


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3g} GB" if size < 1e15 else f"{size / 1e9:.1e} GB"
