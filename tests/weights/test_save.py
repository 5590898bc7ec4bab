"""The files that `save_pretrained` writes, and how it replaces an earlier folder."""

import json
import pathlib
import shutil
import zlib

import jax
import numpy as np
import pytest
from etils import epath
from flax import linen as nn
from safetensors import safe_open
from safetensors.numpy import load_file

from roberta_jax import RobertaTokenizer, weights
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.storage import atomic
from roberta_jax.weights import names
from tests.support.checkpoints import CONFIG, IDS, assert_trees_equal, build, random_params

# Contents


def test_tensors_have_pytorchs_names_and_layouts(masked_lm, saved):
    _, params = masked_lm
    with safe_open(saved / "model.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["roberta_jax.crc32"]) == {
        name: f"{zlib.crc32(tensor.tobytes()):08x}" for name, tensor in tensors.items()
    }
    assert json.loads(metadata["roberta_jax.config"]).items() < CONFIG.to_dict().items()
    # 5 for the embeddings, 16 a layer, 5 for the head without its tied decoder.
    assert len(tensors) == 5 + 16 * CONFIG.num_hidden_layers + 5
    layers = params["roberta"]["encoder"]["layer"]
    expected = {
        "roberta.embeddings.word_embeddings.weight": params["roberta"]["embeddings"][
            "word_embeddings"
        ]["embedding"],
        "roberta.encoder.layer.1.attention.self.key.bias": layers["attention"]["self"]["key"][
            "bias"
        ][1],
        "roberta.encoder.layer.2.intermediate.dense.weight": layers["intermediate"]["dense"][
            "kernel"
        ][2].T,
        "roberta.encoder.layer.0.output.LayerNorm.weight": layers["output"]["LayerNorm"]["scale"][
            0
        ],
        "lm_head.bias": params["lm_head"]["bias"],
        "lm_head.dense.weight": params["lm_head"]["dense"]["kernel"].T,
    }
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)
    assert "lm_head.decoder.weight" not in tensors


def test_the_config_describes_the_model(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["RobertaForMaskedLM"]
    assert config["model_type"] == "roberta"
    assert config["dtype"] == "float32"
    assert RobertaConfig.from_dict(config) == CONFIG


def test_stacked_and_unstacked_parameters_give_the_same_file(masked_lm, saved, tmp_path):
    model, stacked = masked_lm
    weights.save_pretrained(tmp_path / "unstacked", model, names.unstack_layers(stacked))
    stacked_tensors = load_file(saved / "model.safetensors")
    tensors = load_file(tmp_path / "unstacked" / "model.safetensors")
    assert tensors.keys() == stacked_tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, stacked_tensors[name], strict=True)


def test_boxed_parameters_are_unboxed(tmp_path):
    model = RobertaForMaskedLM(CONFIG)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS)["params"]
    params = random_params(model)
    boxed = jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(params))
    assert isinstance(boxed["lm_head"]["bias"], nn.Partitioned)
    weights.save_pretrained(tmp_path / "hf", model, boxed)
    assert_trees_equal(weights.from_pretrained(tmp_path / "hf")[1], params)


@pytest.mark.parametrize("size", [1, 20_000])
def test_large_models_are_split_into_shards(size, tmp_path):
    model, params = build("RobertaForMaskedLM")
    weights.save_pretrained(tmp_path / "out", model, params, max_shard_size=size)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    assert_trees_equal(weights.read_pretrained(tmp_path / "out")[1], params)
    # A folder of shards can be replaced too.
    weights.save_pretrained(tmp_path / "out", model, params)
    assert not list((tmp_path / "out").glob("model-*"))


# Errors


def test_an_unknown_format_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="unknown format 'tf'.*hf, flax, fairseq"):
        weights.save_pretrained(tmp_path / "out", *build("RobertaModel"), format="tf")


