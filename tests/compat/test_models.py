"""Calls, outputs and parameters of the drop-in classes, and training with them."""

import functools
import inspect

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from flax.traverse_util import flatten_dict, unflatten_dict

import roberta_jax
from roberta_jax.compat import models
from roberta_jax.compat.config import FlaxRobertaConfig
from tests.support import heads
from tests.support.flax_classes import (
    CAUSAL_LM,
    CLASSIFIER,
    ENCODER,
    NAMES,
    class_of,
    config_of,
    inputs_of,
    new_model,
    random_model,
)

FLAGS = [(False, False), (True, False), (False, True), (True, True)]


def assert_trees_close(actual, expected, atol=0.0):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


# Calls and outputs. Where a test is about keys, shapes or dtypes alone, `jax.eval_shape` calls the
# model without compiling it.


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_read_by_attribute_name_and_index(name):
    model, inputs = random_model(name), inputs_of(name)
    for hidden, attentions in FLAGS if name == CAUSAL_LM else FLAGS[::3]:
        flags = {"output_hidden_states": hidden, "output_attentions": attentions}
        output = jax.eval_shape(functools.partial(model, **inputs, **flags))
        keys = list(output.keys())
        assert ("hidden_states" in keys, "attentions" in keys) == (hidden, attentions)
        assert [k for k in keys if k not in ("hidden_states", "attentions")] == {
            "FlaxRobertaModel": ["last_hidden_state", "pooler_output"],
            "FlaxRobertaForQuestionAnswering": ["start_logits", "end_logits"],
        }.get(name, ["logits"])
        values = output.to_tuple()
        assert len(output) == len(values) == len(keys)
        for index, key in enumerate(keys):
            assert output[key] is output[index] is getattr(output, key) is values[index]
        assert output[-1:] == values[-1:]
        assert list(output) == list(dict(output)) == keys
        with pytest.raises(KeyError):
            output["cross_attentions"]
    batch_size = int(np.prod(inputs["input_ids"].shape[:-1]))
    length = inputs["input_ids"].shape[-1]
    config = model.config
    assert len(output.hidden_states) == config.num_hidden_layers + 1
    assert len(output.attentions) == config.num_hidden_layers
    assert output.hidden_states[-1].shape == (batch_size, length, config.hidden_size)
    assert output.attentions[0].shape == (batch_size, config.num_attention_heads, length, length)


@pytest.mark.parametrize("name", NAMES)
def test_jit_and_tuples_give_the_same_outputs(name):
    model, inputs = random_model(name), inputs_of(name)
    flags = {"output_hidden_states": True, "output_attentions": True}

    @jax.jit
    def call(params, inputs):
        output = model(**inputs, params=params, **flags)
        return output, model(**inputs, params=params, **flags, return_dict=False)

    jitted, values = call(model.params, inputs)
    expected = model(**inputs, **flags)
    assert type(jitted) is type(expected)
    assert_trees_close(jitted, expected, atol=2e-5)
    assert type(values) is tuple
    assert_trees_close(values, jitted.to_tuple())


@pytest.mark.parametrize("name", NAMES)
def test_signatures_and_names(name):
    cls = class_of(name)
    assert list(inspect.signature(cls).parameters) == [
        "config", "input_shape", "seed", "dtype", "_do_init", "gradient_checkpointing",
    ]  # fmt: skip
    assert list(inspect.signature(cls.__call__).parameters) == [
        "self", "input_ids", "attention_mask", "token_type_ids", "position_ids", "head_mask",
        "encoder_hidden_states", "encoder_attention_mask", "params", "dropout_rng", "train",
        "output_attentions", "output_hidden_states", "return_dict", "past_key_values",
    ]  # fmt: skip
    assert (cls.main_input_name, cls.base_model_prefix) == ("input_ids", "roberta")
    assert issubclass(cls, roberta_jax.FlaxRobertaPreTrainedModel)
    assert cls.can_generate() == (name == CAUSAL_LM)
    module_name = "FlaxRobertaModule" if name == ENCODER else f"{name}Module"
    assert getattr(models, module_name) is cls.module_class
    model = random_model(name)
    assert type(model.module) is cls.module_class
    assert (model.framework, model.seed, model.input_shape) == ("flax", 0, (1, 1))
    assert model.key.tolist() == jax.random.PRNGKey(0).tolist()


