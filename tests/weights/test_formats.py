"""PyTorch's, Flax's and fairseq's files: written, read, and read by the programs they are for."""

import collections
import json
import shutil

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from roberta_jax import weights
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import (
    MODEL_CLASSES,
    RobertaForCausalLM,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)
from roberta_jax.weights.formats import fairseq, msgpack, pytorch
from roberta_jax.weights.names import canonical, leaves, unstack_layers
from roberta_jax.weights.save import parameter_shapes
from roberta_jax.weights.tensors import Extent, StoredTensor

CONFIG = RobertaConfig.base(
    vocab_size=300,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=42,
    num_labels=3,
)
IDS = np.random.default_rng(0).integers(3, CONFIG.vocab_size, (2, 20))
DTYPES = (np.float32, np.float16, jnp.bfloat16)
FORMATS = ("hf", "flax", "fairseq")
FLAX_CLASSES = sorted(MODEL_CLASSES)


def random_params(model, seed=0, dtype=np.float32):
    """Parameters without a zero or a repeated value, but for the token types, which are zero."""
    draw = np.random.default_rng(seed).normal
    params = jax.tree.map(lambda x: draw(0, 0.2, x.shape).astype(dtype), parameter_shapes(model))
    params.get("roberta", params)["embeddings"]["token_type_embeddings"]["embedding"][...] = 0
    return params


def assert_trees_equal(left, right):
    """Equal in structure, types and bits."""
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), left, right)


def built(name, **changes):
    """A model of this class and random parameters."""
    model = MODEL_CLASSES[name](CONFIG.replace(**changes))
    return model, random_params(model)


def ids_for(model):
    return IDS[:, None].repeat(2, axis=1) if "MultipleChoice" in type(model).__name__ else IDS


def outputs_of(model, params):
    """The first outputs, as a dictionary."""
    found = model.apply({"params": params}, ids_for(model))
    names = ("logits", "last_hidden_state", "pooler_output", "start_logits", "end_logits")
    return {n: np.asarray(getattr(found, n)) for n in names if getattr(found, n, None) is not None}


def torch_tensors(params):
    """{PyTorch name: NumPy array}."""
    return {
        name: np.asarray(tensor.T if leaf.transposed else tensor)
        for leaf in leaves(params)
        for name, tensor in zip(
            leaf.names, leaf.value if leaf.stacked else [leaf.value], strict=True
        )
    }


# Round trips


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", FORMATS)
def test_a_round_trip_keeps_every_bit(format, dtype, tmp_path):
    model = RobertaForMaskedLM(CONFIG)
    params = random_params(model, dtype=dtype)
    weights.save_pretrained(tmp_path / "out", model, params, format=format)
    loaded, found = weights.read_pretrained(tmp_path / "out", param_dtype=dtype)
    assert type(loaded) is RobertaForMaskedLM
    assert_trees_equal(found, params)
    # None keeps what the file has; only the token types are in no file of fairseq's.
    _, found = weights.read_pretrained(tmp_path / "out", param_dtype=None)
    if format != "fairseq":
        assert_trees_equal(found, params)


@pytest.mark.parametrize("format", ["hf", "flax"])
@pytest.mark.parametrize("name", sorted(MODEL_CLASSES))
def test_every_class_round_trips(name, format, tmp_path):
    model, params = built(name)
    weights.save_pretrained(tmp_path / "out", model, params, format=format)
    loaded, found = weights.read_pretrained(tmp_path / "out")
    assert type(loaded).__name__ == name
    assert loaded.config == model.config
    assert_trees_equal(found, params)


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
    model, params = built(name, **changes)
    weights.save_pretrained(tmp_path / "out", model, params, format=format)
    loaded, found = weights.read_pretrained(tmp_path / "out")
    assert loaded == model
    assert_trees_equal(found, params)


@pytest.mark.parametrize("size", [1, 20_000])
def test_large_models_are_cut_into_shards(size, tmp_path):
    model, params = built("RobertaForMaskedLM")
    weights.save_pretrained(tmp_path / "out", model, params, max_shard_size=size)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    assert_trees_equal(weights.read_pretrained(tmp_path / "out")[1], params)
    # A folder of shards is one of ours, which may be replaced.
    weights.save_pretrained(tmp_path / "out", model, params)
    assert not list((tmp_path / "out").glob("model-*"))


