"""What `from_pretrained` and its relatives load, and their errors."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from roberta_jax import RobertaTokenizer, weights
from roberta_jax.errors import UsageError
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import (
    MODEL_CLASSES,
    RobertaForCausalLM,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)
from roberta_jax.weights import names
from roberta_jax.weights.names import canonical
from roberta_jax.weights.tensors import LazyTensor
from tests.support.checkpoints import CONFIG, assert_trees_equal, build, random_params

DTYPES = (np.float32, np.float16, jnp.bfloat16)
FORMATS = ("hf", "flax", "fairseq")


@pytest.fixture(scope="module")
def masked_lm():
    model = RobertaForMaskedLM(CONFIG)
    return model, random_params(model)


@pytest.fixture(scope="module")
def tokenizer():
    return RobertaTokenizer.train(["the cat sat on the mat, or so they say"] * 5, vocab_size=270)


@pytest.fixture(scope="module")
def saved(masked_lm, tokenizer, tmp_path_factory):
    """A folder that no test may change."""
    folder = tmp_path_factory.mktemp("saved") / "hf"
    weights.save_pretrained(folder, *masked_lm, tokenizer)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(saved, tmp_path / "copy")


def edit_tensors(folder, edit):
    """Rewrites the weights; `edit` changes the dictionary of tensors in place."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


# Round trips


def test_a_round_trip_keeps_every_bit(masked_lm, saved):
    model, params = weights.from_pretrained(saved)
    assert model == masked_lm[0]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert_trees_equal(params, masked_lm[1])


@pytest.mark.parametrize("format", ["hf", "flax"])
@pytest.mark.parametrize("name", sorted(MODEL_CLASSES))
def test_every_class_round_trips(name, format, tmp_path):
    model, params = build(name)
    weights.save_pretrained(tmp_path / "out", model, params, format=format)
    loaded, loaded_params = weights.read_pretrained(tmp_path / "out")
    assert type(loaded).__name__ == name
    assert loaded.config == model.config
    assert_trees_equal(loaded_params, params)


@pytest.mark.parametrize("format", ["hf", "flax"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("RobertaForMaskedLM", {"tie_word_embeddings": False}),
        ("RobertaForCausalLM", {"is_decoder": True, "add_cross_attention": True}),
        ("RobertaForMaskedLM", {"position_embedding_type": "relative_key"}),
    ],
)
def test_variants_round_trip(name, changes, format, tmp_path):
    model, params = build(name, **changes)
    weights.save_pretrained(tmp_path / "out", model, params, format=format)
    loaded, loaded_params = weights.read_pretrained(tmp_path / "out")
    assert loaded == model
    assert_trees_equal(loaded_params, params)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", FORMATS)
