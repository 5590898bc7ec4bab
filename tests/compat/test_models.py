"""The drop-in `FlaxRoberta…` classes by themselves: calls, outputs, files, generation."""

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

NAMES = tuple(f"Flax{name}" for name in heads.MODEL_CLASSES)
FLAGS = [(False, False), (True, False), (False, True), (True, True)]
CAUSAL = "FlaxRobertaForCausalLM"
CLASSIFIER = "FlaxRobertaForSequenceClassification"


def class_of(name):
    return getattr(roberta_jax, name)


def config_of(name, **changes):
    return heads.config_of(name.removeprefix("Flax"), **({"num_hidden_layers": 1} | changes))


@functools.cache
def model_of(name):
    """A model with every parameter random; tests do not change it."""
    model = class_of(name)(config_of(name))
    rng = np.random.default_rng(0)
    model.params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), model.params_shape_tree
    )
    return model


def inputs_of(name, **shape):
    found = heads.inputs_of(name.removeprefix("Flax"), config_of(name), **shape).given
    return {key: jnp.asarray(value) for key, value in found.items()}


def assert_trees(ours, theirs, atol=0.0):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


# Calls and outputs


@pytest.mark.parametrize("name", NAMES)
def test_outputs_by_attribute_name_place_and_as_a_tuple(name):
    model, given = model_of(name), inputs_of(name)
    for hidden, attentions in FLAGS if name == CAUSAL else FLAGS[::3]:
        flags = {"output_hidden_states": hidden, "output_attentions": attentions}
        output = model(**given, **flags)
        keys = list(output.keys())
        assert ("hidden_states" in keys, "attentions" in keys) == (hidden, attentions)
        assert [k for k in keys if k not in ("hidden_states", "attentions")] == {
            "FlaxRobertaModel": ["last_hidden_state", "pooler_output"],
            "FlaxRobertaForQuestionAnswering": ["start_logits", "end_logits"],
        }.get(name, ["logits"])
        values = output.to_tuple()
        assert len(output) == len(values) == len(keys)
        for place, key in enumerate(keys):
            assert output[key] is output[place] is getattr(output, key) is values[place]
        assert output[-1:] == values[-1:]
        assert list(output) == list(dict(output)) == keys
        with pytest.raises(KeyError):
            output["cross_attentions"]
    batch, length = int(np.prod(given["input_ids"].shape[:-1])), given["input_ids"].shape[-1]
    config = model.config
    assert len(output.hidden_states) == config.num_hidden_layers + 1
    assert len(output.attentions) == config.num_hidden_layers
    assert output.hidden_states[-1].shape == (batch, length, config.hidden_size)
    assert output.attentions[0].shape == (batch, config.num_attention_heads, length, length)
    assert_trees(model(**given, **flags, return_dict=False), values)


@pytest.mark.parametrize("name", NAMES)
def test_inside_jit_as_outside(name):
    model, given = model_of(name), inputs_of(name)
    jitted = jax.jit(lambda params, inputs: model(**inputs, params=params))(model.params, given)
    plain = model(**given)
    assert_trees(jitted, plain, atol=2e-5)
    assert type(jitted) is type(plain)


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
    assert cls.can_generate() == (name == CAUSAL)
    module = "FlaxRobertaModule" if name == "FlaxRobertaModel" else f"{name}Module"
    assert getattr(models, module) is cls.module_class
    model = model_of(name)
    assert type(model.module) is cls.module_class
    assert (model.framework, model.seed, model.input_shape) == ("flax", 0, (1, 1))
    assert model.key.tolist() == jax.random.PRNGKey(0).tolist()


def test_the_base_class_makes_no_model():
    with pytest.raises(TypeError, match="one of its subclasses"):
        roberta_jax.FlaxRobertaPreTrainedModel(heads.SMALL)


def test_flags_of_the_config_are_the_defaults_of_the_call():
    given = inputs_of(CLASSIFIER)
    config = FlaxRobertaConfig(**config_of(CLASSIFIER).to_dict(), output_hidden_states=True)
    model = class_of(CLASSIFIER)(config)
    assert model.config is config
    assert list(model(**given).keys()) == ["logits", "hidden_states"]
    assert list(model(**given, output_hidden_states=False).keys()) == ["logits"]
    model.config.output_attentions = True
    assert "attentions" in model(**given)
    model.config.return_dict = False
    assert model.config.use_return_dict is False
    assert isinstance(model(**given), tuple)


def test_ids_of_any_number_type():
    model = model_of("FlaxRobertaModel")
    ids = np.array([[0, 5, 6, 2]])
    for kind in (np.int64, np.float64, np.uint8):
        assert_trees(model(ids.astype(kind)), model(jnp.asarray(ids)))


def test_masked_heads_attend_to_nothing():
    model = class_of("FlaxRobertaModel")(config_of("FlaxRobertaModel", num_hidden_layers=2))
    given = inputs_of("FlaxRobertaModel")
    head_mask = jnp.array([[0, 1, 1, 1], [0, 0, 0, 1]])  # integers, as scripts have them
    output = model(**given, head_mask=head_mask, output_attentions=True)
    for attention, row in zip(output.attentions, head_mask, strict=True):
        assert ((attention.sum((0, 2, 3)) > 0) == (row > 0)).all()


def test_dropout_needs_a_key_and_differs_by_it():
    config = config_of("FlaxRobertaModel", hidden_dropout_prob=0.1)
    model = class_of("FlaxRobertaModel")(config)
    given = inputs_of("FlaxRobertaModel")
    first, same, other = (
        model(**given, dropout_rng=jax.random.PRNGKey(seed), train=True)[0] for seed in (0, 0, 1)
    )
    assert first.tolist() == same.tolist() != other.tolist()
    with pytest.raises(flax.errors.InvalidRngError):
        model(**given, train=True)


