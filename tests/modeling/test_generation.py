"""Generation: the tokens that it chooses, when it stops, and how it samples."""

import functools

import jax
import numpy as np
import pytest

from roberta_jax.modeling import generation
from roberta_jax.modeling.generation import Sampling, filter_logits, generate
from roberta_jax.modeling.next_token import TokenRules
from tests.support import heads
from tests.support.beam_oracle import Search

CONFIG = heads.config_of("RobertaForCausalLM")
PROMPTS = np.array([[1, 1, 5, 6, 7], [8, 9, 10, 11, 12]])


@functools.cache
def model_and_params():
    return heads.build("RobertaForCausalLM", CONFIG)


STEPS = 8  # shared by the tests, so that they share compiled programs


@functools.cache
def compiled_logits():
    model, params = model_and_params()
    return jax.jit(lambda ids: model.apply({"params": params}, ids).logits)


def continue_without_cache(ids, choose):
    """Continues token by token, from the logits of the whole input."""
    length = ids.shape[1]
    ids = np.pad(ids, ((0, 0), (0, STEPS)), constant_values=4)  # the causal mask hides these
    for i in range(STEPS):
        ids[:, length + i] = choose(compiled_logits()(ids)[:, length + i - 1], i)
    return ids


def test_greedy_takes_the_most_likely_token_of_the_whole_input():
    model, params = model_and_params()
    ids = generate(model, params, PROMPTS[1:], max_new_tokens=STEPS, eos_token_id=-1)
    expected = continue_without_cache(PROMPTS[1:], lambda logits, _: logits.argmax(-1))
    assert ids.tolist() == expected.tolist()


def test_sampling_draws_from_the_logits_of_the_whole_input():
    model, params = model_and_params()
    sampling, key = Sampling(True, 0.8, top_k=20, top_p=0.9), jax.random.key(3)

    def choose(logits, i):
        logits = filter_logits(logits, sampling)
        return jax.random.categorical(jax.random.fold_in(key, i), logits, axis=-1)

    ids = generate(
        model,
        params,
        PROMPTS[1:],
        max_new_tokens=STEPS,
        eos_token_id=-1,
        sampling=sampling,
        key=key,
    )
    assert ids.tolist() == continue_without_cache(PROMPTS[1:], choose).tolist()


@pytest.mark.parametrize("mask", [None, PROMPTS != 1])
def test_padding_on_the_left_changes_nothing(mask):
    model, params = model_and_params()
    both = generate(model, params, PROMPTS, mask, max_new_tokens=STEPS)
    alone = generate(model, params, PROMPTS[:1, 2:], max_new_tokens=STEPS)
    assert both[0, 2:].tolist() == alone[0].tolist()
    assert both[:, :5].tolist() == PROMPTS.tolist()


def test_an_input_ends_at_eos_and_padding_follows():
    model, params = model_and_params()
    free = generate(model, params, PROMPTS, max_new_tokens=STEPS, eos_token_id=-1)[:, 5:]
    eos = int(free[1, 3])
    ended = generate(model, params, PROMPTS, max_new_tokens=STEPS, eos_token_id=eos)[:, 5:]
    for row, full in zip(ended.tolist(), free.tolist(), strict=True):
        end = full.index(eos) + 1 if eos in full else len(full)
        assert row == full[:end] + [CONFIG.pad_token_id] * (STEPS - end)


def test_no_input_ends_before_min_new_tokens():
    model, params = model_and_params()
    run = functools.partial(generate, model, params, PROMPTS[1:], max_new_tokens=STEPS)
    eos = int(run(eos_token_id=-1)[0, 5])
    assert run(eos_token_id=eos)[0, 5:].tolist() == [eos] + [CONFIG.pad_token_id] * (STEPS - 1)
    new_tokens = run(eos_token_id=eos, min_new_tokens=4)[0, 5:]
    assert not {eos, CONFIG.pad_token_id} & set(new_tokens[:4].tolist())


def test_eos_and_min_new_tokens_do_not_recompile():
    model, params = model_and_params()
    run = functools.partial(generate, model, params, PROMPTS, max_new_tokens=STEPS)
    run(eos_token_id=-1)
    programs = generation._generate._cache_size()
    run(eos_token_id=7, min_new_tokens=2)
    assert generation._generate._cache_size() == programs


def test_any_of_several_ids_ends_an_input_and_the_pad_token_can_be_chosen():
    model, params = model_and_params()
    run = functools.partial(generate, model, params, PROMPTS, max_new_tokens=STEPS)
    free = run(eos_token_id=-1)[:, 5:].tolist()
    ends = (free[0][4], free[1][2])
    ended = run(eos_token_id=ends, pad_token_id=3)[:, 5:].tolist()
    for row, full in zip(ended, free, strict=True):
        end = min(full.index(token) for token in ends if token in full) + 1
        assert row == full[:end] + [3] * (STEPS - end)


def test_rules_apply_at_every_step():
    """A greedy search in plain Python, without cache and padding, finds the same."""
    model, params = model_and_params()
    rules = TokenRules(
        repetition_penalty=1.3,
        no_repeat_ngram_size=2,
        bad_words_ids=((9,), (12, 13)),
        suppress_tokens=(CONFIG.pad_token_id,),
        forced_tokens=((2, 17),),
    )

    def logits_of(rows):
        ids = np.full((1, 5 + STEPS), 4)  # the causal mask hides these
        ids[0, : len(rows[0])] = rows[0]
        return compiled_logits()(ids)[:, len(rows[0]) - 1]

    ids = generate(model, params, PROMPTS, max_new_tokens=STEPS, rules=rules, eos_token_id=-1)
    for row, prompt in zip(ids.tolist(), ([5, 6, 7], PROMPTS[1].tolist()), strict=True):
        expected = Search(logits_of, rules).greedy(prompt, STEPS)
        assert row[-len(expected) :] == expected


def test_the_same_key_draws_the_same():
    model, params = model_and_params()
    draw = functools.partial(
        generate,
        model,
        params,
        PROMPTS,
        max_new_tokens=STEPS,
        sampling=Sampling(True),
        eos_token_id=-1,
    )
    first, same, other = (draw(key=jax.random.key(seed)).tolist() for seed in (0, 0, 1))
    assert first == same != other


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (PROMPTS, {"max_new_tokens": 34}, "39, but this model has positions for 38"),
        (PROMPTS, {"max_new_tokens": 0}, "at least 1"),
        (PROMPTS[0], {}, r"\(batch, length\)"),
        (PROMPTS, {"sampling": Sampling(True)}, "needs a key"),
        (PROMPTS, {"rules": TokenRules(suppress_tokens=(-1,))}, "names -1, but the ids"),
        (PROMPTS[:, ::-1], {}, "pad on the left"),
        (PROMPTS, {"attention_mask": np.ones((2, 3))}, r"\(2, 3\), input_ids \(2, 5\)"),
    ],
)
def test_invalid_prompts_raise(ids, options, message):
    model, params = model_and_params()
    with pytest.raises(ValueError, match=message):
        generate(model, params, ids, **options)


def test_an_encoder_raises():
    model, params = heads.build("RobertaForCausalLM", CONFIG.replace(is_decoder=False))
    with pytest.raises(ValueError, match="is_decoder=True"):
        generate(model, params, PROMPTS)
