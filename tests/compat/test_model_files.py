"""Folders of the drop-in classes: what they write, what they read, what they say of the rest."""

import functools
import json
import logging
import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

import roberta_jax
from roberta_jax import weights
from roberta_jax.compat import model_files
from roberta_jax.compat.config import FlaxRobertaConfig
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import Execution
from tests.support import heads

NAMES = tuple(f"Flax{name}" for name in heads.MODEL_CLASSES)
MASKED = "FlaxRobertaForMaskedLM"
CLASSIFIER = "FlaxRobertaForSequenceClassification"
EACH_LAYER = Execution(scan_layers=False)


def class_of(name):
    return getattr(roberta_jax, name)


@functools.cache
def model_of(name):
    """A model of one layer with every parameter random; tests do not change it."""
    config = heads.config_of(name.removeprefix("Flax"), num_hidden_layers=1)
    model = class_of(name)(config, _do_init=False)
    rng = np.random.default_rng(0)
    shapes = model.params_shape_tree
    model._is_initialized = True
    model.params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    return model


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """The folder of a masked LM."""
    folder = tmp_path_factory.mktemp("masked")
    model_of(MASKED).save_pretrained(folder)
    return folder


def assert_equal(ours, theirs):
    ours, theirs = flatten_dict(ours), flatten_dict(theirs)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        assert value.dtype == theirs[path].dtype
        assert np.array_equal(value, theirs[path]), path


def names_in(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_loaded(name, safe, tmp_path):
    model = model_of(name)
    model.save_pretrained(tmp_path / "new", safe_serialization=safe)
    weights = "model.safetensors" if safe else "flax_model.msgpack"
    generation = ["generation_config.json"] if name == "FlaxRobertaForCausalLM" else []
    assert names_in(tmp_path / "new") == sorted(["config.json", weights, *generation])
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["architectures"] == [name.removeprefix("Flax")]
    loaded = class_of(name).from_pretrained(tmp_path / "new")
    assert loaded.config == FlaxRobertaConfig.from_dict(model.config.to_dict() | config)
    assert loaded.module == model.module
    assert_equal(loaded.params, model.params)
    # The functions of this package read it as well.
    ours, params = weights.from_pretrained(tmp_path / "new", execution=EACH_LAYER)
    assert type(ours).__name__ == name.removeprefix("Flax")
    assert_equal(params, model.params)


@pytest.mark.parametrize("form", ["hf", "flax"])
def test_reads_what_the_functions_of_this_package_wrote(form, tmp_path):
    model = model_of(MASKED)
    weights.save_pretrained(tmp_path / "new", model.module, model.params, format=form)
    assert_equal(class_of(MASKED).from_pretrained(str(tmp_path / "new")).params, model.params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_types_stay_as_they_are(dtype, tmp_path):
    model = model_of(CLASSIFIER)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), model.params)
    model.save_pretrained(tmp_path, params=flax.core.freeze(params))
    assert_equal(class_of(CLASSIFIER).from_pretrained(tmp_path).params, params)


def test_large_files_become_shards(tmp_path):
    model = model_of(MASKED)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    index = json.loads((tmp_path / "flax_model.msgpack.index.json").read_text())
    shards = [name for name in names_in(tmp_path) if name.startswith("flax_model-")]
    assert len(shards) > 3
    assert sorted(set(index["weight_map"].values())) == shards
    assert shards[0] == f"flax_model-00001-of-{len(shards):05}.msgpack"
    assert_equal(class_of(MASKED).from_pretrained(tmp_path).params, model.params)
    model.save_pretrained(tmp_path)  # the shards of before go
    assert names_in(tmp_path) == ["config.json", "flax_model.msgpack"]


def test_other_files_stay_and_other_weights_are_named(tmp_path, caplog):
    (tmp_path / "events.out").write_text("log")
    model = model_of(MASKED)
    model.save_pretrained(tmp_path, safe_serialization=True)
    assert not caplog.records
    newer = jax.tree.map(lambda x: x + 1, model.params)
    model.save_pretrained(tmp_path, params=newer)
    assert "also holds model.safetensors" in caplog.text
    assert (tmp_path / "events.out").read_text() == "log"
    # As in transformers, Flax's own file is the one that its classes read.
    assert_equal(class_of(MASKED).from_pretrained(tmp_path).params, newer)


