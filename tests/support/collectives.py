"""Reads the collective operations of a compiled program."""

import dataclasses
import math
import re

_OPERATION = re.compile(
    r"^\s+(?:ROOT )?%?[\w.\-]+ = (?P<type>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|"
    r"all-to-all|collective-permute)(?:-start)?\("
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{\s*$")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition)=%?([\w.\-]+)")
_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation: its kind, the dtype and the bytes of its result, and whether it repeats."""

    kind: str
    dtype: str
    size: int
    in_loop: bool


def collectives(program: str) -> list[Collective]:
    """Lists the collectives in the text of an optimised HLO module."""
    lines_of: dict[str, list[str]] = {}
    for line in program.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            lines = lines_of.setdefault(start.group(1), [])
        elif lines_of:
            lines.append(line)
    bodies = set(re.findall(r"\bwhile\(.*body=%?([\w.\-]+)", program))
    looped: set[str] = set()
    while bodies:
        looped |= bodies
        called = {name for body in bodies for name in _CALLED.findall("\n".join(lines_of[body]))}
        bodies = called & lines_of.keys() - looped
    return [
        Collective(match["kind"], dtype, _size(match["type"]), name in looped)
        for name, lines in lines_of.items()
        for match in map(_OPERATION.match, lines)
        if match
        for dtype in ["+".join(sorted(set(re.findall(r"(\w+)\[", match["type"]))))]
    ]


def _size(text: str) -> int:
    return sum(
        _BYTES[dtype] * math.prod(int(size) for size in sizes.split(",") if size)
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", text)
    )
