"""What is special to the fused attention for GPUs, interpreted on a CPU or lowered for CUDA.

`test_fused_attention` has what both kinds of kernels have in common.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from roberta_jax.kernels import attention, attention_gpu, dropout
from roberta_jax.kernels.dispatch import interpreted
from roberta_jax.kernels.masks import Segments
from roberta_jax.training import partitioning
from tests.support import described_gpu, processes

SEED = np.array([1, 2, 3, 4], np.uint32)
# Whole blocks of 64 or 128; one block that is not full; several, of which the last is not full.
LENGTHS = [
    (128, 128),
    (384, 384),
    (7, 200),
    (200, 65),
    *(pytest.param(n, n, marks=pytest.mark.slow) for n in (7, 64, 100, 200, 512)),
]


def random_inputs(batch, queries, keys, heads, width, dtype=np.float32):
    """q, k, v and a gradient of the output."""
    rng = np.random.default_rng(queries + keys + width)
    lengths = (queries, keys, keys, queries)
    return [rng.standard_normal((batch, n, heads, width)).astype(dtype) for n in lengths]


def random_segments(batch, queries, keys, of_queries=True):
    """Three segments and padding, in random order: each row of the batch has some keys."""
    rng = np.random.default_rng(queries * keys)
    query, key = (rng.integers(0, 4, (batch, n)).astype(np.int32) for n in (queries, keys))
    return Segments(query if of_queries else None, key)


def values_and_gradients(implementation, q, k, v, grad, mask=None, rate=0.0):
    @jax.jit
    def run(q, k, v, grad, mask):
        def apply(q, k, v):
            seed = SEED if rate else None
            return attention.dot_product_attention(q, k, v, mask, seed, rate, implementation)

        context, pull = jax.vjp(apply, q, k, v)
        return context, *pull(grad)

    with jax.default_matmul_precision("highest"), interpreted():
        return [np.asarray(x, np.float32) for x in run(q, k, v, grad, mask)]


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_lengths_match_the_reference(queries, keys):
    arrays = random_inputs(2, queries, keys, 2, 16)
    mask = random_segments(2, queries, keys, of_queries=queries % 3 != 2)
    rate = {0: 0.0, 1: 0.1, 2: 0.5}[queries % 3]
    results = values_and_gradients("pallas_gpu", *arrays, mask, rate)
    expected = values_and_gradients("reference", *arrays, mask, rate)
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [8, 24, 64, 80, 128])
def test_head_widths_match_the_reference(width):
    arrays = random_inputs(1, 130, 130, 2, width)
    results = values_and_gradients("pallas_gpu", *arrays, None, 0.1)
    expected = values_and_gradients("reference", *arrays, None, 0.1)
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [64, 96])
def test_bfloat16_is_as_exact_as_xla(width):
    arrays = random_inputs(1, 200, 200, 2, width, jnp.bfloat16)
    mask = random_segments(1, 200, 200)
    results, by_xla = (
        values_and_gradients(name, *arrays, mask, 0.1) for name in ("pallas_gpu", "xla")
    )
    arrays = [x.astype(np.float32) for x in arrays]
    expected = values_and_gradients("reference", *arrays, mask, 0.1)
    for result, xla, reference in zip(results, by_xla, expected, strict=True):
        error, of_xla = (np.square(x - reference).mean() ** 0.5 for x in (result, xla))
        assert error < 1.1 * of_xla


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_all_kernels_drop_the_same_elements(rate):
    """With one-hot values the output is the probabilities, and the values' gradient likewise."""
    queries, keys, width = 128, 300, 128
    q, k, _, _ = random_inputs(1, queries, keys, 2, width)
    seen_forward, seen_backward = [], []
    for first in range(0, keys, width):
        v = np.eye(keys, width, -first, np.float32)[None, :, None]
        grad = np.eye(queries, width, dtype=np.float32)[None, :, None]
        v, grad = np.broadcast_to(v, k.shape), np.broadcast_to(grad, q.shape)
        context, _, _, grad_v = values_and_gradients("pallas_gpu", q, k, v, grad, None, rate)
        seen_forward.append(context.transpose(0, 2, 1, 3) != 0)
        seen_backward.append(grad_v.transpose(0, 2, 3, 1) != 0)
    bits = dropout.attention_bits(SEED, q)
    keep = dropout.attention_keep_mask(bits, queries, keys, rate)
    np.testing.assert_array_equal(np.concatenate(seen_forward, -1)[..., :keys], keep)
    for seen in seen_backward:
        np.testing.assert_array_equal(seen, keep)


