import json
import socket
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.training import distributed
from roberta_jax.training.partitioning import create_mesh, local_batch_rows, to_global
from tests.support import processes, toy

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.fixture
def initialize(monkeypatch):
    """Replaces `jax.distributed.initialize`; the calls' arguments are in the list it returns."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return calls


def test_the_environment_says_which_process_this_is(initialize, monkeypatch):
    distributed.join_processes()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    distributed.join_processes()
    assert initialize == [{}, {"num_processes": 4, "process_id": 0}]


def test_a_number_that_is_none(initialize, monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(UsageError, match="JAX_PROCESS_ID='first' is not an integer"):
        distributed.join_processes()


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_processes_that_cannot_be_found(initialize, monkeypatch, error):
    def fail():
        raise error("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UsageError, match="coordinator_address should be defined") as raised:
        distributed.join_processes()
    assert "JAX_COORDINATOR_ADDRESS=HOST:PORT" in str(raised.value)


def global_batch():
    """What each of two processes runs: it prints its rows and a sum over the global batch."""
    distributed.join_processes()
    mesh = create_mesh()
    rows = local_batch_rows(mesh, 8)
    batch = to_global(toy.host_batch(0, rows), mesh, 8, rows)
    total = jax.jit(lambda x: jnp.sum(x * jnp.arange(8.0)[:, None, None]))(batch["x"])
    print(json.dumps({"rows": rows.tolist(), "shape": batch["x"].shape, "total": float(total)}))


def test_two_processes_hold_one_global_batch():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    workers = [
        subprocess.Popen(
            processes.command(__name__, "global_batch"),
            env=processes.environment(
                devices=2,
                JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(number),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    results = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    assert [result["rows"] for result in results] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    x = toy.host_batch(0, range(8))["x"]
    expected = float(np.sum(x * np.arange(8.0)[:, None, None]))
    for result in results:
        assert result["shape"] == list(x.shape)
        assert result["total"] == pytest.approx(expected, rel=1e-4)
