"""What the processes of a run tell each other."""

import json
import socket
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from roberta_jax.diagnostics.report import Result, ok, problem, warning

CHECK = "hosts"


def everyone(value: Any) -> list[Any]:
    """Returns the values of all processes, by their index. All have to call it.

    Args:
      value: what JSON can hold.
    """
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray([text.size], np.int32)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: text.size] = text
    texts = np.asarray(multihost_utils.process_allgather(padded))
    return [
        json.loads(bytes(row[: int(size)]))
        for row, size in zip(texts.reshape(jax.process_count(), -1), sizes.reshape(-1), strict=True)
    ]


def check(versions: Mapping[str, str]) -> list[Result]:
    """Compares the hosts: their devices and the versions of their libraries.

    Args:
      versions: those of this process.
    """
    own = [socket.gethostname(), jax.local_device_count(), jax.devices()[0].device_kind]
    hosts = everyone([*own, dict(versions)])
    names = list(dict.fromkeys(host[0] for host in hosts))
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    results = [
        ok(CHECK, f"{_count(len(hosts), 'process', 'es')} on {_count(len(names), 'host')}: {shown}")
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


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}" + ("" if number == 1 else plural)
