"""Schedules and optimizers, against their definitions, their originals and optax.

A stacked and an unstacked model, and a model on a mesh and on one device, take equal steps.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.training.optimizer import (
    OPTIMIZERS,
    adamw,
    bert_decay_mask,
    lamb,
    polynomial_schedule,
)
from roberta_jax.training.partitioning import create_mesh
from roberta_jax.training.state import abstract_state, create_state
from roberta_jax.weights.names import stack_layers, unstack_layers
from tests.golden import masked_lm
from tests.support import processes

PARAMS = {
    "encoder": {
        "layer": {
            "attention": {"query": {"kernel": np.ones((2, 3, 3)), "bias": np.ones((2, 3))}},
            "LayerNorm": {"scale": np.ones((2, 3)), "bias": np.ones((2, 3))},
        }
    },
    "lm_head": {"layer_norm": {"scale": np.ones(3)}, "bias": np.ones(4)},
    "next_sentence": {
        "pooler": {"kernel": np.ones((3, 3)), "bias": np.ones(3)},
        "classifier": {"kernel": np.ones((3, 2)), "bias": np.ones(2)},
    },
    "word_embeddings": {"embedding": np.ones((4, 3))},
}
CONFIG = masked_lm.config(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2)


def named(tree):
    """{path: leaf}"""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_close(found, expected, **tolerance):
    tolerance = {"rtol": 1e-6, "atol": 1e-7} | tolerance
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


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
    every = run(adamw(lambda _: 0.5, weight_decay=0.1, decay_mask="all"), ones, [zero])
    assert all(np.allclose(leaf, 0.95) for leaf in jax.tree.leaves(every))
    some = run(adamw(lambda _: 0.5, weight_decay=0.1, decay_mask="bert"), ones, [zero])
    decayed = {name: bool(np.allclose(leaf, 0.95)) for name, leaf in named(some).items()}
    assert decayed == {
        "encoder/layer/LayerNorm/bias": False,
        "encoder/layer/LayerNorm/scale": False,
        "encoder/layer/attention/query/bias": False,
        "encoder/layer/attention/query/kernel": True,
        "lm_head/bias": False,
        "lm_head/layer_norm/scale": False,
        "next_sentence/classifier/bias": False,
        "next_sentence/classifier/kernel": True,
        "next_sentence/pooler/bias": False,
        "next_sentence/pooler/kernel": True,
        "word_embeddings/embedding": True,
    }


def numpy_lamb(p, gradients, rate, beta1, beta2, eps, decay, correct, adapts):
    """One tensor's updates in float64: algorithm 2 of You et al., line by line."""
    p, m, v = np.float64(p), 0.0, 0.0
    for n, g in enumerate(gradients, start=1):
        g = np.float64(g)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**n) if correct else m
        v_hat = v / (1 - beta2**n) if correct else v
        r = m_hat / (np.sqrt(v_hat) + eps)
        if not adapts:
            p = p - rate(n - 1) * r
            continue
        r = r + decay * p
        p_norm, r_norm = np.sqrt((p**2).sum()), np.sqrt((r**2).sum())
        ratio = p_norm / r_norm if p_norm and r_norm else 1.0
        p = p - rate(n - 1) * ratio * r
    return p


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("decay", ["all", "bert"])
def test_lamb_is_its_algorithm(scale, correct, decay):
    """On every layer of the stacked leaves alone; some tensors start at 0, as biases do."""
    schedule = polynomial_schedule(0.1, warmup_steps=3, decay_steps=20)
    params = random_like(PARAMS, 0)
    params["lm_head"]["bias"] *= 0
    params["encoder"]["layer"]["attention"]["query"]["bias"][1] = 0
    gradients = [random_like(PARAMS, 1 + n, scale) for n in range(8)]
    tx = lamb(schedule, eps=1e-6, weight_decay=0.1, decay_mask=decay, bias_correction=correct)
    found = named(unstack_layers(jax.tree.map(np.asarray, run(tx, params, gradients))))
    steps = [named(unstack_layers(grads)) for grads in gradients]
    for name, p in named(unstack_layers(params)).items():
        adapts = decay == "all" or name.endswith(("kernel", "embedding"))
        expected = numpy_lamb(
            p,
            [grads[name] for grads in steps],
            lambda n: float(schedule(n)),
            *(0.9, 0.999, 1e-6, 0.1, correct, adapts),
        )
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_lamb_is_optaxs_where_nothing_is_stacked(scale):
    params = unstack_layers(random_like(PARAMS, 0))
    gradients = [unstack_layers(random_like(PARAMS, 1 + n, scale)) for n in range(8)]
    found = run(
        lamb(lambda _: 0.1, eps=1e-6, weight_decay=0.1, decay_mask="all"), params, gradients
    )
    theirs = run(optax.lamb(0.1, b2=0.999, eps=1e-6, weight_decay=0.1), params, gradients)
    assert_close(found, theirs, rtol=1e-5, atol=1e-6)


