"""A run continues on any mesh: to rounding on another one, bit for bit on the same one."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from roberta_jax.training.metrics import read_metrics
from tests.pretraining.test_resume import finish, start
from tests.support import texts

STEPS = 16
EIGHT = (8, 1, 1)
# Mesh (data, fsdp, tensor) -> the step up to which the run trains on it.
CHAIN = {EIGHT: 4, (2, 2, 2): 8, (1, 1, 1): 12, (1, 8, 1): STEPS}


def train(folder, workdir, mesh, steps):
    """Trains in a process with as many devices as the mesh has, saving every other step."""
    devices = int(np.prod(mesh))
    flags = (
        f"--xla_force_host_platform_device_count={devices}",
        # On a busy machine eight devices can wait long for each other.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    )
    process = start(
        folder,
        workdir,
        variables={"XLA_FLAGS": " ".join(flags)},
        **{f"mesh.{axis}": n for axis, n in zip(("data", "fsdp", "tensor"), mesh, strict=True)},
        **{
            "train.steps": steps,
            "schedule.decay_steps": STEPS,
            "train.per_device_batch_size": 2,  # 1, 2, 2 in 4 microbatches, and 1 row a device
            "train.log_every": 1,
            "train.eval_every": 0,
            "train.checkpoint_every": 2,
            "model.hidden_dropout_prob": 0,
            "model.attention_probs_dropout_prob": 0,
        },
    )
    return finish(process, timeout=900)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The workdirs of an uninterrupted run, and of the same one on several meshes and on one."""
    folder = tmp_path_factory.mktemp("elastic")
    texts.write_corpus(folder / "corpus.jsonl")
    train(folder, folder / "straight", EIGHT, STEPS)
    for mesh, steps in CHAIN.items():
        printed = train(folder, folder / "chain", mesh, steps)
        assert ("Continuing from the checkpoint of step" in printed) == (mesh != EIGHT)
        if mesh == EIGHT:
            shutil.copytree(folder / "chain", folder / "same")
    train(folder, folder / "same", EIGHT, STEPS)
    return {name: folder / name for name in ("straight", "chain", "same")}


def losses(workdir):
    records = [record for record in read_metrics(workdir) if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return [record["loss"] for record in records]


@pytest.mark.slow
def test_other_meshes_change_the_run_by_rounding_alone(runs):
    np.testing.assert_allclose(losses(runs["chain"]), losses(runs["straight"]), rtol=2e-6)
    weights, expected = (
        load_file(runs[name] / "hf" / "model.safetensors") for name in ("chain", "straight")
    )
    assert weights.keys() == expected.keys()
    for name, array in weights.items():
        np.testing.assert_allclose(array, expected[name], atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_the_same_mesh_changes_no_bit(runs):
    assert losses(runs["same"]) == losses(runs["straight"])
    weights = [
        (runs[name] / "hf" / "model.safetensors").read_bytes() for name in ("same", "straight")
    ]
    assert weights[0] == weights[1]
