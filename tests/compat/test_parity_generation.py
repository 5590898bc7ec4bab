"""`generate` of the drop-in class against transformers' PyTorch and Flax classes.

Both of theirs number the positions from 0 while they generate, ours from 2 as their forward passes
do. So their position tables are shifted by two rows here, and all three see the same vectors.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from roberta_jax.compat.generation_config import FlaxGenerationConfig, default_options
from tests.support.flax_classes import CAUSAL_LM
from tests.support.flax_parity import MARKS, new_pair, to_torch, torch, transformers

pytestmark = MARKS

PROMPTS = np.array([[1, 1, 5, 6, 7, 9], [8, 9, 10, 11, 12, 13], [1, 20, 33, 20, 33, 21]])
MASK = (PROMPTS != 1).astype(np.int32)
STEPS = 7
NO_END = {"eos_token_id": 2, "suppress_tokens": [2]}


@functools.cache
def models():
    """(ours, transformers' Flax model, transformers' PyTorch model)."""
    # Without cross-attention their Flax model would not use its cache.
    ours, theirs = new_pair(CAUSAL_LM, num_hidden_layers=1, add_cross_attention=True)
    original = ours.params
    params = flatten_dict(original)
    path = ("roberta", "embeddings", "position_embeddings", "embedding")
    params[path] = jnp.roll(params[path], -2, axis=0)
    ours.params = theirs.params = unflatten_dict(params)
    torch_model = to_torch(ours, CAUSAL_LM)
    ours.params = original
    return ours, theirs, torch_model


def run_ours(**options):
    return models()[0].generate(
        PROMPTS, attention_mask=jnp.asarray(MASK), max_new_tokens=STEPS, **options
    )


def run_flax(**options):
    return models()[1].generate(
        jnp.asarray(PROMPTS), attention_mask=jnp.asarray(MASK), max_new_tokens=STEPS, **options
    )


def run_torch(**options):
    return models()[2].generate(
        torch.as_tensor(PROMPTS),
        attention_mask=torch.as_tensor(MASK),
        max_new_tokens=STEPS,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )


def assert_same_sequences(actual, expected, pad_token_id=1):
    """Theirs are cut at the end of the longest."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual[:, : expected.shape[1]].tolist() == expected.tolist()
    assert (actual[:, expected.shape[1] :] == pad_token_id).all()


def likely_ends():
    """Tokens that end some continuations early."""
    sequences = run_ours(num_beams=3, num_return_sequences=3, **NO_END).sequences
    return [int(sequences[0, 8]), int(sequences[4, 7]), int(sequences[8, 10])]


RULES = {
    "suppress_tokens": [1, 2, 13, 14],
    "begin_suppress_tokens": [40, 41],
}
MIN_LENGTH = {"min_length": 8}  # PyTorch's `generate` allows sequences of one token less
FORCED = {"forced_eos_token_id": 50}
# transformers' Flax classes lack these, and their `no_repeat_ngram_size` needs an older JAX.
ONLY_IN_TORCH = {
    "no_repeat_ngram_size": 2,
    "repetition_penalty": 1.3,
    "bad_words_ids": [[9], [20, 33], [12, 13, 40]],
    "min_new_tokens": 3,
}


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 3},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.0, "early_stopping": True},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never", "pad_token_id": 3},
        {"num_beams": 2, "length_penalty": -1.0, "no_repeat_ngram_size": 2, **RULES},
        {"num_beams": 3, **RULES, **FORCED, **ONLY_IN_TORCH},
    ],
)
@pytest.mark.parametrize("can_end", [True, False])
def test_beam_search_as_in_torch(options, can_end):
    ends = {"eos_token_id": likely_ends()} if can_end else NO_END
    actual, expected = run_ours(**ends | options), run_torch(**ends | options)
    assert_same_sequences(actual.sequences, expected.sequences, options.get("pad_token_id", 1))
    scores = expected.sequences_scores.numpy()
    np.testing.assert_allclose(actual.scores, scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [RULES | ONLY_IN_TORCH | FORCED])
def test_greedy_search_as_in_torch(options):
    options = options | {"eos_token_id": likely_ends()}
    actual, expected = run_ours(**options), run_torch(**options)
    assert_same_sequences(actual.sequences, expected.sequences)


