"""Cross-entropy: every implementation against the reference, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.kernels import cross_entropy as kernels

pytestmark = pytest.mark.accelerator

IMPLEMENTATIONS = [name for name in kernels.IMPLEMENTATIONS if name != "reference"]


def random_normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_reference_is_the_formula():
    logits = random_normal(0, 3, 5)
    labels = np.array([4, 0, 2])
    odds = np.exp(logits.astype(np.float64))
    expected = -np.log(odds[np.arange(3), labels] / odds.sum(-1))
    np.testing.assert_allclose(kernels.reference_cross_entropy(logits, labels), expected, rtol=1e-6)


def test_cross_entropy_matches_the_reference():
    logits = 5 * random_normal(0, 4, 6, 37)
    labels = np.random.default_rng(1).integers(0, 37, (4, 6))
    weights = random_normal(2, 4, 6)

    def value_and_grad(function):
        loss = jax.jit(jax.value_and_grad(lambda x: jnp.sum(function(x, labels) * weights)))
        return loss(logits)

    result = value_and_grad(kernels.cross_entropy)
    expected = value_and_grad(kernels.reference_cross_entropy)
    for ours, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_cross_entropy_does_not_overflow():
    logits = jnp.array([[1e4, 0.0, -1e4]])
    assert kernels.cross_entropy(logits, jnp.array([0]))[0] == 0
    assert kernels.cross_entropy(logits, jnp.array([2]))[0] == 2e4


def test_bfloat16_logits_are_summed_in_float32():
    logits = random_normal(0, 8, 5000).astype(jnp.bfloat16)
    labels = np.arange(8)

    def value_and_grad(function, logits):
        def loss(logits):
            losses = function(logits, labels)
            return jnp.sum(losses), losses

        (_, losses), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits)
        return losses, np.asarray(grad)

    losses, grad = value_and_grad(kernels.cross_entropy, logits)
    expected, expected_grad = value_and_grad(
        kernels.reference_cross_entropy, logits.astype(np.float32)
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(grad.astype(np.float32), expected_grad, rtol=0.01)


def projected_value_and_grad(implementation, x, table, bias, labels, weights):
    def loss(x, table, bias):
        losses = kernels.projected_cross_entropy(x, table, bias, labels, implementation)
        assert losses.dtype == jnp.float32
        return jnp.sum(losses * weights), losses

    with jax.default_matmul_precision("highest"):
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(x, table, bias)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("vocab_size", "chunk_size"),
    [(100, 4096), (1000, 256), (1024, 256), (769, 256), (900, 400)],
)
def test_projected_cross_entropy_matches_the_reference(
    monkeypatch, implementation, vocab_size, chunk_size
):
    """One chunk, several, several that fit exactly, and a last one that overlaps the previous."""
    monkeypatch.setattr(kernels, "CHUNK_SIZE", chunk_size)
    arrays = (
        random_normal(0, 50, 24),
        random_normal(1, vocab_size, 24),
        random_normal(2, vocab_size),
    )
    # Labels at both ends of every chunk, and where the last one overlaps the previous.
    labels = np.linspace(0, vocab_size - 1, 50).astype(np.int32)
    weights = random_normal(3, 50)
    result = projected_value_and_grad(implementation, *arrays, labels, weights)
    expected = projected_value_and_grad("reference", *arrays, labels, weights)
    for ours, theirs in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("implementation", kernels.IMPLEMENTATIONS)
def test_projected_cross_entropy_in_bfloat16(implementation):
    x = random_normal(0, 64, 32).astype(jnp.bfloat16)
    table, bias = 0.3 * random_normal(1, 5000, 32), np.zeros(5000, np.float32)
    labels = np.arange(64) * 70
    result = projected_value_and_grad(implementation, x, table, bias, labels, 1.0)
    expected = projected_value_and_grad("reference", x.astype(np.float32), table, bias, labels, 1.0)
    (_, losses), gradients = result
    (_, expected_losses), expected_gradients = expected
    np.testing.assert_allclose(losses, expected_losses, atol=0.03)
    assert [grad.dtype for grad in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        error = np.linalg.norm(ours.astype(jnp.float32) - theirs)
        assert error < 0.02 * np.linalg.norm(theirs)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("implementation", kernels.IMPLEMENTATIONS)
def test_labels_out_of_range_give_nan(implementation, dtype):
    """They neither count from the end, as NumPy's indices, nor are they clipped."""
    labels = jnp.array([2, -1, -7, 7, -100, 6, 0])
    outside = np.asarray((labels < 0) | (labels >= 7))
    x = jnp.asarray(random_normal(0, 7, 4), dtype)
    table, bias = jnp.asarray(random_normal(1, 7, 4)), jnp.asarray(random_normal(2, 7))

    def projected(x):
        return kernels.projected_cross_entropy(x, table, bias, labels, implementation)

    logits = jnp.asarray(random_normal(3, 7, 7), dtype)
    entropy = (
        kernels.reference_cross_entropy if implementation == "reference" else kernels.cross_entropy
    )
    for function, argument in ((projected, x), (lambda logits: entropy(logits, labels), logits)):
        for call in (function, jax.jit(function)):
            losses, pull = jax.vjp(call, argument)
            np.testing.assert_array_equal(np.isnan(losses), outside)
            (grad,) = pull(jnp.ones_like(losses))
            np.testing.assert_array_equal(np.isnan(grad).all(-1), outside)
            np.testing.assert_array_equal(np.isnan(grad).any(-1), outside)


def lowered_gradient(implementation, targets, width=32, vocab_size=50265):
    """With RoBERTa's vocabulary, for one batch of targets."""
    shapes = [(targets, width), (vocab_size, width), (vocab_size,)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    labels = jnp.zeros(targets, jnp.int32)

    def loss(x, table, bias):
        return kernels.projected_cross_entropy(x, table, bias, labels, implementation).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments)


def test_chunked_never_holds_the_whole_logits():
    """Temporary memory is a fraction of the [N, V] logits."""
    targets = 256
    memory = lowered_gradient("chunked", targets).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * targets * 50265 / 3


def test_few_logits_are_kept():
    """By default they are computed once while they are small, and one chunk at a time after it."""
    limit = kernels.KEPT_LOGITS // (4 * 50265)
    assert kernels.keeps_logits(limit, 50265)
    assert not kernels.keeps_logits(limit + 1, 50265)
    for targets, expected in ((limit, "whole"), (limit + 1, "chunked")):
        text = lowered_gradient(None, targets).as_text()
        assert text == lowered_gradient(expected, targets).as_text()
        # The logits, the gradients of x, of the table and of the bias; and the logits again.
        assert text.count("stablehlo.dot_general") == (4 if expected == "whole" else 5)
