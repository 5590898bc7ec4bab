"""The gradient of embedding tables: every implementation against an exact sum."""

import json

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from roberta_jax.kernels import embedding as kernels
from tests.support import processes
from tests.support.collectives import collectives

IMPLEMENTATIONS = [name for name in kernels.IMPLEMENTATIONS if name != "reference"]
WIDTH = 8


def random_ids(kind, num_tokens, num_rows):
    """Ids of a batch; some are outside the table in "out of range"."""
    rng = np.random.default_rng(0)
    if kind == "uniform":
        return rng.integers(0, num_rows, num_tokens)
    if kind == "zipf":  # as words are distributed, with an eighth of them masked
        ids = np.minimum(rng.zipf(1.2, num_tokens) - 1, num_rows - 1)
        return np.where(rng.random(num_tokens) < 0.12, num_rows - 1, ids)
    if kind == "equal":
        return np.full(num_tokens, num_rows // 2)
    if kind == "few":
        return rng.integers(0, 2, num_tokens) * (num_rows - 1)
    if kind == "distinct":
        return rng.permutation(num_tokens) % num_rows
    assert kind == "out of range"
    outside = [-1, -num_rows, -num_rows - 1, num_rows, 2**31 - 1, -(2**31)]
    ids = rng.integers(0, num_rows, num_tokens)
    return np.where(rng.random(num_tokens) < 0.5, rng.choice(outside, num_tokens), ids)


KINDS = ["uniform", "zipf", "equal", "few", "distinct", "out of range"]


def random_grad(*shape, dtype=np.float32):
    return np.random.default_rng(1).standard_normal((*shape, WIDTH)).astype(dtype)


def exact_gradient(grad, ids, num_rows):
    """(the sum in float64, the sum of the absolute values): rounding is relative to the latter."""
    grad, ids = np.asarray(grad, np.float64).reshape(-1, WIDTH), np.asarray(ids).reshape(-1)
    inside = (ids >= 0) & (ids < num_rows)
    total, scale = np.zeros((2, num_rows, WIDTH))
    np.add.at(total, ids[inside], grad[inside])
    np.add.at(scale, ids[inside], np.abs(grad[inside]))
    return total, scale


def assert_is_gradient(result, grad, ids, num_rows):
    total, scale = exact_gradient(grad, ids, num_rows)
    assert result.shape == total.shape
    assert result.dtype == np.float32
    error = np.abs(np.asarray(result, np.float64) - total)
    assert np.all(error <= 1e-6 * scale), np.max(error / np.maximum(scale, 1e-30))


def gradient_of(implementation, num_rows):
    return jax.jit(
        lambda grad, ids: kernels.embedding_gradient(grad, ids, num_rows, implementation)
    )


def test_reference_is_the_sum():
    grad = random_grad(4)
    result = kernels.embedding_gradient(grad, np.array([2, 0, 2, -1]), 3, "reference")
    np.testing.assert_array_equal(result, [grad[1], np.zeros(WIDTH), grad[0] + grad[2]])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_exact_to_float32(implementation, dtype, kind):
    """Also over blocks that are not full, and runs of one id over several of them."""
    num_rows = 300
    for num_tokens in (2000, 8 * kernels.BLOCK_SIZE):
        ids = random_ids(kind, num_tokens, num_rows)
        grad = random_grad(num_tokens, dtype=dtype)
        result = gradient_of(implementation, num_rows)(grad, ids)
        assert_is_gradient(result, grad, ids, num_rows)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (0,), (3, 0), (2, 127), (128,), (129,), (3, 5, 9)])
def test_any_number_of_tokens(implementation, shape):
    ids, grad = random_ids("uniform", int(np.prod(shape)), 7).reshape(shape), random_grad(*shape)
    assert_is_gradient(gradient_of(implementation, 7)(grad, ids), grad, ids, 7)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("num_rows", [1, 2])
def test_tables_of_one_and_two_rows(implementation, num_rows):
    ids = random_ids("out of range", 500, num_rows)
    grad = random_grad(500)
    assert_is_gradient(gradient_of(implementation, num_rows)(grad, ids), grad, ids, num_rows)


