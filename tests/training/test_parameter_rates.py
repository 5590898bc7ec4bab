"""Learning rates by parameter, against their definition: stacked, unstacked, and by optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMultipleChoice
from roberta_jax.training.optimizer import OPTIMIZERS, adamw
from roberta_jax.training.parameter_rates import (
    count_trained,
    layerwise_factors,
    scale_rates,
    stop_frozen,
)
from roberta_jax.weights.names import stack_layers, unstack_layers
from roberta_jax.weights.parameters import parameter_shapes
from tests.support.small_config import small_config

LAYERS = 3
CONFIG = small_config(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS)
SHAPES = parameter_shapes(RobertaForMultipleChoice(CONFIG, Execution(scan_layers=False)))
FROZEN = {"frozen_layers": 2, "freeze_embeddings": True}


def random_params(seed, scale=0.1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape) * scale), SHAPES)


PARAMS = random_params(0)
GRADIENTS = [random_params(1 + n, 0.01) for n in range(4)]


def named(tree):
    """{name: leaf} of a tree, without stacked layers."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(unstack_layers(tree))
    }


def run(tx, params, gradients):
    """(parameters after an update per tree of gradients, the optimizer's state)."""
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)
    for grads in gradients:
        updates, state = tx.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def expected_factor(name, decay):
    if name.startswith("roberta/embeddings"):
        return decay ** (LAYERS + 1)
    if name.startswith("roberta/encoder"):
        return decay ** (LAYERS - int(name.split("/")[3]))
    return 1.0  # roberta/pooler and classifier


def test_factors_are_those_of_the_definition():
    factors = layerwise_factors(LAYERS, decay=0.5)
    for name in named(PARAMS):
        assert factors(name) == expected_factor(name, 0.5), name
    stacked = factors("roberta/encoder/layer/attention/self/query/kernel")
    np.testing.assert_array_equal(stacked, [0.125, 0.25, 0.5])
    # A base model has no `roberta/` in its names.
    assert factors("embeddings/LayerNorm/scale") == 0.0625
    assert factors("encoder/layer/1/output/dense/kernel") == 0.25


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_first_step_is_the_optimizers_times_the_factor(name):
    tx = OPTIMIZERS[name](lambda _: 0.05, weight_decay=0.1)
    scaled, _ = run(scale_rates(tx, layerwise_factors(LAYERS, decay=0.7)), PARAMS, GRADIENTS[:1])
    plain, _ = run(tx, PARAMS, GRADIENTS[:1])
    before, plain = named(PARAMS), named(plain)
    for path, after in named(scaled).items():
        step = (plain[path] - before[path]) * expected_factor(path, 0.7)
        np.testing.assert_allclose(after - before[path], step, rtol=2e-4, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_decay_of_one_changes_no_bit(name):
    tx = OPTIMIZERS[name](lambda _: 0.05, weight_decay=0.1)
    scaled = run(scale_rates(tx, layerwise_factors(LAYERS)), PARAMS, GRADIENTS)
    jax.tree.map(np.testing.assert_array_equal, scaled, run(tx, PARAMS, GRADIENTS))


@pytest.mark.parametrize("options", [{"decay": 0.8}, FROZEN, {"decay": 0.9, "frozen_layers": 1}])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stacked_and_unstacked_models_take_equal_steps(name, options):
    tx = scale_rates(
        OPTIMIZERS[name](lambda _: 0.05, weight_decay=0.1), layerwise_factors(LAYERS, **options)
    )
    together, _ = run(tx, stack_layers(PARAMS), [stack_layers(grads) for grads in GRADIENTS])
    one_by_one, _ = run(tx, PARAMS, GRADIENTS)
    one_by_one = named(one_by_one)
    for path, after in named(together).items():
        np.testing.assert_allclose(after, one_by_one[path], rtol=1e-6, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("layout", [stack_layers, unstack_layers])
@pytest.mark.parametrize("decay_mask", ["all", "bert"])
def test_frozen_parameters_keep_every_bit(layout, decay_mask):
    """Also that of a negative zero, which 0.0 added to it would turn into 0.0."""
    params = jax.tree.map(np.copy, PARAMS)
    params["roberta"]["embeddings"]["LayerNorm"]["bias"][...] = -0.0
    params["roberta"]["encoder"]["layer"]["1"]["output"]["dense"]["bias"][...] = -0.0
    tx = adamw(lambda _: 0.05, weight_decay=0.5, decay_mask=decay_mask)
    tx = scale_rates(tx, layerwise_factors(LAYERS, **FROZEN))
    after, _ = run(tx, layout(params), [layout(grads) for grads in GRADIENTS])
    after = named(after)
    for path, before in named(params).items():
        same = before.tobytes() == after[path].tobytes()
        assert same == path.startswith(
            ("roberta/embeddings", "roberta/encoder/layer/0/", "roberta/encoder/layer/1/")
        ), path


def test_there_are_no_moments_of_frozen_arrays():
    tx = scale_rates(adamw(lambda _: 0.05), layerwise_factors(LAYERS, **FROZEN))
    _, state = run(tx, PARAMS, GRADIENTS[:1])
    moments = set(named(state[0].mu))
    assert moments == {path for path in named(PARAMS) if expected_factor(path, 0.5) >= 0.5}
    assert moments == set(named(state[0].nu))


@pytest.mark.parametrize("layout", [stack_layers, unstack_layers])
def test_frozen_parameters_get_no_gradient_and_count_in_no_norm(layout):
    params, factors = layout(PARAMS), layerwise_factors(LAYERS, **FROZEN)

    def loss(params):
        stopped = stop_frozen(params, factors)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(stopped))

    value, grads = jax.value_and_grad(loss)(params)
    squares = {path: np.sum(np.square(leaf)) for path, leaf in named(params).items()}
    assert value == pytest.approx(sum(squares.values()), rel=1e-5)
    trained = {path for path in squares if expected_factor(path, 0.5) >= 0.5}
    grads = named(grads)
    assert {path for path, grad in grads.items() if grad.any()} == trained
    norm = np.sqrt(sum(np.sum(np.square(grad)) for grad in grads.values()))
    assert norm == pytest.approx(2 * np.sqrt(sum(squares[path] for path in trained)), rel=1e-5)


def test_trained_parameters_are_counted_alike_in_both_layouts():
    factors = layerwise_factors(LAYERS, **FROZEN)
    sizes = {path: leaf.size for path, leaf in named(PARAMS).items()}
    expected = sum(size for path, size in sizes.items() if expected_factor(path, 0.5) >= 0.5)
    assert count_trained(PARAMS, factors) == expected
    assert count_trained(stack_layers(PARAMS), factors) == expected
    assert count_trained(PARAMS, layerwise_factors(LAYERS, decay=0.5)) == sum(sizes.values())