def test_base_class_cannot_be_created():
    with pytest.raises(TypeError, match="one of its subclasses"):
        roberta_jax.FlaxRobertaPreTrainedModel(heads.SMALL)


def test_flags_of_the_config_are_the_defaults_of_the_call():
    config = FlaxRobertaConfig(**config_of(CLASSIFIER).to_dict(), output_hidden_states=True)
    model = class_of(CLASSIFIER)(config, _do_init=False)
    params = random_model(CLASSIFIER).params
    assert model.config is config

    def call(**flags):
        return jax.eval_shape(lambda: model(**inputs_of(CLASSIFIER), params=params, **flags))

    assert list(call().keys()) == ["logits", "hidden_states"]
    assert list(call(output_hidden_states=False).keys()) == ["logits"]
    model.config.output_attentions = True
    assert "attentions" in call()
    model.config.return_dict = False
    assert model.config.use_return_dict is False
    assert isinstance(call(), tuple)


def test_ids_of_any_numeric_dtype():
    model, inputs = random_model(ENCODER), inputs_of(ENCODER)
    expected = model(**inputs)
    ids = np.asarray(inputs.pop("input_ids"))
    for dtype in (np.int64, np.float64, np.uint8):
        assert_trees_close(model(ids.astype(dtype), **inputs), expected)


def test_head_mask_removes_heads():
    model = new_model(ENCODER, num_hidden_layers=2)
    head_mask = jnp.array([[0, 1, 1, 1], [0, 0, 0, 1]])  # integers, as in scripts
    call = jax.jit(functools.partial(model, output_attentions=True))
    output = call(**inputs_of(ENCODER), head_mask=head_mask)
    for attention, row in zip(output.attentions, head_mask, strict=True):
        assert ((attention.sum((0, 2, 3)) > 0) == (row > 0)).all()


def test_dropout_depends_on_its_key_and_needs_one():
    model = new_model(ENCODER, hidden_dropout_prob=0.1)
    inputs = inputs_of(ENCODER)
    call = jax.jit(lambda key: model(**inputs, dropout_rng=key, train=True)[0])
    first, same, other = (call(jax.random.PRNGKey(seed)).tolist() for seed in (0, 0, 1))
    assert first == same != other
    with pytest.raises(flax.errors.InvalidRngError):
        model(**inputs, train=True)


def test_input_longer_than_the_position_table_is_an_error():
    model = random_model(ENCODER)
    assert np.isfinite(jax.jit(model)(jnp.full((1, 38), 5))[0]).all()
    with pytest.raises(ValueError, match="39 tokens, but this model has positions for 38"):
        model(jnp.full((1, 39), 5))


# Parameters


@pytest.fixture(scope="module")
def initial_params():
    """{name: initial parameters} of two classes; initialization is slow to compile."""
    return {name: class_of(name)(config_of(name)).params for name in (ENCODER, CLASSIFIER)}


@pytest.mark.parametrize("name", NAMES)
def test_paths_of_the_parameters(name):
    model = class_of(name)(config_of(name), _do_init=False)
    paths = set(flatten_dict(model.params_shape_tree))
    assert paths == model.required_params
    assert paths == set(flatten_dict(jax.eval_shape(model.init_weights, model.key)))
    prefix = () if name == ENCODER else ("roberta",)
    query = ("encoder", "layer", "0", "attention", "self", "query", "kernel")
    assert (*prefix, *query) in paths
    has_pooler = (*prefix, "pooler", "dense", "kernel") in paths
    assert has_pooler == (name in (ENCODER, "FlaxRobertaForMultipleChoice"))


@pytest.mark.parametrize("name", [ENCODER, CLASSIFIER])
def test_initial_parameters(name, initial_params):
    params = initial_params[name]
    assert type(params) is dict
    shapes = random_model(name).params_shape_tree
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    encoder = params if name == ENCODER else params["roberta"]
    table = np.asarray(encoder["embeddings"]["word_embeddings"]["embedding"])
    pad_token_id = config_of(name).pad_token_id
    assert table.any(axis=1).tolist() == [i != pad_token_id for i in range(60)]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_float32_for_any_dtype(name):
    model = class_of(name)(config_of(name), dtype=jnp.bfloat16, _do_init=False)
    params = jax.eval_shape(model.init_weights, model.key)
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}
    call = functools.partial(model, **inputs_of(name), output_hidden_states=True)
    output = jax.eval_shape(lambda params: call(params=params), params)
    assert {str(x.dtype) for x in output.hidden_states} == {"bfloat16"}
    assert str(output[0].dtype) == ("bfloat16" if name == ENCODER else "float32")


