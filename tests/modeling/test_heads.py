"""The heads and the decoder: losses, causality, the cache, and wrong input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from roberta_jax.modeling import losses
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.generation import init_cache
from roberta_jax.modeling.heads import MODEL_CLASSES
from tests.support import heads

DECODER = heads.config_of("RobertaForCausalLM")


def test_all_heads_are_tried():
    names = {"MaskedLM", "CausalLM", "SequenceClassification", "MultipleChoice"}
    names |= {"TokenClassification", "QuestionAnswering"}
    assert set(heads.HEADS) == {f"RobertaFor{name}" for name in names}


@pytest.mark.parametrize("name", heads.HEADS)
def test_stacked_layers_give_what_single_ones_give(name):
    config = heads.config_of(name, hidden_dropout_prob=0.1, classifier_dropout=0.3)
    inputs = heads.inputs_of(name, config)
    found = []
    for scan in (True, False):
        model, params = heads.build(name, config, Execution(scan_layers=scan))
        if scan:
            from roberta_jax.weights.names import unstack_layers

            single = unstack_layers(params)
        output = model.apply({"params": params if scan else single}, **inputs.given)
        found.append(jax.tree.leaves(output)[0])
    np.testing.assert_allclose(*found, atol=2e-6)


@pytest.mark.parametrize("name", heads.HEADS)
def test_new_heads_start_as_the_encoder_does(name):
    """Kernels N(0, initializer_range), biases 0; logits and losses float32 in bfloat16 too."""
    config = heads.config_of(name, initializer_range=0.1, vocab_size=600, hidden_size=64)
    model = MODEL_CLASSES[name](config, Execution(dtype=jnp.bfloat16))
    inputs = heads.inputs_of(name, config)
    init = jax.jit(lambda ids: nn.meta.unbox(model.init(jax.random.key(0), ids)))
    params = init(inputs.given["input_ids"])["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        last = path[-1].key
        assert leaf.dtype == jnp.float32
        if last == "bias":
            assert not leaf.any()
        elif last in ("kernel", "embedding") and leaf.size > 2000:
            assert abs(float(jnp.std(leaf)) - 0.1) < 0.01, path
    output = jax.eval_shape(lambda: model.apply({"params": params}, **inputs.given))
    assert jax.tree.leaves(output)[0].dtype == jnp.float32
    loss = jax.eval_shape(lambda: heads.loss_of(model, params, inputs))
    assert loss.dtype == jnp.float32


def test_tied_heads_have_no_decoder_and_untied_ones_their_own():
    _, tied = heads.build("RobertaForMaskedLM", heads.SMALL)
    assert set(tied["lm_head"]) == {"bias", "dense", "layer_norm"}
    config = heads.SMALL.replace(tie_word_embeddings=False)
    model, untied = heads.build("RobertaForMaskedLM", config)
    assert untied["lm_head"]["decoder"]["kernel"].shape == (32, 60)
    inputs = heads.inputs_of("RobertaForMaskedLM", config)
    logits = model.apply({"params": untied}, **inputs.given).logits
    total, count = losses.label_loss(logits, inputs.labels["labels"])
    np.testing.assert_allclose(heads.loss_of(model, untied, inputs), total / count, rtol=1e-5)


def test_a_causal_loss_is_that_of_its_logits():
    model, params = heads.build("RobertaForCausalLM", DECODER)
    inputs = heads.inputs_of("RobertaForCausalLM", DECODER)
    logits = model.apply({"params": params}, **inputs.given).logits
    wanted = losses.label_loss(logits[:, :-1], inputs.labels["labels"][:, 1:])
    found = model.apply({"params": params}, **inputs.given, **inputs.labels, method="loss")
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_no_gradient_flows_from_a_token_to_a_later_one():
    model, params = heads.build("RobertaForCausalLM", DECODER)
    x = np.random.default_rng(0).normal(size=(1, 6, 32)).astype(np.float32)

    def logit_at(x, position):
        return jnp.sum(model.apply({"params": params}, inputs_embeds=x).logits[0, position] ** 2)

    gradient = jax.jit(jax.grad(logit_at))
    for position in range(6):
        reached = jnp.abs(gradient(x, position)).sum(-1)[0] > 0
        assert reached.tolist() == [i <= position for i in range(6)]


@pytest.mark.parametrize(
    ("scan", "positions"),
    [
        (True, "absolute"),
        (False, "absolute"),
        (True, "relative_key"),
        (False, "relative_key_query"),
    ],
)
@pytest.mark.parametrize("pieces", [(1, 1, 1, 1, 1, 1), (4, 2)])
def test_a_cache_gives_what_the_whole_input_gives(scan, positions, pieces):
    config = DECODER.replace(position_embedding_type=positions, add_cross_attention=True)
    model, params = heads.build("RobertaForCausalLM", config, Execution(scan_layers=scan))
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 60, (2, 6))
    memory = {"encoder_hidden_states": rng.normal(size=(2, 5, 32)).astype(np.float32)}
    wanted = model.apply({"params": params}, ids, **memory).logits

    @jax.jit
    def proceed(cache, ids):
        variables = {"params": params, "cache": cache}
        output, changed = model.apply(variables, ids, **memory, mutable=["cache"])
        return output.logits, changed["cache"]

    cache, found, start = init_cache(model, 2, 9), [], 0
    for piece in pieces:
        logits, cache = proceed(cache, ids[:, start : start + piece])
        found.append(logits)
        start += piece
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), wanted, atol=2e-5)


def test_a_cache_is_empty_and_of_the_length_asked_for():
    model, _ = heads.build("RobertaForCausalLM", DECODER)
    cache = init_cache(model, 3, 9)
    layer = cache["roberta"]["encoder"]["layer"]["attention"]["self"]
    assert layer["cached_key"].shape == layer["cached_value"].shape == (2, 3, 9, 4, 8)
    assert not any(leaf.any() for leaf in jax.tree.leaves(cache))


def test_labels_that_are_no_target_do_not_count():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    labels = jnp.array([1, -100, 4, -100])
    total, count = losses.label_loss(logits, labels)
    kept = losses.cross_entropy(logits[::2], labels[::2])
    np.testing.assert_allclose([total, count], [kept.sum(), 2], rtol=1e-6)
    grads = jax.grad(lambda logits: losses.label_loss(logits, labels)[0])(logits)
    assert not grads[1::2].any()
    assert losses.label_loss(logits, jnp.full(4, -100)) == (0, 0)


def test_answers_outside_the_input_do_not_count():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    total, count = losses.span_loss(logits, jnp.array([[0], [4], [5], [99]]))
    wanted = losses.cross_entropy(logits[:2], jnp.array([0, 4])).sum()
    np.testing.assert_allclose([total, count], [wanted, 2], rtol=1e-6)
    # A negative one counts as the first token, which is where "no answer" is put.
    negative, zero = (losses.span_loss(logits[:1], jnp.array([at])) for at in (-3, 0))
    assert negative == zero


WRONG = {
    "single labels of the wrong number": (
        lambda: losses.classification_loss(jnp.zeros((3, 4)), jnp.zeros(2, jnp.int32)),
        r"needs integer labels \(3,\)",
    ),
    "single labels that are numbers": (
        lambda: losses.classification_loss(
            jnp.zeros((3, 4)), jnp.zeros(3), "single_label_classification"
        ),
        "not float32",
    ),
    "several labels of the wrong shape": (
        lambda: losses.classification_loss(jnp.zeros((3, 4)), jnp.zeros((3, 5))),
        r"multi label classification needs labels \(3, 4\), not \(3, 5\)",
    ),
    "choices without an axis": (
        lambda: call("RobertaForMultipleChoice", input_ids=np.ones((2, 5), np.int32)),
        r"input_ids has shape \(2, 5\); it must be \(batch, choices, length",
    ),
    "nothing given": (lambda: call("RobertaForMultipleChoice"), "give either input_ids or"),
    "too long": (
        lambda: call("RobertaForTokenClassification", input_ids=np.ones((1, 39), np.int32)),
        "input of 39 tokens, but this model has positions for 38",
    ),
    "an unknown id": (
        lambda: call("RobertaForSequenceClassification", input_ids=np.full((1, 3), 60)),
        r"input_ids must lie in \[0, 60\)",
    ),
    "another model's states without cross-attention": (
        lambda: call(
            "RobertaForCausalLM",
            input_ids=np.ones((1, 3), np.int32),
            encoder_hidden_states=np.zeros((1, 2, 32)),
        ),
        "add_cross_attention=True",
    ),
    "a mask of no states": (
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
    "a mask that is not as long as the cache": (
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
def test_wrong_input_is_told(case):
    action, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        action()


def test_states_of_the_wrong_shape_are_told():
    config = DECODER.replace(add_cross_attention=True)
    model, params = heads.build("RobertaForCausalLM", config)
    for shape in ((1, 5, 32), (2, 5, 16), (2, 32)):
        with pytest.raises(ValueError, match="encoder_hidden_states has shape"):
            model.apply(
                {"params": params},
                np.ones((2, 3), np.int32),
                encoder_hidden_states=np.zeros(shape, np.float32),
            )
