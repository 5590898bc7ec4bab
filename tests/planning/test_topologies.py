"""What can be planned for, and what is said about everything else."""

import jax
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.planning.chips import CHIPS
from roberta_jax.planning.topologies import compile_only_devices, parse
from roberta_jax.training.flops import PEAK_FLOPS
from tests.support.messages import one_screen


@pytest.mark.parametrize(
    ("text", "slices", "chips", "name"),
    [
        ("v5e:8x8", 1, 64, "v5e:8x8"),
        ("v5e:4x4", 2, 32, "2 slices of v5e:4x4"),
        ("v5p:2x2x1", 1, 4, "v5p:2x2x1"),
        ("v5p:8x8x12", 1, 768, "v5p:8x8x12"),
        ("v6e:16x16", 4, 1024, "4 slices of v6e:16x16"),
        ("gpu:h200x8", 1, 8, "gpu:h200x8"),
        ("gpu:h100x3", 1, 3, "gpu:h100x3"),
        ("gpu:a100x32", 1, 32, "4 nodes of gpu:a100x8"),
        ("gpu:h200x8", 4, 32, "4 nodes of gpu:h200x8"),
    ],
)
def test_topologies_have_their_chips(text, slices, chips, name):
    topology = parse(text, slices)
    assert (topology.chips, str(topology)) == (chips, name)
    devices = topology.devices()
    assert [device.id for device in devices] == list(range(chips))
    assert {device.device_kind for device in devices} == {topology.chip.kind}


def test_local_is_this_machine():
    topology = parse("local")
    assert list(topology.devices()) == jax.devices()
    assert topology.chip is None  # a CPU


@pytest.mark.parametrize(
    ("text", "slices", "message"),
    [
        (None, 1, "no topology to plan for: give one, such as --topology=v5e:8x8"),
        ("v7:8x8", 1, "--topology=v7:8x8 is unknown: use one like v5e:8x8"),
        ("h200", 1, "the GPUs are a100, h100, h200"),
        ("v5e", 1, "has no shape: write the chips along each axis, such as v5e:4x4"),
        ("v5e:8by8", 1, "has no shape"),
        ("v5e:4x4x4", 1, "has 3 axes, but a v5e slice has 2, such as v5e:4x4"),
        ("v5p:4x4", 1, "has 2 axes, but a v5p slice has 3, such as v5p:4x4x4"),
        ("v5e:3x3", 1, "there is no such slice. The slices are v5e:1x1, v5e:2x2, v5e:2x4"),
        ("v5p:4x4x5", 1, "boxes whose sides are multiples of 4, up to 6144 chips"),
        ("v5p:16x16x28", 1, "there is no such slice"),
        ("v5p:0x4x4", 1, "there is no such slice"),
        ("gpu:h200", 1, "write gpu:KINDxNUMBER, such as gpu:h200x8"),
        ("gpu:b7x8", 1, "The kinds are a100, h100, h200"),
        ("gpu:h200x12", 1, "1 to 8 GPUs of one node, or a multiple of 8"),
        ("gpu:h200x0", 1, "1 to 8 GPUs of one node"),
        ("gpu:h200x16", 2, "is 2 nodes already: leave out --slices=2"),
        ("v5e:8x8", 0, "--slices=0 must be from 1 to 1024"),
        ("local", 2, "--slices=2 has no meaning for --topology=local"),
        ("v5e:" + 99 * "8x" + "8", 1, "axes, but a v5e slice has 2"),
    ],
)
def test_wrong_topologies_are_explained(text, slices, message):
    with pytest.raises(UsageError) as error:
        parse(text, slices)
    assert message in one_screen(error.value)


def test_only_tpus_are_compiled_for():
    with pytest.raises(UsageError, match="--compile works for TPUs and for --topology=local"):
        compile_only_devices(parse("gpu:h200x8"))


def test_the_peak_rates_are_those_of_training():
    for chip in CHIPS.values():
        assert PEAK_FLOPS[chip.kind] == chip.flops
        assert chip.network < chip.link < chip.memory_bandwidth


@pytest.mark.parametrize(("name", "total"), [("a100", 81_920), ("h100", 81_559), ("h200", 143_771)])
def test_a_program_can_use_three_quarters_of_a_gpu(name, total):
    # MiB as nvidia-smi shows them, of which the driver keeps about 1% for itself.
    assert 0.985 * 0.75 * total < CHIPS[name].usable / 2**20 < 0.75 * total


@pytest.mark.parametrize(("name", "gib"), [("v5e", 16), ("v5p", 96), ("v6e", 32)])
def test_a_program_can_use_almost_all_of_a_tpu(name, gib):
    assert 0.97 * gib < CHIPS[name].usable / 2**30 < gib
