"""`from_pretrained` and `save_pretrained` of the drop-in classes: files, messages and warnings."""

import json
import logging
import os
import pathlib

import flax
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from roberta_jax import weights
from roberta_jax.compat import loading, saving
from roberta_jax.compat.config import RobertaConfig
from roberta_jax.errors import UsageError
from roberta_jax.modeling.execution import Execution
from tests.support import heads
from tests.support.flax_classes import (
    CAUSAL_LM,
    CLASSIFIER,
    ENCODER,
    MASKED_LM,
    NAMES,
    class_of,
    random_model,
)

UNSTACKED = Execution(scan_layers=False)


@pytest.fixture(scope="module")
def masked_lm_folder(tmp_path_factory):
    """A folder with a saved masked LM."""
    folder = tmp_path_factory.mktemp("masked_lm")
    random_model(MASKED_LM).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory):
    """A folder with a saved sequence classifier with three labels."""
    folder = tmp_path_factory.mktemp("classifier")
    random_model(CLASSIFIER).save_pretrained(folder)
    return folder


def assert_equal(actual, expected):
    actual, expected = flatten_dict(actual), flatten_dict(expected)
    assert actual.keys() == expected.keys()
    for path, value in actual.items():
        assert value.dtype == expected[path].dtype
        assert np.array_equal(value, expected[path]), path


def file_names(folder):
    return sorted(file.name for file in folder.iterdir())


def file_contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def logits_shape(model, shape):
    """The shape of the logits of a batch; nothing is compiled."""
    return jax.eval_shape(lambda: model(jnp.ones(shape))).logits.shape


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_saved_model_is_loaded(name, safe, tmp_path):
    model = random_model(name)
    model.save_pretrained(tmp_path / "new", safe_serialization=safe)
    weight_file = "model.safetensors" if safe else "flax_model.msgpack"
    generation_files = ["generation_config.json"] if name == CAUSAL_LM else []
    assert file_names(tmp_path / "new") == sorted(["config.json", weight_file, *generation_files])
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["architectures"] == [name.removeprefix("Flax")]
    loaded = class_of(name).from_pretrained(tmp_path / "new")
    assert loaded.config == RobertaConfig.from_dict(model.config.to_dict() | config)
    assert loaded.module == model.module
    assert_equal(loaded.params, model.params)
    # The functions of this package read it as well.
    module, params = weights.from_pretrained(tmp_path / "new", execution=UNSTACKED)
    assert type(module).__name__ == name.removeprefix("Flax")
    assert_equal(params, model.params)


@pytest.mark.parametrize("format", ["hf", "flax"])
def test_loads_what_the_functions_of_this_package_save(format, tmp_path):
    model = random_model(MASKED_LM)
    weights.save_pretrained(tmp_path / "new", model.module, model.params, format=format)
    assert_equal(class_of(MASKED_LM).from_pretrained(str(tmp_path / "new")).params, model.params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtypes_are_preserved(dtype, tmp_path):
    model = random_model(CLASSIFIER)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), model.params)
    model.save_pretrained(tmp_path, params=flax.core.freeze(params))
    assert_equal(class_of(CLASSIFIER).from_pretrained(tmp_path).params, params)


def test_large_files_are_split_into_shards(tmp_path):
    model = random_model(MASKED_LM)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    index = json.loads((tmp_path / "flax_model.msgpack.index.json").read_text())
    shards = [name for name in file_names(tmp_path) if name.startswith("flax_model-")]
    assert len(shards) > 3
    assert sorted(set(index["weight_map"].values())) == shards
    assert shards[0] == f"flax_model-00001-of-{len(shards):05}.msgpack"
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(model.params))
    assert_equal(class_of(MASKED_LM).from_pretrained(tmp_path).params, model.params)
    model.save_pretrained(tmp_path)  # removes the shards
    assert file_names(tmp_path) == ["config.json", "flax_model.msgpack"]


