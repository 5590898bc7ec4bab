"""The memory of compiled programs, and the name of their compiler."""

import importlib.metadata
import types

import jax
import pytest

from roberta_jax.planning import memory
from roberta_jax.planning.compiled import compile_step, compiler_name, total_memory
from roberta_jax.planning.estimate import estimate
from roberta_jax.planning.topologies import parse
from roberta_jax.planning.workload import batch_shapes, state_shapes
from roberta_jax.pretraining.spec import read_spec
from tests.planning.programs import config_of


def stats_of(**changes):
    sizes = {
        "argument_size_in_bytes": 100,
        "output_size_in_bytes": 90,
        "alias_size_in_bytes": 80,
        "temp_size_in_bytes": 400,
        "peak_memory_in_bytes": 350,
    }
    return types.SimpleNamespace(**(sizes | changes))


def test_on_tpus_the_memory_is_the_peak():
    assert total_memory(stats_of(), "tpu") == 350
    # Compilers without a peak name 0.
    assert total_memory(stats_of(peak_memory_in_bytes=0), "tpu") == 100 + 400 + 10


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_elsewhere_the_temporaries_are_one_block(platform):
    # The peak of a CPU's program is that of its arguments and a little more.
    assert total_memory(stats_of(peak_memory_in_bytes=101), platform) == 100 + 400 + 10
    assert total_memory(stats_of(alias_size_in_bytes=120), platform) == 100 + 400


def test_the_memory_of_a_step_on_a_cpu_has_its_temporaries():
    spec = read_spec(config_of("tiny", train__batch_size=64, train__per_device_batch_size=16))
    step = compile_step(spec, None, progress=None)
    program = spec.training.train_step(spec.model_class(spec.model, spec.execution))
    stats = program.lower(state_shapes(spec), batch_shapes(spec)).compile().memory_analysis()
    assert stats.temp_size_in_bytes > 10**7
    assert step.needed >= stats.argument_size_in_bytes + stats.temp_size_in_bytes
    assert step.memory[memory.GRADIENTS] > 0
    assert estimate(spec, parse("local")).needed == pytest.approx(step.needed, rel=0.4)


def test_the_compiler_has_its_name_and_version():
    version = importlib.metadata.version("jaxlib")
    assert compiler_name(jax.devices()[0].platform) == f"the CPU compiler (jaxlib {version})"
    assert compiler_name("tpu").startswith("the TPU compiler (libtpu")
