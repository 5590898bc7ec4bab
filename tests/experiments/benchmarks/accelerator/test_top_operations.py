"""Reading profiles: whose time counts, and where an operation comes from."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.accelerator import top_operations

PLACE = "jit(step)/transpose(jvp(Model.loss))/encoder/while/body/checkpoint/layer/self/exp"
PROGRAM = f"""
%body (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %fusion.7 = f32[8]{{0}} fusion(%p), calls=%f, metadata={{op_name="{PLACE}" stack_frame_id=1}}
}}

ENTRY %main (p: f32[8]) -> f32[8] {{
  %loop.1 = f32[8]{{0}} while(%p), body=%body, metadata={{op_name="jit(step)/while"}}
  ROOT %plain = f32[8]{{0}} copy(%loop.1)
}}
"""


def event(name, start, duration, **stats):
    return SimpleNamespace(
        name=name, start_ns=start, duration_ns=duration, stats=list(stats.items())
    )


def data(**planes):
    """Plane -> {line: events}, with underscores for other characters."""
    return SimpleNamespace(
        planes=[
            SimpleNamespace(
                name=name.replace("__", ":"),
                lines=[SimpleNamespace(name=line, events=events) for line, events in lines.items()],
            )
            for name, lines in planes.items()
        ]
    )


def total(events):
    result = {}
    for name, nanoseconds in events:
        result[name] = result.get(name, 0) + nanoseconds
    return result


def test_a_loop_counts_without_its_body():
    line = [event("loop", 0, 100), event("a", 10, 30), event("b", 50, 20), event("a", 200, 5)]
    profile = data(**{"/device__TPU__0": {"XLA Ops": line, "Steps": [event("step", 0, 300)]}})
    assert total(top_operations.read(profile)) == {"loop": 50, "a": 35, "b": 20}


def test_a_gpu_has_a_line_for_each_stream():
    streams = {
        "Stream #1(Compute)": [event("kernel", 0, 10, hlo_op="fusion.7")],
        "Stream #2(Memcpy)": [event("copy", 5, 7)],
        "XLA Ops": [event("fusion.7", 0, 10)],
    }
    profile = data(**{"/device__GPU__0": streams, "/device__GPU__1": streams})
    assert total(top_operations.read(profile)) == {"fusion.7": 10, "copy": 7}


def test_events_of_the_host_that_are_no_operations_do_not_count():
    line = [event("python", 0, 100), event("dot", 10, 20, hlo_op="dot.3")]
    assert total(top_operations.read(data(**{"/host__CPU": {"a thread": line}}))) == {"dot.3": 20}


def test_summary_names_instructions_and_their_places():
    events = [
        top_operations.Event("fusion_7", 3e6),  # as a GPU's kernel
        top_operations.Event("%fusion.7 = f32[8] fusion(...)", 1e6),  # as a TPU's event
        top_operations.Event("plain", 2e6),
        top_operations.Event("unknown", 2e6),
    ]
    seconds, operations = top_operations.summarize(events, PROGRAM, steps=2)
    assert seconds == pytest.approx(4e-3)
    assert operations[0] == {
        "operation": "fusion.7",
        "kind": "fusion",
        "place": "backward encoder/layer/self/exp",
        "seconds": pytest.approx(2e-3),
        "calls": 1,
        "share": pytest.approx(0.5),
    }
    assert {each["operation"] for each in operations[1:]} == {"plain", "unknown"}
    assert sum(each["share"] for each in operations) == pytest.approx(1)


def test_a_profile_of_a_program_has_its_product():
    x = np.ones((256, 256), np.float32)
    product = jax.jit(lambda x: jnp.tanh(x @ x)).lower(x).compile()
    events = top_operations.profile(lambda: jax.block_until_ready(product(x)))
    seconds, operations = top_operations.summarize(events, product.as_text(), steps=1)
    assert seconds > 0
    assert any("dot" in each["place"] for each in operations)


def test_an_empty_profile_is_an_error():
    with pytest.raises(RuntimeError, match="no operations"):
        top_operations.profile(lambda: None)
