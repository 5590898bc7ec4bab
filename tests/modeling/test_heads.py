"""The heads and the decoder: losses, causality, the cache, and wrong input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.kernels.cross_entropy import cross_entropy
from roberta_jax.modeling import losses
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.generation import init_cache
from roberta_jax.modeling.heads import MODEL_CLASSES
from roberta_jax.weights.names import unstack_layers
from roberta_jax.weights.parameters import parameter_values
from tests.support import heads

DECODER = heads.config_of("RobertaForCausalLM")


def test_heads_lists_all_heads():
    names = {"MaskedLM", "CausalLM", "SequenceClassification", "MultipleChoice"}
    names |= {"TokenClassification", "QuestionAnswering"}
    assert set(heads.HEADS) == {f"RobertaFor{name}" for name in names}


@pytest.mark.parametrize("name", heads.HEADS)
def test_stacked_and_unstacked_layers_give_the_same_output(name):
    config = heads.config_of(name, hidden_dropout_prob=0.1, classifier_dropout=0.3)
    inputs = heads.inputs_of(name, config)
    stacked, params = heads.build(name, config)
    unstacked = MODEL_CLASSES[name](config, Execution(scan_layers=False))
    output = heads.apply(stacked, params, **inputs.given)
    expected = heads.apply(unstacked, unstack_layers(params), **inputs.given)
    np.testing.assert_allclose(jax.tree.leaves(output)[0], jax.tree.leaves(expected)[0], atol=2e-6)


@pytest.mark.parametrize("name", heads.HEADS)
def test_initial_parameters_and_output_dtypes(name):
    """Kernels are N(0, initializer_range), biases 0; bfloat16 models have float32 outputs."""
    config = heads.config_of(name, initializer_range=0.1, vocab_size=600, hidden_size=64)
    model = MODEL_CLASSES[name](config, Execution(dtype=jnp.bfloat16))
    inputs = heads.inputs_of(name, config)
    params = initialize(model, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = path[-1].key
        assert leaf.dtype == jnp.float32
        if kind == "bias":
            assert not leaf.any()
        elif kind in ("kernel", "embedding") and leaf.size > 2000:
            assert abs(float(jnp.std(leaf)) - 0.1) < 0.01, path
    output = jax.eval_shape(lambda: model.apply({"params": params}, **inputs.given))
    assert jax.tree.leaves(output)[0].dtype == jnp.float32
    loss = jax.eval_shape(lambda: heads.loss_of(model, params, inputs))
    assert loss.dtype == jnp.float32


@functools.partial(jax.jit, static_argnames="model")
def initialize(model, key):
    return parameter_values(model, key)


def test_only_untied_heads_have_a_decoder():
    _, tied = heads.build("RobertaForMaskedLM", heads.SMALL)
    assert set(tied["lm_head"]) == {"bias", "dense", "layer_norm"}
    config = heads.SMALL.replace(tie_word_embeddings=False)
    model, untied = heads.build("RobertaForMaskedLM", config)
    assert untied["lm_head"]["decoder"]["kernel"].shape == (32, 60)
    inputs = heads.inputs_of("RobertaForMaskedLM", config)
    logits = heads.apply(model, untied, **inputs.given).logits
    total, count = losses.label_loss(logits, inputs.labels["labels"])
    loss = jax.jit(lambda params: heads.loss_of(model, params, inputs))(untied)
    np.testing.assert_allclose(loss, total / count, rtol=1e-5)


def test_the_causal_loss_is_the_cross_entropy_of_the_shifted_labels():
    model, params = heads.build("RobertaForCausalLM", DECODER)
    inputs = heads.inputs_of("RobertaForCausalLM", DECODER)
    logits = heads.apply(model, params, **inputs.given).logits
    total, count = losses.label_loss(logits[:, :-1], inputs.labels["labels"][:, 1:])
    batch = {**inputs.given, **inputs.labels}
    sums = heads.summed_losses(model, params, **batch)
    np.testing.assert_allclose(sums["causal_lm"], total, rtol=1e-5)
    assert model.count(**batch) == {"causal_lm": count}


def test_no_gradient_flows_from_a_token_to_a_later_one():
    model, params = heads.build("RobertaForCausalLM", DECODER)
    x = np.random.default_rng(0).normal(size=(1, 6, 32)).astype(np.float32)

    def logit_at(x, position):
        return jnp.sum(model.apply({"params": params}, inputs_embeds=x).logits[0, position] ** 2)

    gradient = jax.jit(jax.grad(logit_at))
    for position in range(6):
        has_gradient = jnp.abs(gradient(x, position)).sum(-1)[0] > 0
        assert has_gradient.tolist() == [i <= position for i in range(6)]


@pytest.mark.parametrize(
    ("scan", "positions"),
    [
        (True, "absolute"),
        (False, "absolute"),
        (True, "relative_key"),
        (False, "relative_key_query"),
    ],
)
@pytest.mark.parametrize("lengths", [(1, 1, 1, 1, 1, 1), (2, 2, 1, 1)])
def test_cached_decoding_gives_the_logits_of_the_whole_input(scan, positions, lengths):
    config = DECODER.replace(position_embedding_type=positions, add_cross_attention=True)
    model, params = heads.build("RobertaForCausalLM", config, Execution(scan_layers=scan))
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 60, (2, 6))
    states = rng.normal(size=(2, 5, 32)).astype(np.float32)
    expected = heads.apply(model, params, input_ids=ids, encoder_hidden_states=states).logits
    cache, logits = init_cache(model, 2, 9), []
    for part in np.split(ids, np.cumsum(lengths)[:-1], axis=1):
        part_logits, cache = decode(model, params, cache, part, states)
        logits.append(part_logits)
    np.testing.assert_allclose(jnp.concatenate(logits, axis=1), expected, atol=2e-5)


@functools.partial(jax.jit, static_argnames="model")
def decode(model, params, cache, ids, encoder_hidden_states):
    """Returns (logits, updated cache)."""
    output, updated = model.apply(
        {"params": params, "cache": cache},
        ids,
        encoder_hidden_states=encoder_hidden_states,
        mutable=["cache"],
    )
    return output.logits, updated["cache"]


def test_a_new_cache_is_zero_and_has_the_requested_length():
    model, _ = heads.build("RobertaForCausalLM", DECODER)
    cache = init_cache(model, 3, 9)
    layer = cache["roberta"]["encoder"]["layer"]["attention"]["self"]
    assert layer["cached_key"].shape == layer["cached_value"].shape == (2, 3, 9, 4, 8)
    assert not any(leaf.any() for leaf in jax.tree.leaves(cache))


@pytest.mark.parametrize("name", heads.HEADS)
def test_loss_and_count_have_the_same_objectives_and_add_up_over_parts(name):
    """The sums and counts of a batch are the totals over its rows, for every head."""
    config = heads.config_of(name)
    model, params = heads.build(name, config)
    inputs = heads.inputs_of(name, config)
    batch = {**inputs.given, **heads.targets(name, inputs.labels)}
    whole, counts = heads.summed_losses(model, params, **batch), model.count(**batch)
    assert whole.keys() == counts.keys()
    rows = [{key: x[row : row + 1] for key, x in batch.items()} for row in range(3)]
    row_losses = [heads.summed_losses(model, params, **row) for row in rows]
    for objective in whole:
        total = sum(losses[objective] for losses in row_losses)
        np.testing.assert_allclose(whole[objective], total, rtol=1e-5)
        assert counts[objective] == sum(model.count(**row)[objective] for row in rows)
        assert counts[objective] > 0


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification", None])
def test_examples_of_weight_zero_do_not_count(kind):
    config = heads.config_of("RobertaForSequenceClassification", num_labels=3, problem_type=kind)
    model, params = heads.build("RobertaForSequenceClassification", config)
    given = heads.inputs_of("RobertaForSequenceClassification", config).given
    labels = np.array([2, 0, 1]) if kind is None else np.eye(3, dtype=np.float32)
    batch = {**given, "labels": labels}
    first_two = {key: x[:2] for key, x in batch.items()}
    weights = {"example_weights": np.array([1.0, 1.0, 0.0], np.float32)}
    sums = heads.summed_losses(model, params, **batch, **weights)
    expected = heads.summed_losses(model, params, **first_two)
    np.testing.assert_allclose(sums["classification"], expected["classification"], rtol=1e-5)
    assert model.count(**batch, **weights) == model.count(**first_two)


def test_labels_of_minus_100_do_not_count():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    labels = jnp.array([1, -100, 4, -100])
    total, count = losses.label_loss(logits, labels)
    expected = cross_entropy(logits[::2], labels[::2]).sum()
    np.testing.assert_allclose([total, count], [expected, 2], rtol=1e-6)
    grads = jax.grad(lambda logits: losses.label_loss(logits, labels)[0])(logits)
    assert not grads[1::2].any()
    assert losses.label_loss(logits, jnp.full(4, -100)) == (0, 0)


def test_answers_outside_the_input_do_not_count():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    total, count = losses.span_loss(logits, jnp.array([[0], [4], [5], [99]]))
    expected = cross_entropy(logits[:2], jnp.array([0, 4])).sum()
    np.testing.assert_allclose([total, count], [expected, 2], rtol=1e-6)
    # A negative position is clipped to 0, the position that stands for "no answer".
    negative, zero = (losses.span_loss(logits[:1], jnp.array([i])) for i in (-3, 0))
    assert negative == zero


WRONG = {
    "the wrong number of single labels": (
        lambda: losses.classification_loss(jnp.zeros((3, 4)), jnp.zeros(2, jnp.int32)),
        r"needs integer labels \(3,\)",
    ),
    "single labels that are floats": (
        lambda: losses.classification_loss(
            jnp.zeros((3, 4)), jnp.zeros(3), "single_label_classification"
        ),
        "not float32",
    ),
    "multiple labels of the wrong shape": (
        lambda: losses.classification_loss(jnp.zeros((3, 4)), jnp.zeros((3, 5))),
        r"multi label classification needs labels \(3, 4\), not \(3, 5\)",
    ),
    "no axis of choices": (
        lambda: call("RobertaForMultipleChoice", input_ids=np.ones((2, 5), np.int32)),
        r"input_ids has shape \(2, 5\); it must be \(batch, choices, length",
    ),
    "no input": (lambda: call("RobertaForMultipleChoice"), "give either input_ids or"),
    "too long": (
        lambda: call("RobertaForTokenClassification", input_ids=np.ones((1, 39), np.int32)),
        "input of 39 tokens, but this model has positions for 38",
    ),
    "an unknown id": (
        lambda: call("RobertaForSequenceClassification", input_ids=np.full((1, 3), 60)),
        r"input_ids must lie in \[0, 60\)",
    ),
    "encoder states without cross-attention": (
        lambda: call(
            "RobertaForCausalLM",
            input_ids=np.ones((1, 3), np.int32),
            encoder_hidden_states=np.zeros((1, 2, 32)),
        ),
        "add_cross_attention=True",
    ),
    "a mask without encoder states": (
        lambda: call(
            "RobertaForCausalLM",
            input_ids=np.ones((1, 3), np.int32),
            encoder_attention_mask=np.ones((1, 2)),
        ),
        "needs encoder_hidden_states",
    ),
    "a cache for an encoder": (
        lambda: init_cache(heads.build("RobertaForMaskedLM", heads.SMALL)[0], 1, 4),
        "set is_decoder=True",
    ),
    "a mask of another length than the cache": (
        lambda: with_cache(np.ones((2, 3)), attention_mask=np.ones((2, 3))),
        r"must be that of the cache, \(2, 6\)",
    ),
    "more tokens than the cache holds": (
        lambda: with_cache(np.ones((2, 7))),
        "input of 7 tokens, but the cache holds 6",
    ),
}


def call(name, **inputs):
    model, params = heads.build(name, heads.config_of(name))
    return model.apply({"params": params}, **inputs)


def with_cache(ids, **inputs):
    model, params = heads.build("RobertaForCausalLM", DECODER)
    variables = {"params": params, "cache": init_cache(model, 2, 6)}
    return model.apply(variables, ids.astype(np.int32), **inputs, mutable=["cache"])


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_an_error(case):
    action, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        action()


def test_encoder_states_of_the_wrong_shape_are_an_error():
    config = DECODER.replace(add_cross_attention=True)
    model, params = heads.build("RobertaForCausalLM", config)
    for shape in ((1, 5, 32), (2, 5, 16), (2, 32)):
        with pytest.raises(ValueError, match="encoder_hidden_states has shape"):
            model.apply(
                {"params": params},
                np.ones((2, 3), np.int32),
                encoder_hidden_states=np.zeros(shape, np.float32),
            )