def test_an_unknown_format_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="unknown format 'tf'.*hf, flax, fairseq"):
        weights.save_pretrained(tmp_path / "out", *built("RobertaModel"), format="tf")


def test_the_preferred_format_is_read_where_there_are_several(tmp_path):
    model, params = built("RobertaForMaskedLM")
    others = random_params(model, seed=1)
    weights.save_pretrained(tmp_path / "out", model, params)
    weights.save_pretrained(tmp_path / "flax", model, others, format="flax")
    shutil.copy(tmp_path / "flax" / "flax_model.msgpack", tmp_path / "out")
    assert_trees_equal(weights.read_pretrained(tmp_path / "out")[1], params)
    # A file that is named is taken.
    assert_trees_equal(weights.read_pretrained(tmp_path / "out" / "flax_model.msgpack")[1], others)


# New heads


@pytest.fixture
def pretrained(tmp_path):
    """A masked LM's folder and its parameters."""
    model, params = built("RobertaForMaskedLM")
    weights.save_pretrained(tmp_path / "pretrained", model, params)
    return tmp_path / "pretrained", params


def test_a_head_that_the_file_lacks_is_made_on_request_alone(pretrained, caplog):
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


def test_the_kinds_of_new_parts(pretrained):
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


def test_a_new_head_never_hides_a_gap_in_the_encoder(pretrained):
    folder, _ = pretrained
    settings = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=r"missing \(16\): encoder\.layer\.2"):
        weights.load_pretrained(folder, RobertaForSequenceClassification, new_head=True)


def test_another_number_of_labels_is_an_error_unless_asked_for(tmp_path):
    model, params = built("RobertaForSequenceClassification")
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


def test_a_wrong_vocabulary_size_says_so(pretrained):
    folder, _ = pretrained
    with pytest.raises(UsageError, match=r"\(file \[300, 32\], config \[301, 32\]\)") as error:
        weights.load_pretrained(folder, vocab_size=301)
    assert "vocab_size in config.json must be the rows" in str(error.value)


def test_parameters_are_of_a_floating_type(pretrained):
    with pytest.raises(UsageError, match="param_dtype='int8'"):
        weights.load_pretrained(pretrained[0], param_dtype="int8")


def test_a_tensor_under_two_names_is_an_error(pretrained):
    folder, _ = pretrained
    tensors = load_file(folder / "model.safetensors")
    name = "roberta.embeddings.LayerNorm.weight"
    tensors[name.replace("weight", "gamma")] = tensors[name] + 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"two names each: roberta\.embeddings\.LayerNorm\."):
        weights.load_pretrained(folder)


def test_unknown_config_fields_are_errors(pretrained):
    with pytest.raises(UsageError, match="num_lables"):
        weights.load_pretrained(pretrained[0], num_lables=3)


@pytest.mark.parametrize("name", sorted(MODEL_CLASSES))
def test_without_architectures_the_tensors_tell_the_class(name, tmp_path):
    model, params = built(name)
    weights.save_pretrained(tmp_path / "out", model, params)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    del settings["architectures"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(settings))
    expected = "RobertaForMaskedLM" if name == "RobertaForCausalLM" else name
    assert type(weights.read_pretrained(tmp_path / "out")[0]).__name__ == expected


# Flax's files


def test_flax_reads_what_is_written_and_the_other_way_round(tmp_path):
    tree = {"a": {"kernel": np.arange(6.0).reshape(2, 3), "scale": np.float16([1, 2])}}
    tree["b"] = {str(i): {"bias": jnp.full(3, i, jnp.bfloat16)} for i in range(20)}
    flat = traverse_util.flatten_dict(tree)
    specs = {place: (x.shape, np.dtype(x.dtype)) for place, x in flat.items()}
    arrays = [(place, np.asarray(flat[place])) for place in reversed(flat)]
    msgpack.write(tmp_path / "ours", specs, arrays)
    assert_trees_equal(flax.serialization.msgpack_restore((tmp_path / "ours").read_bytes()), tree)
    (tmp_path / "theirs").write_bytes(flax.serialization.msgpack_serialize(tree))
    found = {place: x.read() for place, x in msgpack.read(tmp_path / "theirs").items()}
    assert_trees_equal(found, flat)


