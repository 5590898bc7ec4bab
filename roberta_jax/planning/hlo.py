"""Reads the text of an optimised program: its loops, its collectives, and cycle estimates.

The text is that of `jax.stages.Compiled.as_text()`. Nothing here runs or compiles anything.

A computation runs as often as those that call it; the body of a loop as often again as the loop's
condition says. XLA's own cost analysis counts the body of a loop once.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

_SIZES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
    "s64": 8, "u64": 8, "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
# Kernel -> (figure of its cost estimate, cycles for each). The compiler estimates no cycles of
# kernels. These are the instructions that libtpu 0.0.42 makes of a program of the grid on v5e, for
# heads of 64, 512 tokens, and dropout: for each score, and for each operation of `layer_norm`.
KERNEL_CYCLES = {
    "attention_forward": ("transcendentals", 3787 / (2 * 512 * 512)),
    "attention_backward": ("transcendentals", 6223 / (2 * 512 * 512)),
    "layer_norm_forward": ("flops", 1877 / (256 * 768) / 30),
    "layer_norm_backward": ("flops", 2718 / (256 * 768) / 40),
}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_COLLECTIVE = re.compile(rf"^({'|'.join(KINDS)})(-start)?$")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
# An index in a long tuple, and the layout of an array.
_COMMENT, _LAYOUT = re.compile(r"/\*.*?\*/"), re.compile(r"(?<=\])\{[^}]*\}")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: of the result.
      shape: of the result, as text.
      op: such as "fusion".
      rest: everything behind the opening parenthesis.
    """

    name: str
    shape: str
    op: str
    rest: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
      kind: one of `KINDS`.
      arrays: what it communicates: the operands of a reduce-scatter, else the results, as pairs
        (dtype, shape).
      groups: positions in the mesh, flattened, that communicate with one another; [groups, size].
        None for what TPUs send to the chips of the same place in all other slices.
      times: how often a step does it.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    groups: np.ndarray | None
    times: int

    @property
    def bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array_bytes(*array) for array in self.arrays)

    def sent(self, slices: int = 1) -> float:
        """Bytes that each device sends in a step, by the ring algorithms."""
        parts = slices if self.groups is None else self.groups.shape[1]
        return self.times * ring_bytes(self.kind, self.bytes, parts)


def ring_bytes(kind: str, size: float, parts: int) -> float:
    """Bytes that each of `parts` devices sends, where the whole array has `size` bytes.

    A ring sends (parts - 1) / parts of the array for an all-gather, a reduce-scatter or an
    all-to-all, and twice as much for an all-reduce, which is one of each.
    """
    if kind == "collective-permute":
        return float(size)
    return (2 if kind == "all-reduce" else 1) * size * (parts - 1) / parts


