"""Connects the processes of a training run that spans several hosts."""

import os

import jax

from roberta_jax.errors import UsageError

_HOW = (
    "Outside of TPU pods, Slurm and Kubernetes set JAX_COORDINATOR_ADDRESS=HOST:PORT, "
    "JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0) for each process."
)


def join_processes() -> None:
    """Connects this process to the other processes of the run. Call it before any other JAX code.

    On TPU pods, Slurm and Kubernetes JAX finds the other processes itself. Elsewhere it needs the
    environment variables JAX_COORDINATOR_ADDRESS (read by JAX), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID.

    Raises:
      UsageError: the environment does not say where the other processes are, or they cannot be
        reached.
    """
    arguments = {}
    for argument in ("num_processes", "process_id"):
        variable = f"JAX_{argument.upper()}"
        value = os.environ.get(variable)
        if value is not None:
            try:
                arguments[argument] = int(value)
            except ValueError:
                raise UsageError(f"{variable}={value!r} is not an integer.\n{_HOW}") from None
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"cannot connect to the other processes: {error}\n{_HOW}") from error
