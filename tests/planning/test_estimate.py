"""The formulas: exact where they can be, and what they say about runs that do not fit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.planning import memory, search
from roberta_jax.planning.estimate import (
    ROWS,
    Attempt,
    estimate,
    fastest,
    largest_rows,
    possible_rows,
    remedies,
    with_rows,
)
from roberta_jax.planning.memory import memory_by_use, saved_per_token
from roberta_jax.planning.speed import step_time
from roberta_jax.planning.topologies import parse
from roberta_jax.planning.traffic import traffic
from roberta_jax.planning.workload import batch_shapes, workload
from roberta_jax.pretraining.spec import read_spec
from roberta_jax.training.partitioning import batch_sharding
from roberta_jax.training.state import create_state
from tests.planning.programs import config_of
from tests.support import processes


def planned(size, topology, slices=1, **changes):
    target = parse(topology, slices)
    return estimate(read_spec(config_of(size, **changes), target.devices()), target)


def on_eight_devices():
    """Compares the counted bytes with those of real arrays; prints them as JSON."""
    results = []
    for data, fsdp, tensor in ((8, 1, 1), (1, 8, 1), (2, 2, 2)):
        config = config_of(
            "tiny", mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor, train__batch_size=16
        )
        spec = read_spec(config)
        model, training = spec.model_class(spec.model, spec.execution), spec.training

        def init_params(model=model):
            return model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

        state = create_state(init_params, training.optimizer, training.mesh, None, training.rules)
        batch = {
            name: jax.device_put(np.zeros(array.shape, array.dtype), batch_sharding(training.mesh))
            for name, array in batch_shapes(spec).items()
        }
        work = workload(spec)
        counted = (work.parameter_bytes, work.optimizer_bytes, work.batch_bytes)
        trees = (state.params, (state.opt_state, state.step), batch)
        results.append([counted, [bytes_on_first_device(tree) for tree in trees]])
    print(json.dumps(results))


def bytes_on_first_device(tree):
    return sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(tree))


def test_parameters_optimizer_state_and_batch_are_those_of_the_real_arrays():
    for counted, real in json.loads(processes.run(__name__, "on_eight_devices", devices=8)):
        assert counted == real


def test_the_papers_models_on_a_pod():
    base, large = (planned(size, "v5e:4x4") for size in ("base", "large"))
    assert base.work.parameters == 124_697_433
    assert large.work.parameters == 355_412_057
    assert base.memory[memory.PARAMETERS] == 4 * 124_697_433
    # Two moments, the update's and the schedule's count, and the step.
    assert base.memory[memory.OPTIMIZER] == 8 * 124_697_433 + 12
    assert base.fits
    assert large.fits
    assert base.largest_rows > base.work.rows
    assert (base.work.rows, base.work.accumulation, base.work.slots) == (16, 32, 80)


def test_only_axes_that_are_split_communicate():
    def axes(**mesh):
        found = planned("base", "v5e:4x4", **{f"mesh__{k}": v for k, v in mesh.items()})
        return {(each.axes, each.kind) for each in found.collectives}

    data, fsdp = {("data", "all-reduce")}, {("fsdp", "all-gather"), ("fsdp", "reduce-scatter")}
    assert axes() == data
    assert axes(data=1, fsdp=16) == fsdp
    assert axes(data=1, fsdp=8, tensor=2) == fsdp | {("tensor", "all-reduce")}
    assert axes(data=4, fsdp=4) == data | fsdp


def test_gradients_cross_slices_once_and_in_parts():
    one, two = planned("base", "v6e:4x4"), planned("base", "v6e:4x4", 2)
    parameters = 4 * 124_697_433
    assert [(each.network, each.bytes) for each in one.collectives] == [
        ("ICI", pytest.approx(2 * parameters * 15 / 16))
    ]
    assert [(each.network, each.bytes) for each in two.collectives] == [
        ("ICI", pytest.approx(2 * parameters * 15 / 16)),
        ("DCN", pytest.approx(2 * (parameters / 16) / 2)),
    ]
    # Microbatches do not add to it.
    halved = planned("base", "v6e:4x4", 2, train__per_device_batch_size=8)
    assert halved.collectives == two.collectives


def test_fsdp_gathers_every_matrix_twice_in_each_microbatch():
    found = planned("base", "v5e:4x4", mesh__data=1, mesh__fsdp=16)
    gathered = next(each for each in found.collectives if each.kind == "all-gather")
    model, work = found.work.model, found.work
    layers = 12 * (4 * model.hidden_size**2 + 2 * model.hidden_size * model.intermediate_size)
    times = 2 * work.accumulation
    assert gathered.bytes == pytest.approx(times * 2 * layers * 15 / 16, rel=0.01)


def test_memory_falls_as_the_mesh_and_remat_say():
    whole = planned("large", "v5e:4x4")
    split = planned("large", "v5e:4x4", mesh__data=1, mesh__fsdp=16)
    assert split.memory[memory.PARAMETERS] < whole.memory[memory.PARAMETERS] / 15
    assert split.memory[memory.SAVED] < whole.memory[memory.SAVED]  # it has a loop
    loop = planned("large", "v5e:4x4", execution__scan_unroll=1)
    assert split.memory[memory.SAVED] == loop.memory[memory.SAVED]
    tensor = planned("large", "v5e:4x4", mesh__data=8, mesh__tensor=2)
    assert tensor.memory[memory.SAVED] < whole.memory[memory.SAVED]
    saved = [saved_per_token(whole.work, remat) for remat in ("full", "dots", "none")]
    assert saved == sorted(saved)
    assert saved[0] == 2 * 1024  # the layer's input, bfloat16
    # Compiled for v5e with libtpu 0.0.42: 6 arrays of width D, one of width F, the attention's
    # output and two numbers for each head; without a loop another of width F.
    assert saved[1] == 2 * (7 * 1024 + 2 * 4096) + 2 * 4 * 16
    assert saved_per_token(loop.work) == 2 * (7 * 1024 + 4096) + 2 * 4 * 16


def test_microbatches_divide_the_share_of_a_chip():
    work = planned("base", "v5e:4x4").work
    assert possible_rows(work) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    other = with_rows(work, 64)
    assert other.rows * other.accumulation == work.rows * work.accumulation
    most = largest_rows(work, 10e9)
    assert sum(memory_by_use(with_rows(work, most)).values()) <= 10e9
    assert sum(memory_by_use(with_rows(work, 2 * most)).values()) > 10e9
    assert largest_rows(work, 1e9) == 0


def test_time_is_the_sum_of_its_parts_and_falls_with_chips():
    found = planned("base", "v5e:4x4")
    assert found.time.seconds == pytest.approx(sum(found.time.parts.values()))
    assert found.time.tokens_per_second == pytest.approx(8192 * 512 / found.time.seconds)
    assert 0.1 < found.time.share_of_peak < 0.8
    more = planned("base", "v5e:8x8")
    assert found.time.seconds / 4.2 < more.time.seconds < found.time.seconds / 3.5
    again = dataclasses.replace(
        found.work, execution=dataclasses.replace(found.work.execution, remat="full")
    )
    chip = found.topology.chip
    slower = step_time(again, chip, traffic(again, chip))
    assert slower.parts["matrix products"] > 1.25 * found.time.parts["matrix products"]


def test_the_base_step_on_v5e_is_near_the_compilers_estimate():
    # Cycles of 1.5 GHz without collectives, with and without the fused kernels and a loop over the
    # layers. The constants were fitted to those of base.
    loop = {"execution__scan_unroll": 1}
    plain = {**loop, "execution__attention": "xla", "execution__layer_norm": "xla"}
    for size, values, cycles in (
        ("base", plain, 5.139e9),
        ("large", plain, 14.711e9),
        ("base", loop, 2.776e9),
        ("large", loop, 8.486e9),
        ("base", {}, 2.009e9),
        ("large", {}, 6.319e9),
    ):
        found = planned(size, "v5e:4x4", **values)
        waiting = sum(each.seconds for each in found.collectives)
        assert found.time.seconds - waiting == pytest.approx(cycles / 1.5e9, rel=0.1)


def reader(size, target, **values):
    """Reads the config of a size with some values, and with changes of it."""

    def read(changes):
        replaced = {key.replace(".", "__"): value for key, value in changes.items()}
        return read_spec(config_of(size, **{**values, **replaced}), target.devices())

    return read


def test_what_does_not_fit_gets_the_fastest_change_that_does():
    target = parse("v5e:2x2")
    read = reader("large", target, train__per_device_batch_size=64, execution__remat="none")
    found = estimate(read({}), target)
    assert not found.fits
    attempts = remedies(read, target, found.usable)
    best = fastest(attempts)
    for attempt in attempts:
        # An estimate is that of the run with the changes, and the microbatch is the largest.
        again = estimate(read(attempt.changes), target)
        assert (again.needed, again.time) == (attempt.estimate.needed, attempt.estimate.time)
        assert attempt.fits == again.fits
        assert again.work.rows == min(64, again.largest_rows)
        assert again.work.rows < 64 or attempt.changes.get(ROWS) is None
        assert best.estimate.time.seconds <= 1.05 * again.time.seconds
    assert {a.estimate.work.execution.remat for a in attempts} == {"none", "dots", "full"}
    assert {a.estimate.work.mesh["fsdp"] for a in attempts} == {1, 2, 4}
    # If the compiler needs twice as much as the formula says, more has to change.
    doubled = fastest(remedies(read, target, found.usable / 2))
    assert doubled.estimate.needed < found.usable / 2 < best.estimate.needed


def test_of_changes_that_are_about_equally_fast_the_first_is_proposed():
    found = planned("base", "v5e:4x4")

    def attempt(fits, factor):
        time = dataclasses.replace(found.time, parts={"all": factor})
        return Attempt({}, dataclasses.replace(found, time=time), fits)

    slow, near, least = (attempt(True, factor) for factor in (1.2, 1.04, 1.0))
    assert fastest([attempt(False, 0.5), slow, near, least]) is near
    assert fastest([slow, least, near]) is least
    assert fastest([attempt(False, 0.5), Attempt({}, None, False, "not possible")]) is None
    unknown = [Attempt({}, dataclasses.replace(found, time=None), fits) for fits in (False, True)]
    assert fastest([*unknown, unknown[1]]) is unknown[1]


def test_a_model_that_is_too_large_in_every_way_says_so():
    target = parse("v5e:2x2")
    read = reader("large", target, model__num_hidden_layers=4000, train__batch_size=8)
    attempts = remedies(read, target, estimate(read({}), target).usable)
    assert not any(attempt.fits for attempt in attempts)
    assert all(isinstance(attempt, Attempt) for attempt in attempts)
    assert fastest(attempts) is None
    # Nothing else fits, so that `tensor` is tried as well.
    assert {a.estimate.work.mesh["tensor"] for a in attempts if a.estimate} == {1, 2, 4}


def test_only_data_may_cross_slices():
    with pytest.raises(UsageError, match=r"data=1 is not divisible by the 2 slices") as error:
        planned("base", "v5e:4x4", 2, mesh__data=1, mesh__fsdp=32)
    assert "--mesh=data=-1,fsdp=16" in str(error.value)


def test_any_axis_may_cross_nodes_of_gpus():
    found = planned("base", "gpu:h200x16", mesh__data=1, mesh__fsdp=16)
    within = planned("base", "gpu:h200x8", mesh__data=1, mesh__fsdp=8)
    assert {(each.axes, each.network) for each in found.collectives} == {("fsdp", "network")}
    assert {each.network for each in within.collectives} == {"NVLink"}
    # Eight rings, each over the network of another GPU of a node.
    chip = found.topology.chip
    assert 8 * chip.network < chip.link
    for each in found.collectives:
        assert each.seconds == pytest.approx(each.bytes / (8 * chip.network))
    pairs = planned("base", "gpu:h200x16", mesh__data=2, mesh__fsdp=4, mesh__tensor=2)
    assert {(each.axes, each.network) for each in pairs.collectives} == {
        *(("fsdp", "NVLink"), ("tensor", "NVLink"), ("data", "network"))
    }
    with pytest.raises(UsageError, match=r"of 2 slices, and only the axis `data` can cross"):
        planned("base", "gpu:h200x16", mesh__data=1, mesh__fsdp=16, mesh__slices=2)


def test_the_slices_of_the_config_are_those_of_the_tpu():
    assert planned("base", "v5e:4x4", 2, mesh__slices=2).work.mesh["data"] == 32
    with pytest.raises(UsageError, match=r"mesh.slices=2, but v5e:4x4 has 1 slice") as error:
        planned("base", "v5e:4x4", mesh__slices=2)
    assert "--slices=2" in str(error.value)


@pytest.mark.parametrize("limit", [1, 3, 4, 16, 60, 512])
@pytest.mark.parametrize("guess", [1, 4, 64, 512])
def test_bisection_finds_the_largest_microbatch_in_few_calls(limit, guess):
    candidates, calls = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512], []

    def fits(rows):
        calls.append(rows)
        return rows <= limit

    search.bisect(fits, candidates, guess, {}, True, most=9)
    best = max(rows for rows in candidates if rows <= limit)
    assert len(set(calls)) == len(calls)
    assert best in calls
    assert best == 512 or 2 * best in calls
    near = guess in (best, 2 * best)
    assert len(calls) <= (2 if near else 6)