def test_a_round_trip_in_each_format_and_type_keeps_every_bit(format, dtype, tmp_path):
    model = RobertaForMaskedLM(CONFIG)
    params = random_params(model, dtype=dtype, token_types=False)
    weights.save_pretrained(tmp_path / "out", model, params, format=format)
    loaded, loaded_params = weights.read_pretrained(tmp_path / "out", param_dtype=dtype)
    assert type(loaded) is RobertaForMaskedLM
    assert_trees_equal(loaded_params, params)
    # None keeps what the file has; only the token types are in no file of fairseq's.
    _, loaded_params = weights.read_pretrained(tmp_path / "out", param_dtype=None)
    if format != "fairseq":
        assert_trees_equal(loaded_params, params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_other_types_are_kept_in_the_file_and_read_as_asked(dtype, masked_lm, tmp_path):
    model, _ = masked_lm
    params = random_params(model, dtype=dtype)
    weights.save_pretrained(tmp_path / "hf", model, params)
    assert_trees_equal(weights.read_pretrained(tmp_path / "hf", param_dtype=dtype)[1], params)
    wide = jax.tree.map(lambda x: x.astype(np.float32), params)
    assert_trees_equal(weights.read_pretrained(tmp_path / "hf")[1], wide)


def test_execution_decides_the_layout(masked_lm, saved):
    model, params = weights.read_pretrained(saved, execution=Execution(scan_layers=False))
    assert not model.execution.scan_layers
    assert_trees_equal(params, names.unstack_layers(masked_lm[1]))


@pytest.mark.parametrize("pooler", [False, True])
def test_an_encoder_round_trips_with_and_without_pooler(pooler, tmp_path):
    model = RobertaModel(CONFIG, add_pooling_layer=pooler)
    params = random_params(model)
    weights.save_pretrained(tmp_path / "hf", model, params)
    loaded, loaded_params = weights.read_pretrained(tmp_path / "hf")
    assert loaded == model
    assert_trees_equal(loaded_params, params)
    with pytest.raises(UsageError, match=r"no masked-LM head.*model_class=RobertaModel"):
        weights.read_pretrained(tmp_path / "hf", RobertaForMaskedLM)


# Files


def test_a_workdir_is_read_through_its_hf_folder(masked_lm, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "hf")
    (tmp_path / "config.json").write_text('{"seed": 1}')
    assert_trees_equal(weights.read_pretrained(tmp_path)[1], masked_lm[1])


def test_shards_are_read_through_their_index(folder, masked_lm):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-{i:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_trees_equal(weights.read_pretrained(folder)[1], masked_lm[1])

    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UsageError, match=r"do not exist: model-00002-of-00002\.safetensors"):
        weights.read_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text("[1, 2")
    with pytest.raises(UsageError, match="not an index of weights"):
        weights.read_pretrained(folder)


def test_the_preferred_format_is_read_if_there_are_several(tmp_path):
    model, params = build("RobertaForMaskedLM")
    others = random_params(model, seed=1)
    weights.save_pretrained(tmp_path / "out", model, params)
    weights.save_pretrained(tmp_path / "flax", model, others, format="flax")
    shutil.copy(tmp_path / "flax" / "flax_model.msgpack", tmp_path / "out")
    assert_trees_equal(weights.read_pretrained(tmp_path / "out")[1], params)
    # A file that is named is taken.
    assert_trees_equal(weights.read_pretrained(tmp_path / "out" / "flax_model.msgpack")[1], others)


# Tensors


def test_old_names_and_repeated_tensors_are_understood(folder, masked_lm):
    def age(tensors):
        for name in list(tensors):
            if "LayerNorm" in name:
                old = name.replace(".weight", ".gamma").replace(".bias", ".beta")
                tensors[old] = tensors.pop(name)
        words = tensors["roberta.embeddings.word_embeddings.weight"]
        tensors["lm_head.decoder.weight"] = words.copy()
        tensors["lm_head.decoder.bias"] = tensors.pop("lm_head.bias")
        tensors["roberta.embeddings.position_ids"] = np.arange(42)[None]
        # A masked LM's file may hold the pooler of the class that it was trained from.
        tensors["roberta.pooler.dense.weight"] = np.zeros((32, 32), np.float32)
        tensors["roberta.pooler.dense.bias"] = np.zeros(32, np.float32)

    edit_tensors(folder, age)
    assert_trees_equal(weights.read_pretrained(folder)[1], masked_lm[1])


def test_an_untied_decoder_is_left_over(folder):
    def untie(tensors):
        tensors["lm_head.decoder.weight"] = np.zeros((300, 32), np.float32)

    edit_tensors(folder, untie)
    with pytest.raises(UsageError, match=r"left over \(1\): lm_head\.decoder\.weight"):
        weights.read_pretrained(folder)


def test_the_encoder_of_a_masked_lm_loads_alone(masked_lm, saved):
    model, params = weights.read_pretrained(saved, RobertaModel)
    assert model == RobertaModel(CONFIG)
    assert_trees_equal(params, masked_lm[1]["roberta"])


def test_a_tensor_under_two_names_is_an_error(pretrained):
    folder, _ = pretrained
    tensors = load_file(folder / "model.safetensors")
    name = "roberta.embeddings.LayerNorm.weight"
    tensors[name.replace("weight", "gamma")] = tensors[name] + 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"two names each: roberta\.embeddings\.LayerNorm\."):
        weights.load_pretrained(folder)


# Classes


@pytest.mark.parametrize("name", sorted(MODEL_CLASSES))
def test_without_architectures_the_class_follows_from_the_tensors(name, tmp_path):
    model, params = build(name)
    weights.save_pretrained(tmp_path / "out", model, params)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    expected = "RobertaForMaskedLM" if name == "RobertaForCausalLM" else name
    assert type(weights.read_pretrained(tmp_path / "out")[0]).__name__ == expected


def test_without_architectures_an_encoder_alone_is_a_roberta_model(folder, tmp_path):
    edit_config(folder, architectures=None)
    assert isinstance(weights.read_pretrained(folder)[0], RobertaForMaskedLM)
    edit_tensors(folder, lambda tensors: [tensors.pop(n) for n in list(tensors) if "lm_" in n])
    assert isinstance(weights.read_pretrained(folder)[0], RobertaModel)


