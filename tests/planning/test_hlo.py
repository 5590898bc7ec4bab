"""Reading optimised programs: how often things run, and who communicates with whom."""

import numpy as np
import pytest

from roberta_jax.planning.chips import CHIPS
from roberta_jax.planning.compiled import added_up
from roberta_jax.planning.hlo import (
    Program,
    array_bytes,
    arrays_of,
    axes_of_groups,
    read_groups,
    ring_bytes,
)
from tests.planning.programs import TPU, TWO_SLICES

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def test_loops_run_as_often_as_their_conditions_say():
    program = Program(TPU)
    assert program.loops() == {"inner_body": 3, "outer_body": 5}
    times = {name: program.times(name) for name in ("main", "outer_body", "inner_body", "add")}
    assert times["main"] == 1
    assert times["outer_body"] == 5
    assert times["inner_body"] == 15
    assert program.times("no such computation") == 0
    assert [(each.name, trips, times) for each, trips, times in program.carries()] == [
        ("loop", 3, 5),
        ("loop.1", 5, 1),
    ]


def test_cycles_count_every_iteration_and_no_operation_within_a_fusion():
    assert Program(TPU).estimated_cycles() == 15 * 100 + 5 * 1000 + 7
    assert Program(TWO_SLICES).estimated_cycles() is None


def test_cycles_of_kernels_are_by_their_scores():
    kernel = (
        '  %k.1 = bf16[16,512,768]{2,1,0} custom-call(%q.1), custom_call_target="tpu_custom_call", '
        'metadata={op_name="jit(f)/jvp(attention_forward)/pallas_call"}, backend_config={'
        '"custom_call_config":{"cost_estimate":{"flops":"7","transcendentals":"1048576"}}}\n'
    )
    lines = TPU.splitlines(keepends=True)
    entry = next(i for i, line in enumerate(lines) if line.startswith("ENTRY"))
    program = Program("".join([*lines[: entry + 1], kernel, *lines[entry + 1 :]]))
    assert program.estimated_cycles() == Program(TPU).estimated_cycles() + 2 * 3787


def test_collectives_are_counted_once_per_channel_and_iteration():
    found = {
        (each.kind, axes_of_groups(each.groups, MESH)): (each.times, each.bytes)
        for each in Program(TPU).collectives()
    }
    assert found == {
        ("reduce-scatter", ("fsdp",)): (5, 16 * 8 * 2),
        ("all-gather", ("fsdp",)): (15, 4 * 8 * 2),
        ("all-reduce", ("tensor",)): (15, 4 * 8 * 2 + 8 * 4),
        ("all-reduce", ("data",)): (1, 4 * 8 * 4),
        ("all-reduce", ("data", "fsdp")): (1, 2 * 4),
    }


def test_the_program_of_a_slice_sends_its_parts_to_the_other_slices():
    rows = added_up(
        Program(TWO_SLICES).collectives(), {"data": 8, "fsdp": 1, "tensor": 1}, CHIPS["v6e"], 2
    )
    assert {(row.axes, row.kind, row.network): row.bytes for row in rows} == {
        ("data", "reduce-scatter", "ICI"): 16 * 8 * 4 * 3 / 4,
        ("data", "all-reduce", "DCN"): 2 * 4 * 8 * 4 / 2,
    }


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=4], device_ids=([2,2]T(1,0)) {'a'}, x", [[0, 2, 1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, x", [[0, 1], [2, 3]]),
    ],
)
def test_groups_are_read_in_every_notation(text, groups):
    np.testing.assert_array_equal(read_groups(text), groups)


def test_unknown_notations_are_errors():
    with pytest.raises(ValueError, match="unknown notation"):
        read_groups("replica_groups=everyone")
    with pytest.raises(ValueError, match="no ENTRY"):
        Program("some text")
    endless = TPU.replace("%limit = s32[]{:T(128)} constant(3)", "%limit = s32[] parameter(1)")
    with pytest.raises(ValueError, match="the loop loop has no number of iterations"):
        Program(endless)


def test_groups_that_are_no_mesh_axes_have_none():
    assert axes_of_groups(np.array([[0, 3], [1, 2], [4, 7], [5, 6]]), MESH) is None
    assert axes_of_groups(np.arange(8)[None], MESH) == ("data", "fsdp", "tensor")


def test_bytes_are_those_of_the_arrays_and_of_the_rings():
    text = "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[], pred[4]{0}, token[], s4[3])"
    arrays = arrays_of(text)
    assert arrays == [("bf16", (2, 3)), ("f32", ()), ("pred", (4,)), ("s4", (3,))]
    assert [array_bytes(*array) for array in arrays] == [12, 4, 4, 2]
    assert ring_bytes("all-gather", 100, 4) == ring_bytes("reduce-scatter", 100, 4) == 75
    assert ring_bytes("all-reduce", 100, 4) == 150
    assert ring_bytes("all-reduce", 100, 1) == 0