def test_other_files_stay_and_other_weights_are_named(tmp_path, caplog):
    (tmp_path / "events.out").write_text("log")
    model = random_model(MASKED_LM)
    model.save_pretrained(tmp_path, safe_serialization=True)
    assert not caplog.records
    newer = jax.tree.map(lambda x: x + 1, model.params)
    model.save_pretrained(tmp_path, params=newer)
    assert "also holds model.safetensors" in caplog.text
    assert (tmp_path / "events.out").read_text() == "log"
    # Like transformers' classes, these prefer Flax's own file.
    assert_equal(class_of(MASKED_LM).from_pretrained(tmp_path).params, newer)


def test_loads_safetensors_with_flax_names(tmp_path, masked_lm_folder):
    model = random_model(MASKED_LM)
    flat = {".".join(path): np.asarray(x) for path, x in flatten_dict(model.params).items()}
    safetensors.numpy.save_file(flat, tmp_path / "model.safetensors", {"format": "flax"})
    (tmp_path / "config.json").write_bytes((masked_lm_folder / "config.json").read_bytes())
    assert_equal(class_of(MASKED_LM).from_pretrained(tmp_path).params, model.params)


def test_new_head_is_initialized_and_named(masked_lm_folder, caplog):
    model = class_of(CLASSIFIER).from_pretrained(masked_lm_folder, num_labels=3, seed=3)
    assert "lm_head.bias" in caplog.text
    assert "classifier/dense/kernel" in caplog.text
    assert "are initialized at random: train the model" in caplog.text
    assert model.config.num_labels == 3
    assert model.params["classifier"]["out_proj"]["kernel"].shape == (32, 3)
    assert_equal(model.params["roberta"], random_model(MASKED_LM).params["roberta"])
    new = class_of(CLASSIFIER)(model.config, seed=3)
    assert_equal(model.params["classifier"], new.params["classifier"])


def test_encoder_of_a_masked_lm_and_head_on_an_encoder(masked_lm_folder, tmp_path, caplog):
    encoder = class_of(ENCODER).from_pretrained(masked_lm_folder)
    assert "pooler/dense/bias, pooler/dense/kernel of FlaxRobertaModel are not in" in caplog.text
    encoder.save_pretrained(tmp_path)
    caplog.clear()
    multiple_choice = class_of("FlaxRobertaForMultipleChoice")
    _, params = multiple_choice.from_pretrained(tmp_path, _do_init=False)
    assert_equal(params["roberta"], encoder.params)
    assert "classifier/bias, classifier/kernel of" in caplog.text


def test_mismatched_shapes_are_an_error_unless_ignored(classifier_folder, caplog):
    cls = class_of(CLASSIFIER)
    with pytest.raises(ValueError, match=r"out_proj/bias \(\(3,\), not \(5,\)\).*ignore_mis"):
        cls.from_pretrained(classifier_folder, num_labels=5)
    changes = {"num_labels": 5, "vocab_size": 10, "ignore_mismatched_sizes": True}
    model = cls.from_pretrained(classifier_folder, **changes)
    assert "the shapes did not match" in caplog.text
    assert logits_shape(model, (2, 4)) == (2, 5)
    assert model.params["roberta"]["embeddings"]["word_embeddings"]["embedding"].shape == (10, 32)
    loaded = model.params["classifier"]["dense"]
    assert_equal(loaded, random_model(CLASSIFIER).params["classifier"]["dense"])


def test_loading_without_initialization(classifier_folder, tmp_path, caplog):
    cls = class_of(CLASSIFIER)
    model, params = cls.from_pretrained(classifier_folder, _do_init=False)
    assert not caplog.records
    assert_equal(params, random_model(CLASSIFIER).params)
    with pytest.raises(ValueError, match="_do_init=False"):
        _ = model.params
    removed = ("roberta", "embeddings", "LayerNorm", "scale")
    flat = flatten_dict(params)
    del flat[removed]
    model.save_pretrained(tmp_path, params=flax.core.freeze(unflatten_dict(flat)))
    assert "saved without roberta/embeddings/LayerNorm/scale" in caplog.text
    model, params = cls.from_pretrained(tmp_path, _do_init=False)
    assert "must be initialized with init_weights" in caplog.text
    assert set(flatten_dict(params)) == model.required_params - {removed}
    params = model.init_weights(model.key, model.input_shape, params=params)
    assert (flatten_dict(params).pop(removed) == 1).all()
    assert set(flatten_dict(params)) == model.required_params
    with pytest.raises(UsageError, match="lacks parameters of the encoder: roberta/embeddings/Lay"):
        cls.from_pretrained(tmp_path)


