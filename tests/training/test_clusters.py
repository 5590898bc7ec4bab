"""What is detected from the environments of the usual clusters."""

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.training import clusters
from roberta_jax.training.clusters import Cluster, find_cluster, num_slices, visible_gpus


def no_metadata(name):
    raise AssertionError("the metadata server was asked")


def find(env, gpus=0, tpu=False, metadata=no_metadata):
    return find_cluster(env, num_gpus=lambda: gpus, has_tpu=lambda: tpu, metadata=metadata)


def test_a_laptop_is_alone_and_asks_nobody():
    assert find({"HOME": "/home/me", "CUDA_VISIBLE_DEVICES": "0"}, gpus=1) is None


VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "2",
}


def test_jax_variables():
    assert find(VARIABLES, gpus=8) == Cluster(
        name="environment variables",
        num_processes=4,
        process_id=2,
        coordinator_address="10.0.0.1:1234",
        detect=False,
    )


def test_jax_variables_of_one_process():
    assert find({**VARIABLES, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None


def test_an_indexed_job_of_kubernetes_with_an_address():
    env = {**VARIABLES, "JOB_COMPLETION_INDEX": "3"}
    del env["JAX_PROCESS_ID"]
    assert find(env).process_id == 3


def test_a_pod_of_kubernetes_without_an_address_is_alone():
    # It may be one of many independent runs.
    assert find({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID='first' is not an integer"),
        ({"JAX_PROCESS_ID": "4"}, "is 4, but must be from 0 to 3"),
        ({"JAX_PROCESS_ID": ""}, "JAX_NUM_PROCESSES is set, but not JAX_PROCESS_ID"),
        ({"JAX_NUM_PROCESSES": ""}, "JAX_PROCESS_ID is set, but not JAX_NUM_PROCESSES"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "but not JAX_COORDINATOR_ADDRESS"),
        ({"JAX_COORDINATOR_ADDRESS": "host-1"}, "=host-1 is not HOST:PORT"),
    ],
)
def test_wrong_or_missing_variables(changes, message):
    with pytest.raises(UsageError, match=message):
        find({**VARIABLES, **changes})


SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[1-4]",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_NODES": "4",
}


def slurm(tasks, per_node, task=1, local=0, **more):
    return {
        **SLURM,
        "SLURM_NTASKS": str(tasks),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_TASKS_PER_NODE": per_node,
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(local),
        **more,
    }


def test_slurm_with_one_task_a_node_has_all_its_gpus():
    assert find(slurm(4, "1(x4)"), gpus=8) == Cluster(
        name="Slurm", num_processes=4, process_id=1, local_device_ids=tuple(range(8))
    )


def test_slurm_with_one_task_a_gpu():
    for local in range(8):
        cluster = find(slurm(32, "8(x4)", task=8 + local, local=local), gpus=8)
        assert (cluster.process_id, cluster.local_device_ids) == (8 + local, (local,))


def test_slurm_with_two_tasks_on_eight_gpus():
    own = [find(slurm(8, "2(x4)", local=local), gpus=8).local_device_ids for local in range(2)]
    assert own == [(0, 1, 2, 3), (4, 5, 6, 7)]


@pytest.mark.parametrize(
    ("gpus", "more"),
    [
        (1, {}),
        *(
            (4, {"SLURM_GPUS_PER_TASK": text})
            for text in ("4", "h100:4", "gpu:h100:4", "a100:1,h100:3")
        ),
    ],
)
def test_slurm_where_each_task_sees_only_its_own_gpus(gpus, more):
    env = slurm(8, "2(x4)", local=1, **more)
    assert find(env, gpus=gpus).local_device_ids == tuple(range(gpus))


@pytest.mark.parametrize("text", ["", "4", "h100:4", "h100", "h100:", "all"])
def test_slurm_where_each_task_sees_the_gpus_of_all(text):
    env = slurm(8, "2(x4)", local=1, SLURM_GPUS_PER_TASK=text)
    assert find(env, gpus=8).local_device_ids == (4, 5, 6, 7)


def test_slurm_with_uneven_nodes():
    env = slurm(9, "4(x1),2(x2),1", local=0)
    assert find(env, gpus=8).local_device_ids == (0, 1, 2, 3)  # node 1 has two tasks
    assert find({**env, "SLURM_NODEID": "3"}, gpus=8).local_device_ids == tuple(range(8))


def test_slurm_on_cpus_or_tpus():
    assert find(slurm(4, "1(x4)")).local_device_ids is None


def test_slurm_with_one_task_is_alone():
    assert find(slurm(1, "1", task=0), gpus=8) is None


def test_the_batch_script_of_slurm_is_alone():
    env = slurm(4, "1(x4)", task=0)
    del env["SLURM_STEP_NODELIST"]
    assert find(env, gpus=8) is None


MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
}


