"""The model: golden values, options of `Execution` that must agree, masks, positions, errors."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.modeling import losses
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM, RobertaModel
from roberta_jax.modeling.inputs import positions_from_ids
from tests.golden import masked_lm
from tests.support.small_config import small_config

TINY = small_config(
    vocab_size=97, hidden_size=16, num_attention_heads=2, intermediate_size=24, num_hidden_layers=2
)
DEFAULT = Execution()
DROPPING = TINY.replace(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@functools.lru_cache
def make_params(config, stack=True, seed=0):
    return masked_lm.nest(masked_lm.random_params(config, seed), stack)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("flags",))
def apply(model, params, flags=(), **inputs):
    return model.apply({"params": params}, **inputs, **dict.fromkeys(flags, True))


def encode(ids, **inputs):
    params = make_params(TINY)["roberta"]
    return apply(RobertaModel(TINY), params, input_ids=ids, **inputs).last_hidden_state


def assert_close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


# --- Golden values


@pytest.mark.parametrize("name", masked_lm.GOLDEN)
def test_golden_values_of_hugging_faces_model(name):
    """Logits, loss and every gradient, as torch computed them (see golden/make_masked_lm.py)."""
    config, batch, length, padded, masked = masked_lm.GOLDEN[name]
    ids, mask, labels = masked_lm.example_inputs(config, batch, length, seed=2, padded=padded)
    types = masked_lm.token_types(config, ids)
    model = RobertaForMaskedLM(config)

    @jax.jit
    def loss_and_grad(params):
        def loss(params):
            logits = model.apply({"params": params}, ids, mask if masked else None, types).logits
            total, count = losses.masked_lm_loss(logits, np.maximum(labels, 0), labels >= 0)
            return total / count, logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, logits), grads = loss_and_grad(make_params(config, seed=1))
    grads = masked_lm.flatten(grads, stacked=True)
    grads = [grads[path] for path in sorted(grads)]
    with np.load(masked_lm.FILE) as golden:
        for key, ours in {
            "loss": loss,
            "logits": masked_lm.sample(logits, 1024),
            "gradient_norms": np.array([np.linalg.norm(grad) for grad in grads]),
            "gradients": np.concatenate([masked_lm.sample(grad) for grad in grads]),
        }.items():
            theirs = golden[f"{name}/{key}"]
            assert_close(ours, theirs, 1e-5 * max(1.0, np.abs(theirs).max()))


# --- Options that must not change the results

IDS, MASK, LABELS = masked_lm.example_inputs(TINY, 3, 14, seed=7)
POSITIONS = np.array([[1, 4, 0], [1, 2, 0], [1, 0, 0]])
TARGETS = {
    "masked_positions": POSITIONS,
    "masked_labels": np.array([[3, 96, 0], [5, 50, 0], [7, 0, 0]]),
    "masked_weights": np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0]], np.float32),
}


@functools.lru_cache
def compiled_value_and_grad(config, execution, method):
    model = RobertaForMaskedLM(config, execution)

    def loss(params, key):
        inputs = {"input_ids": IDS, "attention_mask": MASK, "deterministic": False}
        inputs["rngs"] = {"dropout": key}
        if method == "loss":
            return model.apply({"params": params}, **inputs, **TARGETS, method="loss")["masked_lm"]
        logits = model.apply({"params": params}, **inputs, masked_positions=POSITIONS).logits
        return losses.masked_lm_loss(logits, TARGETS["masked_labels"], TARGETS["masked_weights"])[0]

    return jax.jit(jax.value_and_grad(loss))


def value_and_grad(config, execution=DEFAULT, method="loss", seed=0):
    """Loss and gradients (by path), with dropout if the config has it."""
    stack = execution.scan_layers
    run = compiled_value_and_grad(config, execution, method)
    value, grads = run(make_params(config, stack), jax.random.key(seed))
    return value, masked_lm.flatten(grads, stacked=stack)


def assert_same_value_and_grad(result, expected):
    (value, grads), (expected_value, expected_grads) = result, expected
    assert_close(value, expected_value)
    assert grads.keys() == expected_grads.keys()
    for path, grad in grads.items():
        np.testing.assert_allclose(grad, expected_grads[path], rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(
    "execution",
    [
        Execution(scan_layers=False),
        Execution(scan_layers=False, remat="none"),
        Execution(scan_unroll=2),
        Execution(scan_unroll=-1),
    ],
    ids=str,
)
def test_layer_scanning_does_not_change_the_results(execution):
    assert_same_value_and_grad(value_and_grad(TINY, execution), value_and_grad(TINY))


@pytest.mark.parametrize(
    "options", [{"remat": "none"}, {"remat": "full"}, {"attention": "reference"}], ids=str
)
def test_remat_and_attention_do_not_change_the_results(options):
    """With dropout: the backward pass must draw the same bits as the forward pass."""
    result = value_and_grad(DROPPING, Execution(**options))
    assert_same_value_and_grad(result, value_and_grad(DROPPING))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_the_backward_pass_repeats_no_product_of_the_layers(dtype):
    """`remat="dots"` saves the products of the dense layers, whatever the dtype."""
    products = {}
    for remat in ("none", "dots", "full"):
        run = compiled_value_and_grad(TINY, Execution(dtype=dtype, remat=remat), "loss")
        lowered = run.lower(make_params(TINY), jax.random.key(0)).as_text()
        products[remat] = lowered.count("dot_general")
    # The two products of the attention, which keep no probabilities, are the ones repeated.
    assert products["dots"] <= products["none"] + 2
    assert products["full"] >= products["dots"] + 6


def test_dropout_changes_the_results():
    value, _ = value_and_grad(DROPPING)
    assert abs(value - value_and_grad(DROPPING, seed=1)[0]) > 1e-3
    assert abs(value - value_and_grad(TINY)[0]) > 1e-3


def test_loss_equals_that_of_the_logits():
    assert_same_value_and_grad(value_and_grad(TINY), value_and_grad(TINY, method="logits"))


def test_gradient_is_the_slope():
    """Along the gradient's own direction, with dropout."""
    run = compiled_value_and_grad(DROPPING, DEFAULT, "loss")
    params, key = make_params(DROPPING), jax.random.key(0)
    grads = jax.device_get(run(params, key)[1])
    norm = float(sum(np.vdot(g, g) for g in jax.tree.leaves(grads))) ** 0.5
    step = 1e-2 / norm
    ahead, behind = (
        run(jax.tree.map(lambda p, g, s=sign: p + s * step * g, params, grads), key)[0]
        for sign in (1, -1)
    )
    np.testing.assert_allclose((ahead - behind) / (2 * step), norm**2, rtol=0.01)


