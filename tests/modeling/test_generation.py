"""Generation: what it continues with, when it stops, and what may be drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.modeling.generation import Sampling, filter_logits, generate
from tests.support import heads

CONFIG = heads.config_of("RobertaForCausalLM")
PROMPTS = np.array([[1, 1, 5, 6, 7], [8, 9, 10, 11, 12]])


@functools.cache
def model_and_params():
    return heads.build("RobertaForCausalLM", CONFIG)


def continued(ids, steps, choose):
    """Token by token from the logits of the whole input, with no cache."""
    model, params = model_and_params()
    apply = jax.jit(lambda ids: model.apply({"params": params}, ids).logits)
    length = ids.shape[1]
    ids = np.pad(ids, ((0, 0), (0, steps)), constant_values=4)  # what comes later is not seen
    for i in range(steps):
        ids[:, length + i] = choose(apply(ids)[:, length + i - 1], i)
    return ids


def test_greedy_takes_the_likeliest_token_of_the_whole_input():
    model, params = model_and_params()
    found = generate(model, params, PROMPTS[1:], max_new_tokens=12, eos_token_id=-1)
    wanted = continued(PROMPTS[1:], 12, lambda logits, _: logits.argmax(-1))
    assert found.tolist() == wanted.tolist()


def test_sampling_draws_from_the_logits_of_the_whole_input():
    model, params = model_and_params()
    sampling, key = Sampling(True, 0.8, top_k=20, top_p=0.9), jax.random.key(3)

    def choose(logits, i):
        chosen = filter_logits(logits, sampling)
        return jax.random.categorical(jax.random.fold_in(key, i), chosen, axis=-1)

    found = generate(
        model, params, PROMPTS[1:], max_new_tokens=8, eos_token_id=-1, sampling=sampling, key=key
    )
    assert found.tolist() == continued(PROMPTS[1:], 8, choose).tolist()


@pytest.mark.parametrize("mask", [None, PROMPTS != 1])
def test_padding_on_the_left_changes_nothing(mask):
    model, params = model_and_params()
    both = generate(model, params, PROMPTS, mask, max_new_tokens=8)
    alone = generate(model, params, PROMPTS[:1, 2:], max_new_tokens=8)
    assert both[0, 2:].tolist() == alone[0].tolist()
    assert both[:, :5].tolist() == PROMPTS.tolist()


def test_an_input_ends_at_eos_and_padding_follows():
    model, params = model_and_params()
    free = generate(model, params, PROMPTS, max_new_tokens=10, eos_token_id=-1)[:, 5:]
    eos = int(free[1, 3])
    cut = generate(model, params, PROMPTS, max_new_tokens=10, eos_token_id=eos)[:, 5:]
    for row, full in zip(cut.tolist(), free.tolist(), strict=True):
        end = full.index(eos) + 1 if eos in full else len(full)
        assert row == full[:end] + [CONFIG.pad_token_id] * (10 - end)


def test_no_input_ends_before_it_may():
    model, params = model_and_params()
    ids = PROMPTS[1:]
    eos = int(generate(model, params, ids, max_new_tokens=1, eos_token_id=-1)[0, -1])
    found = generate(model, params, ids, max_new_tokens=6, eos_token_id=eos, min_new_tokens=4)[
        0, 5:
    ]
    assert eos not in found[:4].tolist()


def test_the_same_key_draws_the_same():
    model, params = model_and_params()
    draw = functools.partial(
        generate, model, params, PROMPTS, max_new_tokens=8, sampling=Sampling(True), eos_token_id=-1
    )
    first, same, other = (draw(key=jax.random.key(seed)).tolist() for seed in (0, 0, 1))
    assert first == same != other


def test_what_may_be_drawn():
    logits = jnp.log(jnp.array([[0.05, 0.4, 0.2, 0.3, 0.05]]))

    def kept(**settings):
        return (filter_logits(logits, Sampling(True, **settings)) > -1e20)[0].tolist()

    assert kept() == kept(top_k=5) == kept(top_k=99) == [True] * 5
    assert kept(top_k=2) == [False, True, False, True, False]
    assert kept(top_p=0.39) == kept(top_k=1) == [False, True, False, False, False]
    assert kept(top_p=0.41) == [False, True, False, True, False]  # the one that reaches p is in
    assert kept(top_p=0.71) == [False, True, True, True, False]
    # Of the two likeliest the first has 4/7: top_p counts what top_k has left.
    assert kept(top_k=2, top_p=0.5) == [False, True, False, False, False]
    halved = filter_logits(logits, Sampling(True, temperature=2.0))
    np.testing.assert_allclose(halved, logits / 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\]"),
    ],
)
def test_refuses_ways_to_sample_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(True, **settings)


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        (PROMPTS, {"max_new_tokens": 34}, "39, but this model has positions for 38"),
        (PROMPTS, {"max_new_tokens": 0}, "at least 1"),
        (PROMPTS[0], {}, r"\(batch, length\)"),
        (PROMPTS, {"sampling": Sampling(True)}, "needs a key"),
        (PROMPTS[:, ::-1], {}, "pad on the left"),
        (PROMPTS, {"attention_mask": np.ones((2, 3))}, r"\(2, 3\), input_ids \(2, 5\)"),
    ],
)
def test_refuses_prompts_it_cannot_continue(ids, settings, message):
    model, params = model_and_params()
    with pytest.raises(ValueError, match=message):
        generate(model, params, ids, **settings)


def test_refuses_an_encoder():
    model, params = heads.build("RobertaForCausalLM", CONFIG.replace(is_decoder=False))
    with pytest.raises(ValueError, match="is_decoder=True"):
        generate(model, params, PROMPTS)
