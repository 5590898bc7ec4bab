"""Beam search: against the same search in plain Python, and its properties."""

import functools
import itertools

import jax
import numpy as np
import pytest

from roberta_jax.modeling import beam_search as module
from roberta_jax.modeling.beam_search import Beams, beam_search
from roberta_jax.modeling.generation import generate
from roberta_jax.modeling.next_token import TokenRules
from tests.support import heads
from tests.support.beam_oracle import Search

CONFIG = heads.config_of("RobertaForCausalLM", num_hidden_layers=1)
PAD = CONFIG.pad_token_id
PROMPTS = np.array([[PAD, PAD, 5, 6, 7], [8, 9, 10, 11, 12], [PAD, 20, 33, 20, 33]])
STEPS = 7
ROWS = 8  # of the compiled model


@functools.cache
def model_and_params():
    return heads.build("RobertaForCausalLM", CONFIG)


@functools.cache
def compiled_logits():
    model, params = model_and_params()
    return jax.jit(lambda ids: model.apply({"params": params}, ids).logits)


def logits_of(rows):
    """The logits of the next token of whole inputs, without a cache."""
    outputs = []
    for some in (rows[i : i + ROWS] for i in range(0, len(rows), ROWS)):
        length = len(some[0])
        ids = np.full((ROWS, PROMPTS.shape[1] + STEPS), 4)  # the causal mask hides these
        ids[: len(some), :length] = some
        outputs.extend(np.asarray(compiled_logits()(ids)[: len(some), length - 1]))
    return outputs


def unpadded(row):
    return [token for token in row.tolist() if token != PAD]


def search(prompts=PROMPTS, **options):
    model, params = model_and_params()
    # No pad token in continuations, so that they can be told from padding.
    rules = options.pop("rules", TokenRules(suppress_tokens=(PAD,)))
    return beam_search(model, params, prompts, max_new_tokens=STEPS, rules=rules, **options)


def likely_ends():
    """Tokens that end some continuations early."""
    free = search(beams=Beams(3, num_return_sequences=3), eos_token_id=-1)[0]
    return int(free[0, 0, 7]), int(free[1, 1, 6]), int(free[2, 2, 9])


COMBINED = TokenRules(
    repetition_penalty=1.3,
    no_repeat_ngram_size=2,
    bad_words_ids=((9,), (20, 33), (5, 6, 7)),
    suppress_tokens=(PAD, 13, 14),
    begin_suppress_tokens=(40, 41),
    forced_tokens=((1, 17), (STEPS - 1, 50)),
)


@pytest.mark.parametrize(
    ("beams", "min_new_tokens", "rules"),
    [
        (Beams(3, num_return_sequences=3), 0, TokenRules(suppress_tokens=(PAD,))),
        (Beams(4, 0.0, "never", 2), 0, TokenRules(suppress_tokens=(PAD,))),
        (Beams(3, 2.0, "never", 3), 2, TokenRules(suppress_tokens=(PAD,))),
        (Beams(3, -1.0, True, 3), 0, TokenRules(suppress_tokens=(PAD,))),
        (Beams(3, 1.0, True, 3), 0, COMBINED),
    ],
)
@pytest.mark.parametrize("can_end", [True, False])
def test_finds_what_the_same_search_in_python_finds(beams, min_new_tokens, rules, can_end):
    ends = likely_ends() if can_end else (-1, -1, -1)
    output = search(beams=beams, eos_token_id=ends, min_new_tokens=min_new_tokens, rules=rules)
    oracle = Search(logits_of, rules, frozenset(ends), min_new_tokens)
    assert output.sequences.shape == (3, beams.num_return_sequences, 5 + STEPS)
    lengths = set()
    for prompt, sequences, scores in zip(PROMPTS, *map(np.asarray, output), strict=True):
        expected = oracle.beams(unpadded(prompt), STEPS, beams)
        for row, score, (expected_score, expected_ids) in zip(
            sequences, scores, expected, strict=True
        ):
            assert unpadded(row) == expected_ids
            assert row[:5].tolist() == prompt.tolist()
            assert score == pytest.approx(expected_score, rel=1e-4)
            lengths.add(len(expected_ids) - len(unpadded(prompt)))
    if can_end and beams.length_penalty <= 1:  # a larger one prefers long continuations
        assert min(lengths) < STEPS


