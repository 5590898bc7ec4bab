"""`generate` of the drop-in causal LM, its options, its cache, and hand-written loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import roberta_jax
from roberta_jax.compat.config import FlaxRobertaConfig
from roberta_jax.compat.generation_config import FlaxGenerationConfig
from roberta_jax.errors import UsageError
from roberta_jax.modeling import beam_search, generation
from roberta_jax.modeling.beam_search import Beams
from roberta_jax.modeling.generation import Sampling
from roberta_jax.modeling.next_token import TokenRules
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


def test_samples_of_each_prompt_come_one_after_the_other(model):
    key = jax.random.PRNGKey(3)
    options = {"max_length": 12, "do_sample": True, "prng_key": key}
    output = model.generate(PROMPTS, attention_mask=MASK, num_return_sequences=2, **options)
    expected = model.generate(
        PROMPTS.repeat(2, axis=0), attention_mask=MASK.repeat(2, axis=0), **options
    )
    assert output.sequences.tolist() == expected.sequences.tolist()


def test_beam_search_matches_the_module_and_runs_inside_jit(model):
    options = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2}
    options |= {"length_penalty": 0.5, "early_stopping": "never", "no_repeat_ngram_size": 2}
    output = model.generate(PROMPTS, attention_mask=MASK, eos_token_id=[7, 30], **options)
    expected = beam_search.beam_search(
        model.module,
        model.params,
        PROMPTS,
        MASK,
        max_new_tokens=6,
        beams=Beams(3, 0.5, "never", 2),
        rules=TokenRules(no_repeat_ngram_size=2),
        eos_token_id=(7, 30),
    )
    assert list(output.keys()) == ["sequences", "scores"]
    assert output.sequences.tolist() == expected.sequences.reshape(4, 11).tolist()
    assert output.scores.tolist() == expected.scores.reshape(4).tolist()
    generate = jax.jit(functools.partial(model.generate, eos_token_id=[7, 30], **options))
    assert generate(PROMPTS, attention_mask=MASK).sequences.tolist() == output.sequences.tolist()


def test_without_a_trace_the_loop_runs_step_by_step(model, greedy_sequences):
    steps = []

    def note(ids, scores, length):
        steps.append(int(length))
        return scores

    options = GREEDY | {"max_new_tokens": 2, "logits_processor": [note]}
    output = model.generate(PROMPTS, attention_mask=MASK, trace=False, **options)
    assert output.sequences.tolist() == [row[:7] for row in greedy_sequences]
    assert steps == [5, 6]


def test_logits_processors_of_the_call(model):
    def only_odd(ids, scores, length):
        return jnp.where(jnp.arange(scores.shape[-1]) % 2 == 1, scores, -jnp.inf)

    output = model.generate(PROMPTS, attention_mask=MASK, logits_processor=[only_odd], **GREEDY)
    assert (output.sequences[:, 5:] % 2 == 1).all()


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
