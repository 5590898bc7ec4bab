import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.training.optimizer import adamw, bert_decay_mask, polynomial_schedule

PARAMS = {
    "encoder": {
        "layer": {
            "attention": {"query": {"kernel": np.ones((2, 3, 3)), "bias": np.ones((2, 3))}},
            "LayerNorm": {"scale": np.ones((2, 3)), "bias": np.ones((2, 3))},
        }
    },
    "lm_head": {"layer_norm": {"scale": np.ones(3)}, "bias": np.ones(4)},
    "word_embeddings": {"embedding": np.ones((4, 3))},
}


def random_like(tree, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape) * scale), tree)


def run(tx, params, gradients):
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for grads in gradients:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def fairseq_adam(p, gradients, rate, beta1, beta2, eps, decay, correct=True):
    """The update rule in float64, from its definition."""
    p, m, v = np.float64(p), 0.0, 0.0
    for n, g in enumerate(gradients):
        g = np.float64(g)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        size = rate(n)
        p = p - decay * rate(n) * p
        if correct:
            size *= np.sqrt(1 - beta2 ** (n + 1)) / (1 - beta1 ** (n + 1))
        p = p - size * m / (np.sqrt(v) + eps)
    return p


def test_schedule_is_fairseqs():
    """fairseq's polynomial_decay, asked with 0 before training and then after each update."""
    schedule = polynomial_schedule(1.0, warmup_steps=4, decay_steps=12, end=0.2)
    expected = [0, 0.25, 0.5, 0.75, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2, 0.2]
    np.testing.assert_allclose([schedule(n) for n in range(15)], expected, rtol=1e-6)
    quadratic = polynomial_schedule(1.0, warmup_steps=0, decay_steps=4, power=2.0)
    np.testing.assert_allclose([quadratic(n) for n in range(6)], [1, 9 / 16, 1 / 4, 1 / 16, 0, 0])


def test_the_first_update_of_a_warmup_changes_nothing():
    schedule = polynomial_schedule(1.0, warmup_steps=4, decay_steps=12)
    params = random_like(PARAMS, 0)
    after = run(adamw(schedule), params, [random_like(PARAMS, 1)])
    jax.tree.map(np.testing.assert_array_equal, after, params)


def test_papers_schedule():
    schedule = polynomial_schedule(6e-4, warmup_steps=24_000, decay_steps=500_000)
    assert float(schedule(24_000)) == pytest.approx(6e-4)
    assert float(schedule(12_000)) == pytest.approx(3e-4)
    assert float(schedule(262_000)) == pytest.approx(3e-4)
    assert float(schedule(500_000)) == 0


# Gradients near eps show where eps is added; a rate of 0.1 makes rounding the smaller part.
@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize("correct", [True, False])
def test_adam_is_fairseqs(scale, correct):
    schedule = polynomial_schedule(0.1, warmup_steps=3, decay_steps=20)
    params = random_like(PARAMS, 0)
    gradients = [random_like(PARAMS, 1 + n, scale) for n in range(8)]
    tx = adamw(schedule, beta2=0.98, eps=1e-6, weight_decay=0.1, bias_correction=correct)
    found = run(tx, params, gradients)
    expected = jax.tree.map(
        lambda p, *g: fairseq_adam(
            p, g, lambda n: float(schedule(n)), 0.9, 0.98, 1e-6, 0.1, correct
        ),
        params,
        *gradients,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


@pytest.mark.parity
def test_adam_is_torchs_where_eps_is_small():
    torch = pytest.importorskip("torch")
    params = random_like(PARAMS, 0)
    gradients = [random_like(PARAMS, 1 + n) for n in range(8)]
    found = run(
        adamw(lambda n: 0.01, beta1=0.9, beta2=0.98, eps=1e-9, weight_decay=0.1), params, gradients
    )
    leaves = [torch.nn.Parameter(torch.tensor(p)) for p in jax.tree.leaves(params)]
    theirs = torch.optim.AdamW(leaves, lr=0.01, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.1)
    for grads in gradients:
        for leaf, grad in zip(leaves, jax.tree.leaves(grads), strict=True):
            leaf.grad = torch.tensor(grad)
        theirs.step()
    for ours, leaf in zip(jax.tree.leaves(found), leaves, strict=True):
        np.testing.assert_allclose(ours, leaf.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_fairseq_decays_everything_and_bert_goes_by_name():
    zero = jax.tree.map(np.zeros_like, PARAMS)
    ones = jax.tree.map(lambda p: np.float32(p), PARAMS)
    every = run(adamw(lambda _: 0.5, weight_decay=0.1, decay="all"), ones, [zero])
    assert all(np.allclose(leaf, 0.95) for leaf in jax.tree.leaves(every))
    some = run(adamw(lambda _: 0.5, weight_decay=0.1, decay="bert"), ones, [zero])
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator="/"): bool(np.allclose(leaf, 0.95))
        for path, leaf in jax.tree_util.tree_leaves_with_path(some)
    }
    assert decayed == {
        "encoder/layer/LayerNorm/bias": False,
        "encoder/layer/LayerNorm/scale": False,
        "encoder/layer/attention/query/bias": False,
        "encoder/layer/attention/query/kernel": True,
        "lm_head/bias": False,
        "lm_head/layer_norm/scale": False,
        "word_embeddings/embedding": True,
    }