def test_an_unknown_architecture_is_an_error_that_lists_the_known_ones(folder):
    edit_config(folder, architectures=["RobertaForPreTraining"])
    with pytest.raises(UsageError, match="holds a RobertaForPreTraining.*RobertaForMaskedLM"):
        weights.read_pretrained(folder)

    def classify(tensors):
        tensors["classifier.dense.weight"] = np.zeros((32, 32), np.float32)

    edit_tensors(folder, classify)
    assert isinstance(weights.read_pretrained(folder, RobertaModel)[0], RobertaModel)


# New heads


@pytest.fixture
def pretrained(tmp_path):
    """A masked LM's folder and its parameters."""
    model, params = build("RobertaForMaskedLM")
    weights.save_pretrained(tmp_path / "pretrained", model, params)
    return tmp_path / "pretrained", params


def test_a_missing_head_is_initialized_only_on_request(pretrained, caplog):
    folder, params = pretrained
    with pytest.raises(UsageError, match=r"no classifier .*classifier\.dense.*new_head=True"):
        weights.load_pretrained(folder, RobertaForSequenceClassification)
    loaded = weights.load_pretrained(
        folder, RobertaForSequenceClassification, new_head=True, num_labels=5
    )
    assert sorted(loaded.new) == [
        "classifier.dense.bias",
        "classifier.dense.weight",
        "classifier.out_proj.bias",
        "classifier.out_proj.weight",
    ]
    assert "lm_head.bias" in loaded.unused
    assert "classifier.out_proj.weight" in caplog.text
    assert "train the model before using it" in caplog.text
    assert_trees_equal(loaded.params["roberta"], params["roberta"])
    head = loaded.params["classifier"]
    assert head["out_proj"]["kernel"].shape == (32, 5)
    assert 0.01 < np.std(head["dense"]["kernel"]) < 0.03
    assert not head["dense"]["bias"].any()
    again = weights.load_pretrained(
        folder, RobertaForSequenceClassification, new_head=True, num_labels=5
    )
    assert_trees_equal(again.params, loaded.params)
    other = weights.load_pretrained(
        folder, RobertaForSequenceClassification, new_head=True, num_labels=5, seed=1
    )
    assert not np.array_equal(
        other.params["classifier"]["dense"]["kernel"], head["dense"]["kernel"]
    )


def test_other_parts_that_may_be_new(pretrained):
    folder, _ = pretrained
    new = weights.load_pretrained(folder, RobertaForQuestionAnswering, new_head=True).new
    assert new == ("qa_outputs.kernel",) or set(new) == {"qa_outputs.weight", "qa_outputs.bias"}
    choice = weights.load_pretrained(
        folder, MODEL_CLASSES["RobertaForMultipleChoice"], new_head=True
    )
    assert {name.split(".")[0] for name in map(canonical, choice.new)} == {"pooler", "classifier"}
    decoder = {"is_decoder": True, "add_cross_attention": True}
    with pytest.raises(UsageError, match="no cross-attention"):
        weights.load_pretrained(folder, RobertaForCausalLM, **decoder)
    loaded = weights.load_pretrained(folder, RobertaForCausalLM, new_head=True, **decoder)
    assert loaded.new
    assert all(".crossattention." in name for name in loaded.new)


def test_new_head_does_not_allow_missing_encoder_tensors(pretrained):
    folder, _ = pretrained
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"missing \(16\): encoder\.layer\.3"):
        weights.load_pretrained(folder, RobertaForSequenceClassification, new_head=True)


def test_another_number_of_labels_is_an_error_unless_asked_for(tmp_path):
    model, params = build("RobertaForSequenceClassification")
    weights.save_pretrained(tmp_path / "out", model, params)
    with pytest.raises(UsageError, match=r"\(file \[3, 32\], config \[7, 32\]\)[^$]*new_head=True"):
        weights.load_pretrained(tmp_path / "out", num_labels=7)
    loaded = weights.load_pretrained(tmp_path / "out", num_labels=7, new_head=True)
    assert set(loaded.new) == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    np.testing.assert_array_equal(
        loaded.params["classifier"]["dense"]["kernel"], params["classifier"]["dense"]["kernel"]
    )
    # Another task's head of another form gives way, too.
    loaded = weights.load_pretrained(tmp_path / "out", RobertaForTokenClassification, new_head=True)
    assert set(loaded.new) == {"classifier.weight", "classifier.bias"}


# Wrong input


