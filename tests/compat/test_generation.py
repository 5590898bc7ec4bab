"""`generate` of the drop-in causal LM, its options, its cache, and hand-written loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import roberta_jax
from roberta_jax.compat.config import FlaxRobertaConfig
from roberta_jax.compat.generation_config import FlaxGenerationConfig, resolve_options
from roberta_jax.errors import UsageError
from roberta_jax.modeling import generation
from roberta_jax.modeling.generation import Sampling
from tests.support import flax_classes, heads
from tests.support.flax_classes import CAUSAL_LM

CONFIG = flax_classes.config_of(CAUSAL_LM)
PROMPTS = np.array([[1, 1, 5, 6, 7], [8, 9, 10, 11, 12]])
MASK = jnp.asarray(PROMPTS != 1, jnp.int32)
# The same greedy search in several tests, so that it is compiled once.
GREEDY = {"max_new_tokens": 6, "eos_token_id": -1}


@pytest.fixture(scope="module")
def model():
    """A causal LM with random parameters, which tests do not change."""
    return flax_classes.random_model(CAUSAL_LM)


@pytest.fixture(scope="module")
def greedy_sequences(model):
    return model.generate(PROMPTS, attention_mask=MASK, **GREEDY).sequences.tolist()


def generated_shape(model, prompts, **options):
    """The shape of the generated sequences; nothing is compiled."""
    return jax.eval_shape(lambda: model.generate(prompts, **options)).sequences.shape


def test_greedy_search_matches_the_module(model, greedy_sequences):
    expected = generation.generate(
        model.module, model.params, PROMPTS, MASK, max_new_tokens=6, eos_token_id=-1
    )
    assert greedy_sequences == expected.tolist()


def test_sampling_matches_the_module_and_runs_inside_jit(model):
    key = jax.random.PRNGKey(3)
    options = {"max_length": 12, "do_sample": True}
    output = model.generate(PROMPTS, attention_mask=MASK, prng_key=key, **options)
    assert output[0] is output["sequences"] is output.sequences
    expected = generation.generate(
        model.module,
        model.params,
        PROMPTS,
        MASK,
        max_new_tokens=7,
        sampling=Sampling(True, 1.0, 50),  # transformers' default top_k
        key=key,
    )
    assert output.sequences.tolist() == expected.tolist()
    generate = jax.jit(functools.partial(model.generate, **options))
    jitted = generate(PROMPTS, attention_mask=MASK, prng_key=key, params=model.params)
    assert jitted.sequences.tolist() == expected.tolist()


def test_hand_written_loop_with_a_cache(model, greedy_sequences):
    kwargs = model.prepare_inputs_for_generation(PROMPTS, 11, MASK)
    assert kwargs["position_ids"].tolist() == [[1, 1, 2, 3, 4], [2, 3, 4, 5, 6]]
    assert kwargs["attention_mask"].shape == (2, 11)
    call = jax.jit(lambda ids, kwargs: model(ids, **kwargs))
    ids = jnp.asarray(PROMPTS)
    steps = [ids]
    for _ in range(6):
        output = call(ids, kwargs)
        assert list(output.keys()) == ["logits", "past_key_values"]
        ids = output.logits[:, -1:].argmax(-1)
        steps.append(ids)
        kwargs = model.update_inputs_for_generation(output, kwargs)
    assert jnp.concatenate(steps, 1).tolist() == greedy_sequences


def test_pad_tokens_are_padding_without_a_mask(model, greedy_sequences):
    kwargs = model.prepare_inputs_for_generation(PROMPTS, 11)
    assert kwargs["position_ids"].tolist() == [[1, 1, 2, 3, 4], [2, 3, 4, 5, 6]]
    assert model.generate(PROMPTS, **GREEDY).sequences.tolist() == greedy_sequences


def test_cache_has_the_names_and_shapes_of_transformers(model):
    cache = model.init_cache(2, 9)
    layer = cache["roberta"]["encoder"]["layer"]["0"]["attention"]["self"]
    assert {name: (x.shape, str(x.dtype)) for name, x in layer.items()} == {
        "cached_key": ((2, 9, 4, 8), "float32"),
        "cached_value": ((2, 9, 4, 8), "float32"),
        "cache_index": ((), "int32"),
    }
    ids = jnp.asarray(PROMPTS[1:])
    call = jax.jit(functools.partial(model, return_dict=False))
    output = call(ids, past_key_values=model.init_cache(1, 9))
    assert len(output) == 2  # the cache comes second, as in transformers
    layer = output[1]["roberta"]["encoder"]["layer"]["0"]["attention"]["self"]
    assert layer["cache_index"] == 5
    np.testing.assert_allclose(output[0], call(ids)[0], atol=1e-5)
    encoder = roberta_jax.FlaxRobertaForCausalLM(CONFIG.replace(is_decoder=False), _do_init=False)
    with pytest.raises(ValueError, match="is_decoder=True"):
        encoder.init_cache(2, 9)


def test_cross_attention(model):
    decoder = flax_classes.new_model(CAUSAL_LM, add_cross_attention=True)
    encoder_inputs = {
        "encoder_hidden_states": jax.random.normal(jax.random.PRNGKey(1), (2, 3, 32)),
        "encoder_attention_mask": jnp.ones((2, 3)),
    }
    output = jax.eval_shape(
        lambda: decoder(PROMPTS, MASK, **encoder_inputs, output_attentions=True)
    )
    assert list(output.keys()) == ["logits", "attentions", "cross_attentions"]
    assert output.cross_attentions[0].shape == (2, 4, 5, 3)
    options = {"attention_mask": MASK, "max_new_tokens": 2, **encoder_inputs}
    assert generated_shape(decoder, PROMPTS, **options) == (2, 7)
    with pytest.raises(ValueError, match="cross-attention"):
        model(PROMPTS, MASK, **encoder_inputs)


def test_pad_token_id_fills_up_ended_sequences(model, greedy_sequences):
    eos = greedy_sequences[1][7]
    expected = []
    for row in greedy_sequences:
        end = row.index(eos, 5) + 1 if eos in row[5:] else 11
        expected.append(row[:end] + [59] * (11 - end))
    output = model.generate(
        PROMPTS, attention_mask=MASK, max_new_tokens=6, eos_token_id=eos, pad_token_id=59
    )
    assert output.sequences.tolist() == expected
    assert 59 in expected[1]


def resolve(generation_config=None, **call_options):
    return resolve_options(generation_config or FlaxGenerationConfig(), call_options, 5, CONFIG)


def test_default_options():
    with pytest.warns(UserWarning, match="up to 20 tokens, prompt included"):
        resolved = resolve()
    assert (resolved.max_new_tokens, resolved.min_new_tokens) == (15, 0)
    assert resolved.sampling == Sampling(False, 1, 50)
    assert (resolved.eos_token_id, resolved.pad_token_id) == (2, 1)


def test_options_of_the_call():
    resolved = resolve(
        max_length=30, min_length=9, do_sample=True, temperature=0.5, top_k=0, top_p=None,
        eos_token_id=[7, 8], pad_token_id=3, use_cache=True, num_beams=1,
    )  # fmt: skip
    assert (resolved.max_new_tokens, resolved.min_new_tokens) == (25, 5)
    assert resolved.sampling == Sampling(True, 0.5)
    assert (resolved.eos_token_id, resolved.pad_token_id) == (7, 3)
    assert resolve(max_new_tokens=4, min_new_tokens=2).min_new_tokens == 2


def test_options_of_the_call_override_the_generation_config():
    config = FlaxGenerationConfig(max_new_tokens=4, top_p=0.5, eos_token_id=9)
    assert resolve(config).sampling.top_p == 0.5
    assert resolve(config).eos_token_id == 9
    assert resolve(config, top_p=0.7).sampling.top_p == 0.7


def test_max_new_tokens_takes_precedence_over_max_length(caplog):
    assert resolve(max_new_tokens=4, max_length=30).max_new_tokens == 4
    assert "max_new_tokens is used" in caplog.text


def test_warning_names_the_line_that_called_generate(model):
    with pytest.warns(UserWarning, match="up to 20 tokens") as warnings:
        generated_shape(model, PROMPTS)
    assert warnings[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "does not support num_beams=4: it does greedy search"),
        ({"num_return_sequences": 2}, "repeat the prompts"),
        ({"repetition_penalty": 1.2}, "does not support repetition_penalty=1.2"),
        ({"forced_eos_token_id": 2}, "does not support forced_eos_token_id=2"),
        ({"logits_processor": [print]}, "does not support logits_processor="),
        ({"max_lenght": 9}, "no option 'max_lenght'; its options are max_length"),
        ({"max_length": 5}, "leaves none to generate"),
        ({"max_length": 9, "do_sample": True, "temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_invalid_options_are_errors(options, message, model):
    with pytest.raises(ValueError, match=message):
        resolve(**options)
    with pytest.raises(ValueError, match=message):
        model.generate(PROMPTS, **options)


def test_generation_options_in_the_model_config(model):
    """Older scripts set them there; `generation_config` takes over once it is changed."""
    config = FlaxRobertaConfig(**CONFIG.to_dict(), max_length=8)
    decoder = roberta_jax.FlaxRobertaForCausalLM(config, _do_init=False)
    shape = functools.partial(generated_shape, decoder, PROMPTS[1:], params=model.params)
    assert decoder.generation_config.max_length == 8
    assert shape() == (1, 8)
    decoder.config.max_length = 9
    assert shape() == (1, 9)
    decoder.generation_config.max_length = 10
    decoder.config.max_length = 11
    assert shape() == (1, 10)
    assert shape(generation_config=FlaxGenerationConfig(max_new_tokens=2)) == (1, 7)


def test_only_the_causal_lm_generates():
    encoder = roberta_jax.FlaxRobertaForMaskedLM(heads.SMALL, _do_init=False)
    assert encoder.generation_config is None
    with pytest.raises(TypeError, match="use FlaxRobertaForCausalLM"):
        encoder.generate(PROMPTS)


def test_error_types(model):
    with pytest.raises(UsageError, match="no option 'beams'"):
        model.generate(PROMPTS, beams=3)
    with pytest.raises(ValueError, match="pad on the left"):
        model.generate(PROMPTS[:, ::-1], max_new_tokens=3)
