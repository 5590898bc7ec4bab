"""Options of the drop-in `generate`: each is built, refused, or has no effect on the tokens."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

import roberta_jax
from roberta_jax.compat import generation_config as module
from roberta_jax.compat.config import FlaxRobertaConfig
from roberta_jax.compat.generation_config import FlaxGenerationConfig
from roberta_jax.compat.generation_options import resolve_options
from roberta_jax.errors import UsageError
from roberta_jax.modeling.beam_search import Beams
from roberta_jax.modeling.generation import Sampling
from roberta_jax.modeling.next_token import TokenRules
from tests.support import flax_classes
from tests.support.flax_classes import CAUSAL_LM

CONFIG = flax_classes.config_of(CAUSAL_LM)
PROMPTS = np.array([[8, 9, 10, 11, 12]])
LENGTH = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def model():
    """A causal LM with random parameters, which tests do not change."""
    return flax_classes.random_model(CAUSAL_LM)


def resolve(generation_config=None, prompt_length=5, **options):
    config = generation_config or FlaxGenerationConfig()
    return resolve_options(config, options, prompt_length, CONFIG)


def test_default_options():
    with pytest.warns(UserWarning, match="up to 20 tokens, prompt included"):
        resolved = resolve()
    assert (resolved.max_new_tokens, resolved.min_new_tokens) == (15, 0)
    assert resolved.sampling == Sampling()
    assert (resolved.beams, resolved.num_samples, resolved.rules) == (None, 1, TokenRules())
    assert (resolved.eos_token_id, resolved.pad_token_id) == ((2,), 1)


def test_options_of_the_call():
    resolved = resolve(
        max_length=30, min_length=9, do_sample=True, temperature=0.5, top_k=0, top_p=None,
        eos_token_id=[7, 8], pad_token_id=3, use_cache=True, num_beams=1, num_return_sequences=4,
        streamer=None,
    )  # fmt: skip
    assert (resolved.max_new_tokens, resolved.min_new_tokens) == (25, 5)
    assert resolved.sampling == Sampling(True, 0.5)
    assert (resolved.eos_token_id, resolved.pad_token_id) == ((7, 8), 3)
    assert resolved.num_samples == 4
    assert resolve(**LENGTH, min_new_tokens=2).min_new_tokens == 2
    assert resolve(max_length=np.int64(9)).max_new_tokens == 4


def test_options_of_beam_search_and_of_the_next_token():
    resolved = resolve(
        **LENGTH, num_beams=4, length_penalty=2, early_stopping="never", num_return_sequences=3,
        repetition_penalty=1.5, no_repeat_ngram_size=3, bad_words_ids=[[5], [6, 7]],
        suppress_tokens=[8], begin_suppress_tokens=[9, 10], forced_eos_token_id=2,
    )  # fmt: skip
    assert resolved.beams == Beams(4, 2.0, "never", 3)
    assert resolved.rules == TokenRules(
        1.5, 3, ((5,), (6, 7)), (8,), (9, 10), forced_tokens=((5, 2),)
    )


def test_first_token_is_forced_after_a_prompt_of_one_token():
    options = LENGTH | {"forced_bos_token_id": 8, "begin_suppress_tokens": [9]}
    rules = resolve(prompt_length=1, **options).rules
    assert (rules.forced_tokens, rules.begin_step) == (((0, 8),), 1)
    rules = resolve(prompt_length=2, **options).rules
    assert (rules.forced_tokens, rules.begin_step) == ((), 0)


def test_forced_decoder_ids_count_new_tokens_from_one():
    rules = resolve(**LENGTH, forced_decoder_ids=[[1, 20], [2, 30]]).rules
    assert (rules.forced_tokens, rules.begin_step) == (((0, 20), (1, 30)), 2)


def test_options_of_the_call_override_the_generation_config():
    config = FlaxGenerationConfig(max_new_tokens=4, do_sample=True, top_p=0.5, eos_token_id=9)
    assert resolve(config).sampling == Sampling(True, 1.0, 50, 0.5)
    assert resolve(config).eos_token_id == (9,)
    assert resolve(config, top_p=0.7).sampling.top_p == 0.7
    # None turns an option off, as in transformers.
    assert resolve(config, top_p=None, top_k=None).sampling == Sampling(True)


def test_max_new_tokens_takes_precedence_over_max_length(caplog):
    assert resolve(max_new_tokens=4, max_length=30).max_new_tokens == 4
    assert "max_new_tokens is used" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "up to 20 tokens"),
        ({**LENGTH, "temperature": 0.5}, "temperature=0.5 has no effect without do_sample=True"),
        ({**LENGTH, "length_penalty": 2.0}, "no effect without num_beams above 1"),
    ],
)
def test_warnings_name_the_line_that_called_generate(options, message, model):
    with pytest.warns(UserWarning, match=message) as warnings:
        jax.eval_shape(lambda: model.generate(PROMPTS, **options))
    assert warnings[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_lenght": 9}, "no option 'max_lenght'; its options are bad_words_ids"),
        ({"max_length": 5}, "leaves none to generate"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_length": "9"}, "max_length must be an integer, not '9'"),
        ({"min_length": 12}, "min_length=12 and min_new_tokens=0 do not fit 6 new tokens"),
        ({"min_new_tokens": 7}, "min_new_tokens=7 do not fit"),
        ({"do_sample": True, "temperature": 0.0}, "temperature must be positive"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature must be positive"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"top_k": 2.5}, "top_k must be an integer, not 2.5"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"num_beams": True}, "num_beams must be an integer, not True"),
        ({"num_beams": 4, "do_sample": True}, "does not support do_sample=True with num_beams=4"),
        ({"num_return_sequences": 2}, "needs num_beams=2 or more, or do_sample=True"),
        ({"num_beams": 2, "num_return_sequences": 3}, r"from 1 to num_beams \(2\), not 3"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping must be"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be positive"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be at least 0"),
        ({"bad_words_ids": [5, 6]}, "bad_words_ids must be a list of lists of token ids"),
        ({"bad_words_ids": [[]]}, "bad_words_ids holds an empty list"),
        ({"suppress_tokens": ["a"]}, "suppress_tokens must be a token id or a list of token ids"),
        ({"suppress_tokens": [60]}, "names 60, but the ids of this model are 0 to 59"),
        ({"forced_eos_token_id": [2, 3]}, "does not support forced_eos_token_id="),
        ({"forced_decoder_ids": [[1, 2, 3]]}, "forced_decoder_ids must be a list of pairs"),
        ({"forced_decoder_ids": [[0, 2]]}, "from 1, not from 0"),
        ({"guidance_scale": 1.5}, "does not support guidance_scale=1.5; leave it at None"),
        ({"output_scores": True}, "beam search always has the scores of its sequences"),
    ],
)
def test_invalid_options_are_errors(options, message, model):
    lengths = {} if {"max_length", "max_new_tokens"} & set(options) else LENGTH
    with pytest.raises(ValueError, match=message):
        model.generate(PROMPTS, **lengths, **options)


ACCEPTED = (*module.SUPPORTED, *module.NO_EFFECT)
REFUSED = [name for name in FlaxGenerationConfig.names() if name not in ACCEPTED]


@pytest.mark.parametrize("source", ["call", "attribute", "generation_config.json", "config.json"])
def test_options_that_are_not_built_are_refused(source, model, tmp_path):
    """From wherever they come, and unless a call turns them off."""
    refused = 0
    for name in REFUSED:
        default = module.default_options()[name]
        value = not default if isinstance(default, bool) else 3
        decoder, options = model, {}
        if source == "call":
            options = {name: value}
        elif source == "attribute":
            decoder = roberta_jax.FlaxRobertaForCausalLM(CONFIG, _do_init=False)
            setattr(decoder.generation_config, name, value)
        elif source == "config.json":
            config = FlaxRobertaConfig(**CONFIG.to_dict(), **{name: value})
            decoder = roberta_jax.FlaxRobertaForCausalLM(config, _do_init=False)
        else:
            options = {"generation_config": FlaxGenerationConfig.from_dict({name: value})}
        generate = functools.partial(decoder.generate, PROMPTS, params=model.params)
        if source == "config.json" and name in ("output_attentions", "output_hidden_states"):
            jax.eval_shape(functools.partial(generate, **LENGTH, **options))  # flags of calls
            continue
        with pytest.raises(UsageError, match=f"does not support {name}="):
            generate(**LENGTH, **options)
        options |= {name: default}
        jax.eval_shape(functools.partial(generate, **LENGTH, **options))
        refused += 1
    assert refused == len(REFUSED) - 2 * (source == "config.json") >= 30


def test_options_without_effect_change_no_token(model):
    expected = model.generate(PROMPTS, **LENGTH).sequences.tolist()
    options = {name: False for name in module.NO_EFFECT if name != "bos_token_id"}
    output = model.generate(PROMPTS, **LENGTH, **options, bos_token_id=9)
    assert output.sequences.tolist() == expected


def test_generation_config_file_replaces_the_options_of_the_model_config(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"repetition_penalty": 1.2}))
    (tmp_path / "generation_config.json").unlink()
    load = roberta_jax.FlaxRobertaForCausalLM.from_pretrained
    assert load(tmp_path).generation_config.repetition_penalty == 1.2
    options = {"no_repeat_ngram_size": 2, "top_k": None, "guidance_scale": 1.5}
    (tmp_path / "generation_config.json").write_text(json.dumps(options))
    loaded = load(tmp_path)
    assert loaded.generation_config == FlaxGenerationConfig(**options)
    with pytest.raises(UsageError, match="does not support guidance_scale=1.5"):
        loaded.generate(PROMPTS, **LENGTH)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text()) == options


def test_unknown_keys_of_a_generation_config_are_named(caplog):
    values = {"max_length": 9, "frobnicate": 3, "transformers_version": "4.57.6", "also": None}
    assert FlaxGenerationConfig.from_dict(values) == FlaxGenerationConfig(max_length=9)
    assert "sets frobnicate, which generate does not know" in caplog.text
    config = FlaxGenerationConfig(max_length=9)
    config.max_tokens = 5
    resolve(config)
    assert "sets max_tokens, which" in caplog.text


def test_every_option_belongs_to_one_group():
    groups = [set(module.SUPPORTED), set(module.NO_EFFECT), set(REFUSED)]
    assert set.union(*groups) == set(FlaxGenerationConfig.names())
    assert sum(map(len, groups)) == len(dataclasses.fields(FlaxGenerationConfig))