def test_masked_positions_select_from_all_logits():
    model, params = RobertaForMaskedLM(TINY), make_params(TINY)
    everywhere = apply(model, params, input_ids=IDS, attention_mask=MASK).logits
    assert everywhere.shape == (3, 14, 97)
    assert everywhere.dtype == jnp.float32
    logits = apply(
        model, params, input_ids=IDS, attention_mask=MASK, masked_positions=POSITIONS
    ).logits
    assert_close(logits, np.take_along_axis(np.asarray(everywhere), POSITIONS[..., None], axis=1))


def test_bfloat16_is_close_to_float32():
    bfloat16 = Execution(dtype=jnp.bfloat16)
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    output = apply(
        RobertaForMaskedLM(TINY, bfloat16),
        make_params(TINY),
        flags=("output_hidden_states",),
        **inputs,
    )
    assert output.logits.dtype == jnp.float32
    assert output.hidden_states[-1].dtype == jnp.bfloat16
    expected = apply(RobertaForMaskedLM(TINY), make_params(TINY), **inputs).logits
    assert 0 < np.abs(output.logits - expected).max() < 0.05 * np.abs(expected).max()
    value, grads = value_and_grad(TINY, bfloat16)
    expected, expected_grads = value_and_grad(TINY)
    np.testing.assert_allclose(value, expected, rtol=0.02)
    for path, grad in grads.items():
        assert grad.dtype == np.float32
        error = np.linalg.norm(grad - expected_grads[path])
        assert error <= 0.1 * np.linalg.norm(expected_grads[path]) + 1e-2, path


@pytest.mark.parametrize("stack", [True, False])
def test_hidden_states_and_attentions(stack):
    model = RobertaForMaskedLM(TINY, Execution(scan_layers=stack))
    params = make_params(TINY, stack)
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    flags = ("output_hidden_states", "output_attentions")
    output = apply(model, params, flags=flags, **inputs)
    assert [x.shape for x in output.hidden_states] == [(3, 14, 16)] * 3
    assert [x.shape for x in output.attentions] == [(3, 2, 14, 14)] * 2
    assert_close(output.hidden_states[-1], encode(IDS, attention_mask=MASK))
    for probabilities in output.attentions:
        assert_close(probabilities.sum(-1), 1)
        assert not np.any(np.where(MASK[:, None, None, :], 0, probabilities))
    output = jax.eval_shape(functools.partial(apply, model), params, **inputs)
    assert output.hidden_states is None
    assert output.attentions is None


# --- Attention, masks, segments


def test_masked_padding_changes_nothing():
    unpadded = IDS[1:2, : MASK[1].sum()]
    padded = encode(IDS[1:2], attention_mask=MASK[1:2])
    assert_close(padded[:, : unpadded.shape[1]], encode(unpadded))