def test_reads_safetensors_with_names_of_flax(tmp_path, masked):
    model = model_of(MASKED)
    flat = {".".join(path): value for path, value in flatten_dict(model.params).items()}
    safetensors.numpy.save_file(flat, tmp_path / "model.safetensors", {"format": "flax"})
    (tmp_path / "config.json").write_bytes((masked / "config.json").read_bytes())
    assert_equal(class_of(MASKED).from_pretrained(tmp_path).params, model.params)


def test_a_new_head_is_drawn_and_named(masked, caplog):
    model = class_of(CLASSIFIER).from_pretrained(masked, num_labels=5, seed=3)
    assert "lm_head.bias" in caplog.text
    assert "classifier/dense/kernel" in caplog.text
    assert "begin as random numbers: train the model" in caplog.text
    assert model.config.num_labels == 5
    assert model.params["classifier"]["out_proj"]["kernel"].shape == (32, 5)
    assert_equal(model.params["roberta"], model_of(MASKED).params["roberta"])
    fresh = class_of(CLASSIFIER)(model.config, seed=3)
    assert_equal(model.params["classifier"], fresh.params["classifier"])


def test_the_encoder_alone_and_a_head_on_an_encoder(masked, tmp_path, caplog):
    encoder = class_of("FlaxRobertaModel").from_pretrained(masked)
    assert "pooler/dense/bias, pooler/dense/kernel of FlaxRobertaModel are not in" in caplog.text
    encoder.save_pretrained(tmp_path)
    caplog.clear()
    model = class_of("FlaxRobertaForMultipleChoice").from_pretrained(tmp_path)
    assert_equal(model.params["roberta"], encoder.params)
    assert "classifier/bias, classifier/kernel of" in caplog.text


def test_other_shapes_are_refused_unless_they_may_be_drawn(tmp_path, caplog):
    model_of(CLASSIFIER).save_pretrained(tmp_path)
    cls = class_of(CLASSIFIER)
    with pytest.raises(ValueError, match=r"out_proj/bias \(\(3,\), not \(5,\)\).*ignore_mis"):
        cls.from_pretrained(tmp_path, num_labels=5)
    model = cls.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert "the shapes did not match" in caplog.text
    assert model(jnp.ones((2, 4))).logits.shape == (2, 5)
    kept = model.params["classifier"]["dense"]["kernel"]
    assert np.array_equal(kept, model_of(CLASSIFIER).params["classifier"]["dense"]["kernel"])
    model = cls.from_pretrained(tmp_path, vocab_size=10, ignore_mismatched_sizes=True)
    assert model.params["roberta"]["embeddings"]["word_embeddings"]["embedding"].shape == (10, 32)


def test_parameters_without_a_model_of_their_own(masked, tmp_path, caplog):
    model, params = class_of(MASKED).from_pretrained(masked, _do_init=False)
    assert not caplog.records
    assert_equal(params, model_of(MASKED).params)
    with pytest.raises(ValueError, match="_do_init=False"):
        _ = model.params
    lost = ("roberta", "embeddings", "LayerNorm", "scale")
    flat = flatten_dict(params)
    del flat[lost]
    model.save_pretrained(tmp_path, params=flax.core.freeze(unflatten_dict(flat)))
    assert "saved without roberta/embeddings/LayerNorm/scale" in caplog.text
    model, params = class_of(MASKED).from_pretrained(tmp_path, _do_init=False)
    assert "have to come from init_weights" in caplog.text
    assert set(flatten_dict(params)) == model.required_params - {lost}
    params = model.init_weights(model.key, model.input_shape, params=params)
    assert (flatten_dict(params).pop(lost) == 1).all()
    assert set(flatten_dict(params)) == model.required_params
    with pytest.raises(UsageError, match="lacks parameters of the encoder: roberta/embeddings/Lay"):
        class_of(MASKED).from_pretrained(tmp_path)


def test_configs_that_come_along(masked, tmp_path):
    cls = class_of(MASKED)
    model = cls.from_pretrained(masked, jnp.bfloat16, (2, 8), seed=4, output_attentions=True)
    assert (model.dtype, model.input_shape, model.seed) == (jnp.bfloat16, (2, 8), 4)
    assert model.config.output_attentions
    assert "attentions" in model(jnp.ones((1, 4)))
    for config in (model.config, model.module.config, masked, str(masked / "config.json")):
        assert cls.from_pretrained(masked, config=config).module.config == model.module.config
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_lables'"):
        cls.from_pretrained(masked, num_lables=3)
    cls.from_pretrained(masked, finetuning_task="sst2").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["finetuning_task"] == "sst2"
    again = FlaxRobertaConfig.from_pretrained(tmp_path, num_labels=4)
    assert (again.finetuning_task, again.num_labels, len(again.label2id)) == ("sst2", 4, 4)
    again.save_pretrained(tmp_path / "alone")
    assert FlaxRobertaConfig.from_pretrained(tmp_path / "alone") == again


