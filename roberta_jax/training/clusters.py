"""Finds out from the environment which process of a run this is, and which GPUs it uses.

JAX detects most clusters itself, but not whether there is anything to detect: it raises an error on
a machine of its own, and waits for minutes where a metadata server does not answer. It also gives
each Slurm task the one GPU of its number, although a task may be alone on a node with eight.
"""

import dataclasses
import glob
import os
import pathlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping

from roberta_jax.errors import UsageError

HOW = (
    "Outside of TPU pods, Slurm, Open MPI, xpk and Kubernetes set "
    "JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0) for each "
    "process."
)
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_METADATA_TIMEOUT = 2.0  # seconds
_PCI_VENDORS = "/sys/bus/pci/devices/*/vendor"  # of Linux: a file for each device of a machine
_GOOGLE = "0x1ae0"  # the vendor of TPU chips


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """How the processes of a run find each other.

    What is None is left to JAX, which detects it.

    Attributes:
      name: what was detected, for messages.
      num_processes: the processes of the run.
      process_id: the number of this one.
      coordinator_address: host and port of process 0.
      local_device_ids: the GPUs of this process among those that it sees; None is all of them, or
        what JAX detects.
      detect: whether JAX may detect what is None.
    """

    name: str
    num_processes: int | None = None
    process_id: int | None = None
    coordinator_address: str | None = None
    local_device_ids: tuple[int, ...] | None = None
    detect: bool = True


def find_cluster(
    env: Mapping[str, str] | None = None,
    *,
    num_gpus: Callable[[], int] | None = None,
    has_tpu: Callable[[], bool] | None = None,
    metadata: Callable[[str], str | None] | None = None,
) -> Cluster | None:
    """Finds the cluster that this process belongs to; None if it is alone.

    It asks the network only on a TPU VM, and waits for a few seconds at most.

    Args:
      env: environment variables; by default those of this process.
      num_gpus: () -> the GPUs of this machine that this process sees.
      has_tpu: () -> whether this machine has TPU chips.
      metadata: name -> the value of an attribute of this virtual machine, None without one.

    Raises:
      UsageError: a variable is not a number, or some are missing.
    """
    env = os.environ if env is None else env
    num_gpus = num_gpus or (lambda: visible_gpus(env))
    has_tpu = has_tpu or _has_tpu
    for find in (
        _by_variables,
        lambda env: _open_mpi(env, num_gpus),
        lambda env: _slurm(env, num_gpus),
        _xpk,
        lambda env: _tpu_pod(env, has_tpu, metadata or _metadata),
    ):
        cluster = find(env)
        if cluster is not None:
            return cluster if cluster.num_processes != 1 else None
    return None


def _by_variables(env: Mapping[str, str]) -> Cluster | None:
    """JAX's own variables."""
    count, index = _integer(env, "JAX_NUM_PROCESSES"), _integer(env, "JAX_PROCESS_ID")
    if index is None and count is not None:
        index = _integer(env, "JOB_COMPLETION_INDEX")  # of an indexed Job of Kubernetes
    if count is None or index is None:
        given = [name for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if env.get(name)]
        if given and count != 1:
            missing = {"JAX_NUM_PROCESSES": "JAX_PROCESS_ID"}.get(given[0], "JAX_NUM_PROCESSES")
            raise UsageError(f"{given[0]} is set, but not {missing}.\n{HOW}")
        return None
    address = env.get("JAX_COORDINATOR_ADDRESS")
    if not address and count != 1:
        raise UsageError(f"JAX_NUM_PROCESSES is set, but not JAX_COORDINATOR_ADDRESS.\n{HOW}")
    if address and not re.fullmatch(r".+:[0-9]{1,5}", address):
        raise UsageError(f"JAX_COORDINATOR_ADDRESS={address} is not HOST:PORT.\n{HOW}")
    _check_index(index, count, "JAX_NUM_PROCESSES")
    return Cluster(
        name="environment variables",
        num_processes=count,
        process_id=index,
        coordinator_address=address,
        detect=False,
    )


def _open_mpi(env: Mapping[str, str], num_gpus: Callable[[], int]) -> Cluster | None:
    count, index = _integer(env, "OMPI_COMM_WORLD_SIZE"), _integer(env, "OMPI_COMM_WORLD_RANK")
    if count is None or index is None:
        return None
    address = env.get("JAX_COORDINATOR_ADDRESS")
    # Version 5 no longer says where its launcher is.
    if count > 1 and not address and "OMPI_MCA_orte_hnp_uri" not in env:
        raise UsageError(
            f"this is process {index} of {count} of an MPI job, whose launcher does not say on "
            "which host process 0 is. Pass it: mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT ..."
        )
    tasks = _integer(env, "OMPI_COMM_WORLD_LOCAL_SIZE") or 1
    return Cluster(
        name="Open MPI",
        num_processes=count,
        process_id=index,
        coordinator_address=address,
        local_device_ids=_own_gpus(
            num_gpus(), tasks, _integer(env, "OMPI_COMM_WORLD_LOCAL_RANK") or 0
        ),
    )


def _slurm(env: Mapping[str, str], num_gpus: Callable[[], int]) -> Cluster | None:
    # Without SLURM_STEP_NODELIST this is the batch script itself, which runs once.
    if not all(
        env.get(name)
        for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    ):
        return None
    count = _integer(env, "SLURM_STEP_NUM_TASKS") or _integer(env, "SLURM_NTASKS")
    if count is None:
        return None
    tasks = _slurm_tasks_here(env, count)
    gpus = num_gpus()
    bound = _slurm_gpus_per_task(env) == gpus  # each task sees only its own
    return Cluster(
        name="Slurm",
        num_processes=count,
        process_id=_integer(env, "SLURM_PROCID"),
        local_device_ids=_own_gpus(gpus, 1 if bound else tasks, _integer(env, "SLURM_LOCALID")),
    )


