"""The next-sentence head beside a masked LM: saved, loaded and initialized."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from roberta_jax import weights
from roberta_jax.errors import UsageError
from roberta_jax.modeling.heads import (
    RobertaForMaskedLM,
    RobertaForPreTraining,
    RobertaForSequenceClassification,
)
from roberta_jax.weights.load import check_pretrained
from roberta_jax.weights.next_sentence import FILE, NAMES
from tests.support.checkpoints import CONFIG, assert_trees_equal, random_params

MODEL = RobertaForPreTraining(CONFIG)


def split_next_sentence(params):
    """Returns (parameters of the masked LM, parameters of the head)."""
    masked_lm = {name: value for name, value in params.items() if name != "next_sentence"}
    return masked_lm, params["next_sentence"]


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL)


@pytest.fixture
def folder(params, tmp_path):
    weights.save_pretrained(tmp_path / "hf", MODEL, params)
    return tmp_path / "hf"


@pytest.fixture
def masked_lm_folder(params, tmp_path):
    """A folder of the same masked LM without a next-sentence head."""
    masked_lm, _ = split_next_sentence(params)
    weights.save_pretrained(tmp_path / "masked_lm", RobertaForMaskedLM(CONFIG), masked_lm)
    return tmp_path / "masked_lm"


def test_the_folder_is_a_masked_lms_with_the_head_in_its_own_file(params, folder, masked_lm_folder):
    masked_lm, head = split_next_sentence(params)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "model.safetensors", "nsp_head.safetensors",
    ]  # fmt: skip
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (masked_lm_folder / name).read_bytes()
    assert json.loads((folder / "config.json").read_text())["architectures"] == [
        "RobertaForMaskedLM"
    ]
    tensors = load_file(folder / FILE)
    assert tensors.keys() == NAMES.keys()
    kernel = head["classifier"]["kernel"]
    np.testing.assert_array_equal(tensors["cls.seq_relationship.weight"], kernel.T)
    model, loaded = weights.read_pretrained(folder)
    assert type(model) is RobertaForMaskedLM
    assert_trees_equal(loaded, masked_lm)
    assert weights.load_pretrained(folder).unused == ()


@pytest.mark.parametrize("format", ["hf", "flax"])
def test_a_round_trip_keeps_every_bit(format, params, tmp_path):
    weights.save_pretrained(tmp_path / "out", MODEL, params, format=format)
    loaded = weights.load_pretrained(tmp_path / "out", RobertaForPreTraining)
    assert loaded.model == MODEL
    assert (loaded.new, loaded.unused) == ((), ())
    assert_trees_equal(loaded.params, params)
    file = loaded.weights.files[0]
    assert_trees_equal(weights.read_pretrained(file, RobertaForPreTraining)[1], params)


def test_param_dtype_converts_the_head(params, folder):
    _, loaded = weights.read_pretrained(folder, RobertaForPreTraining, param_dtype="float16")
    expected = jax.tree.map(lambda x: x.astype(np.float16), params)
    assert_trees_equal(loaded["next_sentence"], expected["next_sentence"])


def test_a_missing_head_is_an_error_without_new_head(params, masked_lm_folder, caplog):
    with pytest.raises(UsageError, match=r"no next-sentence head \(next_sentence\.classifier\.b"):
        weights.read_pretrained(masked_lm_folder, RobertaForPreTraining)
    assert not (masked_lm_folder / FILE).exists()
    masked_lm, _ = split_next_sentence(params)
    for new_head in (True, ("next_sentence",), {"next_sentence", "classifier"}):
        loaded = weights.load_pretrained(
            masked_lm_folder, RobertaForPreTraining, new_head=new_head, seed=3
        )
        loaded_masked_lm, head = split_next_sentence(loaded.params)
        assert_trees_equal(loaded_masked_lm, masked_lm)
        assert set(loaded.new) == {
            f"next_sentence.{module}.{leaf}"
            for module in ("pooler", "classifier")
            for leaf in ("weight", "bias")
        }
        assert 0.01 < np.std(head["pooler"]["kernel"]) < 0.03
        assert not head["pooler"]["bias"].any()
    assert not caplog.text  # `new` lists them


def test_only_the_named_head_may_be_new(masked_lm_folder, folder):
    tensors = load_file(masked_lm_folder / "model.safetensors")
    del tensors["lm_head.dense.bias"]
    save_file(tensors, masked_lm_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"no masked-LM head \(lm_head\.dense\.bias\)"):
        weights.read_pretrained(
            masked_lm_folder, RobertaForPreTraining, new_head=("next_sentence",)
        )
    new = weights.load_pretrained(masked_lm_folder, RobertaForPreTraining, new_head=True).new
    assert {name.split(".")[0] for name in new} == {"lm_head", "next_sentence"}
    with pytest.raises(UsageError, match="has no classifier"):
        weights.read_pretrained(folder, RobertaForSequenceClassification, new_head=("lm_head",))
    for wrong in ("classifier", ("encoder",)):
        with pytest.raises(UsageError, match="use True, False or a collection of pooler, lm_head"):
            weights.read_pretrained(folder, RobertaForSequenceClassification, new_head=wrong)


def test_check_pretrained_reads_no_tensors(folder, masked_lm_folder, monkeypatch):
    monkeypatch.setattr("roberta_jax.weights.load.read_all", None)  # would fail if called
    check_pretrained(folder, RobertaForPreTraining)
    check_pretrained(masked_lm_folder, RobertaForPreTraining, new_head=("next_sentence",))
    with pytest.raises(UsageError, match=r"no next-sentence head \(next_sentence\.classifier\.b"):
        check_pretrained(masked_lm_folder, RobertaForPreTraining)
    with pytest.raises(UsageError, match="no classifier"):
        check_pretrained(folder, RobertaForSequenceClassification, new_head=("next_sentence",))


def test_a_damaged_head_is_an_error_even_if_it_may_be_new(folder):
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:200])
    with pytest.raises(UsageError, match=r"cut short.*Delete nsp_head\.safetensors"):
        weights.read_pretrained(folder, RobertaForPreTraining, new_head=True)
    tensors = {name: np.zeros((2, 16), np.float32) for name in NAMES}
    save_file(tensors, folder / FILE)
    with pytest.raises(UsageError, match=r"should have shape \(32, 32\), but it has \(2, 16\)"):
        weights.read_pretrained(folder, RobertaForPreTraining, new_head=True)
    assert type(weights.read_pretrained(folder)[0]) is RobertaForMaskedLM  # does not read the head


def test_saving_parameters_without_the_head_is_an_error(params, tmp_path):
    masked_lm, _ = split_next_sentence(params)
    with pytest.raises(UsageError, match=r"next_sentence\.pooler\.weight is missing"):
        weights.save_pretrained(tmp_path / "out", MODEL, masked_lm)
    with pytest.raises(UsageError, match=r"next_sentence\.\S* is not the model's"):
        weights.save_pretrained(tmp_path / "out", RobertaForMaskedLM(CONFIG), params)
    assert not list(tmp_path.iterdir())


def test_a_saved_masked_lm_replaces_the_folder_and_its_head(folder, masked_lm_folder, params):
    masked_lm, _ = split_next_sentence(params)
    weights.save_pretrained(folder, RobertaForMaskedLM(CONFIG), masked_lm)
    assert not (folder / FILE).exists()