def test_as_many_beams_as_tokens_find_the_most_likely_pair():
    model, params = model_and_params()
    count = CONFIG.vocab_size
    beams = Beams(count, num_return_sequences=5)
    rules = TokenRules(suppress_tokens=(PAD,))
    output = beam_search(
        model, params, PROMPTS[1:2], max_new_tokens=2, beams=beams, rules=rules, eos_token_id=-1
    )
    prompt = PROMPTS[1].tolist()
    rows = np.array(logits_of([prompt]) + logits_of([[*prompt, i] for i in range(count)]))
    log_probs = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    log_probs[:, PAD] = -np.inf
    sums = log_probs[0][:, None] + log_probs[1:]
    best = np.argsort(-sums, axis=None)[:5]
    pairs = np.stack(np.unravel_index(best, sums.shape), axis=1)
    assert output.sequences[0, :, 5:].tolist() == pairs.tolist()
    np.testing.assert_allclose(output.scores[0], sums.ravel()[best] / 2, rtol=1e-4)


def test_one_beam_is_greedy_search():
    model, params = model_and_params()
    rules = TokenRules(suppress_tokens=(PAD,))
    greedy = generate(
        model, params, PROMPTS, max_new_tokens=STEPS, rules=rules, eos_token_id=likely_ends()
    )
    output = search(beams=Beams(1), eos_token_id=likely_ends())
    assert output.sequences[:, 0].tolist() == greedy.tolist()


def test_padding_and_other_inputs_change_nothing():
    options = {"beams": Beams(3, num_return_sequences=3), "eos_token_id": likely_ends()}
    together = search(**options)
    for i, prompt in enumerate(PROMPTS):
        alone = search(np.array([unpadded(prompt)]), **options)
        padding = 5 - len(unpadded(prompt))
        assert together.sequences[i, :, padding:].tolist() == alone.sequences[0].tolist()
        np.testing.assert_allclose(together.scores[i], alone.scores[0], rtol=1e-5)


def test_scores_do_not_ascend_and_sequences_differ():
    output = search(beams=Beams(3, num_return_sequences=3), eos_token_id=likely_ends())
    assert (np.diff(output.scores, axis=1) <= 0).all()
    for rows in output.sequences:
        assert not any((a == b).all() for a, b in itertools.combinations(np.asarray(rows), 2))


def test_missing_continuations_have_the_score_of_minus_infinity():
    forced = TokenRules(forced_tokens=tuple((step, 30 + step) for step in range(STEPS)))
    output = search(beams=Beams(2, num_return_sequences=2), rules=forced)
    assert output.scores.tolist() == [[0, -np.inf]] * 3
    assert output.sequences[1, 0, 5:].tolist() == list(range(30, 30 + STEPS))
    assert output.sequences[1, 1].tolist() == [8, 9, 10, 11, 12] + [PAD] * STEPS


def test_ended_continuations_are_filled_up_with_the_pad_token():
    end = likely_ends()[0]
    output = search(beams=Beams(2), eos_token_id=end, pad_token_id=3)
    row = output.sequences[0, 0].tolist()
    assert set(row[row.index(end, 5) + 1 :]) == {3}


def test_ends_and_pad_token_do_not_recompile():
    search(beams=Beams(2), eos_token_id=-1)
    programs = module._beam_search._cache_size()
    search(beams=Beams(2), eos_token_id=7, pad_token_id=3, min_new_tokens=2)
    assert module._beam_search._cache_size() == programs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"length_penalty": float("nan")}, "length_penalty must be finite"),
        ({"early_stopping": "always"}, 'must be True, False or "never"'),
        ({"num_return_sequences": 5}, r"from 1 to num_beams \(4\), not 5"),
    ],
)
def test_invalid_beams_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Beams(**options)


def test_invalid_prompts_raise():
    model, params = model_and_params()
    with pytest.raises(ValueError, match="pad on the left"):
        beam_search(model, params, PROMPTS[:, ::-1])
    with pytest.raises(ValueError, match="names 60, but the ids of this model are 0 to 59"):
        beam_search(model, params, PROMPTS, rules=TokenRules(suppress_tokens=(60,)))