def test_without_a_mask_padding_is_attended_to():
    ones = np.ones_like(MASK)
    assert_close(encode(IDS), encode(IDS, attention_mask=ones))
    assert np.abs(encode(IDS)[1, 0] - encode(IDS, attention_mask=MASK)[1, 0]).max() > 1e-3


def packed_row():
    """(a row of two inputs and padding, its segment ids, the first input, the second input)."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(3, 97, (1, 6)), rng.integers(3, 97, (1, 4))
    row = np.concatenate([first, second, np.ones((1, 3), np.int64)], axis=1)
    segments = np.array([[1] * 6 + [2] * 4 + [0] * 3])
    return row, segments, first, second


def test_segments_give_what_their_inputs_give_alone():
    row, segments, first, second = packed_row()
    for positions in (None, np.array([[*range(2, 8), *range(2, 6), 1, 1, 1]])):
        together = encode(row, segment_ids=segments, position_ids=positions)
        assert_close(together[:, :6], encode(first))
        assert_close(together[:, 6:10], encode(second))


def test_no_gradient_crosses_segments():
    row, segments, _, _ = packed_row()
    table = make_params(TINY)["roberta"]["embeddings"]["word_embeddings"]["embedding"]

    def outputs(vectors):
        return encode(None, inputs_embeds=vectors, segment_ids=segments)

    jacobian = jax.jit(jax.jacrev(lambda v: outputs(v)[0].sum(-1)))(table[row])[:, 0]
    has_gradient = np.abs(jacobian).max(-1) > 0
    same_segment = (segments[0][:, None] == segments[0]) & (segments[0] != 0)
    np.testing.assert_array_equal(has_gradient[:10], same_segment[:10])


def test_segments_and_mask_together():
    """A query attends to a key only if both allow it."""
    row, segments, first, _ = packed_row()
    mask = np.ones_like(row)
    mask[0, 4:6] = 0
    together = encode(row, segment_ids=segments, attention_mask=mask)
    assert_close(together[:, :4], encode(first[:, :4]))


def test_head_mask_turns_heads_off():
    off = encode(IDS, head_mask=np.zeros(2, np.float32))
    assert_close(off, encode(IDS, head_mask=np.zeros((2, 2), np.float32)))
    assert np.abs(off - encode(IDS)).max() > 1e-3
    assert_close(encode(IDS, head_mask=np.ones(2, np.float32)), encode(IDS))
    # Without any head, the output at a token depends only on that token.
    other_ids = IDS.copy()
    other_ids[:, 5:] = 50
    other = encode(other_ids, head_mask=np.zeros(2, np.float32))
    assert_close(off[:, :5], other[:, :5])


# --- Positions


def test_positions_are_fairseqs():
    ids = jnp.array([[1, 1, 0, 5, 2], [0, 5, 6, 2, 1], [0, 1, 5, 1, 2]])
    expected = [[1, 1, 2, 3, 4], [2, 3, 4, 5, 1], [2, 1, 3, 1, 4]]
    np.testing.assert_array_equal(positions_from_ids(ids, 1), expected)


def test_positions_restart_in_each_segment():
    ids = jnp.array([[0, 5, 2, 0, 6, 7, 2, 1], [1, 0, 2, 0, 2, 0, 2, 1]])
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0], [0, 1, 1, 2, 2, 3, 3, 0]])
    expected = [[2, 3, 4, 2, 3, 4, 5, 1], [1, 2, 3, 2, 3, 2, 3, 1]]
    np.testing.assert_array_equal(positions_from_ids(ids, 1, segments), expected)
    one = jnp.ones_like(segments)
    np.testing.assert_array_equal(positions_from_ids(ids, 1, one), positions_from_ids(ids, 1))


def test_positions_of_input_vectors_count_from_the_first():
    table = make_params(TINY)["roberta"]["embeddings"]["word_embeddings"]["embedding"]
    ids = IDS[:1]  # without padding
    assert_close(encode(None, inputs_embeds=table[ids]), encode(ids))


# --- Errors


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "either input_ids or inputs_embeds"),
        ({"input_ids": IDS, "inputs_embeds": np.zeros((3, 14, 16))}, "not both"),
        ({"input_ids": IDS[0]}, r"input_ids has shape \(14,\).*\(batch, length\)"),
        ({"input_ids": np.ones((1, 39), int)}, "39 tokens.*positions for 38.*truncate"),
        ({"input_ids": IDS, "attention_mask": MASK[:, :5]}, "attention_mask has shape"),
        ({"input_ids": IDS, "segment_ids": MASK[:1]}, "segment_ids has shape"),
        ({"input_ids": IDS, "token_type_ids": MASK[:, 1:]}, "token_type_ids has shape"),
        ({"inputs_embeds": np.zeros((1, 2, 3))}, r"must be \(batch, length, 16\)"),
        ({"input_ids": IDS, "head_mask": np.ones(3)}, r"head_mask has shape \(3,\).*\(2, 2\)"),
        ({"input_ids": IDS, "masked_positions": POSITIONS[0]}, r"masked_positions.*\(3, K\)"),
        ({"input_ids": IDS + 97}, r"input_ids must lie in \[0, 97\)"),
        ({"input_ids": IDS, "token_type_ids": MASK}, r"token_type_ids must lie in \[0, 1\)"),
        ({"input_ids": IDS, "position_ids": IDS + 40}, r"position_ids must lie in \[0, 40\)"),
    ],
)
def test_invalid_inputs_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RobertaForMaskedLM(TINY).apply({"params": make_params(TINY)}, **kwargs)


def test_too_long_an_input_raises_under_jit():
    with pytest.raises(ValueError, match="positions for 38"):
        jax.eval_shape(lambda ids: encode(ids), jax.ShapeDtypeStruct((1, 39), jnp.int32))
    assert encode(np.full((1, 38), 5)).shape == (1, 38, 16)


def test_ids_out_of_range_give_nan_under_jit():
    """Under `jit` ids cannot be checked. They give NaN, not the vector of another word."""
    for wrong in (97, -1, -97):
        ids = IDS.copy()
        ids[0, 3] = wrong
        assert np.isnan(encode(ids)[0]).any(), wrong
    for name in ("token_type_ids", "position_ids"):
        ids = np.zeros_like(IDS)
        ids[0, 3] = -1
        assert np.isnan(encode(IDS, **{name: ids})[0]).any(), name


@pytest.mark.parametrize("wrong", [-1, -14, 14])
def test_masked_positions_out_of_range(wrong):
    positions = POSITIONS.copy()
    positions[0, 1] = wrong
    model, params = RobertaForMaskedLM(TINY), make_params(TINY)
    logits = apply(model, params, input_ids=IDS, masked_positions=positions).logits
    is_nan = np.isnan(logits).all(-1)
    assert is_nan[0, 1]
    assert is_nan.sum() == 1
    with pytest.raises(ValueError, match=r"masked_positions must lie in \[0, "):
        model.apply({"params": params}, IDS, masked_positions=positions)


# --- Initial weights


def test_initialisation():
    config = RobertaConfig.base(
        vocab_size=1000, hidden_size=96, num_hidden_layers=2, intermediate_size=256
    )
    ids = jnp.zeros((1, 2), jnp.int32)
    params = nn.unbox(jax.jit(RobertaForMaskedLM(config).init)(jax.random.key(0), ids))["params"]
    params = jax.device_get(params)
    for path, value in masked_lm.flatten(params, stacked=True).items():
        if path.endswith("bias"):
            assert not value.any(), path
        elif path.endswith("scale"):
            assert (value == 1).all(), path
        else:
            assert abs(value.std() - 0.02) < 0.02 * 4 / value.size**0.5, path
            assert abs(value.mean()) < 0.02 * 5 / value.size**0.5, path
            assert value.size < 1e4 or np.abs(value).max() > 0.06, f"{path}: truncated"
    embeddings = params["roberta"]["embeddings"]
    for name in ("word_embeddings", "position_embeddings"):
        table = embeddings[name]["embedding"]
        assert not table[1].any(), name
        assert table[0].any(), name
        assert table[2].any(), name
    assert embeddings["token_type_embeddings"]["embedding"].any()
    layers = params["roberta"]["encoder"]["layer"]["intermediate"]["dense"]["kernel"]
    assert np.abs(layers[0] - layers[1]).max() > 0.01


@pytest.mark.parametrize("stack", [True, False])
def test_names_and_shapes_are_hugging_faces(stack):
    boxed = jax.eval_shape(
        lambda: RobertaForMaskedLM(TINY, Execution(scan_layers=stack)).init(
            jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
        )
    )["params"]
    shapes = jax.tree.map(lambda x: x.shape, nn.unbox(boxed))
    assert shapes == jax.tree.map(np.shape, make_params(TINY, stack))


def test_every_parameter_has_logical_axes():
    boxed = jax.eval_shape(
        lambda: RobertaForMaskedLM(TINY).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    )["params"]
    known = {"layers", "vocab", "positions", "token_types", "embed", "embedding"}
    known |= {"heads", "mlp", "norm"}
    boxes = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    for box in boxes:
        assert isinstance(box, nn.LogicallyPartitioned)
        assert len(box.names) == box.value.ndim
        assert set(box.names) <= known
    layer = boxed["roberta"]["encoder"]["layer"]
    assert layer["attention"]["self"]["query"]["kernel"].names == ("layers", "embed", "heads")
    assert layer["attention"]["output"]["dense"]["kernel"].names == ("layers", "heads", "embed")
    assert layer["output"]["dense"]["kernel"].names == ("layers", "mlp", "embed")