@pytest.mark.parametrize("options", [{}, RULES | MIN_LENGTH | FORCED])
def test_greedy_search_as_in_flax(options):
    options = options | {"eos_token_id": likely_ends()[0]}
    assert run_ours(**options).sequences.tolist() == run_flax(**options).sequences.tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 3},
        {"num_beams": 4, "length_penalty": 0.0, "early_stopping": True},
        {"num_beams": 2, "length_penalty": -1.0, "early_stopping": "never", **RULES},
        {"num_beams": 3, **RULES, **MIN_LENGTH, **FORCED},
    ],
)
def test_beam_search_as_in_flax(options):
    """While no continuation ends; test_parity_differences.py has the other cases."""
    options = NO_END | options
    actual, expected = run_ours(**options), run_flax(**options)
    assert actual.sequences.tolist() == expected.sequences.tolist()
    # Their scores of continuations that have not ended are without the length penalty.
    scores = expected.scores / STEPS ** options.get("length_penalty", 1.0)
    np.testing.assert_allclose(actual.scores, scores, rtol=1e-4, atol=1e-5)


def test_beam_search_as_in_flax_when_all_beams_end_together():
    """Then no rule of theirs differs: one input, and the last token is forced."""
    options = {"num_beams": 3, "num_return_sequences": 3, "forced_eos_token_id": 50}
    ours, theirs, _ = models()
    options |= {"eos_token_id": 50, "max_new_tokens": STEPS, "min_new_tokens": STEPS - 1}
    actual = ours.generate(PROMPTS[1:2], **options)
    options |= {"min_length": 6 + STEPS - 2}
    del options["min_new_tokens"]
    expected = theirs.generate(jnp.asarray(PROMPTS[1:2]), **options)
    assert actual.sequences.tolist() == expected.sequences.tolist()
    np.testing.assert_allclose(actual.scores, expected.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_tokens_forced_after_a_prompt_of_one_token(num_beams):
    ours, theirs, _ = models()
    config = transformers.GenerationConfig(
        max_new_tokens=STEPS,
        num_beams=num_beams,
        forced_bos_token_id=8,
        forced_decoder_ids=[[2, 30], [3, 31]],
        begin_suppress_tokens=[40, 41],
        pad_token_id=1,
        **NO_END,
    )
    ids = np.array([[5], [6]])
    actual, expected = (
        model.generate(jnp.asarray(ids), generation_config=config).sequences.tolist()
        for model in (ours, theirs)
    )
    assert actual == expected
    assert [row[1:4] for row in actual] == [[8, 30, 31]] * 2


def test_logits_processors_of_transformers():
    processors = transformers.generation.flax_logits_process
    options = {"max_new_tokens": STEPS, "num_beams": 3, "eos_token_id": 2}
    ours, theirs, _ = models()
    suppress = processors.FlaxSuppressTokensLogitsProcessor([1, 2, *range(20, 40)])
    actual, expected = (
        model.generate(
            jnp.asarray(PROMPTS[1:]),
            attention_mask=jnp.asarray(MASK[1:]),
            logits_processor=processors.FlaxLogitsProcessorList([suppress]),
            **options,
        ).sequences.tolist()
        for model in (ours, theirs)
    )
    assert actual == expected


def test_options_and_their_defaults():
    expected = transformers.GenerationConfig().to_dict()
    metadata = {"_from_model_config", "transformers_version"}
    # An attribute that transformers' Flax classes read, although it is no longer a field.
    only_in_flax = {"forced_decoder_ids": None, "compile_config": None}
    expected = {k: v for k, v in expected.items() if k not in metadata} | only_in_flax
    assert default_options() == expected


def test_generation_config_files(tmp_path):
    """Each reads what the other saved."""
    options = {"num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 2, "top_k": None}
    ours, _, _ = models()
    ours.save_pretrained(tmp_path / "ours")
    transformers.GenerationConfig(**options).save_pretrained(tmp_path / "ours")
    loaded = type(ours).from_pretrained(tmp_path / "ours")
    assert loaded.generation_config == FlaxGenerationConfig(**options)
    loaded.save_pretrained(tmp_path / "again")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "again")
    assert {name: getattr(theirs, name) for name in options} == options
