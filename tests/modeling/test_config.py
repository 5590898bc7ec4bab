"""The fields of RobertaConfig and Execution, their checks, and config files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from roberta_jax.modeling.activations import ACTIVATIONS
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM, RobertaModel


def count_parameters(model) -> int:
    ids = jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), ids))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("config", "scan_layers", "masked_lm", "encoder", "with_pooler"),
    [
        (RobertaConfig.base(), True, 124_697_433, 124_055_040, 124_645_632),
        (RobertaConfig.base(), False, 124_697_433, 124_055_040, 124_645_632),
        (RobertaConfig.large(), True, 355_412_057, 354_310_144, 355_359_744),
    ],
    ids=["base, stacked", "base, unstacked", "large, stacked"],
)
def test_parameter_counts_are_the_released_models(
    config, scan_layers, masked_lm, encoder, with_pooler
):
    execution = Execution(scan_layers=scan_layers)
    assert count_parameters(RobertaForMaskedLM(config, execution)) == masked_lm
    assert count_parameters(RobertaModel(config, execution)) == encoder
    assert count_parameters(RobertaModel(config, execution, add_pooling_layer=True)) == with_pooler


def test_defaults_are_those_of_hugging_faces_config():
    config = RobertaConfig()
    assert (config.max_position_embeddings, config.type_vocab_size) == (512, 2)
    assert config.layer_norm_eps == 1e-12
    base = RobertaConfig.base()
    assert (base.max_position_embeddings, base.type_vocab_size) == (514, 1)
    assert base.layer_norm_eps == 1e-5
    assert base.max_length == 512


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", 100, "multiple of num_attention_heads"),
        ("num_attention_heads", 0, "positive integer"),
        ("num_hidden_layers", 1.5, "positive integer"),
        ("vocab_size", True, "positive integer"),
        ("hidden_act", "geglu", "known: gelu, gelu_10"),
        ("hidden_dropout_prob", 1.0, "below 1"),
        ("attention_probs_dropout_prob", -0.1, "at least 0"),
        ("layer_norm_eps", 0.0, "positive"),
        ("initializer_range", -1.0, "negative"),
        ("initializer_range", float("nan"), "finite number, not nan"),
        ("initializer_range", float("inf"), "finite number, not inf"),
        ("initializer_range", "small", "'small'"),
        ("layer_norm_eps", float("nan"), "finite number, not nan"),
        ("layer_norm_eps", float("inf"), "finite number, not inf"),
        ("layer_norm_eps", "1e-5", "'1e-5'"),
        ("hidden_dropout_prob", float("nan"), "finite number, not nan"),
        ("hidden_dropout_prob", 1.0, "below 1, not 1.0"),
        ("attention_probs_dropout_prob", "high", "finite number, not 'high'"),
        ("classifier_dropout", True, "finite number, not True"),
        ("vocab_size", 0, "positive integer"),
        ("hidden_size", 0.5, "positive integer"),
        ("pad_token_id", 50265, "below vocab_size"),
        ("eos_token_id", -1, "below vocab_size"),
        ("max_position_embeddings", 2, "use at least 3"),
        ("position_embedding_type", "rotary", "known: absolute, relative_key"),
        ("problem_type", "ranking", "known: regression, single_label_classification"),
        ("classifier_dropout", 1.5, "below 1"),
        ("num_labels", 0, "positive integer"),
        ("add_cross_attention", True, "needs is_decoder=True"),
    ],
)
def test_invalid_values_raise(field, value, message):
    with pytest.raises(ValueError, match=message):
        RobertaConfig(**{field: value})
    with pytest.raises(ValueError, match=message):
        RobertaConfig.from_dict({field: value})


def test_round_trip_through_json(tmp_path):
    config = RobertaConfig.large(vocab_size=60000, classifier_dropout=0.3, hidden_act="relu")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert RobertaConfig.from_json_file(path) == config
    assert json.loads(path.read_text())["architectures"] == ["RobertaForMaskedLM"]


def test_reads_published_config_files():
    """The config of roberta-base: unknown keys are ignored, missing ones take their defaults."""
    published = {
        "architectures": ["RobertaForMaskedLM"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514,
        "model_type": "roberta",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "type_vocab_size": 1,
        "vocab_size": 50265,
        "transformers_version": "4.57.6",
    }
    assert RobertaConfig.from_dict(published) == RobertaConfig.base()


def test_other_architectures_and_files_raise(tmp_path):
    with pytest.raises(ValueError, match="'bert' model, not a RoBERTa"):
        RobertaConfig.from_dict({"model_type": "bert"})
    with pytest.raises(FileNotFoundError):
        RobertaConfig.from_json_file(tmp_path / "config.json")
    for text, message in (("{", "not valid JSON"), ("[]", "contains no JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            RobertaConfig.from_json_file(tmp_path / "config.json")


def test_labels_are_named_and_counted():
    config = RobertaConfig(num_labels=3)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert config.label2id["LABEL_2"] == 2
    named = RobertaConfig.from_dict({"id2label": {"0": "no", "1": "so", "2": "yes"}})
    assert (named.num_labels, named.label2id) == (3, {"no": 0, "so": 1, "yes": 2})
    assert RobertaConfig.from_dict(json.loads(json.dumps(named.to_dict()))) == named
    assert named.replace(num_labels=2) == RobertaConfig()
    assert named.replace(hidden_size=24).id2label == named.id2label
    with pytest.raises(ValueError, match="num_labels is 3, but id2label names 1"):
        RobertaConfig(num_labels=3, id2label={0: "no"})


def test_configs_compare_by_value_and_are_frozen():
    assert RobertaConfig.base().replace(hidden_size=24) == RobertaConfig.base(hidden_size=24)
    assert hash(RobertaConfig.base()) == hash(RobertaConfig.base())
    with pytest.raises(dataclasses.FrozenInstanceError):
        RobertaConfig().hidden_size = 3


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_computes(name):
    assert RobertaConfig(hidden_act=name).hidden_act == name
    values = ACTIVATIONS[name](jnp.array([-20.0, -1.0, 0.5, 20.0], jnp.bfloat16))
    assert values.dtype == jnp.bfloat16
    assert jnp.isfinite(values).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", jnp.int32, "floating-point"),
        ("scan_unroll", 0, "at least 1"),
        ("remat", "some", "known: dots, full, none"),
        ("attention", "flash", "known: auto, .*reference, xla"),
    ],
)
def test_invalid_execution_raises(field, value, message):
    with pytest.raises(ValueError, match=message):
        Execution(**{field: value})


def test_special_tokens_of_a_file_may_be_none_or_lists():
    values = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": [7, 9]}
    config = RobertaConfig.from_dict(values)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (1, 0, 7)
    for wrong in ([], ["a"], "2", -1):
        with pytest.raises(ValueError, match="eos_token_id must be an"):
            RobertaConfig.from_dict({"eos_token_id": wrong})


def test_models_store_the_frozen_config_of_any_other():
    class OtherConfig:
        def to_dict(self):
            return RobertaConfig(num_hidden_layers=2).to_dict() | {"unknown": 1}

    expected = RobertaConfig(num_hidden_layers=2)
    for cls in (RobertaModel, RobertaForMaskedLM):
        model = cls(OtherConfig())
        assert model.config == expected
        assert (model, hash(model)) == (cls(expected), hash(cls(expected)))
        assert cls(expected).config is expected
    with pytest.raises(TypeError, match="config must be a RobertaConfig"):
        RobertaModel({"num_hidden_layers": 2})


SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
WRONG = {
    **{name: (10**12, 0, -1, 2.0, "2", True, None, [2], float("nan")) for name in SIZES},
    "num_labels": (10**9, 0, 2.0, "2", True, [2]),
    **{
        name: ("0.1", -1, float("nan"), float("inf"), True, [0.1])
        for name in (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "classifier_dropout",
            "layer_norm_eps",
            "initializer_range",
        )
    },
    **{
        name: ("1", -1, 10**12, 1.0, True, {})
        for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    },
    **{
        name: (1, "x" * 10**6, [], {})
        for name in ("hidden_act", "position_embedding_type", "problem_type")
    },
    **{
        name: (1, "true", None, [])
        for name in ("use_cache", "is_decoder", "add_cross_attention", "tie_word_embeddings")
    },
    "id2label": ([], "x", {"a": "b"}, {"0": ["x"]}),
    "label2id": ([], "x", 1),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_value_of_a_file_is_named_in_one_short_message(name):
    values = RobertaConfig.base().to_dict()
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=name) as error:
            RobertaConfig.from_dict(values | {name: value})
        assert len(str(error.value)) < 300


def test_a_file_that_is_not_a_config_is_one_message(tmp_path):
    for contents in (b"[" * 10**5, b"", b"\xff", b"9" * 5000, b"[1]", b"NaN"):
        (tmp_path / "config.json").write_bytes(contents)
        with pytest.raises(ValueError, match=r"config\.json"):
            RobertaConfig.from_json_file(tmp_path / "config.json")
    with pytest.raises(ValueError, match="is not a file"):
        RobertaConfig.from_json_file(tmp_path)
