"""Heads that read the first token: their last block computes nothing else, with the same result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.modeling.classifiers import FIRST_TOKEN_HEADS
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.flops import training_flops
from roberta_jax.modeling.heads import MODEL_CLASSES
from roberta_jax.weights.names import unstack_layers
from roberta_jax.weights.parameters import parameter_shapes
from tests.support import heads
from tests.support.heads import assert_close

NAMES = [each.__name__ for each in FIRST_TOKEN_HEADS]
SEQUENCES = "RobertaForSequenceClassification"


@functools.partial(jax.jit, static_argnames=("model", "whole"))
def loss_and_gradients(model, params, batch, whole, key=None):
    """The summed loss and its gradients; with `whole`, all tokens of the last block are computed.

    That is so when hidden states are returned.
    """
    options = {"output_hidden_states": True} if whole else {}
    if key is not None:
        options |= {"deterministic": False, "rngs": {"dropout": key}}

    def loss(params):
        losses = model.apply({"params": params}, **batch, **options, method="loss")
        return sum(losses.values())

    return jax.value_and_grad(loss)(params)


def check_equal(model, params, batch, key=None):
    found = loss_and_gradients(model, params, batch, whole=False, key=key)
    expected = loss_and_gradients(model, params, batch, whole=True, key=key)
    paths = jax.tree_util.tree_leaves_with_path(expected)
    for (path, theirs), ours in zip(paths, jax.tree.leaves(found), strict=True):
        assert_close(ours, theirs, str(path))
    nonzero = [np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found)]
    assert np.mean(nonzero) > 0.8


def build(name, **changes):
    execution = Execution(**changes.pop("execution", {}))
    config = heads.config_of(name, **changes)
    _, params = heads.build(name, config)
    if not execution.scan_layers:
        params = unstack_layers(params)
    inputs = heads.inputs_of(name, config)
    return MODEL_CLASSES[name](config, execution), params, {**inputs.given, **inputs.labels}


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_of_all_tokens(name):
    check_equal(*build(name))


@pytest.mark.parametrize(
    "execution",
    [
        {"scan_unroll": 2},
        {"scan_unroll": -1},
        {"remat": "none"},
        {"scan_layers": False},
        {"attention": "reference"},
    ],
    ids=str,
)
def test_all_ways_of_computing(execution):
    check_equal(*build(SEQUENCES, num_hidden_layers=3, execution=execution))


def test_a_model_of_one_layer():
    check_equal(*build(SEQUENCES, num_hidden_layers=1))


def test_dropout_is_that_of_all_tokens_in_unrolled_layers():
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    model, params, batch = build(SEQUENCES, execution={"scan_layers": False}, **rates)
    check_equal(model, params, batch, jax.random.key(3))


@pytest.mark.parametrize(
    "change",
    [
        {"position_embedding_type": "relative_key_query"},
        {"hidden_act": "relu"},
    ],
    ids=str,
)
def test_other_architectures(change):
    check_equal(*build(SEQUENCES, **change))


def test_segments_and_head_masks():
    model, params, batch = build(SEQUENCES, num_hidden_layers=3)
    length = batch["input_ids"].shape[1]
    segments = np.where(np.arange(length) < 5, 1, 2) * batch.pop("attention_mask")
    factors = np.random.default_rng(0).random((3, model.config.num_attention_heads))
    check_equal(model, params, {**batch, "segment_ids": segments, "head_mask": factors})


def test_hidden_states_and_attentions_are_those_of_all_tokens():
    model, params, batch = build(SEQUENCES)
    batch.pop("labels")
    shape = batch["input_ids"].shape
    output = heads.apply(model, params, **batch)
    options = {"output_hidden_states": True, "output_attentions": True}
    with_all = jax.eval_shape(lambda: model.apply({"params": params}, **batch, **options))
    assert {x.shape[:2] for x in with_all.hidden_states} == {shape}
    assert {x.shape[2:] for x in with_all.attentions} == {(shape[1], shape[1])}
    assert output.hidden_states is None


def test_a_model_that_is_asked_for_the_first_token_returns_it():
    config = heads.config_of("RobertaModel", num_hidden_layers=3)
    model, params = heads.build("RobertaModel", config, add_pooling_layer=True)
    inputs = heads.inputs_of("RobertaModel", config).given

    def apply(**options):
        return model.apply({"params": params}, **inputs, **options)

    first, whole = apply(first_token_only=True), apply()
    assert first.last_hidden_state.shape == (3, 1, config.hidden_size)
    assert_close(first.last_hidden_state, whole.last_hidden_state[:, :1])
    assert_close(first.pooler_output, whole.pooler_output)


def test_a_decoder_computes_all_tokens():
    config = heads.config_of("RobertaForCausalLM")
    model, params = heads.build("RobertaModel", config)
    ids = heads.inputs_of("RobertaModel", config).given["input_ids"]
    output = jax.eval_shape(
        lambda: model.apply({"params": params}, ids, first_token_only=True).last_hidden_state
    )
    assert output.shape[:2] == ids.shape


def test_the_compiler_counts_the_operations_of_the_formula():
    config = heads.config_of(SEQUENCES, num_hidden_layers=2, hidden_size=64, intermediate_size=256)
    model = MODEL_CLASSES[SEQUENCES](config, Execution(scan_layers=False))
    ids = jnp.zeros((4, 32), jnp.int32)
    params = parameter_shapes(model)

    def flops(**options):
        def forward(params, ids):
            return model.apply({"params": params}, ids, **options).logits

        return jax.jit(forward).lower(params, ids).compile().cost_analysis()["flops"]

    first, whole = flops(), flops(output_hidden_states=True)
    expected = training_flops(config, 4, 32, 0, True) / training_flops(config, 4, 32, 0)
    assert first / whole == pytest.approx(expected, rel=0.05)
    assert expected < 0.7
