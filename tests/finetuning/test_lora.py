"""LoRA: the merged kernels, the initial values, and training on one device and on eight."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec

from roberta_jax.finetuning import lora
from roberta_jax.finetuning.adapt import (
    Adaptation,
    adapted_model,
    adapted_optimizer,
    adapted_params,
    plain_params,
)
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForSequenceClassification
from roberta_jax.training.optimizer import adamw
from roberta_jax.training.partitioning import create_mesh, to_global
from roberta_jax.training.state import create_state
from roberta_jax.training.steps import make_train_step
from roberta_jax.weights.names import stack_layers, unstack_layers
from roberta_jax.weights.parameters import parameter_values
from tests.support import processes
from tests.support.heads import apply, build, config_of, inputs_of
from tests.support.small_config import small_config

ADAPTATION = Adaptation(lora_rank=4, lora_alpha=8, lora_targets=("query", "dense"))
NAME = "RobertaForSequenceClassification"

# Class -> the parts outside the encoder that are trained in full.
HEADS = {
    NAME: {"classifier"},
    "RobertaForMultipleChoice": {"classifier", "pooler"},
    "RobertaForQuestionAnswering": {"qa_outputs"},
    "RobertaForMaskedLM": set(),  # pretraining has trained its head
}


def with_random_b(params, seed=7):
    """The parameters, with B random instead of 0."""
    rng = np.random.default_rng(seed)
    return traverse_util.path_aware_map(
        lambda path, x: np.float32(rng.normal(0, 0.1, x.shape)) if "lora_B" in path else x, params
    )


@pytest.mark.parametrize("name", HEADS)
def test_the_first_forward_is_that_of_the_plain_model(name):
    config = config_of(name)
    model, params = build(name, config)
    adapted = adapted_params(params, ADAPTATION, model, seed=0)
    inputs = inputs_of(name, config).given
    expected = jax.tree.leaves(apply(model, params, **inputs))
    actual = jax.tree.leaves(apply(adapted_model(model, ADAPTATION), adapted, **inputs))
    for ours, plain in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_merged_kernels_are_those_of_the_definition(scan_layers):
    config = config_of(NAME)
    model, params = build(NAME, config, Execution(scan_layers=scan_layers))
    adapted = with_random_b(adapted_params(params, ADAPTATION, model, seed=0))
    merged = plain_params(adapted, ADAPTATION)
    flat, adapter = (
        traverse_util.flatten_dict(unstack_layers(tree), sep="/")
        for tree in (params, adapted["lora"])
    )
    modules = {"attention/self/query", "attention/output/dense", "intermediate/dense"}
    modules |= {"output/dense"}
    changed = 0
    for path, after in traverse_util.flatten_dict(unstack_layers(merged), sep="/").items():
        module = path.rpartition("/")[0].partition("/layer/")[2].partition("/")[2]
        if module in modules and path.endswith("kernel"):
            a, b = (
                np.float64(adapter[path.replace("kernel", f"{each}/kernel")])
                for each in ("lora_A", "lora_B")
            )
            expected = flat[path] + 8 / 4 * a @ b
            np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6, err_msg=path)
            assert not np.allclose(after, flat[path])
            changed += 1
        else:
            np.testing.assert_array_equal(after, flat[path], err_msg=path)
    assert changed == 4 * config.num_hidden_layers
    # The adapted model computes what the merged one does.
    inputs = inputs_of(NAME, config).given
    np.testing.assert_allclose(
        apply(adapted_model(model, ADAPTATION), adapted, **inputs).logits,
        apply(model, merged, **inputs).logits,
        rtol=1e-5,
        atol=1e-6,
    )


def test_initial_values_are_pefts_and_the_same_in_both_layouts():
    """A: uniform within 1 / sqrt(in), all different; B: 0."""
    config = config_of(NAME)
    trees = []
    for scan_layers in (True, False):
        model, params = build(NAME, config, Execution(scan_layers=scan_layers))
        trees.append(adapted_params(params, ADAPTATION, model, seed=3)["lora"])
        again = adapted_params(params, ADAPTATION, model, seed=3)["lora"]
        jax.tree.map(np.testing.assert_array_equal, trees[-1], again)
    stacked, unstacked = trees
    jax.tree.map(np.testing.assert_array_equal, stacked, stack_layers(unstacked))
    flat = traverse_util.flatten_dict(unstacked, sep="/")
    factors = [value for path, value in flat.items() if "lora_A" in path]
    assert len(factors) == 4 * config.num_hidden_layers
    for a in factors:
        bound = 1 / np.sqrt(a.shape[0])
        assert 0.8 * bound < np.abs(a).max() <= bound
        assert np.std(a) == pytest.approx(bound / np.sqrt(3), rel=0.2)
    assert len({a.tobytes() for a in factors}) == len(factors)
    assert not any(value.any() for path, value in flat.items() if "lora_B" in path)
    other = adapted_params(params, ADAPTATION, model, seed=4)["lora"]
    assert not np.array_equal(jax.tree.leaves(other)[0], jax.tree.leaves(unstacked)[0])


@pytest.mark.parametrize("scan_layers", [True, False])
def test_init_gives_the_tree_of_the_adapted_parameters(scan_layers):
    model, params = build(NAME, config_of(NAME), Execution(scan_layers=scan_layers))
    adapted = adapted_params(params, ADAPTATION, model, seed=0)
    ids = jnp.zeros((1, 2), jnp.int32)
    initial = jax.eval_shape(adapted_model(model, ADAPTATION).init, jax.random.key(0), ids)
    shapes = jax.tree.map(lambda leaf: leaf.shape, nn.unbox(initial["params"]))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, adapted)


@pytest.mark.parametrize("name", HEADS)
def test_the_parts_that_are_trained_in_full(name):
    factors, (_, params) = lora.factors(), build(name, config_of(name))
    paths = traverse_util.flatten_dict(params, sep="/")
    trained = {path.removeprefix("roberta/").split("/")[0] for path in paths if factors(path)}
    assert trained == HEADS[name]


# Training. On eight devices it runs in a process of its own.

CONFIG = small_config(
    vocab_size=64,
    hidden_size=32,
    num_attention_heads=8,
    intermediate_size=64,
    num_hidden_layers=2,
    num_labels=2,
)
ROWS, LENGTH, STEPS = 16, 12, 3
EVERYWHERE = Adaptation(lora_rank=4, lora_targets=("query", "value", "dense"))


def batch_of(step):
    """The label is whether the first token is in the upper half of the vocabulary."""
    rng = np.random.default_rng(step)
    ids = rng.integers(4, CONFIG.vocab_size, (ROWS, LENGTH)).astype(np.int32)
    return {
        "input_ids": ids,
        "attention_mask": np.ones((ROWS, LENGTH), np.int32),
        "labels": (ids[:, 0] > 34).astype(np.int32),
    }


def train(mesh, *, steps=STEPS, rate=1e-3, scan_layers=True, dropout=0.0, same_batch=False):
    """(parameters at the start, state at the end, metrics of each step)."""
    config = CONFIG.replace(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    plain = RobertaForSequenceClassification(config, Execution(scan_layers=scan_layers))
    stacked = RobertaForSequenceClassification(config)
    model = adapted_model(plain, EVERYWHERE)
    tx = adapted_optimizer(adamw(lambda _: rate, weight_decay=0.1), EVERYWHERE, config)
    params = jax.device_get(parameter_values(stacked, jax.random.key(1)))
    params = params if scan_layers else unstack_layers(params)
    start = adapted_params(params, EVERYWHERE, plain, seed=0)
    ids = jnp.zeros((1, 2), jnp.int32)
    state = create_state(lambda: model.init(jax.random.key(0), ids)["params"], tx, mesh, start)
    step = make_train_step(model, tx, lambda _: jnp.float32(rate), mesh, seed=0, accumulation=2)
    metrics = []
    for number in range(steps):
        batch = to_global(batch_of(0 if same_batch else number), mesh, ROWS, np.arange(ROWS))
        state, values = step(state, batch)
        metrics.append({name: float(value) for name, value in values.items()})
    return start, state, metrics


def flat_on_host(tree):
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


def test_training_changes_adapter_and_head_and_no_bit_of_the_base():
    start, state, metrics = train(create_mesh(), steps=30, rate=5e-3, same_batch=True)
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]
    before, after = flat_on_host(start), flat_on_host(state.params)
    for path, value in after.items():
        is_trained = path.startswith(("lora", "classifier"))
        assert (value.tobytes() != before[path].tobytes()) == is_trained, path
    moments = [path for path, x in flat_on_host(state.opt_state[0].mu).items() if np.size(x)]
    assert set(moments) == {path for path in after if path.startswith(("lora", "classifier"))}


def test_stacked_and_unstacked_models_take_equal_steps():
    (_, stacked, metrics), (_, unstacked, others) = (
        train(create_mesh(), scan_layers=scan_layers) for scan_layers in (True, False)
    )
    for ours, theirs in zip(metrics, others, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
        unstack_layers(stacked.params),
        unstacked.params,
    )


def on_eight_devices():
    """Trains on a mesh of eight devices and on one; prints what the test below checks."""
    jax.config.update("jax_default_matmul_precision", "highest")
    one = create_mesh(devices=jax.devices()[:1])
    _, expected, expected_metrics = train(one, dropout=0.1)
    _, state, metrics = train(create_mesh(2, 2, 2), dropout=0.1)
    after, expected = flat_on_host(state.params), flat_on_host(expected.params)
    query = state.params["lora"]["roberta"]["encoder"]["layer"]["attention"]["self"]["query"]
    results = {
        "metrics": metrics,
        "expected_metrics": expected_metrics,
        "error": max(float(np.abs(after[path] - expected[path]).max()) for path in expected),
        "specs": [str(query[f"lora_{each}"]["kernel"].sharding.spec) for each in "AB"],
    }
    print(json.dumps(results))


@pytest.mark.slow
def test_steps_on_a_mesh_equal_those_on_one_device():
    """Over data, fsdp and tensor; each factor is split along the axis it shares with the kernel."""
    result = json.loads(processes.run(__name__, "on_eight_devices", devices=8).splitlines()[-1])
    for metrics, expected in zip(result["metrics"], result["expected_metrics"], strict=True):
        assert metrics == pytest.approx(expected, rel=1e-5)
    assert result["error"] < 2e-5  # the updates were 1e-3
    assert result["specs"] == [
        str(PartitionSpec(None, "fsdp", None)),
        str(PartitionSpec(None, None, "tensor")),
    ]
