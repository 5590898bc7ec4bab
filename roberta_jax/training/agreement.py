"""Lets the processes of a run exchange values and agree on errors.

The values travel through the coordination service that `jax.distributed.initialize` starts on
process 0, not through the devices: this works before anything is compiled, while a device is busy,
and with processes that do not take part in a computation. All functions here are called by all
processes in the same order, as collectives are. With one process they cost nothing.
"""

import contextlib
import hashlib
import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from roberta_jax.errors import UsageError, listed, shortened
from roberta_jax.training import heartbeat

KEYS = "roberta_jax"  # the prefix of all our keys in the coordination service

# How long to wait for another process where nothing else tells that it has ended, in seconds.
PATIENCE = 300.0

_SEEN_TIMEOUT = 20.0  # seconds to wait until all processes have read an error
_FIRST_NOTICE = 30.0  # seconds until a process says that it waits for another one
_LONGEST_SILENCE = 3600.0  # and between two such notices
_LONGEST_SHOWN = 60  # characters of a value in a message

_rounds = 0  # how many exchanges this process has made: the same number on all processes

# Whether someone watches the processes and ends this one if another is lost (see `partners`).
watched = False


class PartnerLost(UsageError):
    """Another process of the run has ended, does not answer, or is too late."""

    restart = True


class CoordinatorLost(PartnerLost):
    """Process 0, which coordinates the run, does not answer."""


def client() -> Any:
    """Returns the client of the coordination service, or None without `jax.distributed`."""
    # jax.distributed has no public access to it; Orbax uses the same attribute.
    from jax._src import distributed

    return distributed.global_state.client


def host() -> str:
    """Returns the name of this process for messages, such as `tpu-3 (process 3)`."""
    return f"{socket.gethostname()} (process {jax.process_index()})"


def exchange(what: str, value: Any, *, timeout: float | None = None) -> list[Any]:
    """Returns the value of every process, by process index.

    Args:
      what: what the value is or what precedes the exchange, for messages: "the rows".
      value: a JSON value, at most some megabytes.
      timeout: seconds to wait for the other processes. None waits for as long as they are alive,
        or `PATIENCE` seconds where nobody watches them.

    Raises:
      PartnerLost: a process did not answer in time; `CoordinatorLost` if it is process 0.
      UsageError: another process failed (see `together`), or is at another exchange.
    """
    if jax.process_count() == 1:
        return [value]
    return [each["value"] for each in _exchange(what, {"value": value}, timeout)]