def test_arrays_in_pieces_are_read_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 100)
    monkeypatch.setattr(msgpack, "_CHUNK_BYTES", 100)
    tree = {"x": {"kernel": np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)}}
    flat = traverse_util.flatten_dict(tree)
    specs = {place: (x.shape, x.dtype) for place, x in flat.items()}
    msgpack.write(tmp_path / "ours", specs, flat.items())
    theirs = flax.serialization.msgpack_serialize(tree)
    assert_trees_equal(flax.serialization.msgpack_restore((tmp_path / "ours").read_bytes()), tree)
    (tmp_path / "theirs").write_bytes(theirs)
    for name in ("ours", "theirs"):
        [array] = msgpack.read(tmp_path / name).values()
        np.testing.assert_array_equal(array.read(), tree["x"]["kernel"])
        turned = np.empty((9, 7), np.float64)
        array.T.read_into(turned)
        np.testing.assert_array_equal(turned, tree["x"]["kernel"].T)


def test_flax_shards_are_read_through_their_index(tmp_path):
    model, params = built("RobertaForMaskedLM")
    weights.save_pretrained(tmp_path / "out", model, params, format="flax")
    (tmp_path / "out" / "flax_model.msgpack").unlink()
    flat = traverse_util.flatten_dict(unstack_layers(params), sep="/")
    files = {}
    for i, names in enumerate((sorted(flat)[::2], sorted(flat)[1::2]), start=1):
        file = f"flax_model-{i:05}-of-00002.msgpack"
        data = flax.serialization.msgpack_serialize({name: flat[name] for name in names})
        (tmp_path / "out" / file).write_bytes(data)
        files |= dict.fromkeys(names, file)
    index = tmp_path / "out" / "flax_model.msgpack.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert_trees_equal(weights.read_pretrained(tmp_path / "out")[1], params)


@pytest.mark.parametrize("size", [0, 1, 50, 5000])
def test_a_truncated_flax_file_is_an_error(size, tmp_path):
    weights.save_pretrained(tmp_path / "out", *built("RobertaModel"), format="flax")
    file = tmp_path / "out" / "flax_model.msgpack"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UsageError, match=r"flax_model\.msgpack.* cut short"):
        weights.read_pretrained(tmp_path / "out")


# Tensors in files


def test_any_view_is_read_as_numpy_has_it(tmp_path):
    numbers = np.random.default_rng(0).normal(size=300 * 140).astype(np.float32)
    (tmp_path / "x").write_bytes(b"12345678" + numbers.tobytes())
    whole = StoredTensor((300, 140), "float32", tmp_path / "x", (Extent(8, numbers.nbytes),))
    expected = numbers.reshape(300, 140)
    step = StoredTensor((2, 3), "float32", tmp_path / "x", (Extent(8 + 40, 4 * 43),), (20, 11))
    views = [
        (whole, expected),
        (whole.T, expected.T),
        (whole.rows(100, 200), expected[100:200]),
        (whole.rows(100, 200).T, expected[100:200].T),
        (step, np.lib.stride_tricks.as_strided(numbers[10:], (2, 3), (80, 44))),
        (StoredTensor((3, 2), "float32"), np.zeros((3, 2), np.float32)),
    ]
    for view, array in views:
        np.testing.assert_array_equal(view.read(), array)
        for dtype in (np.float32, np.float64, np.float16):
            for order in "CF":
                place = np.empty(array.shape, dtype, order)
                view.read_into(place)
                np.testing.assert_array_equal(place, array.astype(dtype))


def test_a_file_that_was_cut_after_it_was_opened_is_an_error(tmp_path):
    (tmp_path / "x").write_bytes(bytes(40))
    tensor = StoredTensor((20,), "float32", tmp_path / "x", (Extent(0, 80),))
    with pytest.raises(UsageError, match="cut short"):
        tensor.read()


# fairseq's checkpoints


