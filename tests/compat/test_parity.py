"""The drop-in classes against transformers' own Flax classes: calls, generation and files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import roberta_jax
from roberta_jax.compat import outputs
from tests.support.flax_classes import CAUSAL_LM, CLASSIFIER, ENCODER, MASKED_LM, NAMES
from tests.support.flax_parity import (
    EMBEDDING_TABLES,
    MARKS,
    assert_close,
    config_of,
    initial_pair,
    inputs_of,
    new_pair,
    pair,
    torch,
    transformers,
)

pytestmark = MARKS

# Calls


@pytest.mark.parametrize("name", NAMES)
def test_outputs(name):
    ours, theirs = pair(name)
    inputs = inputs_of(name) | {"head_mask": np.array([[1, 0, 1, 1], [0, 1, 1, 1]])}
    for hidden in (False, True):
        for attentions in (False, True):
            flags = {"output_hidden_states": hidden, "output_attentions": attentions}
            if name not in (ENCODER, CAUSAL_LM) and hidden != attentions:
                continue
            actual, expected = ours(**inputs, **flags), theirs(**inputs, **flags)
            assert list(actual.keys()) == list(expected.keys())
            assert len(actual) == len(expected)
            assert_close(actual.to_tuple(), expected.to_tuple())
    flags["return_dict"] = False
    assert_close(ours(**inputs, **flags), theirs(**inputs, **flags))


@pytest.mark.parametrize("name", NAMES)
def test_defaults_of_the_call(name):
    ours, theirs = pair(name)
    ids = inputs_of(name)["input_ids"]  # with padding and without a mask
    assert_close(ours(ids).to_tuple(), theirs(ids).to_tuple())
    positions = np.broadcast_to(np.arange(ids.shape[-1]), ids.shape)
    assert_close(
        ours(ids, position_ids=positions).to_tuple(), theirs(ids, position_ids=positions).to_tuple()
    )


@pytest.mark.parametrize("name", NAMES)
def test_initial_parameters(name):
    """They have the same values, except where test_parity_differences.py says otherwise."""
    ours, theirs = initial_pair(name, seed=5)
    assert jax.tree.map(jnp.shape, ours.params) == jax.tree.map(jnp.shape, theirs.params)
    assert ours.required_params == theirs.required_params
    actual, expected = flatten_dict(ours.params), flatten_dict(theirs.params)
    different = {p for p in expected if not np.allclose(actual[p], expected[p], atol=1e-6)}
    assert {path[-2] for path in different} <= {*EMBEDDING_TABLES, "classifier", "qa_outputs"}
    for path in different:
        if path[-2] in EMBEDDING_TABLES:
            rows = np.arange(expected[path].shape[0]) != 1  # all but the padding's
            np.testing.assert_allclose(actual[path][rows], expected[path][rows], atol=1e-6)


def test_their_config_is_the_models_config():
    config = config_of(CLASSIFIER, output_hidden_states=True)
    ours, theirs = initial_pair(CLASSIFIER, config)
    assert ours.config is config
    inputs = inputs_of(CLASSIFIER)
    assert list(ours(**inputs)) == list(theirs(**inputs))
    config.output_hidden_states, config.return_dict = False, False
    assert len(ours(**inputs)) == len(theirs(**inputs)) == 1


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"is_decoder": True, "num_labels": 3, "mine": 1, "dtype": "float16"},
        {"pad_token_id": None, "eos_token_id": [2], "max_length": 50},
        {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": "regression"},
    ],
)
def test_configs(values, tmp_path):
    ours, theirs = (home.RobertaConfig(**values) for home in (roberta_jax, transformers))
    expected = theirs.to_diff_dict()
    del expected["transformers_version"]
    assert ours.to_diff_dict() == expected
    missing = {"transformers_version", "_name_or_path", "tf_legacy_loss", "use_bfloat16"}
    expected = {name: v for name, v in theirs.to_dict().items() if name not in missing}
    assert ours.to_dict() == expected
    assert ours.num_labels == theirs.num_labels
    for saved, home in ((ours, transformers), (theirs, roberta_jax)):
        saved.save_pretrained(tmp_path)
        loaded = home.RobertaConfig.from_pretrained(tmp_path)
        assert {name: loaded.to_dict()[name] for name in expected} == expected


def test_fields_of_the_outputs():
    for ours, theirs in {
        "FlaxModelOutput": "FlaxBaseModelOutputWithPoolingAndCrossAttentions",
        "FlaxCausalLMOutput": "FlaxCausalLMOutputWithCrossAttentions",
        "FlaxLogitsOutput": "FlaxMaskedLMOutput",
        "FlaxQuestionAnsweringOutput": "FlaxQuestionAnsweringModelOutput",
    }.items():
        expected = getattr(transformers.modeling_flax_outputs, theirs).__dataclass_fields__
        assert list(getattr(outputs, ours).__dataclass_fields__) == list(expected)


def test_cross_attention_with_a_cache():
    ours, theirs = pair(CAUSAL_LM, add_cross_attention=True)
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 60, (2, 5))
    inputs = {
        "encoder_hidden_states": jnp.asarray(rng.normal(size=(2, 6, 32)), jnp.float32),
        "encoder_attention_mask": jnp.asarray([[1] * 6, [1] * 3 + [0] * 3]),
        "output_attentions": True,
        "attention_mask": np.ones((2, 9), np.int32),
    }
    steps = [(ids[:, :4], np.arange(2, 6)[None].repeat(2, 0)), (ids[:, 4:], np.full((2, 1), 6))]
    for return_dict in (True, False):
        caches = [model.init_cache(2, 9) for model in (ours, theirs)]
        assert jax.tree.map(jnp.shape, caches[0]) == jax.tree.map(jnp.shape, caches[1])
        for tokens, positions in steps:
            actual, expected = (
                model(
                    tokens,
                    position_ids=positions,
                    past_key_values=cache,
                    return_dict=return_dict,
                    **inputs,
                )
                for model, cache in zip((ours, theirs), caches, strict=True)
            )
            if return_dict:
                assert set(actual.keys()) == set(expected.keys())
                caches = [actual.past_key_values, expected.past_key_values]
                actual, expected = dict(actual), {key: expected[key] for key in actual}
            else:
                caches = [actual[1], expected[1]]
            assert_close(actual, expected)


@pytest.mark.parametrize("masked", [False, True])
def test_greedy_generation(masked):
    """With zero position embeddings, since transformers' positions are wrong."""
    ours, theirs = new_pair(CAUSAL_LM, add_cross_attention=True)
    params = flatten_dict(ours.params)
    path = ("roberta", "embeddings", "position_embeddings", "embedding")
    params[path] = jnp.zeros_like(params[path])
    ours.params = theirs.params = unflatten_dict(params)
    ids = np.random.default_rng(0).integers(4, 60, (3, 6))
    mask = {}
    if masked:
        ids[0, :2] = 1
        mask["attention_mask"] = jnp.asarray(ids != 1, jnp.int32)
    for options in (
        {"max_length": 15},
        {"max_new_tokens": 9, "eos_token_id": int(ids[0, -1])},
        {"max_length": 15, "min_length": 10},
        {"generation_config": transformers.GenerationConfig(max_length=13, pad_token_id=3)},
    ):
        actual, expected = (
            model.generate(jnp.asarray(ids), **mask, **options).sequences
            for model in (ours, theirs)
        )
        assert actual.tolist() == expected.tolist()


