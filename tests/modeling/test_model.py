"""The model: golden values, ways to compute it that must agree, masks, positions, errors."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.kernels import attention
from roberta_jax.kernels.dropout import random_words
from roberta_jax.modeling import losses
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM, RobertaModel
from roberta_jax.modeling.inputs import positions_from_ids
from tests.golden import masked_lm

TINY = masked_lm.config(
    vocab_size=97, hidden_size=16, num_attention_heads=2, intermediate_size=24, num_hidden_layers=2
)
DROPPING = TINY.replace(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)


@functools.lru_cache
def params_of(config, stack=True, seed=0):
    return masked_lm.nest(masked_lm.random_params(config, seed), stack)


def encode(ids, config=TINY, **kwargs):
    params = params_of(config)["roberta"]
    return RobertaModel(config).apply({"params": params}, ids, **kwargs).last_hidden_state


def close(a, b, tolerance=1e-5):
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

    with jax.default_matmul_precision("highest"):
        (loss, logits), grads = loss_and_grad(params_of(config, seed=1))
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
            close(ours, theirs, 1e-5 * max(1.0, np.abs(theirs).max()))


# --- Ways to compute that must not matter

IDS, MASK, LABELS = masked_lm.example_inputs(TINY, 3, 14, seed=7)
POSITIONS = np.array([[1, 4, 0], [1, 2, 0], [1, 0, 0]])
TARGETS = {
    "masked_positions": POSITIONS,
    "masked_labels": np.array([[3, 96, 0], [5, 50, 0], [7, 0, 0]]),
    "masked_weights": np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0]], np.float32),
}


@functools.lru_cache
def value_and_grad(config, execution, method="loss", seed=0):
    """Loss and gradients (by path), with dropout if the config has it."""
    stack = execution.scan_layers
    model = RobertaForMaskedLM(config, execution)

    def loss(params):
        inputs = {"input_ids": IDS, "attention_mask": MASK, "deterministic": False}
        inputs["rngs"] = {"dropout": jax.random.key(seed)}
        if method == "loss":
            return model.apply({"params": params}, **inputs, **TARGETS, method="loss")[0]
        logits = model.apply({"params": params}, **inputs, masked_positions=POSITIONS).logits
        return losses.masked_lm_loss(logits, TARGETS["masked_labels"], TARGETS["masked_weights"])[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(params_of(config, stack))
    return value, masked_lm.flatten(grads, stacked=stack)


@pytest.mark.parametrize(
    "execution",
    [
        Execution(scan_layers=False),
        Execution(scan_layers=False, remat="none"),
        Execution(scan_unroll=2),
        Execution(remat="none"),
        Execution(remat="full"),
    ],
    ids=str,
)
def test_execution_does_not_matter(execution):
    value, grads = value_and_grad(TINY, execution)
    wanted, wanted_grads = value_and_grad(TINY, Execution())
    close(value, wanted)
    assert grads.keys() == wanted_grads.keys()
    for path, grad in grads.items():
        np.testing.assert_allclose(grad, wanted_grads[path], rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_remat_draws_the_same_dropout(remat):
    value, grads = value_and_grad(DROPPING, Execution(remat=remat))
    wanted, wanted_grads = value_and_grad(DROPPING, Execution())
    close(value, wanted)
    for path, grad in grads.items():
        np.testing.assert_allclose(grad, wanted_grads[path], rtol=1e-4, atol=1e-5, err_msg=path)
    assert abs(value - value_and_grad(DROPPING, Execution(), seed=1)[0]) > 1e-3
    assert abs(value - value_and_grad(TINY, Execution())[0]) > 1e-3


def test_loss_equals_that_of_the_logits():
    value, grads = value_and_grad(TINY, Execution())
    wanted, wanted_grads = value_and_grad(TINY, Execution(), method="logits")
    close(value, wanted)
    for path, grad in grads.items():
        np.testing.assert_allclose(grad, wanted_grads[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_gradient_is_the_slope():
    """Along the gradient's own direction, with dropout: forward and backward drop the same."""
    model = RobertaForMaskedLM(DROPPING)

    @jax.jit
    def loss(params):
        rngs = {"dropout": jax.random.key(0)}
        inputs = {"input_ids": IDS, "attention_mask": MASK, "deterministic": False}
        return model.apply({"params": params}, **inputs, **TARGETS, rngs=rngs, method="loss")[0]

    params = params_of(DROPPING)
    with jax.default_matmul_precision("highest"):
        grads = jax.grad(loss)(params)
        norm = float(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads))) ** 0.5
        step = 1e-2 / norm
        ahead, behind = (
            loss(jax.tree.map(lambda p, g, s=sign: p + s * step * g, params, grads))
            for sign in (1, -1)
        )
    np.testing.assert_allclose((ahead - behind) / (2 * step), norm**2, rtol=0.01)