def test_lamb_moves_each_layer_by_the_rate_times_its_norm():
    params = random_like(PARAMS, 0)
    kernel = params["encoder"]["layer"]["attention"]["query"]["kernel"]
    kernel[1] *= 100
    after = run(lamb(lambda _: 0.01), params, [random_like(PARAMS, 1)])
    moved = after["encoder"]["layer"]["attention"]["query"]["kernel"] - kernel
    for layer in range(2):
        share = np.linalg.norm(moved[layer]) / np.linalg.norm(kernel[layer])
        assert share == pytest.approx(0.01, rel=1e-4)


def test_lamb_stands_still_without_gradient_and_decay():
    params = random_like(PARAMS, 0)
    zero = jax.tree.map(np.zeros_like, params)
    after = run(lamb(lambda _: 0.1, weight_decay=0.0), params, [zero, zero])
    jax.tree.map(np.testing.assert_array_equal, after, params)


def init_params(scan_layers):
    model = RobertaForMaskedLM(CONFIG, Execution(scan_layers=scan_layers))
    return lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


@pytest.fixture(scope="module")
def shapes():
    """The parameters' shapes: stacked, a layer each."""
    return [nn.unbox(jax.eval_shape(init_params(scan_layers))) for scan_layers in (True, False)]


@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
@pytest.mark.parametrize("decay", ["all", "bert"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stacked_and_unstacked_models_take_equal_steps(shapes, name, decay, clip_norm):
    """One array of all layers, or an array a layer: the leading axis must change nothing."""
    params = random_like(shapes[1], 0, scale=0.1)
    stacked = stack_layers(params)
    assert [jax.tree.structure(tree) for tree in (stacked, params)] == [
        jax.tree.structure(tree) for tree in shapes
    ]
    gradients = [random_like(params, 1 + n, scale=0.01) for n in range(4)]
    tx = OPTIMIZERS[name](lambda _: 0.05, weight_decay=0.1, decay_mask=decay, clip_norm=clip_norm)
    together = run(tx, stacked, [stack_layers(grads) for grads in gradients])
    assert_close(unstack_layers(together), run(tx, params, gradients))


def on_four_devices():
    """Runs in a process of its own: LAMB from a state that was created on a mesh."""
    mesh, init = create_mesh(data=1, fsdp=2, tensor=2), init_params(scan_layers=True)
    for decay in ("all", "bert"):
        tx = lamb(lambda _: 0.05, decay_mask=decay, clip_norm=1.0)
        abstract, state = abstract_state(init, tx, mesh), create_state(init, tx, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        assert shardings == jax.tree.map(lambda leaf: leaf.sharding, state)
        split = [leaf.sharding.spec for leaf in jax.tree.leaves(state.opt_state)]
        assert PartitionSpec(None, "fsdp", "tensor") in split  # the moments of stacked kernels

        params, opt_state, before = state.params, state.opt_state, jax.device_get(state.params)
        gradients = [random_like(before, n) for n in range(3)]
        update = jax.jit(tx.update, out_shardings=(shardings.params, shardings.opt_state))
        for grads in gradients:
            updates, opt_state = update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
        assert_close(jax.device_get(params), run(tx, before, gradients), rtol=1e-5, atol=1e-6)
    print("equal")


def test_lamb_on_a_mesh_is_lamb_on_one_device():
    assert processes.run(__name__, "on_four_devices", devices=4) == "equal\n"


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
        (lambda: adamw(lambda _: 1, decay_mask="some"), "all, bert"),
        (lambda: lamb(lambda _: 1, beta1=-0.1), "beta1"),
        (lambda: lamb(lambda _: 1, weight_decay=-1), "weight_decay"),
        (lambda: polynomial_schedule(1e-3, warmup_steps=9, decay_steps=9), "warmup_steps=9"),
        (lambda: polynomial_schedule(1e-3, warmup_steps=0, decay_steps=9, end=1), "end_learning"),
    ],
)
def test_bad_values(make, says):
    with pytest.raises(UsageError, match=says):
        make()