def test_a_wrong_vocabulary_size_is_an_error_with_advice(pretrained):
    folder, _ = pretrained
    with pytest.raises(UsageError, match=r"\(file \[300, 32\], config \[301, 32\]\)") as error:
        weights.load_pretrained(folder, vocab_size=301)
    assert "vocab_size in config.json must be the rows" in str(error.value)


def test_param_dtype_must_be_a_floating_type(pretrained):
    with pytest.raises(UsageError, match="param_dtype='int8'"):
        weights.load_pretrained(pretrained[0], param_dtype="int8")


def test_unknown_config_fields_are_errors(pretrained):
    with pytest.raises(UsageError, match="num_lables"):
        weights.load_pretrained(pretrained[0], num_lables=3)


def test_all_differences_are_listed(folder):
    def spoil(tensors):
        tensors.pop("roberta.encoder.layer.1.output.dense.bias")
        tensors["roberta.encoder.extra"] = np.zeros(1, np.float32)
        tensors["lm_head.bias"] = np.zeros(7, np.float32)
        tensors["lm_head.dense.bias"] = np.zeros(32, np.int8)

    edit_tensors(folder, spoil)
    with pytest.raises(UsageError) as error:
        weights.read_pretrained(folder)
    message = str(error.value)
    assert "missing (1): encoder.layer.1.output.dense.bias" in message
    assert "left over (1): roberta.encoder.extra" in message
    assert "lm_head.bias (file [7], config [300])" in message
    assert "lm_head.dense.bias (of type int8" in message


def test_a_file_without_a_tensor_of_the_model_is_an_error(folder):
    save_file({"bert.encoder.weight": np.zeros(3, np.float32)}, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"no tensor .* bert\.encoder\.weight"):
        weights.read_pretrained(folder)


@pytest.mark.parametrize("size", [0, 5, 1000, 20_000])
def test_a_truncated_file_is_an_error(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UsageError, match="cut short"):
        weights.read_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model_type": "roberta"', "not a model's config"),
        ("[1]", "not a model's config"),
        ('{"model_type": "bert"}', "'bert'"),
        ('{"model_type": "roberta", "hidden_size": 33}', "hidden_size"),
    ],
)
def test_a_bad_config_is_an_error(folder, text, said):
    (folder / "config.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        weights.read_pretrained(folder)


def test_a_config_of_another_size_is_an_error(folder):
    edit_config(folder, num_hidden_layers=2)
    with pytest.raises(UsageError, match=r"left over \(16\): roberta\.encoder\.layer\.2\."):
        weights.read_pretrained(folder)


def test_a_missing_model_is_an_error_that_lists_the_expected_files(tmp_path, folder):
    with pytest.raises(UsageError, match=r"no folder .*nowhere.*looked for .*config\.json"):
        weights.read_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"looked for config\.json with model\.safetensors"):
        weights.read_pretrained(tmp_path / "empty")
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    with pytest.raises(UsageError, match=r"found .*tf_model\.h5.*save_pretrained"):
        weights.read_pretrained(folder)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match="not finished.*Run the same training command again"):
        weights.read_pretrained(tmp_path / "run")


# read_config


@pytest.fixture
def no_tensors_are_read(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(LazyTensor, "read_into", refuse)


@pytest.mark.parametrize("format", FORMATS)
def test_the_config_is_read_without_the_tensors(format, tmp_path, no_tensors_are_read):
    model, params = build("RobertaForMaskedLM", num_labels=2)
    folder = tmp_path / "run" / "hf"
    weights.save_pretrained(folder, model, params, format=format)
    [file] = [path for path in folder.iterdir() if path.name != "config.json"]
    for path in (folder, file, tmp_path / "run"):
        assert weights.read_config(path) == model.config
    with pytest.raises(AssertionError, match="a tensor was read"):
        weights.read_pretrained(folder)


def test_read_config_has_the_errors_of_loading(folder, tmp_path):
    def messages(path):
        for function in (weights.read_config, weights.read_pretrained):
            with pytest.raises(UsageError) as error:
                function(path)
            yield str(error.value)

    def assert_same_message(path, said):
        first, second = messages(path)
        assert first == second
        assert said in first

    assert_same_message(tmp_path / "nowhere", "no folder")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert_same_message(tmp_path / "run", "has not finished")
    edit_config(folder, hidden_act="swoosh")
    assert_same_message(folder, "cannot use")
    (folder / "config.json").write_text("[1]")
    assert_same_message(folder, "not a model's config")
    (folder / "model.safetensors").unlink()
    assert_same_message(folder, "holds no model")
    (folder / "model.pt").write_bytes(b"x")
    assert_same_message(folder, "is cut short")
