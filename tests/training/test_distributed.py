import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.training import distributed
from roberta_jax.training.agreement import PartnerLost
from roberta_jax.training.clusters import Cluster
from roberta_jax.training.partitioning import create_mesh, local_batch_rows, to_global
from roberta_jax.training.partners import Timeouts
from tests.support import processes, toy

VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "OMPI_COMM_WORLD_SIZE",
    "SLURM_STEP_NODELIST",
)


@pytest.fixture
def initialize(monkeypatch):
    """Replaces `jax.distributed.initialize`; the calls' arguments are in the list it returns."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return calls


def by_variables(monkeypatch, count="4", index="0", address="localhost:1234"):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
    monkeypatch.setenv("JAX_NUM_PROCESSES", count)
    monkeypatch.setenv("JAX_PROCESS_ID", index)


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_the_environment_says_which_process_this_is(initialize, monkeypatch, mode):
    by_variables(monkeypatch)
    distributed.join_processes(mode, Timeouts(start=100, heartbeat=20))
    assert initialize == [
        {
            "coordinator_address": "localhost:1234",
            "num_processes": 4,
            "process_id": 0,
            "cluster_detection_method": "deactivate",
            "initialization_timeout": 100,
            "heartbeat_timeout_seconds": 80,
            "shutdown_timeout_seconds": 30,
        }
    ]


def test_an_old_jax_is_refused_before_anything_is_connected(initialize, monkeypatch):
    by_variables(monkeypatch)
    monkeypatch.setattr(distributed, "_PREEMPTION_SERVICE", "an option of newer versions")
    with pytest.raises(UsageError, match=r"needs jax 0\.8\.2 or newer, and this is jax \d"):
        distributed.join_processes("auto")
    assert not initialize


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_alone_nothing_is_connected(initialize, mode):
    assert not distributed.join_processes(mode)
    assert initialize == []


def test_off_ignores_the_environment(initialize, monkeypatch):
    by_variables(monkeypatch)
    assert not distributed.join_processes("off")
    assert initialize == []


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_one_process_is_not_connected(initialize, monkeypatch, mode):
    by_variables(monkeypatch, count="1")
    assert not distributed.join_processes(mode)
    assert initialize == []


def test_what_is_left_to_jax_is_detected_by_it(initialize, monkeypatch):
    monkeypatch.setattr(distributed, "find_cluster", lambda: Cluster(name="TPU VM"))
    distributed.join_processes("auto", Timeouts())
    assert initialize[0].keys() == {
        "initialization_timeout",
        "heartbeat_timeout_seconds",
        "shutdown_timeout_seconds",
    }


def test_the_gpus_of_a_task_are_passed_on(initialize, monkeypatch):
    slurm = Cluster(name="Slurm", num_processes=2, process_id=1, local_device_ids=(0, 1, 2))
    monkeypatch.setattr(distributed, "find_cluster", lambda: slurm)
    distributed.join_processes("auto", Timeouts())
    assert initialize[0]["local_device_ids"] == [0, 1, 2]


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_processes_that_cannot_be_found(initialize, monkeypatch, error):
    def fail(**_):
        raise error("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UsageError, match="coordinator_address should be defined") as raised:
        distributed.join_processes("on")
    assert "JAX_COORDINATOR_ADDRESS=HOST:PORT" in str(raised.value)


def test_a_coordinator_that_does_not_listen(initialize, monkeypatch):
    address = f"localhost:{processes.free_port()}"
    by_variables(monkeypatch, index="1", address=address)
    with pytest.raises(PartnerLost, match=f"process 0 does not answer at {address} after 1 s"):
        distributed.join_processes("auto", Timeouts(start=1))
    assert initialize == []


def global_batch():
    """What each of two processes runs: it prints its rows and a sum over the global batch."""
    distributed.join_processes()
    mesh = create_mesh()
    rows = local_batch_rows(mesh, 8)
    batch = to_global(toy.host_batch(0, rows), mesh, 8, rows)
    total = jax.jit(lambda x: jnp.sum(x * jnp.arange(8.0)[:, None, None]))(batch["x"])
    print(json.dumps({"rows": rows.tolist(), "shape": batch["x"].shape, "total": float(total)}))


def test_two_processes_hold_one_global_batch():
    outputs = processes.run_together(__name__, "global_batch", count=2, devices=2)
    results = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert [result["rows"] for result in results] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    x = toy.host_batch(0, range(8))["x"]
    expected = float(np.sum(x * np.arange(8.0)[:, None, None]))
    for result in results:
        assert result["shape"] == list(x.shape)
        assert result["total"] == pytest.approx(expected, rel=1e-4)