def _slurm_gpus_per_task(env: Mapping[str, str]) -> int | None:
    """The GPUs of `4`, `h100:4` or `a100:2,h100:2`. It is only a hint: None of anything else."""
    parts = (env.get("SLURM_GPUS_PER_TASK") or "").split(",")
    counts = [part.rpartition(":")[2].strip() for part in parts]
    return sum(map(int, counts)) if all(count.isdecimal() for count in counts) else None


def _slurm_tasks_here(env: Mapping[str, str], count: int) -> int:
    """The tasks of this job step on this node, from a list such as `4(x2),1`."""
    nodes = []
    for part in (env.get("SLURM_STEP_TASKS_PER_NODE") or "").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match:
            nodes += [int(match[1])] * int(match[2] or 1)
    node = _integer(env, "SLURM_NODEID") or 0
    if node < len(nodes):
        return nodes[node]
    num_nodes = _integer(env, "SLURM_STEP_NUM_NODES") or _integer(env, "SLURM_NNODES") or 1
    return max(1, count // num_nodes)


def _own_gpus(gpus: int, tasks: int, task: int) -> tuple[int, ...] | None:
    """The GPUs of one of the tasks of a machine, which share those that it has evenly."""
    if not gpus:
        return None
    if tasks < 2 or gpus < tasks:  # alone, or each task sees only its own
        return tuple(range(gpus))
    share = gpus // tasks
    return tuple(range(task * share, (task + 1) * share))


def _xpk(env: Mapping[str, str]) -> Cluster | None:
    """GPU nodes of GKE: xpk starts a container on each, which uses all GPUs of its node."""
    numbers = ("NNODES", "NODE_RANK", "JAX_COORDINATOR_PORT")
    if not all(env.get(name) for name in (*numbers, "JAX_COORDINATOR_ADDRESS")):
        return None
    count, index, port = (_integer(env, name) for name in numbers)
    _check_index(index, count, "NNODES")
    return Cluster(
        name="xpk",
        num_processes=count,
        process_id=index,
        coordinator_address=f"{env['JAX_COORDINATOR_ADDRESS']}:{port}",
        detect=False,
    )


def _check_index(index: int, count: int, variable: str) -> None:
    if not 0 <= index < count:
        raise UsageError(
            f"the number of this process is {index}, but must be from 0 to {count - 1} "
            f"({variable}={count}).\n{HOW}"
        )


def _tpu_pod(
    env: Mapping[str, str], has_tpu: Callable[[], bool], metadata: Callable[[str], str | None]
) -> Cluster | None:
    if not has_tpu():
        return None
    hosts, name = _gke_hosts(env), "GKE"
    if not hosts:
        name = "TPU VM"
        if env.get("TPU_SKIP_MDS_QUERY"):
            return None
        hosts = metadata("worker-network-endpoints")
        if not hosts:
            return None
    if len(hosts.split(",")) * num_slices(env, has_tpu=has_tpu, metadata=metadata) == 1:
        return None
    return Cluster(name=name)  # JAX finds everything


def _gke_hosts(env: Mapping[str, str]) -> str | None:
    return env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")


def num_slices(
    env: Mapping[str, str] | None = None,
    *,
    has_tpu: Callable[[], bool] | None = None,
    metadata: Callable[[str], str | None] | None = None,
) -> int:
    """Returns how many TPU slices the run of this machine has; 1 without TPUs.

    GKE says it in the environment. A TPU VM is told by its metadata server, which is asked only if
    this machine has TPU chips, and for a few seconds at most. JAX is not imported.

    Args:
      env: environment variables; by default those of this process.
      has_tpu: () -> whether this machine has TPU chips.
      metadata: name -> the value of an attribute of this virtual machine, None without one.

    Raises:
      UsageError: a variable is not a number.
    """
    env = os.environ if env is None else env
    slices = _integer(env, "MEGASCALE_NUM_SLICES")
    if slices is not None:
        return max(1, slices)
    if _gke_hosts(env) or env.get("TPU_SKIP_MDS_QUERY") or not (has_tpu or has_google_device)():
        return 1
    told = (metadata or _metadata)("tpu-env") or ""
    match = re.search(r"MEGASCALE_NUM_SLICES\s*:\s*'?(\d+)", told)
    return max(1, int(match[1])) if match else 1


def visible_gpus(env: Mapping[str, str]) -> int:
    """Returns how many NVIDIA GPUs this process may use."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        # CUDA ignores what follows an invalid entry.
        last = next((at for at, name in enumerate(names) if name in ("", "-1")), len(names))
        return last
    return len([path for path in glob.glob("/dev/nvidia[0-9]*") if path[11:].isdigit()])


def _has_tpu() -> bool:
    # JAX has looked for chips and for their driver's library when it was imported.
    from jax._src import cloud_tpu_init

    return cloud_tpu_init.running_in_cloud_tpu_vm


def has_google_device() -> bool:
    """Whether this may be a machine with TPU chips, whose vendor also makes network cards."""
    for path in glob.glob(_PCI_VENDORS):
        try:
            if pathlib.Path(path).read_text().strip() == _GOOGLE:
                return True
        except OSError:
            continue
    return False


def _metadata(name: str) -> str | None:
    request = urllib.request.Request(_METADATA + name, headers={"Metadata-Flavor": "Google"})
    for _ in range(3):
        try:
            with urllib.request.urlopen(request, timeout=_METADATA_TIMEOUT) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError:
            return None  # there is no such attribute
        except OSError:
            continue
    return None


def _integer(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name}={text!r} is not an integer.\n{HOW}") from None
