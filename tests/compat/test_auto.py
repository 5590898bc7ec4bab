"""The `FlaxAutoModel…` and `FlaxXLMRoberta…` classes: which class they choose and save."""

import json

import pytest

import roberta_jax
from roberta_jax import weights
from roberta_jax.compat import auto, xlm_roberta
from roberta_jax.errors import UsageError
from roberta_jax.modeling.execution import Execution
from tests.compat.test_pretrained import assert_equal
from tests.support import heads
from tests.support.flax_classes import MASKED_LM, inputs_of, random_model, random_params

HEADS = [name.removeprefix("Roberta") for name in heads.MODEL_CLASSES]
TYPES = {"roberta": "FlaxRoberta", "xlm-roberta": "FlaxXLMRoberta", "camembert": "FlaxRoberta"}
PREFIXES = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}


def small_config(model_type, **changes):
    values = heads.SMALL.to_dict() | {"num_hidden_layers": 1, "model_type": model_type}
    return roberta_jax.AutoConfig.for_model(**(values | changes))


def auto_class(head):
    return getattr(roberta_jax, "FlaxAutoModel" + head.removeprefix("Model"))


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("head", HEADS)
def test_class_follows_the_model_type(head, model_type, tmp_path):
    config = small_config(model_type, is_decoder=head == "ForCausalLM")
    cls = getattr(roberta_jax, TYPES[model_type] + head)
    model = auto_class(head).from_config(config, _do_init=False)
    assert type(model) is cls
    assert model.config is config
    params = random_params(model.params_shape_tree)
    model.save_pretrained(tmp_path, params=params)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == [PREFIXES[model_type] + head]
    assert saved["model_type"] == model_type
    loaded = auto_class(head).from_pretrained(tmp_path)
    assert type(loaded) is cls
    assert type(loaded.config) is type(config)
    assert_equal(loaded.params, params)
    module, params = weights.from_pretrained(tmp_path, execution=Execution(scan_layers=False))
    assert type(module).__name__ == f"Roberta{head}"
    assert_equal(params, loaded.params)


def test_names():
    for head in HEADS:
        cls = getattr(roberta_jax, f"FlaxXLMRoberta{head}")
        assert issubclass(cls, roberta_jax.FlaxXLMRobertaPreTrainedModel)
        assert issubclass(cls, roberta_jax.FlaxRobertaPreTrainedModel)
        assert cls.config_class is roberta_jax.XLMRobertaConfig
        assert cls.can_generate() == (head == "ForCausalLM")
        module_name = f"{cls.__name__.removesuffix('Model')}Module"
        assert getattr(xlm_roberta, module_name) is cls.module_class
    assert type(roberta_jax.FlaxXLMRobertaModel(heads.SMALL, _do_init=False).config) is (
        roberta_jax.XLMRobertaConfig
    )
    with pytest.raises(TypeError, match="one of its subclasses"):
        roberta_jax.FlaxXLMRobertaPreTrainedModel(heads.SMALL)
    with pytest.raises(TypeError, match="use FlaxAutoModel.from_pretrained"):
        roberta_jax.FlaxAutoModel(heads.SMALL)
    config_classes = set(roberta_jax.CONFIG_MAPPING.values())
    assert set(auto.FLAX_MODEL_FOR_MASKED_LM_MAPPING) == config_classes


def test_config_arguments(tmp_path):
    random_model(MASKED_LM).save_pretrained(tmp_path)
    classifier = roberta_jax.FlaxAutoModelForSequenceClassification
    model = classifier.from_pretrained(
        tmp_path, num_labels=5, seed=2, use_auth_token=None, trust_remote_code=False
    )
    assert (model.config.num_labels, model.seed) == (5, 2)
    config = roberta_jax.AutoConfig.from_pretrained(tmp_path, num_labels=4, finetuning_task="x")
    model = classifier.from_pretrained(str(tmp_path), config=config, revision="main")
    assert model.config is config
    assert model.params["classifier"]["out_proj"]["kernel"].shape == (32, 4)
    model = classifier.from_pretrained(tmp_path, config=str(tmp_path))
    assert model.config.num_labels == 2
    assert (
        roberta_jax.FlaxAutoModelForMaskedLM.from_pretrained(
            tmp_path / "flax_model.msgpack"
        ).config.vocab_size
        == 60
    )


def test_other_architectures_are_refused(tmp_path):
    random_model(MASKED_LM).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(UsageError, match="'bert' model, not a RoBERTa"):
        roberta_jax.FlaxAutoModel.from_pretrained(tmp_path)
    with pytest.raises(UsageError, match="'bert' model, not a RoBERTa"):
        roberta_jax.FlaxRobertaModel.from_pretrained(tmp_path)


def test_auto_tokenizer(tmp_path):
    texts = ["the cat sat on the mat"] * 20
    roberta_jax.RobertaTokenizer.train(texts, vocab_size=270).save_pretrained(tmp_path)
    config = small_config("roberta")
    tokenizer = roberta_jax.AutoTokenizer.from_pretrained(
        tmp_path, config=config, use_fast=True, padding_side="left", trust_remote_code=False
    )
    assert type(tokenizer) is roberta_jax.RobertaTokenizer
    assert tokenizer.padding_side == "left"
    with pytest.raises(TypeError, match="AutoTokenizer.from_pretrained"):
        roberta_jax.AutoTokenizer()


def test_a_model_without_a_config_file_is_robertas(tmp_path):
    with pytest.raises(OSError, match="holds no weights"):
        roberta_jax.FlaxAutoModel.from_pretrained(tmp_path)
    model = roberta_jax.FlaxAutoModelForMaskedLM.from_config(heads.SMALL, _do_init=False)
    assert type(model) is roberta_jax.FlaxRobertaForMaskedLM
    model(**inputs_of(MASKED_LM), params=random_params(model.params_shape_tree))