def test_parameters_of_another_model_are_refused_before_anything_is_written(masked_lm, tmp_path):
    model, params = masked_lm
    deeper = RobertaForMaskedLM(CONFIG.replace(num_hidden_layers=4))
    wider = RobertaForMaskedLM(CONFIG.replace(vocab_size=301))
    integers = jax.tree.map(lambda x: x.astype(np.int32), params)
    for other, other_params, message in (
        (deeper, params, r"layer\.3\.\S* is missing"),
        (wider, params, r"word_embeddings\.weight has shape \[300, 32\], not \[301, 32\]"),
        (model, {"params": params}, "pass the tree under 'params'"),
        (model, params["roberta"], r"lm_head.bias is missing|embeddings\S* is not the model's"),
        (model, integers, "is of type int32"),
    ):
        with pytest.raises(UsageError, match=message):
            weights.save_pretrained(tmp_path / "hf", other, other_params)
    assert not list(tmp_path.iterdir())


# Replacing a folder


def test_an_earlier_folder_is_replaced_and_keeps_its_tokenizer(folder, tokenizer):
    model = RobertaForMaskedLM(CONFIG)
    params = random_params(model, seed=1)
    weights.save_pretrained(folder, model, params)
    assert_trees_equal(weights.read_pretrained(folder)[1], params)
    assert RobertaTokenizer.from_pretrained(folder).fingerprint() == tokenizer.fingerprint()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_with_other_files_is_left_alone(folder, masked_lm):
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        weights.save_pretrained(folder, *masked_lm)
    assert (folder / "thesis.tex").read_text() == "years of work"
    with pytest.raises(UsageError, match="is a file"):
        weights.save_pretrained(folder / "thesis.tex", *masked_lm)


def test_a_failed_save_leaves_the_earlier_folder(folder, masked_lm):
    model, params = masked_lm

    class FullDisk:
        def save_pretrained(self, folder):
            raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="No space left on device"):
        weights.save_pretrained(folder, model, random_params(model, seed=1), FullDisk())
    assert_trees_equal(weights.read_pretrained(folder)[1], params)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("killed", ["while writing", "between the renames", "at the end"])
def test_the_remains_of_a_killed_save_are_repaired(killed, folder, masked_lm, tokenizer):
    model, _ = masked_lm
    if killed == "while writing":
        partial = folder.with_name(f".{folder.name}.partial")
        partial.mkdir()
        (partial / "model.safetensors").write_bytes(b"half")
    elif killed == "between the renames":
        folder.rename(folder.with_name(f".{folder.name}.replaced"))
    else:
        shutil.copytree(folder, folder.with_name(f".{folder.name}.replaced"))
    params = random_params(model, seed=2)
    weights.save_pretrained(folder, model, params)
    assert_trees_equal(weights.read_pretrained(folder)[1], params)
    # The tokenizer of the earlier folder is kept.
    assert RobertaTokenizer.from_pretrained(folder).fingerprint() == tokenizer.fingerprint()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_failed_rename_restores_the_earlier_folder(folder, masked_lm, monkeypatch):
    model, params = masked_lm
    rename = pathlib.Path.rename

    def rename_or_fail(self, target):
        if self.name.endswith(".partial"):
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", rename_or_fail)
    with pytest.raises(UsageError, match="Permission denied"):
        weights.save_pretrained(folder, model, random_params(model, seed=1))
    assert_trees_equal(weights.read_pretrained(folder)[1], params)


def test_an_object_store_gets_the_config_last(masked_lm, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "is_local", lambda path: False)
    copied = []
    copy = type(epath.Path(tmp_path)).copy
    monkeypatch.setattr(
        type(epath.Path(tmp_path)),
        "copy",
        lambda self, target, **options: copied.append(self.name) or copy(self, target, **options),
    )
    (tmp_path / "hf").mkdir()  # an object store needs no folders
    weights.save_pretrained(tmp_path / "hf", *masked_lm)
    assert copied == ["model.safetensors", "config.json"]
    assert_trees_equal(weights.read_pretrained(tmp_path / "hf")[1], masked_lm[1])
