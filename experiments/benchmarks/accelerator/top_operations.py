"""Profiles steps and finds the operations that take the most time, without TensorFlow."""

import collections
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax

MOST = 12  # operations that are reported

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*? ([\w\-]+)\(")
_OP_NAME = re.compile(r'metadata=\{[^}]*?op_name="([^"]*)"')
_KERNEL = re.compile(r"__\d+$")  # a number that a GPU's kernel has behind its name
# Parts of an `op_name` that say nothing about the model.
_TRANSFORMS = re.compile(r"\b(?:jit|pjit|jvp|vmap|remat\d*|checkpoint|custom_\w+)\(([^()]*)\)")
_SILENT = {"while", "body", "closed_call", "checkpoint", "rematted_computation", "cond", "remat2"}


class Event(NamedTuple):
    """One execution of an operation: `name`, and nanoseconds without those of what it contains."""

    name: str
    nanoseconds: float


def profile(run: Callable[[], object]) -> list[Event]:
    """Runs a function under the profiler; returns what the first device executed.

    Raises:
      RuntimeError: this jax has no reader of profiles, or the profile has no operations.
    """
    if not hasattr(jax.profiler, "ProfileData"):
        raise RuntimeError("jax.profiler.ProfileData is missing: a newer jax has it")
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        files = sorted(pathlib.Path(folder).rglob("*.xplane.pb"))
        if not files:
            raise RuntimeError("the profiler wrote no profile")
        events = read(jax.profiler.ProfileData.from_file(str(files[0])))
    if not events:
        raise RuntimeError("the profile has no operations of a device")
    return events


def read(data) -> list[Event]:
    """The operations in a `jax.profiler.ProfileData`, of the first device alone.

    A GPU has a line for each stream; of a TPU's lines, one has the operations and the others sum
    them up. A CPU has no plane of its own, and its operations are among the events of the host.
    """
    planes = {plane.name: plane for plane in data.planes}
    devices = sorted(name for name in planes if re.match(r"/device:(GPU|TPU):", name))
    for name in devices:
        lines = list(planes[name].lines)
        streams = [line for line in lines if line.name.startswith("Stream")]
        chosen = streams or [line for line in lines if line.name == "XLA Ops"]
        if events := [event for line in chosen for event in _own_times(line.events)]:
            return events
    host = planes.get("/host:CPU")
    lines = [] if host is None or devices else host.lines
    return [
        event
        for line in lines
        for event in _own_times(each for each in line.events if _operation(each) is not None)
    ]


def _operation(event) -> str | None:
    """The HLO instruction of an event, if the event names it."""
    return next((str(value) for name, value in event.stats if name == "hlo_op"), None)


def _own_times(events: Iterable) -> list[Event]:
    """The events of a line, each without the time of those within it (as a loop has its body)."""
    ordered = sorted(events, key=lambda each: (each.start_ns, -each.duration_ns))
    own = [each.duration_ns for each in ordered]
    around: list[int] = []
    for number, event in enumerate(ordered):
        while around and event.start_ns >= _end(ordered[around[-1]]):
            around.pop()
        if around:
            own[around[-1]] -= event.duration_ns
        around.append(number)
    return [
        Event(_operation(event) or event.name, max(0.0, nanoseconds))
        for event, nanoseconds in zip(ordered, own, strict=True)
    ]


def _end(event) -> float:
    return event.start_ns + event.duration_ns


def summarize(events: list[Event], program: str, steps: int) -> tuple[float, list[dict]]:
    """The operations that take the most time.

    Args:
      events: of all steps.
      program: the text of the compiled program, which says where an operation comes from.
      steps: how many were profiled.

    Returns:
      (seconds of all operations in one step, the first `MOST` of them: `operation`, `kind`, `place`
      in the model, `seconds` and `calls` in one step, and `share` of the seconds).
    """
    places = places_of(program)
    # A GPU's kernels are named after instructions, with an underscore for other characters.
    as_kernels = {re.sub(r"[.\-]", "_", name): name for name in places}
    seconds: dict[str, float] = collections.defaultdict(float)
    calls: collections.Counter = collections.Counter()
    for event in events:
        name = event.name.removeprefix("%").split(" = ")[0]
        if name not in places:
            plain = _KERNEL.sub("", name)
            name = as_kernels.get(name) or as_kernels.get(plain) or name
        seconds[name] += event.nanoseconds / 1e9 / steps
        calls[name] += 1
    total = sum(seconds.values())
    first = sorted(seconds, key=seconds.get, reverse=True)[:MOST]
    return total, [
        {
            "operation": name[:120],
            "kind": places.get(name, ("", ""))[0],
            "place": places.get(name, ("", ""))[1],
            "seconds": seconds[name],
            "calls": calls[name] / steps,
            "share": seconds[name] / total if total else 0.0,
        }
        for name in first
    ]


def places_of(program: str) -> dict[str, tuple[str, str]]:
    """Instruction -> (what it is, such as "fusion"; where it comes from, such as
    "backward layer/attention/self/dot_general")."""
    places = {}
    for line in program.splitlines():
        if match := _INSTRUCTION.match(line):
            source = _OP_NAME.search(line)
            places[match[1]] = (match[2], readable(source[1]) if source else "")
    return places


def readable(op_name: str) -> str:
    """The end of an `op_name`, without what JAX's transformations add to it."""
    backward = "backward " if "transpose(" in op_name else ""
    text = op_name.replace("transpose(", "jvp(")
    while (shorter := _TRANSFORMS.sub(r"\1", text)) != text:
        text = shorter
    parts = [part for part in text.split("/") if part and part not in _SILENT]
    return backward + "/".join(parts[-4:])