def require_equal(values: Mapping[str, Any], advice: str = "", *, what: str = "settings") -> None:
    """Checks that all processes have the same values.

    Args:
      values: {name: JSON value}; the names appear in the message.
      advice: what to do about a difference.
      what: what the values are, together.

    Raises:
      UsageError: on every process, if the values differ anywhere. It names what differs and on
        which hosts.
      PartnerLost: a process did not answer in time.
    """
    if jax.process_count() == 1:
        return
    mine = {name: _shown_with_digest(value) for name, value in values.items()}
    answers = _exchange(what, {"value": mine, "host": socket.gethostname()}, None)
    names = sorted(set().union(*(answer["value"] for answer in answers)))
    differing = {}
    for name in names:
        groups: dict[tuple[str, str], list[str]] = {}
        for index, answer in enumerate(answers):
            shown = tuple(answer["value"].get(name, ("", "absent")))
            groups.setdefault(shown, []).append(f"{answer['host']} (process {index})")
        if len(groups) > 1:
            differing[name] = [
                f"{shown} on {listed(hosts, 4)}" for (_, shown), hosts in groups.items()
            ]
    if differing:
        lines = [f"  {name}: {'; '.join(groups)}" for name, groups in differing.items()]
        more = [f"  ... and {len(lines) - 12} more"] if len(lines) > 12 else []
        text = "\n".join([f"the hosts of this run differ in their {what}:", *lines[:12], *more])
        advice = advice or "Start all processes with the same command, code and files."
        raise agreed(UsageError(f"{text}\n{advice}"))


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """If the block raises a `UsageError` on any process, all processes raise one.

    A process whose own block succeeded raises the message of the process that failed, with the name
    of its host. It does so in the first exchange that it comes to, in the block or at its end, so
    the block may itself contain exchanges. It must not contain computations of several processes.

    Where the processes are watched, the error is raised at once, and only on the process that
    failed. It must not be caught: it ends that process, and with it the others, whatever they are
    doing (see `distributed.watched`).

    Args:
      what: what the block does, for messages: "preparing the text".
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except UsageError as error:
        if watched:  # others may still work in the block for hours
            raise
        if not getattr(error, "on_all_processes", False):
            with contextlib.suppress(UsageError):  # what happened here says more
                _exchange(what, {"error": str(error), "restart": error.restart}, None)
            agreed(error)
        raise
    exchange(what, None)


def agreed(error: UsageError) -> UsageError:
    """Marks an error that all processes raise, so that `together` does not report it again."""
    error.on_all_processes = True
    return error


def _exchange(what: str, answer: dict[str, Any], timeout: float | None) -> list[dict[str, Any]]:
    global _rounds
    service, index, count = client(), jax.process_index(), jax.process_count()
    folder = f"{KEYS}/exchange/{_rounds}"
    _rounds += 1
    answer = {"host": socket.gethostname(), **answer, "what": what}
    try:
        service.key_value_set(f"{folder}/{index}", json.dumps(answer))
        answers = _collect(service, folder, count, what, timeout)
    except jax.errors.JaxRuntimeError as error:
        raise CoordinatorLost(
            f"the process that coordinates the run does not answer ({_reason(error)}); its host "
            "or the network failed. Start all processes again."
        ) from error
    failed = [number for number in range(count) if "error" in answers[number]]
    points = sorted({each["what"] for each in answers if "error" not in each})
    if failed or len(points) > 1:
        # Process 0 holds the answers: it must not end before the others have read them.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            service.wait_at_barrier(f"{folder}/seen", int(1000 * _SEEN_TIMEOUT))
        if failed:
            first = answers[failed[0]]
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            name = f"{first['host']} (process {failed[0]}){more}"
            error = UsageError(f"on host {name}: {first['error']}")
            error.restart = all(answers[number]["restart"] for number in failed)
            raise agreed(error)
        raise agreed(
            UsageError(
                f"the processes of the run do different things: {'; '.join(points)}. Start all of "
                "them with the same command and code."
            )
        )
    if _rounds > 1:  # all processes have finished the exchange before this one
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            service.key_value_delete(f"{KEYS}/exchange/{_rounds - 2}/{index}")
    return answers


def _collect(
    service: Any, folder: str, count: int, what: str, timeout: float | None
) -> list[dict[str, Any]]:
    """Waits for the answers of all processes, in their order."""
    started, pause, notice = time.monotonic(), 0.002, _FIRST_NOTICE
    if timeout is None and not watched:
        timeout = PATIENCE
    while True:
        # The keys that are there: {folder}/{process}.
        present = dict(service.key_value_dir_get(folder))
        answers = {int(key.rsplit("/", 1)[1]): text for key, text in present.items()}
        if len(answers) == count:
            return [json.loads(answers[number]) for number in range(count)]
        waited = time.monotonic() - started
        if timeout is not None and waited > timeout:
            raise PartnerLost(
                f"waited {waited:.0f} s for {what} of {_missing(answers, count)}. See the output "
                "of those processes, and start all again."
            )
        if waited > notice:
            print(
                f"Waiting for {what} of {_missing(answers, count)} for {waited:.0f} s...",
                file=sys.stderr,
                flush=True,
            )
            notice += min(3 * notice, _LONGEST_SILENCE)
        heartbeat.beat(first=False)
        time.sleep(pause)
        pause = min(1.5 * pause, 0.5)


def _missing(answers: Mapping[int, str], count: int) -> str:
    missing = [f"process {number}" for number in range(count) if number not in answers]
    return f"{listed(missing)} of {count}"


def _shown_with_digest(value: Any) -> tuple[str, str]:
    text = json.dumps(value, sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return digest, text if len(text) <= _LONGEST_SHOWN else f"{shortened(text, 24)} [{digest[:8]}]"


def _reason(error: Exception) -> str:
    return shortened(" ".join(str(error).split("\n")[0].split()), 120)
