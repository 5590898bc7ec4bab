"""Memory that is kept for the next step."""

import json
import os
import subprocess
import sys

import pytest

from roberta_jax.training import host_memory
from roberta_jax.training.host_memory import use_one_heap

# The page faults of executions of a program whose temporary buffers take some 60 MB.
_PROGRAM = """
import json, resource, sys
from roberta_jax.training.host_memory import KeptMemory, use_one_heap
keeps = sys.argv[1] == "keep" and use_one_heap({"JAX_PLATFORMS": "cpu"})
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.sum(jnp.tanh(x @ x.T) @ x))
x = jnp.ones((4000, 200))
def faults():
    for _ in range(3):
        step(x).block_until_ready()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
with KeptMemory() as memory:
    with memory.running("step"):
        step(x).block_until_ready()
    within, kept = faults(), resident()
    with memory.running("another"):
        freed = kept - resident()
    again = faults()
print(json.dumps([keeps, within, freed, again, faults()]))
"""


def output_of(program, *arguments):
    env = {name: text for name, text in os.environ.items() if not name.startswith("MALLOC_")}
    env["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def page_faults(mode):
    return json.loads(output_of(_PROGRAM, mode))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_buffers_of_a_step_are_those_of_the_step_before():
    _, usual, *_ = page_faults("as usual")
    keeps, within, freed, again, afterwards = page_faults("keep")
    assert keeps
    assert within < 0.1 * usual < afterwards, (usual, within, afterwards)
    assert freed > 50  # MB, before another program is compiled
    assert again < 0.1 * usual


@pytest.mark.parametrize(
    "env", [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}]
)
def test_the_users_settings_stay(env):
    assert not use_one_heap(env | {"JAX_PLATFORMS": "cpu"})


def test_nothing_changes_with_an_accelerator(monkeypatch):
    monkeypatch.setattr(host_memory, "visible_gpus", lambda env: 1)
    assert not use_one_heap({})


_CALLS = """
import sys
from roberta_jax.training.host_memory import use_one_heap
if sys.argv[1] == "keep":
    use_one_heap({"JAX_PLATFORMS": "cpu"})
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda _, x: jnp.tanh(x @ x), x))
x = jnp.ones((1000, 1000))
step(x).block_until_ready()
print(step(x).is_ready())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
@pytest.mark.parametrize(("mode", "is_ready"), [("as usual", False), ("keep", True)])
def test_programs_run_in_the_thread_that_calls_them(mode, is_ready):
    """So that the buffers of a step are free before the next one."""
    assert output_of(_CALLS, mode) == f"{is_ready}\n"
