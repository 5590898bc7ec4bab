"""The public RobertaConfig: what transformers' class of that name promises."""

import copy
import json
import pickle

import jax.numpy as jnp
import pytest

import roberta_jax
from roberta_jax.errors import NotFoundError, UsageError
from roberta_jax.modeling import config as architecture
from tests.support import heads

SMALL = heads.SMALL.to_dict() | {"num_hidden_layers": 1}


def test_defaults_are_the_frozen_configs():
    config = roberta_jax.RobertaConfig()
    assert architecture.RobertaConfig.from_config(config) == architecture.RobertaConfig()
    for size in ("base", "large"):
        expected = getattr(architecture.RobertaConfig, size)()
        config = getattr(roberta_jax.RobertaConfig, size)()
        assert architecture.RobertaConfig.from_config(config) == expected
        assert config.head_size == expected.head_size
        assert config.classifier_dropout_prob == expected.classifier_dropout_prob
    assert roberta_jax.RobertaConfig.base(num_labels=5).num_labels == 5
    assert roberta_jax.FlaxRobertaConfig is roberta_jax.RobertaConfig


def test_positional_arguments():
    config = roberta_jax.RobertaConfig(99, 32, 5, 4, 37)
    values = (config.vocab_size, config.hidden_size, config.num_hidden_layers)
    assert (*values, config.num_attention_heads, config.intermediate_size) == (99, 32, 5, 4, 37)
    with pytest.raises(TypeError, match="two values for vocab_size"):
        roberta_jax.RobertaConfig(99, vocab_size=99)
    with pytest.raises(TypeError, match="at most 18 positional"):
        roberta_jax.RobertaConfig(*range(19))


@pytest.mark.parametrize("name", heads.MODEL_CLASSES)
def test_models_take_any_config(name):
    """The functional classes store the frozen config; drop-in classes keep the given one."""
    special = {"pad_token_id": None, "eos_token_id": [2, 5]}
    config = roberta_jax.RobertaConfig(**(SMALL | special), mine=3)
    expected = architecture.RobertaConfig.from_dict(SMALL)
    module = getattr(roberta_jax, name)(config)
    assert module.config == expected
    assert module == getattr(roberta_jax, name)(expected)
    hash(module)
    model = getattr(roberta_jax, f"Flax{name}")(config, _do_init=False)
    assert model.config is config
    assert model.module.config == expected
    with pytest.raises(TypeError, match="config must be a RobertaConfig"):
        getattr(roberta_jax, name)(None)


def test_fields_are_checked_when_a_model_is_created():
    config = roberta_jax.RobertaConfig(hidden_size=37)
    assert config.hidden_size == 37
    for cls in (roberta_jax.RobertaModel, roberta_jax.FlaxRobertaModel):
        with pytest.raises(ValueError, match="hidden_size 37 does not divide into 12"):
            cls(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "'bert' model, not a RoBERTa"),
        ({"problem_type": "ranking"}, "unknown problem_type 'ranking'; known: regression"),
        ({"id2label": ["a"]}, "id2label must be a dictionary"),
        ({"label2id": "a"}, "label2id must be a dictionary"),
        ({"num_labels": 10**12}, "num_labels must be a number of at most"),
        ({"num_labels": "3"}, "num_labels must be a number of at most"),
    ],
)
def test_values_that_no_config_can_hold(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        roberta_jax.RobertaConfig(**values)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match=rf"cannot use .*{tmp_path.name}: .*{message}"):
        roberta_jax.RobertaConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["save_pretrained", "use_return_dict", "head_size", "replace"])
def test_fields_of_files_do_not_replace_methods(name, tmp_path, caplog):
    (tmp_path / "config.json").write_text(json.dumps({name: "text"}))
    config = roberta_jax.RobertaConfig.from_pretrained(tmp_path)
    assert f"{name} is ignored" in caplog.text
    assert getattr(config, name) != "text"
    assert name not in config.to_dict()


def test_labels():
    config = roberta_jax.RobertaConfig(num_labels=3)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    config.num_labels = 3
    config.id2label = {0: "a", 1: "b"}
    assert config.num_labels == 2
    config.num_labels = 2
    assert config.id2label == {0: "a", 1: "b"}  # the number is the same
    config.num_labels = 1
    assert (config.id2label, config.label2id) == ({0: "LABEL_0"}, {"LABEL_0": 0})
    config = roberta_jax.RobertaConfig(id2label={"0": "no", "1": "yes"})
    assert (config.id2label, config.label2id) == ({0: "no", 1: "yes"}, {"no": 0, "yes": 1})
    with pytest.raises(ValueError, match="num_labels is 3, but id2label names 2"):
        roberta_jax.RobertaConfig.from_dict({}, num_labels=3, id2label={0: "a", 1: "b"})


