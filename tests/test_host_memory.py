"""Memory that is kept for the next step."""

import json
import subprocess
import sys

import pytest

from roberta_jax import host_memory
from roberta_jax.host_memory import keep_freed_memory

# The page faults of executions of a program whose temporary buffers take some 60 MB.
_PROGRAM = """
import json, os, resource, sys
from roberta_jax.host_memory import keep_freed_memory
kept = keep_freed_memory({"JAX_PLATFORMS": "cpu"}) if sys.argv[1] == "keep" else False
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.sum(jnp.tanh(x @ x.T) @ x))
x = jnp.ones((4000, 200))
for _ in range(3):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step(x).block_until_ready()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([kept, faults]))
"""


def page_faults(mode):
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM, mode], check=True, capture_output=True, text=True
    )
    return json.loads(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_buffers_of_a_step_are_those_of_the_step_before():
    usual, (kept, faults) = page_faults("as usual"), page_faults("keep")
    assert kept
    assert faults < 0.1 * usual[1], (faults, usual)


@pytest.mark.parametrize(
    "env", [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}]
)
def test_the_users_settings_stay(env):
    assert not keep_freed_memory(env | {"JAX_PLATFORMS": "cpu"})


def test_nothing_changes_with_an_accelerator(monkeypatch):
    monkeypatch.setattr(host_memory, "visible_gpus", lambda env: 1)
    assert not keep_freed_memory({})
