"""Compares the hosts of a run."""

import socket
from collections.abc import Mapping
from typing import Any

import jax

from roberta_jax.diagnostics.report import Result, ok, problem, warning
from roberta_jax.errors import counted, listed
from roberta_jax.training.agreement import exchange

CHECK = "hosts"


def check(versions: Mapping[str, str]) -> list[Result]:
    """Compares the hosts: their devices and the versions of their libraries.

    Args:
      versions: those of this process.
    """
    own = [socket.gethostname(), jax.local_device_count(), jax.devices()[0].device_kind]
    hosts = exchange("the versions", [*own, dict(versions)])
    names = list(dict.fromkeys(host[0] for host in hosts))
    results = [
        ok(
            CHECK,
            f"{counted(len(hosts), 'process', 'processes')} on {counted(len(names), 'host')}: "
            f"{listed(names, 4)}",
        )
    ]
    counts = {index: host[1] for index, host in enumerate(hosts)}
    if len(set(counts.values())) > 1:
        results.append(
            warning(
                CHECK,
                f"the processes have different numbers of devices: {_differing(counts)}.",
                "check the hosts with fewer devices: a device may be broken or in use.",
            )
        )
    for package in sorted({name for host in hosts for name in host[3]}):
        found = {index: host[3].get(package, "none") for index, host in enumerate(hosts)}
        if len(set(found.values())) > 1:
            results.append(
                problem(
                    CHECK,
                    f"the processes have different versions of {package}: {_differing(found)}.",
                    "install the same versions on all hosts.",
                )
            )
    return results


def _differing(values: Mapping[int, Any]) -> str:
    """Returns "VALUE on process 0, 1; VALUE on process 2"."""
    places: dict[Any, list[str]] = {}
    for process, value in values.items():
        places.setdefault(value, []).append(str(process))
    return "; ".join(
        f"{value} on process {', '.join(processes[:6])}{', ...' if len(processes) > 6 else ''}"
        for value, processes in places.items()
    )