def test_where_a_model_is_looked_for(masked, tmp_path, monkeypatch):
    cls, model = class_of(MASKED), model_of(MASKED)
    model.save_pretrained(tmp_path / "repo" / "inner")
    model.save_pretrained(tmp_path / "run" / "hf")
    found = [
        cls.from_pretrained(tmp_path / "repo", subfolder="inner", from_pt=True, revision="main"),
        cls.from_pretrained(tmp_path / "run"),
        cls.from_pretrained(masked / "flax_model.msgpack"),
    ]
    asked = []

    def fetch(path, files, alternatives=(), *, revision=None, token=None):
        asked.append((path, list(files), revision, token, alternatives[0]))
        return epath.Path(tmp_path / "repo")

    monkeypatch.setattr(model_files.hub, "fetch", fetch)
    found.append(cls.from_pretrained("user/name", subfolder="inner", revision="v1", token="t"))
    assert asked == [
        (
            "user/name",
            ["inner/config.json", "inner/generation_config.json"],
            "v1",
            "t",
            ["inner/flax_model.msgpack"],
        )
    ]
    for other in found:
        assert_equal(other.params, model.params)


def test_a_model_of_the_hub_from_the_cache_alone(tmp_path, monkeypatch):
    import huggingface_hub

    model_of(MASKED).save_pretrained(tmp_path)

    def download(name, revision, local_files_only):
        assert local_files_only
        if name != "user/cached":
            raise huggingface_hub.errors.LocalEntryNotFoundError("not there")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = class_of(MASKED).from_pretrained("user/cached", local_files_only=True)
    assert_equal(model.params, model_of(MASKED).params)
    with pytest.raises(UsageError, match="user/other is not in the cache"):
        class_of(MASKED).from_pretrained("user/other", local_files_only=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"push_to_hub": True}, "hf upload"),
        ({"max_shard_size": "big"}, "max_shard_size is a number of bytes"),
        ({"params": {"roberta": {"what": np.zeros(3)}}}, "roberta/what is not the model's"),
        ({"params": {"lm_head": {"bias": np.zeros(3)}}}, r"lm_head/bias has shape \(3,\), not"),
    ],
)
def test_saves_nothing_that_is_wrong(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        model_of(MASKED).save_pretrained(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_file_is_no_folder_to_save_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        model_of(MASKED).save_pretrained(tmp_path / "file")


def test_a_failed_save_leaves_what_was_there(masked, tmp_path, monkeypatch):
    model_of(MASKED).save_pretrained(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}
    monkeypatch.setattr(pathlib.Path, "write_text", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model_of(MASKED).save_pretrained(tmp_path)
    assert before == {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}


def test_folders_that_hold_no_such_model(masked, tmp_path):
    cls = class_of(MASKED)
    with pytest.raises(UsageError, match="no folder"):
        cls.from_pretrained(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"holds no weights: looked for flax_model\.msgpack"):
        cls.from_pretrained(tmp_path)
    with pytest.raises(UsageError, match="HF_HUB_CACHE"):
        cls.from_pretrained(masked, cache_dir=tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes({"a": np.zeros(2)}))
    with pytest.raises(UsageError, match="config.json; give the folder of a model"):
        cls.from_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"no tensor in .* is this model's: it holds a"):
        cls.from_pretrained(tmp_path, config=heads.SMALL)
    whole = (masked / "flax_model.msgpack").read_bytes()
    (tmp_path / "flax_model.msgpack").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="cut short"):
        cls.from_pretrained(tmp_path, config=heads.SMALL)
    with pytest.raises(TypeError, match="a config is a RobertaConfig"):
        cls(None)


def test_generation_settings_are_kept(tmp_path):
    model = class_of("FlaxRobertaForCausalLM")(model_of("FlaxRobertaForCausalLM").config)
    model.generation_config.max_new_tokens = 7
    model.generation_config.do_sample = True
    model.save_pretrained(tmp_path)
    loaded = class_of("FlaxRobertaForCausalLM").from_pretrained(tmp_path)
    assert loaded.generation_config == model.generation_config
    assert loaded.generation_config.max_new_tokens == 7


def test_no_warning_where_all_fits(masked, caplog):
    with caplog.at_level(logging.WARNING):
        class_of(MASKED).from_pretrained(masked)
    assert not caplog.records