def fairseq_model(
    params, *, prefix="decoder.sentence_encoder.", merged=False, norm="emb_layer_norm"
):
    """A masked LM's parameters under fairseq's names."""
    found = collections.OrderedDict()
    for name, tensor in torch_tensors(params).items():
        theirs = fairseq.name_of(canonical(name))
        if theirs is not None:
            theirs = theirs.replace("decoder.sentence_encoder.", prefix)
            theirs = theirs.replace("decoder.lm_head", f"{prefix.split('.')[0]}.lm_head")
            found[theirs.replace("emb_layer_norm", norm)] = tensor
    if "lm_head" in params:
        head = f"{prefix.split('.')[0]}.lm_head.weight"
        found[head] = found[f"{prefix}embed_tokens.weight"]
    if merged:
        for name in list(found):
            if ".self_attn.q_proj." in name:
                parts = [found.pop(name.replace("q_proj", f"{p}_proj")) for p in "qkv"]
                found[name.replace("q_proj.", "in_proj_")] = np.concatenate(parts)
    found[f"{prefix}version"] = np.array([3.0], np.float32)
    return found


ARGUMENTS = {
    "arch": "roberta_base",
    "encoder_attention_heads": 4,
    "activation_fn": "gelu",
    "dropout": 0.2,
    "attention_dropout": 0.3,
    "pooler_dropout": 0.4,
    "untie_weights_roberta": False,
}


def write_checkpoint(path, model, **rest):
    """A checkpoint that our own writer makes of NumPy arrays."""
    keys = {name: number for number, name in enumerate(model)}
    state = {
        "model": {
            name: pytorch.Reference(keys[name], x.shape, x.dtype.name) for name, x in model.items()
        },
        **rest,
    }
    pytorch.write(path, state, ((keys[name], x) for name, x in model.items()))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("norm", ["emb_layer_norm", "layernorm_embedding"])
@pytest.mark.parametrize(
    "prefix",
    ["decoder.sentence_encoder.", "encoder.sentence_encoder.", "decoder.", "encoder."],
)
def test_the_forms_of_fairseqs_names(prefix, norm, merged, tmp_path):
    _, params = built("RobertaForMaskedLM")
    tensors = fairseq_model(params, prefix=prefix, merged=merged, norm=norm)
    write_checkpoint(tmp_path / "model.pt", tensors, cfg={"model": ARGUMENTS})
    loaded, found = weights.read_pretrained(tmp_path)
    assert type(loaded) is RobertaForMaskedLM
    expected = CONFIG.replace(
        hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3, num_labels=2
    )
    assert loaded.config == expected
    assert_trees_equal(found, params)
    assert_trees_equal(weights.read_pretrained(tmp_path / "model.pt")[1], params)


def test_a_classification_head_tells_the_class(tmp_path):
    _, params = built("RobertaForSequenceClassification")
    tensors = fairseq_model(params)
    tensors = {k.replace("sentence_classification_head", "mnli"): v for k, v in tensors.items()}
    assert "classification_heads.mnli.out_proj.bias" in tensors
    write_checkpoint(tmp_path / "checkpoint_best.pt", tensors, cfg={"model": ARGUMENTS})
    loaded, found = weights.read_pretrained(tmp_path)
    assert type(loaded) is RobertaForSequenceClassification
    assert (loaded.config.num_labels, loaded.config.classifier_dropout) == (3, 0.4)
    assert_trees_equal(found, params)
    assert type(weights.read_pretrained(tmp_path, RobertaModel)[0]) is RobertaModel


def test_several_classification_heads_cannot_be_told_apart(tmp_path):
    _, params = built("RobertaForSequenceClassification")
    tensors = fairseq_model(params)
    tensors |= {
        name.replace("sentence_classification_head", "other"): tensor
        for name, tensor in tensors.items()
        if "sentence_classification_head" in name
    }
    write_checkpoint(tmp_path / "model.pt", tensors, cfg={"model": ARGUMENTS})
    assert type(weights.read_pretrained(tmp_path)[0]) is RobertaModel
    with pytest.raises(UsageError, match="heads other, sentence_classification_head cannot"):
        weights.read_pretrained(tmp_path, RobertaForSequenceClassification)


