"""Logits, loss, gradients and the rest against Hugging Face's torch RobertaForMaskedLM, live."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM, RobertaModel
from roberta_jax.modeling.losses import masked_lm_loss
from tests.golden import masked_lm
from tests.golden.make_masked_lm import as_torch, logits_loss_and_gradients, torch_model
from tests.support.heads import assert_close
from tests.support.small_config import small_config

pytestmark = pytest.mark.parity

CASES = {
    "padded": (small_config(), 3, 24, True, True),
    "padding attended to": (small_config(), 3, 24, True, False),
    "full length, two types": (small_config(type_vocab_size=2), 2, 38, False, True),
    "one head, relu": (
        small_config(num_attention_heads=1, hidden_act="relu"),
        2,
        9,
        True,
        True,
    ),
    "eight heads, gelu_new": (
        small_config(num_attention_heads=8, hidden_act="gelu_new"),
        2,
        16,
        True,
        True,
    ),
    "silu, epsilon 1e-12": (
        small_config(hidden_act="silu", layer_norm_eps=1e-12),
        1,
        5,
        False,
        True,
    ),
    "512 tokens": (
        small_config(max_position_embeddings=514, num_hidden_layers=2, hidden_size=64),
        2,
        512,
        True,
        True,
    ),
    "base width, two layers": (
        RobertaConfig.base(
            num_hidden_layers=2,
            vocab_size=1000,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        2,
        40,
        True,
        True,
    ),
}


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@functools.lru_cache(maxsize=1)
def both_sides(case):
    """(logits, loss, gradients by path) of ours and of theirs."""
    config, batch, length, padded, masked = CASES[case]
    params = masked_lm.random_params(config, seed=1)
    ids, mask, labels = masked_lm.example_inputs(config, batch, length, seed=2, padded=padded)
    types = masked_lm.token_types(config, ids)
    model = RobertaForMaskedLM(config)

    @jax.jit
    def loss_and_grad(params):
        def loss(params):
            logits = model.apply({"params": params}, ids, mask if masked else None, types).logits
            total, count = masked_lm_loss(logits, np.maximum(labels, 0), labels >= 0)
            return total / count, logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, logits), grads = loss_and_grad(masked_lm.nest(params, stack=True))
    ours = logits, loss, masked_lm.flatten(grads, stacked=True)
    return ours, logits_loss_and_gradients(config, batch, length, padded, masked)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_loss(case):
    (logits, loss, _), (their_logits, their_loss, _) = both_sides(case)
    assert_close(logits, their_logits)
    assert_close(loss, their_loss)


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    (_, _, grads), (_, _, their_grads) = both_sides(case)
    assert grads.keys() == their_grads.keys()
    for path, grad in grads.items():
        assert_close(grad, their_grads[path], path)


def test_initial_model_to_the_last_digit():
    """From weights as training starts with them, whose logits are below 1: 1e-5, unscaled."""
    config = RobertaConfig.base(num_hidden_layers=4, hidden_size=256, num_attention_heads=4)
    config = config.replace(vocab_size=5000, intermediate_size=1024)
    boxed = RobertaForMaskedLM(config).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    params = jax.tree.map(lambda x: x.value, boxed["params"], is_leaf=lambda x: hasattr(x, "names"))
    ids, mask, _ = masked_lm.example_inputs(config, 4, 128, seed=0)
    model = torch_model(config, masked_lm.flatten(params, stacked=True))
    with torch.no_grad():
        theirs = model(as_torch(ids), as_torch(mask)).logits.numpy()
    ours = RobertaForMaskedLM(config).apply({"params": params}, ids, mask).logits
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_everything_else_an_input_can_have():
    """Hidden states, attentions, head masks, position ids and input vectors."""
    config = small_config()
    params = masked_lm.random_params(config, seed=4)
    ids, mask, _ = masked_lm.example_inputs(config, 2, 12, seed=5)
    rng = np.random.default_rng(6)
    head_mask = rng.random((config.num_hidden_layers, config.num_attention_heads))
    head_mask = head_mask.astype(np.float32)
    positions = rng.integers(0, config.max_position_embeddings, ids.shape)
    vectors = rng.standard_normal((*ids.shape, config.hidden_size)).astype(np.float32)
    encoder = torch_model(config, params).roberta
    variables = {"params": masked_lm.nest(params, stack=False)["roberta"]}
    model = RobertaModel(config, Execution(scan_layers=False))
    extras = {"output_hidden_states": True, "output_attentions": True}
    for kwargs, their_kwargs in (
        (
            {"input_ids": ids, "head_mask": head_mask},
            {"input_ids": as_torch(ids), "head_mask": torch.from_numpy(head_mask)},
        ),
        (
            {"input_ids": ids, "position_ids": positions},
            {"input_ids": as_torch(ids), "position_ids": as_torch(positions)},
        ),
        ({"inputs_embeds": vectors}, {"inputs_embeds": torch.from_numpy(vectors)}),
    ):
        ours = model.apply(variables, attention_mask=mask, **kwargs, **extras)
        with torch.no_grad():
            theirs = encoder(attention_mask=as_torch(mask), **their_kwargs, **extras)
        assert_close(ours.last_hidden_state, theirs.last_hidden_state)
        for name in ("hidden_states", "attentions"):
            assert len(getattr(ours, name)) == len(theirs[name])
            for our, their in zip(getattr(ours, name), theirs[name], strict=True):
                assert_close(our, their, name)


def test_pooler():
    config = small_config()
    theirs = transformers.RobertaModel(
        transformers.RobertaConfig(**config.to_dict()), add_pooling_layer=True
    ).eval()
    params = masked_lm.random_params(config, seed=1)
    state = {
        masked_lm.torch_name(path.removeprefix("roberta/")): torch.from_numpy(
            value.T.copy() if path.endswith("kernel") else value
        )
        for path, value in params.items()
        if path.startswith("roberta/")
    }
    assert set(theirs.load_state_dict(state, strict=False).missing_keys) == {
        "pooler.dense.weight",
        "pooler.dense.bias",
    }
    tree = masked_lm.nest(params, stack=True)["roberta"]
    dense = theirs.pooler.dense
    tree["pooler"] = {
        "dense": {"kernel": dense.weight.detach().numpy().T, "bias": dense.bias.detach().numpy()}
    }
    ids, mask, _ = masked_lm.example_inputs(config, 2, 12, seed=5)
    model = RobertaModel(config, add_pooling_layer=True)
    ours = model.apply({"params": tree}, ids, mask).pooler_output
    with torch.no_grad():
        assert_close(ours, theirs(as_torch(ids), as_torch(mask)).pooler_output)


@pytest.mark.parametrize("config", [RobertaConfig(), RobertaConfig.base(), RobertaConfig.large()])
def test_config_is_theirs(config):
    """Hugging Face reads our config.json as the same model, and we theirs."""
    theirs = transformers.RobertaConfig(**config.to_dict())
    for name, value in config.to_dict().items():
        assert getattr(theirs, name) == value, name
    assert RobertaConfig.from_dict(theirs.to_dict()) == config


def test_config_defaults_are_theirs():
    assert RobertaConfig.from_dict(transformers.RobertaConfig().to_dict()) == RobertaConfig()