@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
def test_stacked_and_unstacked_layers_take_equal_steps(clip_norm):
    """One array of two layers, or two arrays: the leading axis must change nothing."""

    def unstack(tree):
        parts = [jax.tree.map(lambda x, i=i: x[i], tree["encoder"]["layer"]) for i in range(2)]
        return {**tree, "encoder": {"layer": {str(i): part for i, part in enumerate(parts)}}}

    tx = adamw(lambda _: 0.1, weight_decay=0.1, decay="bert", clip_norm=clip_norm)
    params, gradients = random_like(PARAMS, 0), [random_like(PARAMS, n) for n in (1, 2)]
    stacked = unstack(run(tx, params, gradients))
    unstacked = run(tx, unstack(params), [unstack(g) for g in gradients])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), stacked, unstacked
    )


def test_clipping_bounds_the_global_norm_and_none_is_none():
    grads = random_like(PARAMS, 1, scale=100)
    norm = float(optax.tree.norm(jax.tree.map(jnp.asarray, grads)))
    clipped = jax.tree.map(lambda g: g / norm, grads)
    same = run(adamw(lambda _: 0.1, eps=1.0, clip_norm=1.0), PARAMS, [grads])
    by_hand = run(adamw(lambda _: 0.1, eps=1.0), PARAMS, [clipped])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), same, by_hand)
    free = run(adamw(lambda _: 0.1, eps=1.0, clip_norm=0.0), PARAMS, [grads])
    assert not np.allclose(jax.tree.leaves(free)[0], jax.tree.leaves(same)[0])


def test_moments_are_float32_for_any_parameters():
    half = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), PARAMS)
    state = adamw(lambda _: 0.1).init(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(state[0].mu)} == {jnp.dtype("float32")}


def test_mask_sees_names_not_ranks():
    mask = bert_decay_mask({"dense": {"bias": np.ones((12, 3, 3)), "kernel": np.ones(3)}})
    assert mask == {"dense": {"bias": False, "kernel": True}}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: adamw(lambda _: 1, beta2=1.0), "beta2"),
        (lambda: adamw(lambda _: 1, eps=0), "eps"),
        (lambda: adamw(lambda _: 1, clip_norm=-1), "clip_norm"),
        (lambda: adamw(lambda _: 1, decay="some"), "all, bert"),
        (lambda: polynomial_schedule(1e-3, warmup_steps=9, decay_steps=9), "warmup_steps=9"),
        (lambda: polynomial_schedule(1e-3, warmup_steps=0, decay_steps=9, end=1), "end_learning"),
    ],
)
def test_bad_values(make, says):
    with pytest.raises(UsageError, match=says):
        make()
