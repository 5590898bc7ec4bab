"""Matching of a file's tensors with a model's parameters, and parameters that the file lacks."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from roberta_jax import weights
from roberta_jax.errors import UsageError
from roberta_jax.modeling.heads import (
    MODEL_CLASSES,
    RobertaForCausalLM,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)
from roberta_jax.weights.names import canonical
from tests.support.checkpoints import CONFIG, assert_trees_equal, build, edit_config, edit_tensors

# Tensors


def test_old_names_and_repeated_tensors_are_read(folder, masked_lm):
    def rename(tensors):
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

    edit_tensors(folder, rename)
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


def test_a_tensor_under_two_names_is_an_error(folder):
    def duplicate(tensors):
        name = "roberta.embeddings.LayerNorm.weight"
        tensors[name.replace("weight", "gamma")] = tensors[name] + 1

    edit_tensors(folder, duplicate)
    with pytest.raises(UsageError, match=r"two names each: roberta\.embeddings\.LayerNorm\."):
        weights.load_pretrained(folder)


# Differences


def test_a_wrong_vocabulary_size_is_an_error_with_advice(saved):
    with pytest.raises(UsageError, match=r"\(file \[300, 32\], config \[301, 32\]\)") as error:
        weights.load_pretrained(saved, vocab_size=301)
    assert "vocab_size in config.json must be the rows" in str(error.value)


def test_all_differences_are_listed(folder):
    def damage(tensors):
        tensors.pop("roberta.encoder.layer.1.output.dense.bias")
        tensors["roberta.encoder.extra"] = np.zeros(1, np.float32)
        tensors["lm_head.bias"] = np.zeros(7, np.float32)
        tensors["lm_head.dense.bias"] = np.zeros(32, np.int8)

    edit_tensors(folder, damage)
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


def test_a_config_of_another_size_is_an_error(folder):
    edit_config(folder, num_hidden_layers=2)
    with pytest.raises(UsageError, match=r"left over \(16\): roberta\.encoder\.layer\.2\."):
        weights.read_pretrained(folder)


# New heads


def test_a_missing_head_is_initialized_only_on_request(masked_lm, saved, caplog):
    _, params = masked_lm
    with pytest.raises(UsageError, match=r"no classifier .*classifier\.dense.*new_head=True"):
        weights.load_pretrained(saved, RobertaForSequenceClassification)
    loaded = weights.load_pretrained(
        saved, RobertaForSequenceClassification, new_head=True, num_labels=5
    )
    assert sorted(loaded.new) == [
        "classifier.dense.bias",
        "classifier.dense.weight",
        "classifier.out_proj.bias",
        "classifier.out_proj.weight",
    ]
    assert "lm_head.bias" in loaded.unused
    assert not caplog.text  # the caller knows of them by `new`
    weights.read_pretrained(saved, RobertaForSequenceClassification, new_head=True)
    assert "classifier.out_proj.weight" in caplog.text
    assert "train the model before using it" in caplog.text
    assert_trees_equal(loaded.params["roberta"], params["roberta"])
    head = loaded.params["classifier"]
    assert head["out_proj"]["kernel"].shape == (32, 5)
    assert 0.01 < np.std(head["dense"]["kernel"]) < 0.03
    assert not head["dense"]["bias"].any()
    repeated = weights.load_pretrained(
        saved, RobertaForSequenceClassification, new_head=True, num_labels=5
    )
    assert_trees_equal(repeated.params, loaded.params)
    other = weights.load_pretrained(
        saved, RobertaForSequenceClassification, new_head=True, num_labels=5, seed=1
    )
    assert not np.array_equal(
        other.params["classifier"]["dense"]["kernel"], head["dense"]["kernel"]
    )


def test_other_parts_that_may_be_new(saved):
    new = weights.load_pretrained(saved, RobertaForQuestionAnswering, new_head=True).new
    assert new == ("qa_outputs.kernel",) or set(new) == {"qa_outputs.weight", "qa_outputs.bias"}
    choice = weights.load_pretrained(
        saved, MODEL_CLASSES["RobertaForMultipleChoice"], new_head=True
    )
    assert {name.split(".")[0] for name in map(canonical, choice.new)} == {"pooler", "classifier"}
    decoder = {"is_decoder": True, "add_cross_attention": True}
    with pytest.raises(UsageError, match="no cross-attention"):
        weights.load_pretrained(saved, RobertaForCausalLM, **decoder)
    loaded = weights.load_pretrained(saved, RobertaForCausalLM, new_head=True, **decoder)
    assert loaded.new
    assert all(".crossattention." in name for name in loaded.new)


def test_new_head_does_not_allow_missing_encoder_tensors(folder):
    edit_config(folder, num_hidden_layers=4)
    with pytest.raises(UsageError, match=r"missing \(16\): encoder\.layer\.3"):
        weights.load_pretrained(folder, RobertaForSequenceClassification, new_head=True)


def test_another_number_of_labels_is_an_error_without_new_head(tmp_path):
    model, params = build("RobertaForSequenceClassification")
    weights.save_pretrained(tmp_path / "out", model, params)
    with pytest.raises(UsageError, match=r"\(file \[3, 32\], config \[7, 32\]\)[^$]*new_head=True"):
        weights.load_pretrained(tmp_path / "out", num_labels=7)
    loaded = weights.load_pretrained(tmp_path / "out", num_labels=7, new_head=True)
    assert set(loaded.new) == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    np.testing.assert_array_equal(
        loaded.params["classifier"]["dense"]["kernel"], params["classifier"]["dense"]["kernel"]
    )
    # The head of another task, with other shapes, is replaced too.
    loaded = weights.load_pretrained(tmp_path / "out", RobertaForTokenClassification, new_head=True)
    assert set(loaded.new) == {"classifier.weight", "classifier.bias"}
