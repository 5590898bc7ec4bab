"""Connects the processes of a run that spans several hosts, and lets them end together."""

import contextlib
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Literal

import jax

from roberta_jax.errors import UsageError, shortened
from roberta_jax.training import agreement, preemption
from roberta_jax.training.clusters import HOW, Cluster, find_cluster
from roberta_jax.training.ending import flush, handled_aborts, report
from roberta_jax.training.partners import Partners, Timeouts, current, made_current

Mode = Literal["auto", "on", "off"]

# An option of jax from 0.8.2 on. `initialize` has `shutdown_timeout_seconds` from 0.8.1 on.
_PREEMPTION_SERVICE = "jax_enable_preemption_service"
_SHUTDOWN_TIMEOUT = 30  # seconds for the other processes to end, after all have finished
# JAX aborts a process whose partner is lost; `Partners` notices it before and says so.
_LATER = 60  # seconds
_RUNTIME_STATUS = re.compile(
    "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|UNKNOWN): "
)


def join_processes(mode: Mode = "on", timeouts: Timeouts | None = None) -> bool:
    """Connects this process to the other processes of the run. Call it before any other JAX code.

    Detected are TPU pods (VMs and GKE), Slurm with one task per node or several, Open MPI, GPU
    nodes of xpk, and JAX's environment variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID. With "on", JAX looks for other clusters as well, such as indexed Jobs of
    Kubernetes.

    Args:
      mode: "auto" connects to what is detected, "on" requires it, "off" does nothing.
      timeouts: how long to wait for the other processes.

    Returns:
      Whether there are other processes.

    Raises:
      UsageError: the environment does not say where the other processes are, they cannot be
        reached, or this version of jax is too old.
    """
    timeouts = timeouts or Timeouts()
    if mode == "off":
        return False
    if jax.distributed.is_initialized():
        return jax.process_count() > 1
    cluster = find_cluster()
    if cluster is None:
        if mode == "auto" or os.environ.get("JAX_NUM_PROCESSES") == "1":
            return False
        cluster = Cluster(name="")
    if _PREEMPTION_SERVICE not in jax.config.values:
        raise UsageError(
            f"a run of several processes needs jax 0.8.2 or newer, and this is jax "
            f"{jax.__version__}. Update it with pip install --upgrade jax, or train with one "
            "process (--distributed=off)."
        )
    # SIGTERM is handled here, and not by a service of JAX whose numbers Orbax would use as well.
    jax.config.update(_PREEMPTION_SERVICE, False)
    _connect(cluster, timeouts)
    return jax.process_count() > 1


def _connect(cluster: Cluster, timeouts: Timeouts) -> None:
    started = time.monotonic()
    if cluster.process_id and cluster.coordinator_address:
        _await_coordinator(cluster.coordinator_address, timeouts.start)
    left = max(5, round(timeouts.start - (time.monotonic() - started)))
    arguments = {
        "num_processes": cluster.num_processes,
        "process_id": cluster.process_id,
        "coordinator_address": cluster.coordinator_address,
        "local_device_ids": cluster.local_device_ids and list(cluster.local_device_ids),
        "cluster_detection_method": None if cluster.detect else "deactivate",
    }
    # The main thread must not wait within a step: it says which step this process is at.
    jax.config.update("jax_cpu_enable_async_dispatch", True)
    try:
        with handled_aborts(lambda: _end_at_start(cluster, timeouts)):
            jax.distributed.initialize(
                **{name: value for name, value in arguments.items() if value is not None},
                initialization_timeout=left,
                heartbeat_timeout_seconds=round(timeouts.heartbeat) + _LATER,
                shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
            )
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        reason = shortened(" ".join(str(error).split()), 300)
        raise UsageError(f"cannot connect to the other processes: {reason}\n{HOW}") from error


def _await_coordinator(address: str, timeout: float) -> None:
    """Waits until process 0 listens. JAX would abort this process if it never does."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout
    noticed = time.monotonic() + min(30, timeout / 2)
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, ValueError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        now = time.monotonic()
        if now > deadline:
            raise agreement.PartnerLost(
                f"process 0 does not answer at {address} after {timeout:.0f} s ({reason}). Start "
                "all processes of the run, and let their hosts reach that address; how long to "
                "wait is --config.distributed.start_timeout."
            )
        if now > noticed:
            print(f"Waiting for process 0 at {address} ({reason})...", file=sys.stderr, flush=True)
            noticed = now + 60
        time.sleep(0.5)


def _end_at_start(cluster: Cluster, timeouts: Timeouts) -> None:
    """Ends this process instead of the abort by which JAX reports that others did not start."""
    if cluster.num_processes is None:
        count = "Not all processes"
    else:
        count = f"Fewer than {cluster.num_processes} processes"
    report(
        f"error: {count[0].lower()}{count[1:]} of the run started within {timeouts.start:.0f} s "
        f"(--config.distributed.start_timeout), or process 0 could not be reached. Start all of "
        "them with the same command, and see the output of those that ended.",
        restart=True,
    )
    flush()
    os._exit(2)


@contextlib.contextmanager
def watched(timeouts: Timeouts | None = None) -> Iterator[Partners | None]:
    """Watches the other processes inside the context, and ends together with them.

    Does nothing with one process, or inside another such context. Otherwise, if the block raises,
    this process prints the error as a command does and ends at once, and so do the other processes,
    within seconds. Waiting for the others at its end, as JAX does, it would wait for ever: they may
    be waiting for it in a computation.

    Yields:
      The other processes, None with one process.
    """
    if current() is not None or agreement.client() is None or jax.process_count() == 1:
        yield current()
        return
    partners = Partners(timeouts or Timeouts())
    with (
        handled_aborts(partners.check_coordinator),
        made_current(partners),
        preemption.terminated_by(
            lambda: partners.leave(preemption.TERMINATED, "it received SIGTERM.")
        ),
    ):
        partners.start()
        with failing_together():
            yield partners
            agreement.exchange("the end of the run", None)
            partners.close()


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Ends this process and tells the others, inside `watched`, if the block raises.

    Use it also inside of contexts whose end waits for other processes, as that of checkpoints does.
    """
    partners = current()
    if partners is None:
        yield
        return
    try:
        yield
    except UsageError as error:
        if isinstance(error, agreement.CoordinatorLost):
            partners.check_coordinator()  # the process may have said why it ended
        report(f"error: {error}", restart=error.restart)
        partners.leave(2, str(error), restart=error.restart)
    except KeyboardInterrupt:
        partners.leave(128 + signal.SIGINT, "it was interrupted (Ctrl-C).")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        partners.leave(status, f"it ended with status {status}.")
    except BaseException as error:
        text = shortened(" ".join(f"{type(error).__name__}: {error}".split()), 300)
        if _may_be_of_others(error):
            print(f"{text}\nChecking the other processes...", file=sys.stderr, flush=True)
            partners.wait_for_verdict()
        traceback.print_exc()
        partners.leave(1, f"{text} (see its output).")


def _may_be_of_others(error: BaseException) -> bool:
    """Whether an error may be that of a computation with a process that has ended.

    The runtime raises some of its errors as ValueError; their text begins with the status as well.
    """
    if "RESOURCE_EXHAUSTED" in str(error):
        return False
    return isinstance(error, jax.errors.JaxRuntimeError) or (
        isinstance(error, ValueError) and _RUNTIME_STATUS.match(str(error)) is not None
    )
