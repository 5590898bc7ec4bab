"""`from_pretrained`, `read_pretrained`, `load_pretrained` and `read_config`."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from roberta_jax import weights
from roberta_jax.errors import UsageError
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import MODEL_CLASSES, RobertaForMaskedLM, RobertaModel
from roberta_jax.weights import names
from roberta_jax.weights.tensors import LazyTensor
from tests.support.checkpoints import (
    CONFIG,
    assert_trees_equal,
    build,
    edit_config,
    edit_tensors,
    random_params,
)

DTYPES = (np.float32, np.float16, jnp.bfloat16)
FORMATS = ("hf", "flax", "fairseq")

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
    # None keeps the types of the file. fairseq's files have no token types, which become float32.
    _, loaded_params = weights.read_pretrained(tmp_path / "out", param_dtype=None)
    if format != "fairseq":
        assert_trees_equal(loaded_params, params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_the_file_has_the_dtype_of_the_parameters(dtype, masked_lm, tmp_path):
    model, _ = masked_lm
    params = random_params(model, dtype=dtype)
    weights.save_pretrained(tmp_path / "hf", model, params)
    assert_trees_equal(weights.read_pretrained(tmp_path / "hf", param_dtype=dtype)[1], params)
    as_float32 = jax.tree.map(lambda x: x.astype(np.float32), params)
    assert_trees_equal(weights.read_pretrained(tmp_path / "hf")[1], as_float32)


def test_execution_selects_stacked_or_unstacked_parameters(masked_lm, saved):
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
    # The path of a file selects that file.
    assert_trees_equal(weights.read_pretrained(tmp_path / "out" / "flax_model.msgpack")[1], others)


# Classes


@pytest.mark.parametrize("name", sorted(MODEL_CLASSES))
def test_without_architectures_the_class_is_inferred_from_the_tensors(name, tmp_path):
    model, params = build(name)
    weights.save_pretrained(tmp_path / "out", model, params)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    expected = "RobertaForMaskedLM" if name == "RobertaForCausalLM" else name
    assert type(weights.read_pretrained(tmp_path / "out")[0]).__name__ == expected


def test_without_architectures_an_encoder_alone_is_a_roberta_model(folder):
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


# Wrong input


def test_param_dtype_must_be_a_floating_type(saved):
    with pytest.raises(UsageError, match="param_dtype='int8'"):
        weights.load_pretrained(saved, param_dtype="int8")


def test_unknown_config_fields_are_errors(saved):
    with pytest.raises(UsageError, match="num_lables"):
        weights.load_pretrained(saved, num_lables=3)


@pytest.mark.parametrize("size", [0, 5, 1000, 20_000])
def test_a_truncated_file_is_an_error(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UsageError, match="cut short"):
        weights.read_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "roberta"', "not a model's config"),
        ("[1]", "not a model's config"),
        ('{"model_type": "bert"}', "'bert'"),
        ('{"model_type": "roberta", "hidden_size": 33}', "hidden_size"),
    ],
)
def test_a_bad_config_is_an_error(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(UsageError, match=message):
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
    def fail(*arguments):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(LazyTensor, "read_into", fail)


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


def test_read_config_and_read_pretrained_raise_the_same_errors(folder, tmp_path):
    def messages(path):
        for function in (weights.read_config, weights.read_pretrained):
            with pytest.raises(UsageError) as error:
                function(path)
            yield str(error.value)

    def assert_same_message(path, expected):
        first, second = messages(path)
        assert first == second
        assert expected in first

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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most"),
        ({"num_hidden_layers": 9_999}, "num_hidden_layers=9999.*with 3 layers"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings must be at most"),
        ({"max_position_embeddings": 10**9}, "position_embeddings.*1000000000"),
        ({"vocab_size": 10**9}, "vocab_size in config.json must be the rows"),
        ({"hidden_size": 2**20}, "of another shape"),
        ({"intermediate_size": 2**24}, "of another shape"),
        ({"num_labels": 10**9}, "num_labels must be at most"),
    ],
)
def test_a_config_of_a_far_larger_model_is_refused_before_the_model_is_built(
    folder, changes, message
):
    config = json.loads((folder / "config.json").read_text())
    for name in ("id2label", "label2id"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UsageError, match=message):
        weights.read_pretrained(folder, execution=Execution(scan_layers=False))


@pytest.mark.parametrize(
    "contents", [b"[" * 10**5, b'{"a":' * 10**5, b"", b"\xff", b"NaN", b'"x"', b"9" * 5000]
)
def test_a_file_that_is_not_a_config_is_an_error(folder, contents):
    (folder / "config.json").write_bytes(contents)
    with pytest.raises(UsageError, match=r"config\.json"):
        weights.read_pretrained(folder)


@pytest.mark.parametrize(
    "path", ["", "https://huggingface.co/roberta-base", "x" * 5000, "nope://x"]
)
def test_a_path_that_cannot_be_opened_is_one_short_message(path):
    with pytest.raises(UsageError) as error:
        weights.read_pretrained(path)
    assert len(str(error.value)) < 500
