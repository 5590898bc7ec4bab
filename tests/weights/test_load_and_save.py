"""Folders in Hugging Face's format: written for `transformers`, read from it, and read strictly."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import linen as nn
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from roberta_jax import RobertaTokenizer, weights
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM, RobertaModel
from roberta_jax.storage import atomic
from roberta_jax.weights import names

CONFIG = RobertaConfig.base(
    vocab_size=300,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=42,
)
IDS = np.random.default_rng(0).integers(3, CONFIG.vocab_size, (2, 20))


def random_params(model, seed=0, dtype=np.float32):
    """Parameters without a zero or a repeated value, so that no two can be mistaken."""
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    draw = np.random.default_rng(seed).normal
    return jax.tree.map(lambda x: draw(0, 0.2, x.shape).astype(dtype), shapes["params"])


def assert_trees_equal(left, right):
    """Equal in structure, types and bits."""
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), left, right)


@pytest.fixture(scope="module")
def masked_lm():
    model = RobertaForMaskedLM(CONFIG)
    return model, random_params(model)


def logits_of(model, params):
    return model.apply({"params": params}, IDS).logits


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


# Layouts


def test_stacking_and_unstacking_undo_each_other(masked_lm):
    _, stacked = masked_lm
    apart = names.unstack_layers(stacked)
    assert set(apart["roberta"]["encoder"]["layer"]) == {"0", "1", "2"}
    assert_trees_equal(names.stack_layers(apart), stacked)
    assert_trees_equal(names.unstack_layers(apart), apart)
    assert_trees_equal(names.stack_layers(stacked), stacked)


def test_unstacked_parameters_are_those_of_the_unscanned_model(masked_lm):
    model, stacked = masked_lm
    apart = RobertaForMaskedLM(CONFIG, Execution(scan_layers=False))
    np.testing.assert_allclose(
        logits_of(apart, names.unstack_layers(stacked)),
        logits_of(model, stacked),
        rtol=0,
        atol=1e-5,
    )


def test_more_than_ten_layers_stack_in_numeric_order():
    apart = {"layer": {str(i): {"bias": np.full(2, i)} for i in reversed(range(12))}}
    np.testing.assert_array_equal(names.stack_layers(apart)["layer"]["bias"][:, 0], np.arange(12))


@pytest.mark.parametrize("keys", [("0", "2"), ("1", "2")])
def test_layers_with_a_gap_do_not_stack(keys):
    with pytest.raises(ValueError, match="numbered"):
        names.stack_layers({"layer": {key: {"bias": np.zeros(2)} for key in keys}})


# What is written


def test_names_and_layouts_in_the_file_are_pytorchs(masked_lm, saved):
    _, params = masked_lm
    with safe_open(saved / "model.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}
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


def test_config_says_what_the_model_is(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["RobertaForMaskedLM"]
    assert config["model_type"] == "roberta"
    assert config["dtype"] == "float32"
    assert RobertaConfig.from_dict(config) == CONFIG


def test_stacked_and_unstacked_parameters_give_the_same_file(masked_lm, saved, tmp_path):
    model, stacked = masked_lm
    weights.save_pretrained(tmp_path / "apart", model, names.unstack_layers(stacked))
    left = load_file(saved / "model.safetensors")
    right = load_file(tmp_path / "apart" / "model.safetensors")
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], strict=True)


def test_boxed_parameters_are_unboxed(tmp_path):
    model = RobertaForMaskedLM(CONFIG)
    boxed = model.init(jax.random.key(0), IDS)["params"]
    weights.save_pretrained(tmp_path / "hf", model, boxed)
    assert_trees_equal(weights.from_pretrained(tmp_path / "hf")[1], nn.unbox(boxed))


def test_parameters_of_another_model_are_refused_before_anything_is_written(masked_lm, tmp_path):
    model, params = masked_lm
    deeper = RobertaForMaskedLM(CONFIG.replace(num_hidden_layers=4))
    wider = RobertaForMaskedLM(CONFIG.replace(vocab_size=301))
    whole = jax.tree.map(lambda x: x.astype(np.int32), params)
    for other, given, said in (
        (deeper, params, r"layer\.3\.\S* is missing"),
        (wider, params, r"word_embeddings\.weight has shape \[300, 32\], not \[301, 32\]"),
        (model, {"params": params}, "pass the tree under 'params'"),
        (model, params["roberta"], r"lm_head.bias is missing|embeddings\S* is not the model's"),
        (model, whole, "is of type int32"),
    ):
        with pytest.raises(UsageError, match=said):
            weights.save_pretrained(tmp_path / "hf", other, given)
    assert not list(tmp_path.iterdir())


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


def test_a_failed_write_leaves_what_was_there(folder, masked_lm):
    model, params = masked_lm

    class FullDisk:
        def save_pretrained(self, folder):
            raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="No space left on device"):
        weights.save_pretrained(folder, model, random_params(model, seed=1), FullDisk())
    assert_trees_equal(weights.read_pretrained(folder)[1], params)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("killed", ["while writing", "between the renames", "at the end"])
def test_what_a_killed_write_left_is_put_right(killed, folder, masked_lm, tokenizer):
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
    # The tokenizer came from the folder that was to be replaced.
    assert RobertaTokenizer.from_pretrained(folder).fingerprint() == tokenizer.fingerprint()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_rename_that_fails_brings_the_earlier_folder_back(folder, masked_lm, monkeypatch):
    model, params = masked_lm
    rename = pathlib.Path.rename

    def refuse(self, target):
        if self.name.endswith(".partial"):
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", refuse)
    with pytest.raises(UsageError, match="Permission denied"):
        weights.save_pretrained(folder, model, random_params(model, seed=1))
    assert_trees_equal(weights.read_pretrained(folder)[1], params)


def test_an_object_store_gets_the_config_last(masked_lm, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_is_local", lambda path: False)
    copied = []
    copy = type(epath.Path(tmp_path)).copy
    monkeypatch.setattr(
        type(epath.Path(tmp_path)),
        "copy",
        lambda self, target, **options: copied.append(self.name) or copy(self, target, **options),
    )
    weights.save_pretrained(tmp_path / "hf", *masked_lm)
    assert copied == ["model.safetensors", "config.json"]
    assert_trees_equal(weights.read_pretrained(tmp_path / "hf")[1], masked_lm[1])


# What is read


def test_a_round_trip_keeps_every_bit(masked_lm, saved):
    model, params = weights.from_pretrained(saved)
    assert model == masked_lm[0]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert_trees_equal(params, masked_lm[1])


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
    with pytest.raises(UsageError, match=r"not there: model-00002-of-00002\.safetensors"):
        weights.read_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text("[1, 2")
    with pytest.raises(UsageError, match="no index of weights"):
        weights.read_pretrained(folder)


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


@pytest.mark.parametrize("pooler", [False, True])
def test_an_encoder_round_trips_with_and_without_pooler(pooler, tmp_path):
    model = RobertaModel(CONFIG, add_pooling_layer=pooler)
    params = random_params(model)
    weights.save_pretrained(tmp_path / "hf", model, params)
    loaded, found = weights.read_pretrained(tmp_path / "hf")
    assert loaded == model
    assert_trees_equal(found, params)
    with pytest.raises(UsageError, match=r"no masked-LM head.*model_class=RobertaModel"):
        weights.read_pretrained(tmp_path / "hf", RobertaForMaskedLM)


def test_without_architectures_the_tensors_tell_the_class(folder, tmp_path):
    edit_config(folder, architectures=None)
    assert isinstance(weights.read_pretrained(folder)[0], RobertaForMaskedLM)
    edit_tensors(folder, lambda tensors: [tensors.pop(n) for n in list(tensors) if "lm_" in n])
    assert isinstance(weights.read_pretrained(folder)[0], RobertaModel)


def test_another_class_is_named_with_what_can_be_loaded(folder):
    edit_config(folder, architectures=["RobertaForPreTraining"])
    with pytest.raises(UsageError, match="holds a RobertaForPreTraining.*RobertaForMaskedLM"):
        weights.read_pretrained(folder)

    def classify(tensors):
        tensors["classifier.dense.weight"] = np.zeros((32, 32), np.float32)

    edit_tensors(folder, classify)
    assert isinstance(weights.read_pretrained(folder, RobertaModel)[0], RobertaModel)


# Bad input


def test_everything_that_does_not_fit_is_listed(folder):
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


def test_a_file_that_fits_nothing_is_an_error(folder):
    save_file({"bert.encoder.weight": np.zeros(3, np.float32)}, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"no tensor .* bert\.encoder\.weight"):
        weights.read_pretrained(folder)


@pytest.mark.parametrize("size", [0, 5, 1000, 20_000])
def test_a_truncated_file_is_an_error(folder, size):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(UsageError, match="cut short"):
        weights.read_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model_type": "roberta"', "no model's config"),
        ("[1]", "no model's config"),
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


def test_the_error_says_what_was_looked_for(tmp_path, folder):
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


# Against transformers


@pytest.mark.parity
def test_transformers_loads_the_folder_and_agrees(masked_lm, saved, tokenizer):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, params = masked_lm
    theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(
        saved, output_loading_info=True
    )
    assert not any(info.values()), info
    assert isinstance(theirs, transformers.RobertaForMaskedLM)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(logits_of(model, params), expected, rtol=0, atol=1e-5)

    their_tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    for text in ("The cat <mask> on the mat.", " or so\nthey  say ", "naïve 猫 🐈"):
        assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["RobertaForMaskedLM", "RobertaModel"])
def test_folders_by_transformers_load_and_agree(name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = {k: v for k, v in CONFIG.to_dict().items() if k != "architectures"}
    theirs = getattr(transformers, name)(transformers.RobertaConfig(**settings)).eval()
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    model, params = weights.from_pretrained(tmp_path / "one")
    assert type(model).__name__ == name
    assert_trees_equal(weights.from_pretrained(tmp_path / "shards")[1], params)
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS))
    ours = model.apply({"params": params}, IDS)
    for field in ("logits", "last_hidden_state", "pooler_output"):
        if field in expected:
            np.testing.assert_allclose(
                getattr(ours, field), expected[field].numpy(), rtol=0, atol=1e-5
            )