def test_unknown_fields_are_kept(tmp_path):
    config = roberta_jax.RobertaConfig(**SMALL, mine={"a": [1, 2]}, max_length=50, dtype="float16")
    assert config.torch_dtype == config.dtype == "float16"
    config.later = "x"
    config.save_pretrained(tmp_path)
    loaded = roberta_jax.RobertaConfig.from_pretrained(tmp_path)
    assert loaded == config
    assert (loaded.mine, loaded.later, loaded.max_length) == ({"a": [1, 2]}, "x", 50)
    assert loaded.name_or_path == str(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded != roberta_jax.RobertaConfig()
    assert roberta_jax.RobertaConfig.from_json_file(tmp_path / "config.json") == config


def test_none_and_lists_of_special_tokens_survive(tmp_path):
    config = roberta_jax.RobertaConfig(pad_token_id=None, eos_token_id=[2, 3], bos_token_id=None)
    config.save_pretrained(tmp_path)
    loaded = roberta_jax.RobertaConfig.from_pretrained(tmp_path)
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.bos_token_id) == (None, [2, 3], None)


def test_dictionaries_and_json():
    config = roberta_jax.RobertaConfig(is_decoder=True, mine=1, dtype=jnp.bfloat16)
    values, diff = config.to_dict(), config.to_diff_dict()
    assert diff.items() <= values.items()
    assert (values["top_k"], values["output_attentions"], values["mine"]) == (50, False, 1)
    assert (diff["is_decoder"], diff["mine"], diff["dtype"]) == (True, 1, "bfloat16")
    assert not {"top_k", "output_attentions", "id2label", "tie_word_embeddings"} & set(diff)
    assert json.loads(config.to_json_string()) == diff
    assert json.loads(config.to_json_string(use_diff=False)).keys() == values.keys()
    assert repr(config) == f"RobertaConfig {config.to_json_string()}"
    values["id2label"][0] = "changed"
    assert config.id2label[0] == "LABEL_0"
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config
    assert roberta_jax.RobertaConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_updates():
    config = roberta_jax.RobertaConfig(num_labels=2)
    config.update({"hidden_size": 64, "mine": 1})
    config.update_from_string("is_decoder=true,layer_norm_eps=1e-5,hidden_act=relu,vocab_size=7")
    assert (config.hidden_size, config.mine, config.is_decoder) == (64, 1, True)
    assert (config.layer_norm_eps, config.hidden_act, config.vocab_size) == (1e-5, "relu", 7)
    changed = config.replace(num_labels=5)
    assert (changed.num_labels, config.num_labels) == (5, 2)
    for text, error in {
        "hidden_sise=3": ValueError,
        "hidden_size": ValueError,
        "hidden_size=x": ValueError,
        "is_decoder=maybe": ValueError,
        "id2label=x": TypeError,
    }.items():
        with pytest.raises(error):
            config.update_from_string(text)


def test_keywords_that_are_no_attributes(caplog):
    changes = {"hidden_size": 64, "my_option": 3}
    config, unused = roberta_jax.RobertaConfig.from_dict(
        {}, **changes, return_unused_kwargs=True, trust_remote_code=True
    )
    assert (config.hidden_size, unused) == (64, {"my_option": 3})
    assert not caplog.records
    config = roberta_jax.RobertaConfig.from_dict({}, **changes)
    assert not hasattr(config, "my_option")
    assert "RobertaConfig has no my_option: ignored" in caplog.text


def test_missing_files_are_os_errors(tmp_path):
    for path in (tmp_path, tmp_path / "missing", f".{tmp_path}"):
        with pytest.raises(OSError, match=r"no .*config\.json") as info:
            roberta_jax.RobertaConfig.from_pretrained(path)
        assert isinstance(info.value, NotFoundError)
        assert isinstance(info.value, UsageError)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UsageError, match="is not a model's config"):
        roberta_jax.RobertaConfig.from_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        roberta_jax.RobertaConfig().save_pretrained(tmp_path / "config.json")


def test_places_that_hold_a_config(tmp_path):
    config = roberta_jax.RobertaConfig(hidden_size=48)
    config.save_pretrained(tmp_path / "inner")
    config.save_pretrained(tmp_path / "run" / "hf")
    (tmp_path / "run" / "config.json").write_text('{"train": {}}')  # a training config
    load = roberta_jax.RobertaConfig.from_pretrained
    assert load(tmp_path, subfolder="inner") == config
    assert load(str(tmp_path / "inner" / "config.json")) == config
    assert load(tmp_path / "run") == config


def test_other_model_types(tmp_path):
    xlm = roberta_jax.XLMRobertaConfig(hidden_size=48)
    assert (xlm.model_type, xlm.vocab_size) == ("xlm-roberta", 30522)
    assert roberta_jax.CamembertConfig().model_type == "camembert"
    xlm.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "xlm-roberta"
    loaded = roberta_jax.AutoConfig.from_pretrained(tmp_path, num_labels=3, use_auth_token=None)
    assert type(loaded) is roberta_jax.XLMRobertaConfig
    assert (loaded.hidden_size, loaded.num_labels) == (48, 3)
    for name, config_class in roberta_jax.CONFIG_MAPPING.items():
        assert type(roberta_jax.AutoConfig.for_model(name, hidden_size=24)) is config_class
    with pytest.raises(ValueError, match="'bert' model"):
        roberta_jax.AutoConfig.for_model("bert")
    with pytest.raises(TypeError, match="AutoConfig.from_pretrained"):
        roberta_jax.AutoConfig()