def test_config_arguments(masked_lm_folder, tmp_path):
    cls = class_of(MASKED_LM)
    folder = masked_lm_folder
    model = cls.from_pretrained(folder, jnp.bfloat16, (2, 8), seed=4, output_attentions=True)
    assert (model.dtype, model.input_shape, model.seed) == (jnp.bfloat16, (2, 8), 4)
    assert model.config.output_attentions
    assert "attentions" in jax.eval_shape(lambda: model(jnp.ones((1, 4))))
    for config in (model.config, model.module.config, folder, str(folder / "config.json")):
        assert cls.from_pretrained(folder, config=config).module.config == model.module.config
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_lables'"):
        cls.from_pretrained(folder, num_lables=3)
    cls.from_pretrained(folder, finetuning_task="sst2").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["finetuning_task"] == "sst2"
    config = RobertaConfig.from_pretrained(tmp_path, num_labels=4)
    assert (config.finetuning_task, config.num_labels, len(config.label2id)) == ("sst2", 4, 4)
    config.save_pretrained(tmp_path / "config_only")
    assert RobertaConfig.from_pretrained(tmp_path / "config_only") == config


def test_a_changed_config_of_safetensors_is_noticed(tmp_path):
    """The tensors do not show the number of heads, so a wrong one would load."""
    model = random_model(MASKED_LM)
    model.save_pretrained(tmp_path, safe_serialization=True)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    heads = 2 * model.config.num_attention_heads
    file.write_text(json.dumps(config | {"num_attention_heads": heads}))
    with pytest.raises(UsageError, match=f"num_attention_heads={heads}, but the weights beside it"):
        type(model).from_pretrained(tmp_path)
    changed = type(model).from_pretrained(tmp_path, num_attention_heads=heads)
    assert changed.config.num_attention_heads == heads


def test_places_that_hold_a_model(masked_lm_folder, tmp_path, monkeypatch):
    cls, model = class_of(MASKED_LM), random_model(MASKED_LM)
    model.save_pretrained(tmp_path / "repo" / "inner")
    model.save_pretrained(tmp_path / "run" / "hf")
    loaded = [
        cls.from_pretrained(tmp_path / "repo", subfolder="inner", from_pt=True, revision="main"),
        cls.from_pretrained(tmp_path / "run"),
        cls.from_pretrained(masked_lm_folder / "flax_model.msgpack"),
    ]
    requests = []

    def fetch(path, files, alternatives=(), **options):
        requests.append((path, list(files), alternatives[0], options))
        return epath.Path(tmp_path / "repo")

    monkeypatch.setattr(loading.hub, "fetch", fetch)
    options = {"revision": "v1", "token": "t", "cache_dir": tmp_path, "force_download": True}
    loaded.append(cls.from_pretrained("user/name", subfolder="inner", **options))
    json_files = ["inner/config.json", "inner/generation_config.json"]
    expected = options | {"local_files_only": False}
    assert requests == [("user/name", json_files, ["inner/flax_model.msgpack"], expected)]
    for other in loaded:
        assert_equal(other.params, model.params)


