"""Optimizers, against NumPy versions of their definitions, PyTorch and optax.

A stacked and an unstacked model take equal steps, and so do a model on a mesh and on one device.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from roberta_jax.errors import UsageError
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.training.optimizer import (
    OPTIMIZERS,
    adamw,
    bert_decay_mask,
    lamb,
    make_optimizer,
)
from roberta_jax.training.partitioning import create_mesh
from roberta_jax.training.schedules import polynomial_schedule
from roberta_jax.training.state import abstract_state, create_state
from roberta_jax.weights.names import stack_layers, unstack_layers
from tests.support import processes
from tests.support.small_config import small_config

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
CONFIG = small_config(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2)


def named(tree):
    """Returns {path: leaf} of a tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_close(actual, expected, **tolerance):
    tolerance = {"rtol": 1e-6, "atol": 1e-7} | tolerance
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


def random_like(tree, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape) * scale), tree)


def run(tx, params, gradients):
    """Returns the parameters after one update per tree of gradients.

    Not jitted: to compile a program per optimizer takes longer than all the updates.
    """
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)
    for grads in gradients:
        updates, state = tx.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = optax.apply_updates(params, updates)
    return params


def fairseq_adam(p, gradients, rates, beta1, beta2, eps, decay, correct=True):
    """The update rule in float64, from its definition."""
    p, m, v = np.float64(p), 0.0, 0.0
    for n, g in enumerate(gradients):
        g = np.float64(g)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        size = rates[n]
        p = p - decay * rates[n] * p
        if correct:
            size *= np.sqrt(1 - beta2 ** (n + 1)) / (1 - beta1 ** (n + 1))
        p = p - size * m / (np.sqrt(v) + eps)
    return p


def test_the_first_update_of_a_warmup_changes_nothing():
    schedule = polynomial_schedule(1.0, warmup_steps=4, decay_steps=12)
    params = random_like(PARAMS, 0)
    after = run(adamw(schedule), params, [random_like(PARAMS, 1)])
    jax.tree.map(np.testing.assert_array_equal, after, params)


# Gradients of the size of eps show where eps is added. With a rate of 0.1 the updates are large
# compared with rounding errors.
SCALES = (1.0, 1e-6)