# Files


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_each_loads_what_the_other_saved(name, safe, tmp_path):
    ours, theirs = pair(name)
    ours.save_pretrained(tmp_path / "ours", safe_serialization=safe)
    theirs.save_pretrained(tmp_path / "theirs", safe_serialization=safe)
    for source, cls in (
        ("ours", getattr(transformers, name)),
        ("theirs", getattr(roberta_jax, name)),
    ):
        loaded = cls.from_pretrained(tmp_path / source)
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, ours.params))
        assert loaded.config.num_labels == ours.config.num_labels
    configs = [
        json.loads((tmp_path / source / "config.json").read_text()) for source in ("ours", "theirs")
    ]
    for config in configs:
        config.pop("transformers_version")
    assert configs[0] == configs[1]
    if safe:  # the PyTorch class loads ours, with nothing missing or left over
        cls = getattr(transformers, name.removeprefix("Flax"))
        _, loading_info = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not any(loading_info.values())


@pytest.mark.parametrize("safe", [False, True])
def test_loads_what_torch_saved(safe, tmp_path):
    theirs = transformers.RobertaForSequenceClassification(config_of(CLASSIFIER)).eval()
    theirs.save_pretrained(tmp_path, safe_serialization=safe)
    ours = roberta_jax.FlaxRobertaForSequenceClassification.from_pretrained(tmp_path, from_pt=True)
    inputs = inputs_of(CLASSIFIER)
    with torch.no_grad():
        expected = theirs(**{name: torch.as_tensor(value) for name, value in inputs.items()})
    assert_close([ours(**inputs).logits], [expected.logits.numpy()])


def test_each_loads_the_shards_of_the_other(tmp_path):
    ours, theirs = pair(MASKED_LM)
    for source, model in (("ours", ours), ("theirs", theirs)):
        model.save_pretrained(tmp_path / source, max_shard_size="10KB")
        assert (tmp_path / source / "flax_model.msgpack.index.json").exists()
        for home in (roberta_jax, transformers):
            loaded = getattr(home, MASKED_LM).from_pretrained(tmp_path / source)
            assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, ours.params))
