"""The environment of supervised processes."""

import socket

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.launching import environment


def shared(variables=None, **options):
    return environment.shared_variables(
        variables or {}, **{"cache": "c", "flags": "recommended", "gpus": 0, "slices": 1, **options}
    )


def test_the_compile_cache_is_set_unless_the_user_has_set_it():
    assert shared()[environment.CACHE] == "c"
    assert environment.CACHE not in shared(cache="")
    assert environment.CACHE not in shared({environment.CACHE: "mine"})


def test_flags_are_added_where_they_have_an_effect():
    assert "XLA_FLAGS" not in shared()
    assert shared({"XLA_FLAGS": "--a=1"}, gpus=2)["XLA_FLAGS"] == f"--a=1 {environment.GPU_FLAGS}"
    assert "LIBTPU_INIT_ARGS" not in shared()
    assert shared(slices=2)["LIBTPU_INIT_ARGS"] == environment.MULTISLICE_FLAGS
    assert "LIBTPU_INIT_ARGS" not in shared(slices=2, flags="none")
    assert "XLA_FLAGS" not in shared(gpus=2, flags="none")


def test_a_flag_that_the_user_has_set_stays():
    mine = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false"}
    assert "XLA_FLAGS" not in shared(mine, gpus=8)


def test_each_process_gets_an_equal_part_of_the_gpus():
    variables = [environment.process_variables(index, 2, 1234, 4) for index in range(2)]
    assert [each["JAX_LOCAL_DEVICE_IDS"] for each in variables] == ["0,1", "2,3"]
    assert [each["JAX_PROCESS_ID"] for each in variables] == ["0", "1"]
    assert "JAX_LOCAL_DEVICE_IDS" not in environment.process_variables(0, 2, 1234, 0)


def test_gpus_that_cannot_be_divided_are_an_error():
    environment.check_processes(1, 3)
    environment.check_processes(3, 0)
    with pytest.raises(UsageError, match="--processes=2: the 3 GPUs"):
        environment.check_processes(2, 3)


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2,5"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, 1),  # CUDA ignores what follows an invalid one
        ({"CUDA_VISIBLE_DEVICES": "0", "JAX_PLATFORMS": "cpu"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0", "JAX_PLATFORMS": "cuda"}, 1),
    ],
)
def test_only_gpus_that_jax_would_use_count(variables, count):
    assert environment.count_gpus(variables) == count


def test_gpus_are_counted_by_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'GPU 0: a\\n  MIG 1g\\nGPU 1: b\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert environment.count_gpus({}) == 2


def test_a_free_port_can_be_bound():
    with socket.socket() as server:
        server.bind(("127.0.0.1", environment.free_port()))
