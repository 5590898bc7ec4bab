"""`generate` of the drop-in causal LM, its options, its cache, and loops of one's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import roberta_jax
from roberta_jax.compat.config import FlaxRobertaConfig
from roberta_jax.compat.generation import FlaxGenerationConfig, options_of
from roberta_jax.errors import UsageError
from roberta_jax.modeling import generation
from roberta_jax.modeling.generation import Sampling
from tests.support import heads

CONFIG = heads.config_of("RobertaForCausalLM", num_hidden_layers=1)
PROMPTS = np.array([[1, 1, 5, 6, 7], [8, 9, 10, 11, 12]])
MASK = jnp.asarray(PROMPTS != 1, jnp.int32)


@functools.cache
def model():
    """Random in every parameter; tests do not change it."""
    made = roberta_jax.FlaxRobertaForCausalLM(CONFIG)
    rng = np.random.default_rng(0)
    made.params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), made.params_shape_tree
    )
    return made


@pytest.mark.parametrize("sample", [False, True])
def test_generates_as_the_module_does_and_inside_jit(sample):
    key = jax.random.PRNGKey(3)
    options = {"max_length": 12, "do_sample": sample}
    found = model().generate(PROMPTS, attention_mask=MASK, prng_key=key, **options).sequences
    sampling = Sampling(sample, 1.0, 50)  # transformers' default top_k
    wanted = generation.generate(
        model().module, model().params, PROMPTS, MASK, max_new_tokens=7, sampling=sampling, key=key
    )
    assert found.tolist() == wanted.tolist()
    generate = jax.jit(functools.partial(model().generate, **options))
    jitted = generate(PROMPTS, attention_mask=MASK, prng_key=key, params=model().params)
    assert jitted.sequences.tolist() == found.tolist()
    assert jitted[0] is jitted["sequences"] is jitted.sequences


def test_a_loop_of_ones_own():
    """With a cache, a token at a time; padding on the left."""
    sequences = model().generate(PROMPTS, attention_mask=MASK, max_new_tokens=6, eos_token_id=-1)
    kwargs = model().prepare_inputs_for_generation(PROMPTS, 11, MASK)
    assert kwargs["position_ids"].tolist() == [[1, 1, 2, 3, 4], [2, 3, 4, 5, 6]]
    assert kwargs["attention_mask"].shape == (2, 11)
    call = jax.jit(lambda ids, kwargs: model()(ids, **kwargs))
    ids = jnp.asarray(PROMPTS)
    grown = [ids]
    for _ in range(6):
        output = call(ids, kwargs)
        assert list(output.keys()) == ["logits", "past_key_values"]
        ids = output.logits[:, -1:].argmax(-1)
        grown.append(ids)
        kwargs = model().update_inputs_for_generation(output, kwargs)
    assert jnp.concatenate(grown, 1).tolist() == sequences.sequences.tolist()


def test_without_a_mask_padding_is_told_by_its_id():
    kwargs = model().prepare_inputs_for_generation(PROMPTS, 11)
    assert kwargs["position_ids"].tolist() == [[1, 1, 2, 3, 4], [2, 3, 4, 5, 6]]
    found, masked = (
        model().generate(PROMPTS, max_new_tokens=4, attention_mask=mask).sequences.tolist()
        for mask in (None, MASK)
    )
    assert found == masked


def test_the_cache_has_the_names_and_places_of_transformers():
    cache = model().init_cache(2, 9)
    layer = cache["roberta"]["encoder"]["layer"]["0"]["attention"]["self"]
    assert {name: (x.shape, str(x.dtype)) for name, x in layer.items()} == {
        "cached_key": ((2, 9, 4, 8), "float32"),
        "cached_value": ((2, 9, 4, 8), "float32"),
        "cache_index": ((), "int32"),
    }
    ids = jnp.asarray(PROMPTS[1:])
    output = model()(ids, past_key_values=model().init_cache(1, 9), return_dict=False)
    assert len(output) == 2  # the cache comes second, as in transformers
    layer = output[1]["roberta"]["encoder"]["layer"]["0"]["attention"]["self"]
    assert layer["cache_index"] == 5
    np.testing.assert_allclose(output[0], model()(ids).logits, atol=1e-5)
    encoder = roberta_jax.FlaxRobertaForCausalLM(CONFIG.replace(is_decoder=False), _do_init=False)
    with pytest.raises(ValueError, match="is_decoder=True"):
        encoder.init_cache(2, 9)


def test_another_models_states():
    config = CONFIG.replace(add_cross_attention=True)
    crossed = roberta_jax.FlaxRobertaForCausalLM(config)
    states = jax.random.normal(jax.random.PRNGKey(1), (2, 3, 32))
    given = {"encoder_hidden_states": states, "encoder_attention_mask": jnp.ones((2, 3))}
    output = crossed(PROMPTS, MASK, **given, output_attentions=True)
    assert list(output.keys()) == ["logits", "attentions", "cross_attentions"]
    assert output.cross_attentions[0].shape == (2, 4, 5, 3)
    found = crossed.generate(PROMPTS, attention_mask=MASK, **given, max_new_tokens=2)
    assert found.sequences.shape == (2, 7)
    with pytest.raises(ValueError, match="cross-attention"):
        model()(PROMPTS, MASK, **given)


def test_what_follows_the_end_is_the_padding_asked_for():
    free = model().generate(PROMPTS[1:], max_new_tokens=8, eos_token_id=-1).sequences[0].tolist()
    eos = free[7]
    end = free.index(eos, 5) + 1
    found = model().generate(PROMPTS[1:], max_new_tokens=8, eos_token_id=eos, pad_token_id=59)
    assert found.sequences[0].tolist() == free[:end] + [59] * (13 - end)


def options(settings=None, length=5, **given):
    return options_of(settings or FlaxGenerationConfig(), given, length, CONFIG)


def test_options_and_their_defaults():
    with pytest.warns(UserWarning, match="up to 20 tokens, prompt included"):
        chosen = options()
    assert (chosen.max_new_tokens, chosen.min_new_tokens) == (15, 0) or chosen.min_new_tokens < 1
    assert (chosen.sampling, chosen.eos_token_id, chosen.pad_token_id) == (
        Sampling(False, 1, 50),
        2,
        1,
    )
    chosen = options(
        max_length=30, min_length=9, do_sample=True, temperature=0.5, top_k=0, top_p=None,
        eos_token_id=[7, 8], pad_token_id=3, use_cache=True, num_beams=1,
    )  # fmt: skip
    assert (chosen.max_new_tokens, chosen.min_new_tokens) == (25, 5)
    assert (chosen.sampling, chosen.eos_token_id, chosen.pad_token_id) == (
        Sampling(True, 0.5),
        7,
        3,
    )
    held = FlaxGenerationConfig(max_new_tokens=4, top_p=0.5, eos_token_id=9)
    assert options(held).sampling.top_p == 0.5
    assert options(held).eos_token_id == 9
    assert options(held, top_p=0.7).sampling.top_p == 0.7
    assert options(max_new_tokens=4, min_new_tokens=2).min_new_tokens == 2


def test_new_tokens_come_before_the_length(caplog):
    assert options(max_new_tokens=4, max_length=30).max_new_tokens == 4
    assert "the first is used" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "cannot do num_beams=4: it is greedy"),
        ({"num_return_sequences": 2}, "repeat the prompts"),
        ({"repetition_penalty": 1.2}, "cannot do repetition_penalty=1.2"),
        ({"forced_eos_token_id": 2}, "cannot do forced_eos_token_id=2"),
        ({"logits_processor": [print]}, "cannot do logits_processor="),
        ({"max_lenght": 9}, "no option 'max_lenght'; it has max_length"),
        ({"max_length": 5}, "leaves none to generate"),
        ({"max_length": 9, "do_sample": True, "temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_refuses_options(given, message):
    with pytest.raises(ValueError, match=message):
        options(**given)
    with pytest.raises(ValueError, match=message):
        model().generate(PROMPTS, **given)


def test_a_config_as_scripts_of_old_have_it():
    config = FlaxRobertaConfig(**CONFIG.to_dict(), max_length=8)
    made = roberta_jax.FlaxRobertaForCausalLM(config)
    assert made.generation_config.max_length == 8
    assert made.generate(PROMPTS[1:]).sequences.shape == (1, 8)
    made.config.max_length = 9
    assert made.generate(PROMPTS[1:]).sequences.shape == (1, 9)
    made.generation_config.max_length = 10  # from now on it decides
    made.config.max_length = 11
    assert made.generate(PROMPTS[1:]).sequences.shape == (1, 10)
    given = FlaxGenerationConfig(max_new_tokens=2)
    assert made.generate(PROMPTS[1:], generation_config=given).sequences.shape == (1, 7)


def test_only_the_causal_lm_generates():
    encoder = roberta_jax.FlaxRobertaForMaskedLM(heads.SMALL, _do_init=False)
    assert encoder.generation_config is None
    with pytest.raises(TypeError, match="use FlaxRobertaForCausalLM"):
        encoder.generate(PROMPTS)


def test_errors_are_the_users():
    with pytest.raises(UsageError, match="no option 'beams'"):
        model().generate(PROMPTS, beams=3)
    with pytest.raises(ValueError, match="pad on the left"):
        model().generate(PROMPTS[:, ::-1], max_new_tokens=3)
