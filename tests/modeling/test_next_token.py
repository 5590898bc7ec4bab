"""The rules for the next token, and what sampling excludes."""

import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.modeling.next_token import (
    Sampling,
    TokenRules,
    apply_rules,
    end_ids,
    filter_logits,
)
from tests.support.beam_oracle import Search

PAD = 1
LENGTH = 4  # of the prompts
IDS = np.array(
    [
        [PAD, PAD, 5, 6, 5, 6, 5, 0, 0],
        [7, 5, 6, 7, 5, 6, 7, 0, 0],
        [PAD, 8, 8, 8, 8, 9, 8, 0, 0],
    ]
)
VOCAB = 12
ENDS = (2, 3)


def scores_of(rules, step, min_new_tokens=0, dtype=np.float32):
    """(ours, those of plain Python); step 3 is the first without a token in `IDS`."""
    scores = np.random.default_rng(0).normal(size=(len(IDS), VOCAB)).astype(dtype)
    actual = apply_rules(
        jnp.asarray(scores),
        rules,
        ids_BT=jnp.asarray(IDS),
        mask_BT=jnp.asarray(IDS != PAD),
        prompt_length=LENGTH,
        step=jnp.int32(step),
        end_ids_E=end_ids(ENDS),
        min_new_tokens=jnp.int32(min_new_tokens),
    )
    oracle = Search(None, rules, frozenset(ENDS), min_new_tokens)
    expected = []
    for row, ids in zip(scores, IDS[:, : LENGTH + step].tolist(), strict=True):
        row = oracle.adjusted(row.astype(np.float64), [i for i in ids if i != PAD], step)
        expected.append(np.where(row == -np.inf, -1e30, row))
    return np.asarray(actual), np.array(expected)


@pytest.mark.parametrize("step", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "rules",
    [
        TokenRules(),
        TokenRules(repetition_penalty=1.7),
        TokenRules(repetition_penalty=0.5),
        *(TokenRules(no_repeat_ngram_size=size) for size in (1, 2, 3, 5, 9, 10)),
        TokenRules(bad_words_ids=((4,), (10,), (6, 5), (5, 9), (6, 7, 5), (9, 8, 2), (8,) * 10)),
        TokenRules(suppress_tokens=(0, 11)),
        TokenRules(begin_suppress_tokens=(4, 6), begin_step=2),
        TokenRules(forced_tokens=((1, 4), (3, 0))),
        TokenRules(2.0, 2, ((9,),), (4,), (6,), 1, (), ((2, 4),)),
    ],
)
def test_rules_as_in_plain_python(rules, step):
    actual, expected = scores_of(rules, step, min_new_tokens=2)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_rules_exclude_what_they_name():
    """Exact cases, besides the oracle."""

    def excluded(rules, step=3):
        return [np.flatnonzero(row < -1e20).tolist() for row in scores_of(rules, step)[0]]

    # The last tokens are (6, 5), (6, 7) and (9, 8); before them came 6, 5 and 8 after the last one.
    assert excluded(TokenRules(no_repeat_ngram_size=2)) == [[6], [5], [8, 9]]
    assert excluded(TokenRules(no_repeat_ngram_size=3)) == [[6], [5], []]
    assert excluded(TokenRules(bad_words_ids=((4,), (6, 7, 10)))) == [[4], [4, 10], [4]]
    forced = excluded(TokenRules(suppress_tokens=(9,), forced_tokens=((3, 9),)))
    assert forced == [[i for i in range(VOCAB) if i != 9]] * 3


def test_processors_see_the_tokens_and_come_before_forced_ones():
    seen = []

    def processor(ids, scores, length):
        seen.append((ids.shape, scores.shape, int(length)))
        return scores * 0 - 7

    scores = scores_of(TokenRules(processors=(processor,)), 2)[0]
    assert seen == [((3, 9), (3, VOCAB), 6)]
    assert (scores == -7).all()
    forced = TokenRules(processors=(processor,), forced_tokens=((2, 4),))
    assert (scores_of(forced, 2)[0].argmax(-1) == 4).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty must be positive"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must be positive"),
        ({"no_repeat_ngram_size": -1}, "at least 0, not -1"),
        ({"bad_words_ids": ((5,), ())}, "holds an empty list"),
        ({"forced_tokens": ((-1, 5),)}, "a step before the first"),
    ],
)
def test_invalid_rules_raise(options, message):
    with pytest.raises(ValueError, match=message):
        TokenRules(**options)


def test_top_k_and_top_p_exclude_tokens():
    logits = jnp.log(jnp.array([[0.05, 0.4, 0.2, 0.3, 0.05]]))

    def allowed(**options):
        return (filter_logits(logits, Sampling(True, **options)) > -1e20)[0].tolist()

    assert allowed() == allowed(top_k=5) == allowed(top_k=99) == [True] * 5
    assert allowed(top_k=2) == [False, True, False, True, False]
    assert allowed(top_p=0.39) == allowed(top_k=1) == [False, True, False, False, False]
    # The token that reaches p is included.
    assert allowed(top_p=0.41) == [False, True, False, True, False]
    assert allowed(top_p=0.71) == [False, True, True, True, False]
    # Of the two most likely the first has 4/7: top_p applies to what top_k leaves.
    assert allowed(top_k=2, top_p=0.5) == [False, True, False, False, False]
    halved = filter_logits(logits, Sampling(True, temperature=2.0))
    np.testing.assert_allclose(halved, logits / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\]"),
    ],
)
def test_invalid_sampling_raises(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(True, **options)