def array_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of an array, without the padding of tiled layouts."""
    return math.ceil(_SIZES.get(dtype, 0) * math.prod(shape))


def arrays_of(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """The arrays in the text of a shape: pairs (dtype, shape)."""
    return [
        (dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(_LAYOUT.sub("", _COMMENT.sub("", text)))
        if dtype in _SIZES
    ]


class Program:
    """The computations of an optimised program.

    Args:
      text: from `as_text()`.

    Attributes:
      computations: name -> its instructions.
      entry: the name of the computation that runs first.

    Raises:
      ValueError: the text is no such program, or a loop's number of iterations cannot be read.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header:
                current = self.computations[header[2]] = []
                self.entry = header[2] if header[1] else self.entry
                continue
            match = _INSTRUCTION.match(line)
            if match:
                current.append(Instruction(*match.groups()))
        if not self.entry:
            raise ValueError("the text has no ENTRY computation: it is no optimised program")
        self._times = self._count_times()

    def times(self, computation: str) -> int:
        """How often a step runs a computation; 0 if nothing calls it."""
        return self._times.get(computation, 0)

    def loops(self) -> dict[str, int]:
        """{body of a loop: iterations of the loop}."""
        return {body: trips for _, _, body, trips in self._loops()}

    def carries(self) -> Iterator[tuple[Instruction, int, int]]:
        """The loops that run: (the `while`, its iterations, how often the step starts it)."""
        for computation, instruction, _, trips in self._loops():
            if self.times(computation):
                yield instruction, trips, self.times(computation)

    def collectives(self) -> list[Collective]:
        """Every collective, once for each of its places in the program."""
        found: dict[object, Collective] = {}
        for name, instructions in self.computations.items():
            times = self.times(name)
            for each in instructions if times else ():
                match = _COLLECTIVE.match(each.op)
                if match:
                    collective = _collective(match[1], bool(match[2]), each, times, name)
                elif each.op == "send" and "_xla_megascale_transfer_type" in each.rest:
                    collective = _between_slices(each, times)
                else:
                    continue
                # The pieces of an asynchronous collective repeat it with its channel.
                channel = re.search(r"\bchannel_id=([0-9]+)", each.rest)
                key = (collective.kind, channel[1]) if channel else (name, each.name)
                before = found.get(key)
                if before is None or before.times < times:
                    found[key] = collective
        return list(found.values())

    def estimated_cycles(self) -> float | None:
        """The cycles of a step as TPU's compiler estimates them, or None where it does not.

        The estimates are of single operations, without waiting for collectives or for data. Those
        of this project's kernels are by `KERNEL_CYCLES`.
        """
        total, any_found = 0.0, False
        fused = set(re.findall(r"\bcalls=%?([\w.\-]+)", self._called_text()))
        for name, instructions in self.computations.items():
            if name in fused:
                continue
            for each in instructions:
                match = re.search(r'"estimated_cycles":"([0-9]+)"', each.rest)
                if match:
                    any_found = True
                    total += int(match[1]) * self.times(name)
                elif each.op == "custom-call":
                    total += _kernel_cycles(each) * self.times(name)
        return float(total) if any_found else None

    def _called_text(self) -> str:
        return "\n".join(
            each.rest
            for instructions in self.computations.values()
            for each in instructions
            if "calls=" in each.rest
        )

    def _loops(self) -> Iterator[tuple[str, Instruction, str, int]]:
        for name, instructions in self.computations.items():
            for each in instructions:
                if each.op == "while":
                    body = re.search(r"\bbody=%?([\w.\-]+)", each.rest)
                    yield name, each, body[1], self._trips(each)

    def _trips(self, loop: Instruction) -> int:
        stated = re.search(r'"known_trip_count":\{"n":"([0-9]+)"', loop.rest)
        if stated:
            return int(stated[1])
        condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.rest)[1]
        limits = [
            int(match[1])
            for each in self._reachable(condition)
            if each.op == "constant" and each.shape.startswith(("s32[]", "u32[]", "s64[]"))
            for match in [re.match(r"(-?[0-9]+)\)", each.rest)]
            if match
        ]
        if len(set(limits)) != 1:
            raise ValueError(f"the loop {loop.name} has no number of iterations that can be read")
        return limits[0]

    def _reachable(self, computation: str) -> Iterator[Instruction]:
        for each in self.computations[computation]:
            yield each
            for called in re.findall(r"\bcalls=%?([\w.\-]+)", each.rest):
                yield from self._reachable(called)

    def _count_times(self) -> dict[str, int]:
        callers: dict[str, list[tuple[str, int]]] = {}
        for name, instructions in self.computations.items():
            for each in instructions:
                trips = self._trips(each) if each.op == "while" else 1
                for called in _called(each.rest):
                    callers.setdefault(called, []).append((name, trips))
        times: dict[str, int] = {self.entry: 1}

        def count(name: str) -> int:
            if name not in times:
                times[name] = 0  # a computation never calls itself
                times[name] = sum(count(caller) * n for caller, n in callers.get(name, ()))
            return times[name]

        for name in self.computations:
            count(name)
        return times


_CALLS = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


def _called(rest: str) -> list[str]:
    """The computations that an instruction calls."""
    branches = (name for group in _BRANCHES.findall(rest) for name in group.split(","))
    return _CALLS.findall(rest) + [name.strip().lstrip("%") for name in branches]


def _kernel_cycles(each: Instruction) -> float:
    """The cycles of one of `KERNEL_CYCLES`; 0 for another custom call."""
    kernel = re.search(rf"\b({'|'.join(KERNEL_CYCLES)})\b", each.rest)
    if not kernel:
        return 0.0
    figure, cycles = KERNEL_CYCLES[kernel[1]]
    stated = re.search(rf'"cost_estimate":\{{[^}}]*"{figure}":"([0-9]+)"', each.rest)
    return int(stated[1]) * cycles if stated else 0.0