@pytest.mark.parametrize("correct", [True, False])
def test_adamw_matches_fairseqs_definition(correct):
    schedule = polynomial_schedule(0.1, warmup_steps=3, decay_steps=20)
    rates = [float(schedule(n)) for n in range(8)]
    params = random_like(PARAMS, 0)
    tx = adamw(schedule, beta2=0.98, eps=1e-6, weight_decay=0.1, bias_correction=correct)
    for scale in SCALES:
        gradients = [random_like(PARAMS, 1 + n, scale) for n in range(8)]
        expected = jax.tree.map(
            lambda p, *g: fairseq_adam(p, g, rates, 0.9, 0.98, 1e-6, 0.1, correct),
            params,
            *gradients,
        )
        assert_close(run(tx, params, gradients), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parity
def test_adamw_matches_pytorchs_where_eps_is_small():
    torch = pytest.importorskip("torch")
    params = random_like(PARAMS, 0)
    gradients = [random_like(PARAMS, 1 + n) for n in range(8)]
    actual = run(
        adamw(lambda n: 0.01, beta1=0.9, beta2=0.98, eps=1e-9, weight_decay=0.1), params, gradients
    )
    leaves = [torch.nn.Parameter(torch.tensor(p)) for p in jax.tree.leaves(params)]
    torch_adamw = torch.optim.AdamW(leaves, lr=0.01, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.1)
    for grads in gradients:
        for leaf, grad in zip(leaves, jax.tree.leaves(grads), strict=True):
            leaf.grad = torch.tensor(grad)
        torch_adamw.step()
    for ours, leaf in zip(jax.tree.leaves(actual), leaves, strict=True):
        np.testing.assert_allclose(ours, leaf.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_the_decay_mask_selects_all_parameters_or_by_name():
    zero = jax.tree.map(np.zeros_like, PARAMS)
    ones = jax.tree.map(lambda p: np.float32(p), PARAMS)
    all_decayed = run(adamw(lambda _: 0.5, weight_decay=0.1, decay_mask="all"), ones, [zero])
    assert all(np.allclose(leaf, 0.95) for leaf in jax.tree.leaves(all_decayed))
    some_decayed = run(adamw(lambda _: 0.5, weight_decay=0.1, decay_mask="bert"), ones, [zero])
    decayed = {name: bool(np.allclose(leaf, 0.95)) for name, leaf in named(some_decayed).items()}
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


def numpy_lamb(p, gradients, rates, beta1, beta2, eps, decay, correct, adapts):
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
            p = p - rates[n - 1] * r
            continue
        r = r + decay * p
        p_norm, r_norm = np.sqrt((p**2).sum()), np.sqrt((r**2).sum())
        ratio = p_norm / r_norm if p_norm and r_norm else 1.0
        p = p - rates[n - 1] * ratio * r
    return p


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("decay", ["all", "bert"])
def test_lamb_matches_its_algorithm(correct, decay):
    """Each layer of a stacked array is one tensor. Some tensors start at 0, as biases do."""
    schedule = polynomial_schedule(0.1, warmup_steps=3, decay_steps=20)
    rates = [float(schedule(n)) for n in range(8)]
    params = random_like(PARAMS, 0)
    params["lm_head"]["bias"] *= 0
    params["encoder"]["layer"]["attention"]["query"]["bias"][1] = 0
    tx = lamb(schedule, eps=1e-6, weight_decay=0.1, decay_mask=decay, bias_correction=correct)
    for scale in SCALES:
        gradients = [random_like(PARAMS, 1 + n, scale) for n in range(8)]
        updated = jax.tree.map(np.asarray, run(tx, params, gradients))
        actual = named(unstack_layers(updated))
        grads_by_name = [named(unstack_layers(grads)) for grads in gradients]
        for name, p in named(unstack_layers(params)).items():
            adapts = decay == "all" or name.endswith(("kernel", "embedding"))
            expected = numpy_lamb(
                p,
                [grads[name] for grads in grads_by_name],
                rates,
                *(0.9, 0.999, 1e-6, 0.1, correct, adapts),
            )
            np.testing.assert_allclose(actual[name], expected, rtol=2e-5, atol=2e-6, err_msg=name)


def test_lamb_matches_optaxs_where_nothing_is_stacked():
    params = unstack_layers(random_like(PARAMS, 0))
    ours = lamb(lambda _: 0.1, eps=1e-6, weight_decay=0.1, decay_mask="all")
    theirs = optax.lamb(0.1, b2=0.999, eps=1e-6, weight_decay=0.1)
    for scale in SCALES:
        gradients = [unstack_layers(random_like(PARAMS, 1 + n, scale)) for n in range(8)]
        actual, expected = (run(tx, params, gradients) for tx in (ours, theirs))
        assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_lamb_moves_each_layer_by_the_rate_times_its_norm():
    params = random_like(PARAMS, 0)
    kernel = params["encoder"]["layer"]["attention"]["query"]["kernel"]
    kernel[1] *= 100
    after = run(lamb(lambda _: 0.01), params, [random_like(PARAMS, 1)])
    moved = after["encoder"]["layer"]["attention"]["query"]["kernel"] - kernel
    for layer in range(2):
        fraction = np.linalg.norm(moved[layer]) / np.linalg.norm(kernel[layer])
        assert fraction == pytest.approx(0.01, rel=1e-4)


def test_lamb_changes_nothing_without_gradient_and_decay():
    params = random_like(PARAMS, 0)
    zero = jax.tree.map(np.zeros_like, params)
    after = run(lamb(lambda _: 0.1, weight_decay=0.0), params, [zero, zero])
    jax.tree.map(np.testing.assert_array_equal, after, params)


def init_params(scan_layers):
    model = RobertaForMaskedLM(CONFIG, Execution(scan_layers=scan_layers))
    return lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


@pytest.fixture(scope="module")
def shapes():
    """The shapes of the parameters of a stacked and of an unstacked model."""
    return [nn.unbox(jax.eval_shape(init_params(scan_layers))) for scan_layers in (True, False)]


@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
@pytest.mark.parametrize("decay", ["all", "bert"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stacked_and_unstacked_models_take_equal_steps(shapes, name, decay, clip_norm):
    """One array of all layers, or one array per layer: the leading axis must change nothing."""
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
    """Runs LAMB on a mesh of four devices, in a separate process."""
    mesh, init = create_mesh(data=1, fsdp=2, tensor=2), init_params(scan_layers=True)
    for decay in ("all", "bert"):
        tx = lamb(lambda _: 0.05, decay_mask=decay, clip_norm=1.0)
        abstract, state = abstract_state(init, tx, mesh), create_state(init, tx, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        assert shardings == jax.tree.map(lambda leaf: leaf.sharding, state)
        moments = [leaf.sharding.spec for leaf in jax.tree.leaves(state.opt_state)]
        assert PartitionSpec(None, "fsdp", "tensor") in moments  # of stacked kernels

        def step(grads, opt_state, params, tx=tx):
            updates, opt_state = tx.update(grads, opt_state, params)
            return opt_state, optax.apply_updates(params, updates)

        on_mesh = jax.jit(step, out_shardings=(shardings.opt_state, shardings.params))
        on_one = jax.jit(step)
        expected, expected_opt_state = jax.device_get((state.params, state.opt_state))
        params, opt_state = state.params, state.opt_state
        for seed in range(3):
            grads = random_like(expected, seed)
            opt_state, params = on_mesh(grads, opt_state, params)
            expected_opt_state, expected = on_one(grads, expected_opt_state, expected)
        assert_close(jax.device_get(params), jax.device_get(expected), rtol=1e-5, atol=1e-6)
    print("equal")


def test_lamb_on_a_mesh_matches_lamb_on_one_device():
    assert processes.run(__name__, "on_four_devices", devices=4) == "equal\n"


def test_clipping_limits_the_global_norm_and_zero_turns_it_off():
    grads = random_like(PARAMS, 1, scale=100)
    norm = float(optax.tree.norm(jax.tree.map(jnp.asarray, grads)))
    clipped = jax.tree.map(lambda g: g / norm, grads)
    with_clipping = run(adamw(lambda _: 0.1, eps=1.0, clip_norm=1.0), PARAMS, [grads])
    without = adamw(lambda _: 0.1, eps=1.0, clip_norm=0.0)
    expected = run(without, PARAMS, [clipped])
    assert_close(with_clipping, expected, rtol=1e-5, atol=0)
    unclipped = run(without, PARAMS, [grads])
    assert not np.allclose(jax.tree.leaves(unclipped)[0], jax.tree.leaves(with_clipping)[0])


def test_moments_are_float32_for_any_parameters():
    half = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), PARAMS)
    state = adamw(lambda _: 0.1).init(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(state[0].mu)} == {jnp.dtype("float32")}


def test_the_decay_mask_goes_by_name_and_not_by_rank():
    mask = bert_decay_mask({"dense": {"bias": np.ones((12, 3, 3)), "kernel": np.ones(3)}})
    assert mask == {"dense": {"bias": False, "kernel": True}}


@pytest.mark.parametrize("optimizer", [adamw, lamb])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta1": -0.1}, "--config.optimizer.beta1=-0.1 must be at least 0"),
        ({"beta2": 1.0}, "--config.optimizer.beta2=1.0 must be at least 0 and below 1"),
        ({"beta1": 1 - 1e-9}, "beta1=0.999999999 must be at least 0 and below 1"),  # 1 in float32
        ({"beta2": "high"}, "--config.optimizer.beta2=high must be a finite number"),
        ({"eps": 1e-60}, "--config.optimizer.eps=1e-60 must be positive, and at least 1.2e-38"),
        ({"weight_decay": 1e39}, "weight_decay=1e[+]39 must be a finite number"),
        ({"clip_norm": 10**400}, "must be a finite number"),
        ({"clip_norm": True}, "clip_norm=True must be a finite number"),
        ({"eps": 0}, "--config.optimizer.eps=0 must be positive"),
        ({"eps": float("nan")}, "--config.optimizer.eps=nan must be a finite number"),
        ({"weight_decay": -1}, "--config.optimizer.weight_decay=-1 must not be negative"),
        ({"weight_decay": float("inf")}, "--config.optimizer.weight_decay=inf must be a finite"),
        ({"clip_norm": -1}, "--config.optimizer.clip_norm=-1 must not be negative"),
        ({"decay_mask": "some"}, "--config.optimizer.decay_mask='some' is unknown: .* all, bert"),
    ],
)
def test_values_out_of_range(optimizer, options, message):
    with pytest.raises(UsageError, match=message):
        optimizer(lambda _: 1, **options)


# Selection by name.


def toy_sgd(schedule, *, momentum=0.0, nesterov):
    return optax.sgd(schedule, momentum=momentum, nesterov=nesterov)


@pytest.fixture
def with_toy_sgd(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "toy_sgd", toy_sgd)


def test_an_added_optimizer_is_used_with_its_own_options(with_toy_sgd):
    params = random_like(PARAMS, 0)
    gradients = [random_like(PARAMS, n) for n in (1, 2)]
    options = {"momentum": 0.9, "nesterov": True, "beta1": None, "clip_norm": None}
    actual = run(make_optimizer("toy_sgd", lambda _: 0.1, options), params, gradients)
    expected = run(optax.sgd(0.1, momentum=0.9, nesterov=True), params, gradients)
    assert_close(actual, expected)
    # The other optimizers ignore its options where they are unset.
    make_optimizer("adamw", lambda _: 0.1, {"momentum": None, "nesterov": None})


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_an_option_that_is_none_has_the_default_of_the_optimizer(name):
    params, gradients = random_like(PARAMS, 0), [random_like(PARAMS, 1)]
    options = {"beta2": None, "decay_mask": None, "eps": 1e-3}
    actual = run(make_optimizer(name, lambda _: 0.1, options), params, gradients)
    expected = run(OPTIMIZERS[name](lambda _: 0.1, eps=1e-3), params, gradients)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sdg", {}, "--config.optimizer.name='sdg' is unknown: use one of adamw, lamb, toy_sgd"),
        ("adamw", {"momentum": 0.9}, "--config.optimizer.momentum=0.9 is not an option of the "
         r"optimizer 'adamw' \(it is an option of toy_sgd\)"),
        ("toy_sgd", {"eps": 1e-6, "nesterov": True}, r"optimizer.eps=1e-06 .* of adamw, lamb\)"),
        ("lamb", {"rho": 0}, r"--config.optimizer.rho=0 .* \(no optimizer has it\)"),
        ("toy_sgd", {"nesterov": None}, "--config.optimizer.nesterov must be set"),
    ],
)  # fmt: skip
def test_a_wrong_name_or_option(with_toy_sgd, name, options, message):
    with pytest.raises(UsageError, match=message):
        make_optimizer(name, lambda _: 0.1, options)