def test_setting_parameters():
    model, inputs = new_model(CLASSIFIER), inputs_of(CLASSIFIER)
    other = jax.tree.map(lambda x: x + 1, model.params)
    expected = model(**inputs, params=other)
    assert not np.array_equal(expected.logits, model(**inputs).logits)
    assert_trees_close(model(**inputs, params=flax.core.freeze(other)), expected)
    model.params = flax.core.freeze(other)
    assert_trees_close(model(**inputs), expected)
    assert type(model.params) is dict
    flat = flatten_dict(other)
    del flat["classifier", "dense", "kernel"]
    with pytest.raises(ValueError, match="lacks classifier/dense/kernel"):
        model.params = unflatten_dict(flat)


def test_model_without_parameters(initial_params):
    model = class_of(CLASSIFIER)(config_of(CLASSIFIER), _do_init=False)
    with pytest.raises(ValueError, match="_do_init=False has no params"):
        _ = model.params
    params = model.init_weights(model.key, model.input_shape)
    with pytest.raises(ValueError, match="_do_init=False cannot hold params"):
        model.params = params
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, model.params_shape_tree)
    assert_trees_close(params, initial_params[CLASSIFIER])
    assert model(**inputs_of(CLASSIFIER), params=params).logits.shape == (4, 3)


@pytest.mark.parametrize(("method", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_casting(method, dtype):
    model = random_model(CLASSIFIER)
    cast = getattr(model, f"to_{method}")
    dtypes = {str(x.dtype) for x in jax.tree.leaves(cast(model.params))}
    assert dtypes == {dtype}
    assert {str(x.dtype) for x in jax.tree.leaves(model.params)} == {"float32"}
    excluded = ("classifier", "dense", "bias")
    mask = unflatten_dict({path: path != excluded for path in flatten_dict(model.params)})
    partly_cast = flatten_dict(cast(flax.core.freeze(model.params), mask))
    assert {path for path, x in partly_cast.items() if x.dtype == jnp.float32} == {excluded}
    restored = model.to_fp32(unflatten_dict(partly_cast))
    assert {str(x.dtype) for x in jax.tree.leaves(restored)} == {"float32"}
    output = jax.jit(model)(**inputs_of(CLASSIFIER), params=cast(model.params))
    assert np.isfinite(output.logits).all()


# Training


def test_gradient_checkpointing_does_not_change_gradients():
    inputs = inputs_of(CLASSIFIER)
    plain = random_model(CLASSIFIER)
    checkpointed = class_of(CLASSIFIER)(
        config_of(CLASSIFIER), _do_init=False, gradient_checkpointing=True
    )
    enabled_later = class_of(CLASSIFIER)(config_of(CLASSIFIER), _do_init=False)
    assert enabled_later.module == plain.module != checkpointed.module
    enabled_later.enable_gradient_checkpointing()
    assert enabled_later.module == checkpointed.module

    def loss_and_gradients(model):
        def loss(params):
            return jnp.sum(jnp.square(model(**inputs, params=params).logits))

        traced = jax.jit(jax.value_and_grad(loss)).trace(plain.params)
        return traced.lower().compile()(plain.params), "remat" in str(traced.jaxpr)

    expected, has_remat = loss_and_gradients(plain)
    assert not has_remat
    actual, has_remat = loss_and_gradients(checkpointed)
    assert has_remat
    assert_trees_close(actual, expected, atol=1e-4)


def test_training_with_a_train_state(initial_params):
    config = config_of(CLASSIFIER, hidden_dropout_prob=0.1)
    model = class_of(CLASSIFIER)(config, _do_init=False)
    params = initial_params[CLASSIFIER]
    inputs = inputs_of(CLASSIFIER)
    labels = jnp.array([0, 1, 2, 0])
    state = TrainState.create(apply_fn=model.__call__, params=params, tx=optax.sgd(0.3))

    @jax.jit
    def train_step(state, key):
        def loss_fn(params):
            logits = state.apply_fn(**inputs, params=params, dropout_rng=key, train=True)[0]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), loss

    for key in jax.random.split(jax.random.PRNGKey(0), 20):
        state, loss = train_step(state, key)
    assert loss < 0.3
    assert (model(**inputs, params=state.params).logits.argmax(-1) == labels).all()