@pytest.mark.parametrize("of_queries", [True, False])
def test_what_is_padding_alone_is_finite(of_queries):
    arrays = random_inputs(2, 100, 200, 2, 16)
    mask = random_segments(2, 100, 200, of_queries)
    mask.key_BS[0] = 0
    context, *grads = values_and_gradients("pallas_gpu", *arrays, mask)
    expected, *expected_grads = values_and_gradients("reference", *arrays, mask)
    np.testing.assert_allclose(context, expected, rtol=0, atol=1e-5)
    for grad, reference in zip(grads, expected_grads, strict=True):
        assert np.isfinite(grad).all()
        # A whole row of padding has gradients only if its queries have segments.
        same = slice(None) if of_queries else slice(1, None)
        np.testing.assert_allclose(grad[same], reference[same], rtol=0, atol=1e-5)
        assert of_queries or (grad[0] == 0).all()


def test_large_scores_do_not_overflow():
    q, k, v, grad = random_inputs(1, 64, 200, 1, 16)
    arrays = (100 * q, 100 * k, v, grad)
    results = values_and_gradients("pallas_gpu", *arrays)
    expected = values_and_gradients("reference", *arrays)
    np.testing.assert_allclose(results[0], expected[0], rtol=0, atol=1e-5)
    assert all(np.isfinite(x).all() for x in results)


def on_eight_devices():
    """Values and gradients on meshes of eight devices, against those of one."""
    arrays = random_inputs(8, 70, 70, 4, 16)
    mask = random_segments(8, 70, 70)
    expected = values_and_gradients("pallas_gpu", *arrays, mask, 0.3)
    for sizes in ((8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4)):
        mesh = partitioning.create_mesh(*sizes)
        spec = PartitionSpec(("data", "fsdp"), None, "tensor")
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        own = jax.device_put(arrays, NamedSharding(mesh, spec))
        with partitioning.on_mesh(mesh):
            results = values_and_gradients(
                "pallas_gpu", *own, Segments(*jax.device_put(tuple(mask), rows)), 0.3
            )
        for result, whole in zip(results, expected, strict=True):
            np.testing.assert_allclose(result, whole, rtol=0, atol=1e-6)


def test_meshes_of_eight_devices_compute_what_one_does():
    processes.run(__name__, "on_eight_devices", devices=8)


@pytest.mark.parametrize(
    ("shape", "of_queries", "rate"),
    [
        ((16, 512, 12, 64), False, 0.1),
        ((32, 128, 16, 64), True, 0.1),
        ((2, 200, 2, 80), True, 0.0),
    ],
)
@pytest.mark.parametrize("is_vmapped", [False, True])
def test_the_kernels_lower_for_cuda(shape, of_queries, rate, is_vmapped):
    def gradients(q, k, v, segments):
        mask = Segments(segments if of_queries else None, segments)

        def total(q, k, v):
            seed = SEED if rate else None
            context = attention.dot_product_attention(q, k, v, mask, seed, rate, "pallas_gpu")
            return context.astype(jnp.float32).sum()

        return jax.value_and_grad(total, (0, 1, 2))(q, k, v)

    parts = (1,) if is_vmapped else ()
    x = jax.ShapeDtypeStruct(parts + shape, jnp.bfloat16)
    segments = jax.ShapeDtypeStruct(parts + shape[:2], jnp.int32)
    function = jax.vmap(gradients) if is_vmapped else gradients
    text = described_gpu.lowered(function, x, x, x, segments)
    assert text.count("triton") >= 3
    for name in ("attention_forward", "attention_grad_of_queries", "attention_grad_of_keys"):
        assert name in text


@pytest.mark.parametrize(
    ("capability", "width", "dtype", "reason"),
    [
        ("9.0", 64, "bfloat16", None),
        ("9.0", 128, "float32", None),
        ("8.0", 64, "float32", None),
        ("9.0", 160, "bfloat16", "160 wide"),
        ("9.0", 64, "float64", "not float64"),
        ("7.5", 64, "bfloat16", "Some GPU has 7.5"),
        ("8.9", 128, "float32", "compute in bfloat16"),
        ("gfx942", 64, "bfloat16", "for NVIDIA GPUs"),
    ],
)
def test_what_a_gpu_cannot_compute(monkeypatch, capability, width, dtype, reason):
    gpu = types.SimpleNamespace(compute_capability=capability, device_kind="Some GPU")
    monkeypatch.setattr(jax, "local_devices", lambda backend: [gpu])
    q = types.SimpleNamespace(shape=(1, 8, 2, width), dtype=np.dtype(jnp.dtype(dtype)))
    answer = attention_gpu.why_not(q, q)
    assert answer is None if reason is None else reason in answer