def _collective(
    kind: str, is_start: bool, each: Instruction, times: int, computation: str
) -> Collective:
    arrays = arrays_of(each.shape)
    if is_start and kind in ("all-gather", "collective-permute"):
        # The result of a start is (operands, results, ...).
        arrays = [array for array in arrays if array[1]]
        arrays = arrays[len(arrays) // 2 :]
    # TPU's compiler writes a reduce-scatter as a fusion of an all-reduce and a slice.
    if kind == "all-reduce" and "all-reduce-scatter" in computation:
        kind = "reduce-scatter"
    elif kind == "reduce-scatter":
        parts = read_groups(each.rest).shape[1]
        arrays = [(dtype, (*shape, parts)) for dtype, shape in arrays]
    if kind == "collective-permute":
        groups = np.array(_pairs(each.rest))
    else:
        groups = read_groups(each.rest)
    return Collective(kind, tuple(arrays), groups, times)


def _between_slices(each: Instruction, times: int) -> Collective:
    """What the program of one slice hands to the runtime that connects the slices."""
    kind = re.search(r'_xla_megascale_transfer_type="([A-Z_]+)"', each.rest)
    name = kind[1].lower().replace("_", "-") if kind else ""
    arrays = arrays_of(each.shape)[:1]  # the result is (what is sent, a context, a token)
    return Collective(name if name in KINDS else "collective-permute", tuple(arrays), None, times)


def _pairs(rest: str) -> list[list[int]]:
    text = re.search(r"source_target_pairs=\{(.*?)\}\}", rest)
    pairs = re.findall(r"\{([0-9]+),([0-9]+)", text[0]) if text else [("0", "0")]
    return [[int(a), int(b)] for a, b in pairs]


def read_groups(rest: str) -> np.ndarray:
    """Reads `replica_groups=...` in any of its three notations; int [groups, size].

    `{{0,1},{2,3}}` lists them. `[2,4]<=[4,2]T(1,0)` reshapes the devices 0, 1, ... to the second
    shape, transposes them and reshapes them to [groups, size]. `mesh['a'=2,'b'=4] {'b'}` makes a
    mesh of the devices, with their order in `device_ids=(...)` if that is given, and names the axes
    that communicate; `'b':(2)2` is a part of an axis: its size is 2, and 2 parts are outside it.

    Raises:
      ValueError: there are no groups, or in another notation.
    """
    listed = re.search(r"replica_groups=\{(\{[0-9,{}]*\})\}", rest)
    if listed:
        groups = [
            [int(number) for number in group.split(",")]
            for group in re.findall(r"\{([0-9,]+)\}", listed[1])
        ]
        return np.array(groups)
    iota = re.search(r"replica_groups=\[([0-9,]+)\]<=(\[[0-9,]+\](?:T\([0-9,]+\))?)", rest)
    if iota:
        return _ids(iota[2]).reshape([int(size) for size in iota[1].split(",")])
    mesh = re.search(
        r"replica_groups=@?mesh\[([^\]]*)\](?:, device_ids=\((.*?\]?(?:T\([0-9,]*\))?)\))? "
        r"\{([^}]*)\}",
        rest,
    )
    if mesh:
        return _mesh_groups(mesh[1], mesh[2], mesh[3])
    raise ValueError(f"groups of devices in an unknown notation: {rest[:200]}")


def _ids(text: str) -> np.ndarray:
    """Reads `[4,2]T(1,0)`: the numbers 0, 1, ... in this shape, transposed and flattened."""
    match = re.match(r"\[([0-9,]+)\](?:T\(([0-9,]+)\))?", text)
    if match is None:
        raise ValueError(f"device numbers in an unknown notation: {text[:80]}")
    shape = [int(size) for size in match[1].split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    if match[2]:
        ids = ids.transpose([int(axis) for axis in match[2].split(",")])
    return ids.ravel()


def _mesh_groups(axes: str, ids: str | None, names: str) -> np.ndarray:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=([0-9]+)", axes)}
    total = math.prod(sizes.values())
    order = _ids(ids) if ids else np.arange(total)
    chosen: dict[str, tuple[int, int]] = {}
    for name, before, size in re.findall(r"'([^']+)'(?::\(([0-9]+)\)([0-9]+))?", names):
        chosen[name] = (int(before), int(size)) if size else (1, sizes[name])
    shape, inside = [], []
    for name, size in sizes.items():
        before, part = chosen.get(name, (size, 1))
        inside += [len(shape) + 1]
        shape += [before, part, size // (before * part)]
    array = order.reshape(shape)
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    parts = math.prod(shape[axis] for axis in inside)
    return array.transpose(outside + inside).reshape(-1, parts)


def axes_of_groups(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...] | None:
    """The mesh axes along which groups of devices communicate, or None if they are no such axes.

    Args:
      groups: int [groups, size], positions in the flattened mesh.
      mesh: {axis: size} in the order of the mesh's axes. Axes of size 1 are never returned.
    """
    wanted = {frozenset(group) for group in groups.tolist()}
    positions = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
    names = [name for name, size in mesh.items() if size > 1]
    for number in range(len(names) + 1):
        for axes in itertools.combinations(names, number):
            inside = [list(mesh).index(name) for name in axes]
            outside = [axis for axis in range(len(mesh)) if axis not in inside]
            parts = math.prod(mesh[name] for name in axes)
            candidate = positions.transpose(outside + inside).reshape(-1, parts)
            if {frozenset(group) for group in candidate.tolist()} == wanted:
                return axes
    return None