def test_shapes_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"\(3,\) need gradients"):
        kernels.embedding_gradient(random_grad(4), np.zeros(3, int), 5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ignored_gradients_may_be_nan(implementation):
    """For example those of padding, which come from attention over nothing."""
    ids = random_ids("out of range", 1000, 50)
    grad = random_grad(1000)
    ignored = ((ids < 0) | (ids >= 50))[:, None]
    result = gradient_of(implementation, 50)(np.where(ignored, np.nan, grad), ids)
    assert_is_gradient(result, grad, ids, 50)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_run_gives_the_same_bits(implementation):
    ids, grad = random_ids("zipf", 3000, 300), random_grad(3000)
    first, *others = (gradient_of(implementation, 300)(grad, ids) for _ in range(3))
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("precision", ["default", "bfloat16"])
def test_the_precision_of_other_products_does_not_matter(implementation, precision):
    ids, grad = random_ids("zipf", 1000, 300), random_grad(1000)
    with jax.default_matmul_precision(precision):
        text = gradient_of(implementation, 300).lower(grad, ids).as_text()
    assert text.count("stablehlo.dot_general") == text.count("precision = [HIGHEST, HIGHEST]")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_sum_is_linear_and_differentiable(implementation):
    """As for second derivatives of a model."""
    ids, grad = random_ids("zipf", 500, 30), random_grad(500)
    weights = random_grad(30)

    def total(grad):
        return jnp.sum(kernels.embedding_gradient(grad, ids, 30, implementation) * weights)

    np.testing.assert_allclose(jax.jit(jax.grad(total))(grad), weights[ids], rtol=1e-6)
    _, along = jax.jvp(total, (grad,), (grad,))
    np.testing.assert_allclose(along, total(grad), rtol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_accumulated_over_microbatches_of_mapped_shards(implementation):
    """As in the train step: a vmap over data shards in a scan over microbatches."""
    microbatches, shards, num_tokens, num_rows = 3, 2, 200, 40
    ids = random_ids("zipf", microbatches * shards * num_tokens, num_rows)
    ids = ids.reshape(microbatches, shards, num_tokens)
    grad = random_grad(microbatches, shards, num_tokens)

    @jax.jit
    def accumulate(grad, ids):
        def add(total, microbatch):
            of_shard = gradient_of(implementation, num_rows)
            return total + jax.vmap(of_shard)(*microbatch), None

        zeros = jnp.zeros((shards, num_rows, WIDTH), jnp.float32)
        return jax.lax.scan(add, zeros, (grad, ids))[0]

    result = accumulate(grad, ids)
    for shard in range(shards):
        assert_is_gradient(result[shard], grad[:, shard], ids[:, shard], num_rows)


# On a mesh: eight virtual devices, in a process of its own.

RULES = (("batch", ("data", "fsdp")),)
RULES_OF_SHARD = (("batch", "fsdp"),)
MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)]  # data, fsdp, tensor
ON_MESHES = [None, *kernels.IMPLEMENTATIONS]
ROWS = 60


def on_eight_devices():
    """Prints the collectives and the result of each implementation on each mesh as JSON."""
    results = {}
    for sizes in MESHES:
        mesh = jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
        split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        for implementation in ON_MESHES:
            with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
                batch = jax.device_put(batch_of(), split)
                program = of_shards(implementation, sizes[0]).lower(*batch).compile()
                results[f"{sizes} {implementation}"] = {
                    "collectives": sorted(each.kind for each in collectives(program.as_text())),
                    "gradient": program(*batch).tolist(),
                }
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        batch = tuple(x[:6] for x in batch_of())
        results["6 rows"] = gradient_of("blocked", ROWS)(*batch).tolist()
    print(json.dumps(results))


def batch_of():
    """The gradients and the ids of 16 sequences of 20 tokens."""
    return random_grad(16, 20), random_ids("zipf", 16 * 20, ROWS).reshape(16, 20)


def of_shards(implementation, shards):
    """As in the train step: mapped over the data shards, whose tables are then added up."""

    def of_rows(grad, ids):
        grad = nn.with_logical_constraint(grad, ("batch", None, None))
        result = kernels.embedding_gradient(grad, ids, ROWS, implementation)
        return nn.with_logical_constraint(result, (None, None))

    @jax.jit
    def compute(grad, ids):
        if shards == 1:
            return of_rows(grad, ids)
        grad, ids = (x.reshape(shards, -1, *x.shape[1:]) for x in (grad, ids))
        with nn.logical_axis_rules(RULES_OF_SHARD):
            return jnp.sum(jax.vmap(of_rows, spmd_axis_name="data")(grad, ids), axis=0)

    return compute


@pytest.fixture(scope="module")
def on_meshes():
    return json.loads(processes.run(__name__, "on_eight_devices", devices=8))


@pytest.mark.parametrize("implementation", ON_MESHES)
@pytest.mark.parametrize("sizes", MESHES)
def test_devices_exchange_only_sums(on_meshes, implementation, sizes):
    result = on_meshes[f"{sizes} {implementation}"]
    assert_is_gradient(np.array(result["gradient"], np.float32), *batch_of(), ROWS)
    assert set(result["collectives"]) == {"all-reduce"}


def test_a_batch_that_devices_cannot_split_is_summed_as_a_whole(on_meshes):
    grad, ids = batch_of()
    assert_is_gradient(np.array(on_meshes["6 rows"], np.float32), grad[:6], ids[:6], ROWS)


# Which implementation a platform uses, in programs that are lowered but not run.


def text_for(platform, num_rows, shape=(4, 300)):
    function = gradient_of(None, num_rows)
    arguments = random_grad(*shape, dtype=jnp.bfloat16), np.zeros(shape, np.int32)
    return jax.export.export(function, platforms=[platform])(*arguments).mlir_module()


def scatters(text):
    return [line for line in text.splitlines() if '"stablehlo.scatter"' in line]


@pytest.mark.parametrize("num_rows", [514, 50265])
def test_cpus_scatter(num_rows):
    text = text_for("cpu", num_rows)
    assert len(scatters(text)) == 1
    assert not [op for op in ("stablehlo.sort", "dot_general") if op in text]


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
@pytest.mark.parametrize("num_rows", [1, 514, kernels.MAX_ONE_HOT_ROWS])
def test_accelerators_scatter_into_no_small_table(platform, num_rows):
    text = text_for(platform, num_rows)
    assert text.count("stablehlo.dot_general") == 1
    assert not scatters(text)


@pytest.mark.parametrize("platform", ["cuda", "rocm"])
def test_gpus_write_each_row_of_a_large_table_once(platform):
    (scatter,) = scatters(text_for(platform, 50265))
    assert "unique_indices = true" in scatter


def test_tpus_add_sorted_rows_to_a_large_table():
    text = text_for("tpu", 50265)
    (scatter,) = scatters(text)
    assert "indices_are_sorted = true" in scatter
    assert "stablehlo.sort" in text
    assert "dot_general" not in text