def test_without_arguments_the_shapes_tell_the_config(tmp_path):
    config = RobertaConfig.base(
        vocab_size=50, hidden_size=128, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=20,
    )  # fmt: skip
    model = RobertaModel(config)
    params = random_params(model)
    tensors = fairseq_model(params)
    write_checkpoint(tmp_path / "model.pt", tensors)
    loaded, found = weights.read_pretrained(tmp_path)
    assert loaded == model
    assert_trees_equal(found, params)


def test_an_untied_checkpoint_has_its_own_decoder(tmp_path):
    model, params = built("RobertaForMaskedLM", tie_word_embeddings=False)
    weights.save_pretrained(tmp_path / "out", model, params, format="fairseq")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.pt"]
    loaded, found = weights.read_pretrained(tmp_path / "out")
    assert not loaded.config.tie_word_embeddings
    assert_trees_equal(found, params)


def test_token_types_are_folded_into_the_positions(tmp_path):
    model, params = built("RobertaForMaskedLM")
    row = np.random.default_rng(1).normal(size=(1, 32)).astype(np.float32)
    params["roberta"]["embeddings"]["token_type_embeddings"]["embedding"] = row
    weights.save_pretrained(tmp_path / "out", model, params, format="fairseq")
    loaded, found = weights.read_pretrained(tmp_path / "out")
    embeddings = found["roberta"]["embeddings"]
    assert not embeddings["token_type_embeddings"]["embedding"].any()
    before = params["roberta"]["embeddings"]["position_embeddings"]["embedding"]
    np.testing.assert_array_equal(embeddings["position_embeddings"]["embedding"], before + row)
    np.testing.assert_allclose(
        outputs_of(loaded, found)["logits"], outputs_of(model, params)["logits"], atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("RobertaForQuestionAnswering", {}, r"no qa_outputs\.weight"),
        ("RobertaForMaskedLM", {"layer_norm_eps": 1e-12}, "epsilon"),
        ("RobertaForMaskedLM", {"pad_token_id": 3}, "<pad> is 1"),
        ("RobertaForMaskedLM", {"hidden_act": "silu"}, "no activation 'silu'"),
        ("RobertaForMaskedLM", {"position_embedding_type": "relative_key"}, "distance_embedding"),
    ],
)
def test_what_fairseq_has_no_place_for_is_an_error(name, changes, said, tmp_path):
    with pytest.raises(UsageError, match=f"fairseq's RoBERTa has no place.*{said}"):
        weights.save_pretrained(tmp_path / "out", *built(name, **changes), format="fairseq")
    assert not (tmp_path / "out").exists()


def test_bad_checkpoints_are_errors(tmp_path):
    _, params = built("RobertaForMaskedLM")
    tensors = fairseq_model(params)

    def said(message, tensors, **rest):
        write_checkpoint(tmp_path / "model.pt", tensors, **rest)
        with pytest.raises(UsageError, match=message):
            weights.read_pretrained(tmp_path)

    arguments = {"model": ARGUMENTS | {"activation_fn": "swish!"}}
    said("activation_fn='swish!'", tensors, cfg=arguments)
    before = {"model": ARGUMENTS | {"encoder_normalize_before": True}}
    said("encoder_normalize_before", tensors, cfg=before)
    final = "decoder.sentence_encoder.layer_norm.weight"
    said("normalises before", tensors | {final: np.zeros(32, np.float32)})
    said("left over.*bias_k", tensors | {"decoder.bias_k": np.zeros(3, np.float32)})
    said("no RoBERTa of fairseq's: it holds linear", {"linear": np.zeros(3, np.float32)})
    head = "classification_heads.a.out_proj.weight"
    relu = {"model": ARGUMENTS | {"pooler_activation_fn": "relu"}}
    said("pooler_activation_fn='relu'", tensors | {head: np.zeros((3, 32), np.float32)}, cfg=relu)
    gone = dict(tensors)
    gone.pop("decoder.sentence_encoder.layers.1.fc2.bias")
    said(r"missing \(1\): encoder\.layer\.1\.output\.dense\.bias", gone)