def test_open_mpi():
    assert find(MPI, gpus=2) == Cluster(
        name="Open MPI", num_processes=4, process_id=3, local_device_ids=(1,)
    )
    assert find({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, gpus=2).local_device_ids == (0, 1)


def test_open_mpi_5_needs_an_address():
    env = {name: value for name, value in MPI.items() if "orte" not in name}
    with pytest.raises(UsageError, match="mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        find(env)
    cluster = find({**env, "JAX_COORDINATOR_ADDRESS": "host-1:1234"})
    assert (cluster.process_id, cluster.coordinator_address) == (3, "host-1:1234")


def test_open_mpi_with_one_process_is_alone():
    assert find({**MPI, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}) is None


XPK = {  # as a container on a node with GPUs has them
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "JOB_COMPLETION_INDEX": "2",
    "REPLICATED_JOB_NAME": "slice-job",
    "JOBSET_NAME": "base",
    "JAX_COORDINATOR_ADDRESS": "base-slice-job-0-0.base",
    "JAX_COORDINATOR_PORT": "6002",
    "NNODES": "4",
    "NODE_RANK": "2",
    "GPUS_PER_NODE": "8",
}


def test_gpu_nodes_of_xpk():
    assert find(XPK, gpus=8) == Cluster(
        name="xpk",
        num_processes=4,
        process_id=2,
        coordinator_address="base-slice-job-0-0.base:6002",
        detect=False,
    )


def test_one_gpu_node_of_xpk_is_alone():
    assert find({**XPK, "NNODES": "1", "NODE_RANK": "0"}, gpus=8) is None


def test_variables_of_other_launchers_are_not_those_of_xpk():
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_PORT", "NNODES", "NODE_RANK"):
        assert find({key: value for key, value in XPK.items() if key != name}, gpus=8) is None
    assert find({**slurm(4, "1(x4)"), **XPK}, gpus=8).name == "Slurm"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NODE_RANK": "4"}, r"is 4, but must be from 0 to 3 \(NNODES=4\)"),
        ({"NNODES": "many"}, "NNODES='many' is not an integer"),
    ],
)
def test_wrong_variables_of_xpk(changes, message):
    with pytest.raises(UsageError, match=message):
        find({**XPK, **changes})


def test_a_tpu_pod_of_gke():
    assert find({"TPU_WORKER_HOSTNAMES": "w-0,w-1,w-2,w-3"}, tpu=True) == Cluster(name="GKE")


def test_one_host_of_gke_is_alone_unless_there_are_slices():
    assert find({"TPU_WORKER_HOSTNAMES": "localhost"}, tpu=True) is None
    env = {"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}
    assert find(env, tpu=True) == Cluster(name="GKE")


def test_the_variables_of_gke_mean_nothing_without_chips():
    assert find({"TPU_WORKER_HOSTNAMES": "w-0,w-1"}) is None


@pytest.mark.parametrize(
    ("endpoints", "slices", "joins"),
    [
        ("unknown:unknown:10.0.0.1", "", False),
        ("unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2", "", True),
        ("10.0.0.1", "MEGASCALE_NUM_SLICES: '2'\nZONE: 'a'", True),
        ("10.0.0.1", "MEGASCALE_NUM_SLICES: '1'", False),
        (None, "", False),
    ],
)
def test_a_tpu_vm_asks_for_the_hosts_of_its_pod(endpoints, slices, joins):
    answers = {"worker-network-endpoints": endpoints, "tpu-env": slices}
    assert (find({}, tpu=True, metadata=answers.get) is not None) is joins


def test_a_metadata_server_that_does_not_answer_is_given_up_at_once(monkeypatch):
    monkeypatch.setattr(clusters, "_METADATA", "http://localhost:9/")
    assert find_cluster({}, num_gpus=lambda: 0, has_tpu=lambda: True) is None


def slices(env, told=None, tpu=True):
    return num_slices(
        env, has_tpu=lambda: tpu, metadata=no_metadata if told is None else {"tpu-env": told}.get
    )


def test_the_number_of_slices():
    assert slices({"MEGASCALE_NUM_SLICES": "4"}) == 4
    assert slices({}, "ZONE: 'a'\nMEGASCALE_NUM_SLICES: '2'\n") == 2
    assert slices({}, "ZONE: 'a'\n") == 1
    # Nobody is asked.
    assert slices({}, tpu=False) == 1
    assert slices({"TPU_WORKER_HOSTNAMES": "w-0,w-1"}) == 1
    assert slices({"TPU_SKIP_MDS_QUERY": "1"}) == 1
    with pytest.raises(UsageError, match="MEGASCALE_NUM_SLICES='two' is not an integer"):
        slices({"MEGASCALE_NUM_SLICES": "two"})


@pytest.mark.parametrize("vendors", [[], ["0x8086"], ["0x8086", "0x1ae0"]])
def test_tpu_chips_are_found_without_jax(tmp_path, monkeypatch, vendors):
    for number, vendor in enumerate(vendors):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "vendor").write_text(f"{vendor}\n")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "vendor").symlink_to("nothing")
    monkeypatch.setattr(clusters, "_PCI_VENDORS", f"{tmp_path}/*/vendor")
    asked = []
    found = num_slices({}, metadata=lambda name: asked.append(name) or "MEGASCALE_NUM_SLICES: '2'")
    assert (found, asked) == ((2, ["tpu-env"]) if "0x1ae0" in vendors else (1, []))


@pytest.mark.parametrize(
    ("visible", "count"), [("", 0), ("0", 1), ("0,1,3", 3), ("GPU-a,GPU-b", 2), ("0,-1,2", 1)]
)
def test_visible_gpus(visible, count):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": visible}) == count