def test_an_input_that_is_too_long_is_an_error_and_no_nan():
    model = model_of("FlaxRobertaModel")
    assert np.isfinite(model(jnp.full((1, 38), 5))[0]).all()
    with pytest.raises(ValueError, match="39 tokens, but this model has positions for 38"):
        model(jnp.full((1, 39), 5))


# Parameters


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_a_plain_tree_with_a_layer_each(name):
    model = class_of(name)(config_of(name))
    paths = set(flatten_dict(model.params))
    assert paths == model.required_params == set(flatten_dict(model.params_shape_tree))
    prefix = () if name == "FlaxRobertaModel" else ("roberta",)
    query = ("encoder", "layer", "0", "attention", "self", "query", "kernel")
    assert (*prefix, *query) in paths
    pooled = (*prefix, "pooler", "dense", "kernel") in paths
    assert pooled == (name in ("FlaxRobertaModel", "FlaxRobertaForMultipleChoice"))
    table = model.params
    for key in (*prefix, "embeddings", "word_embeddings", "embedding"):
        table = table[key]
    assert table.any(axis=1).tolist() == [i != model.config.pad_token_id for i in range(60)]
    assert type(model.params) is dict


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_float32_under_any_dtype(name):
    model = class_of(name)(config_of(name), dtype=jnp.bfloat16)
    assert {str(x.dtype) for x in jax.tree.leaves(model.params)} == {"float32"}
    call = functools.partial(model, **inputs_of(name), output_hidden_states=True)
    output = jax.eval_shape(lambda params: call(params=params), model.params)
    assert {str(x.dtype) for x in output.hidden_states} == {"bfloat16"}
    assert str(output[0].dtype) == ("bfloat16" if name == "FlaxRobertaModel" else "float32")


def test_setting_parameters():
    model = class_of(CLASSIFIER)(config_of(CLASSIFIER))
    given = inputs_of(CLASSIFIER)
    other = jax.tree.map(lambda x: x + 1, model.params)
    wanted = model(**given, params=other)
    assert not np.array_equal(wanted.logits, model(**given).logits)
    assert_trees(model(**given, params=flax.core.freeze(other)), wanted)
    model.params = flax.core.freeze(other)
    assert_trees(model(**given), wanted)
    assert type(model.params) is dict
    flat = flatten_dict(other)
    del flat["classifier", "dense", "kernel"]
    with pytest.raises(ValueError, match="lack classifier/dense/kernel"):
        model.params = unflatten_dict(flat)


def test_a_model_without_parameters_of_its_own():
    model = class_of(CLASSIFIER)(config_of(CLASSIFIER), _do_init=False)
    with pytest.raises(ValueError, match="_do_init=False has no params"):
        _ = model.params
    params = model.init_weights(model.key, model.input_shape)
    with pytest.raises(ValueError, match="_do_init=False keeps no params"):
        model.params = params
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, model.params_shape_tree)
    assert_trees(params, class_of(CLASSIFIER)(config_of(CLASSIFIER)).params)
    assert model(**inputs_of(CLASSIFIER), params=params).logits.shape == (3, 3)


@pytest.mark.parametrize(("method", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_casting(method, dtype):
    model = model_of(CLASSIFIER)
    cast = getattr(model, f"to_{method}")
    types = {str(x.dtype) for x in jax.tree.leaves(cast(model.params))}
    assert types == {dtype}
    assert {str(x.dtype) for x in jax.tree.leaves(model.params)} == {"float32"}
    kept = ("classifier", "dense", "bias")
    mask = unflatten_dict({path: path != kept for path in flatten_dict(model.params)})
    found = flatten_dict(cast(flax.core.freeze(model.params), mask))
    assert {path for path, x in found.items() if x.dtype == jnp.float32} == {kept}
    back = model.to_fp32(unflatten_dict(found))
    assert {str(x.dtype) for x in jax.tree.leaves(back)} == {"float32"}
    assert np.isfinite(model(**inputs_of(CLASSIFIER), params=cast(model.params)).logits).all()


# Training


def test_gradient_checkpointing_changes_no_number():
    given = inputs_of(CLASSIFIER)
    plain = model_of(CLASSIFIER)
    saving = class_of(CLASSIFIER)(config_of(CLASSIFIER), gradient_checkpointing=True)
    later = class_of(CLASSIFIER)(config_of(CLASSIFIER))
    later.enable_gradient_checkpointing()

    def gradients(model):
        def loss(params):
            return jnp.sum(jnp.square(model(**given, params=params).logits))

        program = jax.make_jaxpr(jax.grad(loss))(plain.params)
        return jax.jit(jax.value_and_grad(loss))(plain.params), "remat" in str(program)

    wanted, remat = gradients(plain)
    assert not remat
    for model in (saving, later):
        found, remat = gradients(model)
        assert remat
        assert_trees(found, wanted, atol=1e-4)


def test_a_train_state_learns():
    model = class_of(CLASSIFIER)(config_of(CLASSIFIER, hidden_dropout_prob=0.1))
    given = inputs_of(CLASSIFIER)
    labels = jnp.array([0, 1, 2])
    state = TrainState.create(apply_fn=model.__call__, params=model.params, tx=optax.adamw(1e-2))

    @jax.jit
    def step(state, key):
        def loss_fn(params):
            logits = state.apply_fn(**given, params=params, dropout_rng=key, train=True)[0]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), loss

    for key in jax.random.split(jax.random.PRNGKey(0), 20):
        state, loss = step(state, key)
    assert loss < 0.3
    assert (model(**given, params=state.params).logits.argmax(-1) == labels).all()