def test_masked_positions_pick_from_all_logits():
    model, variables = RobertaForMaskedLM(TINY), {"params": params_of(TINY)}
    everywhere = model.apply(variables, IDS, MASK).logits
    assert everywhere.shape == (3, 14, 97)
    assert everywhere.dtype == jnp.float32
    there = model.apply(variables, IDS, MASK, masked_positions=POSITIONS).logits
    close(there, np.take_along_axis(everywhere, POSITIONS[..., None], axis=1))


def test_bfloat16_stays_near_float32():
    model = RobertaForMaskedLM(TINY, Execution(dtype=jnp.bfloat16))
    variables = {"params": params_of(TINY)}
    logits = model.apply(variables, IDS, MASK).logits
    assert logits.dtype == jnp.float32
    wanted = RobertaForMaskedLM(TINY).apply(variables, IDS, MASK).logits
    assert 0 < np.abs(logits - wanted).max() < 0.05 * np.abs(wanted).max()
    hidden = RobertaModel(TINY, Execution(dtype=jnp.bfloat16)).apply(
        {"params": params_of(TINY)["roberta"]}, IDS
    )
    assert hidden.last_hidden_state.dtype == jnp.bfloat16
    value, grads = value_and_grad(TINY, Execution(dtype=jnp.bfloat16))
    wanted, wanted_grads = value_and_grad(TINY, Execution())
    np.testing.assert_allclose(value, wanted, rtol=0.02)
    for path, grad in grads.items():
        assert grad.dtype == np.float32
        error = np.linalg.norm(grad - wanted_grads[path])
        assert error <= 0.1 * np.linalg.norm(wanted_grads[path]) + 1e-2, path


@pytest.mark.parametrize("stack", [True, False])
def test_hidden_states_and_attentions(stack):
    execution = Execution(scan_layers=stack)
    out = RobertaForMaskedLM(TINY, execution).apply(
        {"params": params_of(TINY, stack)},
        IDS,
        MASK,
        output_hidden_states=True,
        output_attentions=True,
    )
    assert [x.shape for x in out.hidden_states] == [(3, 14, 16)] * 3
    assert [x.shape for x in out.attentions] == [(3, 2, 14, 14)] * 2
    close(out.hidden_states[-1], encode(IDS, attention_mask=MASK))
    for probabilities in out.attentions:
        close(probabilities.sum(-1), 1)
        assert not np.any(np.where(MASK[:, None, None, :], 0, probabilities))
    without = RobertaForMaskedLM(TINY, execution).apply({"params": params_of(TINY, stack)}, IDS)
    assert without.hidden_states is None
    assert without.attentions is None


# --- Attention, masks, segments


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_gradient_is_autodiffs(rate, masked):
    q, k, v, weights = (jax.random.normal(jax.random.key(i), (2, 7, 3, 4)) for i in range(4))
    words = random_words(jax.random.key(9)) if rate else None
    bias = None
    if masked:  # with one query that sees no key
        mask = jax.random.bernoulli(jax.random.key(5), 0.6, (2, 1, 7, 7)).at[1, 0, 3].set(False)
        bias = attention.mask_to_bias(mask)

    def ours(q, k, v):
        return jnp.sum(attention.attend(q, k, v, bias, words, rate) * weights)

    def plain(q, k, v):
        probabilities = attention.attention_probabilities(q, k, bias, words, rate)
        return jnp.sum(jnp.einsum("bhqs,bshk->bqhk", probabilities, v) * weights)

    with jax.default_matmul_precision("highest"):
        found = jax.value_and_grad(ours, (0, 1, 2))(q, k, v)
        wanted = jax.value_and_grad(plain, (0, 1, 2))(q, k, v)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_attention_does_not_overflow():
    q = k = 100 * jnp.ones((1, 2, 1, 4))
    v = jnp.arange(8.0).reshape(1, 2, 1, 4)
    close(attention.attend(q, k, v, None, None, 0.0), jnp.broadcast_to(v.mean(1), (1, 2, 1, 4)))


def test_padding_changes_nothing():
    real = IDS[1:2, : MASK[1].sum()]
    close(encode(IDS[1:2], attention_mask=MASK[1:2])[:, : real.shape[1]], encode(real))


def test_without_a_mask_padding_is_attended_to():
    ones = np.ones_like(MASK)
    close(encode(IDS), encode(IDS, attention_mask=ones))
    assert np.abs(encode(IDS)[1, 0] - encode(IDS, attention_mask=MASK)[1, 0]).max() > 1e-3


