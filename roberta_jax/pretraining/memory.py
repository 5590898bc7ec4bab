"""Compares the memory that a training needs at least with that of the devices."""

import jax.numpy as jnp

from roberta_jax.errors import UsageError
from roberta_jax.modeling.flops import num_parameters
from roberta_jax.pretraining.spec import PretrainingSpec
from roberta_jax.training.partitioning import mesh_size
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
    where = "this machine has" if is_cpu else f"each {device.device_kind} has"
    for task, least in least_memory(spec).items():
        needed = {name: sharers * size for name, size in least.items()}
        if limit is None or sum(needed.values()) <= limit:
            continue
        parts = [f"{_gigabytes(size)} of {name}" for name, size in needed.items()]
        raise UsageError(
            f"the {task} does not fit into memory: it needs at least {', '.join(parts)}, but "
            f"{where} {_gigabytes(limit)}.\n{_ADVICE[task]}"
        )


def least_memory(spec: PretrainingSpec) -> dict[str, dict[str, int]]:
    """Returns a lower bound of the bytes on each device: {task: {part of the memory: bytes}}."""
    model, training = spec.model, spec.training
    if spec.text.tokenizer:  # which may have a smaller vocabulary
        model = model.replace(vocab_size=model.pad_token_id + 2)
    sizes = training.mesh.shape
    parameters = num_parameters(model) / (sizes["fsdp"] * sizes["tensor"])
    # Two float32 moments of each parameter, which can be split over `data` as well.
    moments = 8 * parameters / mesh_size(training.mesh, dict(training.rules)["optimizer_state"])
    item = jnp.dtype(spec.execution.dtype).itemsize
    rows = training.rows_per_microbatch
    eval_rows = spec.evaluation.batch_size // (sizes["data"] * sizes["fsdp"])
    # Of one row in one layer. Only one layer's exist at a time.
    scores = model.num_attention_heads * spec.seq_len**2 * item // sizes["tensor"]
    return {
        "training": {
            # Each parameter with its gradient and two moments, in float32.
            "parameters and optimizer state": int(8 * parameters + moments),
            # The backward pass begins at the inputs of the layers, whatever it recomputes.
            "inputs of the layers": (
                rows * spec.seq_len * model.hidden_size * model.num_hidden_layers * item
            ),
            "attention scores": rows * scores,
            "token ids": rows * training.accumulation * spec.seq_len * 4,
        },
        "evaluation": {
            "parameters and optimizer state": int(4 * parameters + moments),
            "attention scores": eval_rows * scores,
            "token ids": eval_rows * spec.seq_len * 4,
        },
    }


_ADVICE = {
    "training": (
        "Use a smaller model (--config.model.hidden_size, --config.model.num_hidden_layers), "
        "vocabulary (--config.new_tokenizer.vocab_size), --config.seq_len, "
        "--config.train.per_device_batch_size or --config.train.batch_size, or split the "
        "parameters over more devices (--config.mesh.data=1 --config.mesh.fsdp=-1)."
    ),
    "evaluation": "Use a smaller --config.eval.batch_size, --config.seq_len or model.",
}


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3g} GB" if 1e6 < size < 1e15 else f"{size / 1e9:.0e} GB"