def test_local_files_only(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--user--cached" / "snapshots" / "abc"
    random_model(MASKED_LM).save_pretrained(snapshot)
    (snapshot / ".." / ".." / "refs").mkdir()
    (snapshot / ".." / ".." / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)  # nothing is asked of the hub
    options = {"local_files_only": True, "cache_dir": tmp_path}
    model = class_of(MASKED_LM).from_pretrained("user/cached", **options)
    assert_equal(model.params, random_model(MASKED_LM).params)
    assert RobertaConfig.from_pretrained("user/cached", **options) == model.config
    with pytest.raises(UsageError, match="user/other: local_files_only=True .* not in the cache"):
        class_of(MASKED_LM).from_pretrained("user/other", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"push_to_hub": True}, "hf upload"),
        ({"max_shard_size": "big"}, "max_shard_size must be a number of bytes"),
        ({"params": {"roberta": {"x": np.zeros(3)}}}, "roberta/x is not a parameter of the model"),
        ({"params": {"lm_head": {"bias": np.zeros(3)}}}, r"lm_head/bias has shape \(3,\), not"),
    ],
)
def test_invalid_arguments_save_nothing(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        random_model(MASKED_LM).save_pretrained(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_saving_to_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        random_model(MASKED_LM).save_pretrained(tmp_path / "file")


def test_failed_save_changes_no_file(tmp_path, monkeypatch):
    model = random_model(MASKED_LM)
    model.save_pretrained(tmp_path)
    contents = file_contents(tmp_path)
    newer = jax.tree.map(lambda x: x + 1, model.params)
    # config.json is written last, when the new weights are already on the disk.
    monkeypatch.setattr(pathlib.Path, "write_text", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.save_pretrained(tmp_path, params=newer)
    assert file_contents(tmp_path) == contents


def test_files_appear_in_order(tmp_path, monkeypatch):
    """A folder with a config.json has the weights that belong to it."""
    replaced = []
    replace = os.replace

    def record_and_replace(source, target):
        replaced.append(pathlib.Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", record_and_replace)
    random_model(CAUSAL_LM).save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(name for name in file_names(tmp_path) if name.startswith("flax_model-"))
    last = ["flax_model.msgpack.index.json", "generation_config.json", "config.json"]
    assert len(shards) > 1
    assert replaced == [*shards, *last]
    assert file_names(tmp_path) == sorted(replaced)


def test_object_stores_get_the_same_files(tmp_path, monkeypatch):
    """They have no rename: files are staged in a local folder and copied."""
    model = random_model(CAUSAL_LM)
    model.save_pretrained(tmp_path / "local")
    monkeypatch.setattr(saving.atomic, "is_local", lambda path: False)
    model.save_pretrained(tmp_path / "remote")
    assert file_contents(tmp_path / "remote") == file_contents(tmp_path / "local")


def test_folders_that_hold_no_such_model(masked_lm_folder, tmp_path):
    cls = class_of(MASKED_LM)
    with pytest.raises(UsageError, match="there is no folder"):
        cls.from_pretrained(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"holds no weights: looked for flax_model\.msgpack"):
        cls.from_pretrained(tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes({"a": np.zeros(2)}))
    with pytest.raises(UsageError, match="config.json; give the folder of a model"):
        cls.from_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"no tensor in .* is a parameter of .*the file holds a"):
        cls.from_pretrained(tmp_path, config=heads.SMALL)
    weight_bytes = (masked_lm_folder / "flax_model.msgpack").read_bytes()
    (tmp_path / "config.json").write_text('{"hidden_size": 37}')
    with pytest.raises(UsageError, match=rf"cannot use the config of {tmp_path}: hidden_size 37"):
        cls.from_pretrained(tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(weight_bytes[: len(weight_bytes) // 2])
    with pytest.raises(UsageError, match="cut short"):
        cls.from_pretrained(tmp_path, config=heads.SMALL)
    with pytest.raises(TypeError, match="config must be a RobertaConfig of roberta_jax"):
        cls(None)


def test_generation_config_is_saved_and_loaded(tmp_path):
    model = class_of(CAUSAL_LM)(random_model(CAUSAL_LM).config, _do_init=False)
    model.generation_config.max_new_tokens = 7
    model.generation_config.do_sample = True
    model.save_pretrained(tmp_path, params=random_model(CAUSAL_LM).params)
    loaded = class_of(CAUSAL_LM).from_pretrained(tmp_path)
    assert loaded.generation_config == model.generation_config
    assert loaded.generation_config.max_new_tokens == 7


def test_no_warning_if_everything_matches(masked_lm_folder, caplog):
    with caplog.at_level(logging.WARNING):
        class_of(MASKED_LM).from_pretrained(masked_lm_folder)
    assert not caplog.records
