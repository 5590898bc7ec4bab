"""The formula of what is sent, against the program that is compiled for eight CPU devices."""

import json

import pytest

from roberta_jax.planning.compiled import compile_step
from roberta_jax.planning.estimate import estimate
from roberta_jax.planning.topologies import parse
from roberta_jax.pretraining.spec import read_spec
from tests.planning.programs import config_of
from tests.support import processes


def on_eight_devices(data, fsdp):
    """Prints what the formula and the compiled program send: {kind over axes: bytes}."""
    config = config_of(
        "tiny",
        mesh__data=int(data),
        mesh__fsdp=int(fsdp),
        train__batch_size=32,
        train__per_device_batch_size=2,
        model__hidden_dropout_prob=0.1,
    )
    spec = read_spec(config)
    step, found = compile_step(spec, None, progress=None), estimate(spec, parse("local"))
    assert not step.problem
    assert found.work.accumulation == 2
    results = [
        {f"{each.kind} over {each.axes}": each.bytes for each in source.collectives}
        for source in (found, step)
    ]
    print(json.dumps(results))


def test_the_bytes_over_fsdp_are_those_of_the_compiled_program():
    output = processes.run(__name__, "on_eight_devices", "1", "8", devices=8)
    formula, compiled = json.loads(output.splitlines()[-1])
    gathered = "all-gather over fsdp"
    assert formula[gathered] == pytest.approx(compiled[gathered], rel=0.001)
    # On a CPU a reduce-scatter is an all-reduce, of which each device keeps a part.
    assert compiled["all-reduce over fsdp"] >= 2 * formula["reduce-scatter over fsdp"]


def test_the_bytes_over_data_are_those_of_the_compiled_program():
    output = processes.run(__name__, "on_eight_devices", "8", "1", devices=8)
    formula, compiled = json.loads(output.splitlines()[-1])
    reduced = "all-reduce over data"
    assert formula[reduced] == pytest.approx(compiled[reduced], rel=0.001)
