"""The environment variables of supervised processes."""

import shutil
import socket
import subprocess
from collections.abc import Mapping

from roberta_jax.errors import UsageError
from roberta_jax.training.clusters import visible_gpus
from roberta_jax.training.compilation_cache import VARIABLE as CACHE

# Overlaps collectives with computation on GPUs: "GPU performance tips" of the JAX documentation,
# and NVIDIA's JAX images, which set it.
GPU_FLAGS = "--xla_gpu_enable_latency_hiding_scheduler=true"
# Overlaps the gradients' all-reduce between TPU slices: "List of XLA compiler flags" of the JAX
# documentation.
MULTISLICE_FLAGS = "--xla_tpu_enable_data_parallel_all_reduce_opt=true"


def shared_variables(
    environment: Mapping[str, str], *, cache: str, flags: str, gpus: int, slices: int
) -> dict[str, str]:
    """Returns the variables that all processes get in addition to `environment`.

    Variables and flags that the user has set stay as they are.

    Args:
      environment: the supervisor's.
      cache: the folder of compiled programs, "" for none.
      flags: "recommended", or "none" to add no flags of the compiler.
      gpus: how many GPUs this machine has.
      slices: how many TPU slices the run has.
    """
    # The Python stack of a crash in native code, and of a process that is stopped with SIGABRT.
    added = {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
    if cache and CACHE not in environment:
        added[CACHE] = cache
    if flags == "recommended":
        if gpus:
            _add_flag(added, environment, "XLA_FLAGS", GPU_FLAGS)
        if slices > 1:
            _add_flag(added, environment, "LIBTPU_INIT_ARGS", MULTISLICE_FLAGS)
    return added


def process_variables(index: int, processes: int, port: int, gpus: int) -> dict[str, str]:
    """Returns the variables that connect one of several processes of a machine with the others.

    They are those that `jax.distributed.initialize` and `roberta_jax` read.

    Args:
      index: of the process, from 0.
      processes: how many there are.
      port: a free port, on which the first process coordinates them.
      gpus: how many GPUs they share; each gets an equal part.
    """
    variables = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
    }
    if gpus:
        share = gpus // processes
        own = range(index * share, (index + 1) * share)
        variables["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, own))
    return variables


def check_processes(processes: int, gpus: int) -> None:
    """Checks that a number of processes can share this machine.

    Raises:
      UsageError: the GPUs cannot be divided among them.
    """
    if processes > 1 and gpus % processes:
        raise UsageError(
            f"--processes={processes}: the {gpus} GPUs of this machine cannot be divided equally. "
            f"Use a divisor of {gpus}, or name fewer GPUs in CUDA_VISIBLE_DEVICES."
        )


def count_gpus(environment: Mapping[str, str]) -> int:
    """Returns how many NVIDIA GPUs the processes can use; 0 if they use another platform."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return 0
    if "CUDA_VISIBLE_DEVICES" in environment:
        return visible_gpus(environment)
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def free_port() -> int:
    """Returns a TCP port that is free on this machine."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _add_flag(
    added: dict[str, str], environment: Mapping[str, str], variable: str, flag: str
) -> None:
    """Adds a flag to a variable with flags, unless the user has set the same flag."""
    flags = environment.get(variable, "")
    if flag.partition("=")[0] not in flags:
        added[variable] = f"{flags} {flag}".strip()