def packed_row():
    """Two inputs and padding in one row; and the two alone."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(3, 97, (1, 6)), rng.integers(3, 97, (1, 4))
    row = np.concatenate([first, second, np.ones((1, 3), np.int64)], axis=1)
    segments = np.array([[1] * 6 + [2] * 4 + [0] * 3])
    return row, segments, first, second


def test_segments_are_inputs_of_their_own():
    row, segments, first, second = packed_row()
    for positions in (None, np.array([[*range(2, 8), *range(2, 6), 1, 1, 1]])):
        together = encode(row, segment_ids=segments, position_ids=positions)
        close(together[:, :6], encode(first))
        close(together[:, 6:10], encode(second))


def test_no_gradient_crosses_segments():
    row, segments, _, _ = packed_row()
    model, params = RobertaModel(TINY), params_of(TINY)["roberta"]
    table = params["embeddings"]["word_embeddings"]["embedding"]

    def outputs(vectors):
        kwargs = {"inputs_embeds": vectors, "segment_ids": segments}
        return model.apply({"params": params}, **kwargs).last_hidden_state

    jacobian = jax.jit(jax.jacrev(lambda v: outputs(v)[0].sum(-1)))(table[row])[:, 0]
    reaches = np.abs(jacobian).max(-1) > 0
    same = (segments[0][:, None] == segments[0]) & (segments[0] != 0)
    np.testing.assert_array_equal(reaches[:10], same[:10])


def test_segments_and_mask_together():
    """A key is seen where both allow it."""
    row, segments, first, _ = packed_row()
    mask = np.ones_like(row)
    mask[0, 4:6] = 0
    together = encode(row, segment_ids=segments, attention_mask=mask)
    close(together[:, :4], encode(first[:, :4]))


def test_head_mask_switches_heads_off():
    params = params_of(TINY)["roberta"]
    off = encode(IDS, head_mask=jnp.zeros(2))
    close(off, encode(IDS, head_mask=jnp.zeros((2, 2))))
    assert np.abs(off - encode(IDS)).max() > 1e-3
    close(encode(IDS, head_mask=jnp.ones(2)), encode(IDS))
    # Without any head a token's result depends on itself alone.
    other = IDS.copy()
    other[:, 5:] = 50
    alone = RobertaModel(TINY).apply({"params": params}, other, head_mask=jnp.zeros(2))
    close(off[:, :5], alone.last_hidden_state[:, :5])


# --- Positions


def test_positions_after_fairseq():
    ids = jnp.array([[1, 1, 0, 5, 2], [0, 5, 6, 2, 1], [0, 1, 5, 1, 2]])
    wanted = [[1, 1, 2, 3, 4], [2, 3, 4, 5, 1], [2, 1, 3, 1, 4]]
    np.testing.assert_array_equal(positions_from_ids(ids, 1), wanted)


def test_positions_start_again_in_each_segment():
    ids = jnp.array([[0, 5, 2, 0, 6, 7, 2, 1], [1, 0, 2, 0, 2, 0, 2, 1]])
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0], [0, 1, 1, 2, 2, 3, 3, 0]])
    wanted = [[2, 3, 4, 2, 3, 4, 5, 1], [1, 2, 3, 2, 3, 2, 3, 1]]
    np.testing.assert_array_equal(positions_from_ids(ids, 1, segments), wanted)
    one = jnp.ones_like(segments)
    np.testing.assert_array_equal(positions_from_ids(ids, 1, one), positions_from_ids(ids, 1))


def test_input_vectors_run_from_the_first_real_position():
    table = params_of(TINY)["roberta"]["embeddings"]["word_embeddings"]["embedding"]
    ids = IDS[:1]  # without padding
    close(encode(None, inputs_embeds=table[ids]), encode(ids))


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
def test_wrong_inputs_are_told(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RobertaForMaskedLM(TINY).apply({"params": params_of(TINY)}, **kwargs)


def test_too_long_an_input_is_told_while_tracing():
    with pytest.raises(ValueError, match="positions for 38"):
        jax.eval_shape(lambda ids: encode(ids), jax.ShapeDtypeStruct((1, 39), jnp.int32))
    assert encode(np.full((1, 38), 5)).shape == (1, 38, 16)


def test_ids_out_of_range_show_inside_jit():
    """Where ids cannot be looked at, they give NaN and not some other word's numbers."""
    ids = IDS.copy()
    ids[0, 3] = 97
    assert np.isnan(jax.jit(encode)(ids)[0]).any()


# --- Initial weights


def test_initialisation():
    config = RobertaConfig.base(
        vocab_size=1000, hidden_size=96, num_hidden_layers=2, intermediate_size=256
    )
    ids = jnp.zeros((1, 2), jnp.int32)
    params = nn.unbox(RobertaForMaskedLM(config).init(jax.random.key(0), ids))["params"]
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
    wanted = jax.tree.map(np.shape, params_of(TINY, stack), is_leaf=lambda x: hasattr(x, "shape"))
    found = jax.tree.map(lambda x: x.shape, nn.unbox(boxed))
    assert found == wanted


def test_every_parameter_names_its_axes():
    boxed = jax.eval_shape(
        lambda: RobertaForMaskedLM(TINY).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    )["params"]
    known = {"layers", "vocab", "positions", "token_types", "embed", "heads", "mlp", "norm"}
    boxes = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    for box in boxes:
        assert isinstance(box, nn.LogicallyPartitioned)
        assert len(box.names) == box.value.ndim
        assert set(box.names) <= known
    layer = boxed["roberta"]["encoder"]["layer"]
    assert layer["attention"]["self"]["query"]["kernel"].names == ("layers", "embed", "heads")
    assert layer["attention"]["output"]["dense"]["kernel"].names == ("layers", "heads", "embed")
    assert layer["output"]["dense"]["kernel"].names == ("layers", "mlp", "embed")
