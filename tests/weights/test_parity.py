"""Weight files of every class are exchanged with transformers' classes."""

import json
import logging

import jax
import numpy as np
import pytest
from flax import traverse_util

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from roberta_jax import weights
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import MODEL_CLASSES
from roberta_jax.weights.names import unstack_layers
from roberta_jax.weights.parameters import parameter_shapes
from tests.support import checkpoints

pytestmark = pytest.mark.parity

CONFIG = RobertaConfig.base(
    vocab_size=100,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=42,
)
IDS = np.random.default_rng(0).integers(3, CONFIG.vocab_size, (2, 9))
NAMES = sorted(MODEL_CLASSES)
VARIANTS = {
    "untied": ("RobertaForMaskedLM", {"tie_word_embeddings": False}),
    "cross-attention": ("RobertaForCausalLM", {"is_decoder": True, "add_cross_attention": True}),
    "relative": ("RobertaForQuestionAnswering", {"position_embedding_type": "relative_key"}),
}
CASES = {name: (name, {}) for name in NAMES} | VARIANTS


def config_of(name, changes):
    labels = {"num_labels": 3} if name.endswith("Classification") else {}
    return CONFIG.replace(**(labels | {"is_decoder": name == "RobertaForCausalLM"} | changes))


def build(name, changes, dtype=np.float32):
    model = MODEL_CLASSES[name](config_of(name, changes))
    draw = np.random.default_rng(0).normal
    shapes = parameter_shapes(model)
    return model, jax.tree.map(lambda x: draw(0, 0.2, x.shape).astype(dtype), shapes)


def ids_of(name):
    return IDS[:, None].repeat(2, axis=1) if name == "RobertaForMultipleChoice" else IDS


OUTPUTS = ("logits", "last_hidden_state", "pooler_output", "start_logits", "end_logits")


def assert_same_outputs(ours, theirs):
    compared = [name for name in OUTPUTS if getattr(theirs, name, None) is not None]
    assert compared
    for name in compared:
        expected = np.asarray(getattr(theirs, name))
        np.testing.assert_allclose(getattr(ours, name), expected, rtol=0, atol=2e-5, err_msg=name)


def apply(model, params, **inputs):
    with jax.default_matmul_precision("highest"):
        return model.apply({"params": params}, ids_of(type(model).__name__), **inputs)


def extra_inputs(changes):
    if not changes.get("add_cross_attention"):
        return {}
    states = np.random.default_rng(1).normal(size=(2, 5, 32)).astype(np.float32)
    return {"encoder_hidden_states": states}


def call_torch(theirs, name, extra):
    with torch.no_grad():
        return theirs.eval()(
            input_ids=torch.tensor(ids_of(name)),
            **{key: torch.tensor(value) for key, value in extra.items()},
        )


@pytest.mark.parametrize("case", CASES)
def test_pytorch_classes_load_what_is_saved(case, tmp_path):
    name, changes = CASES[case]
    model, params = build(name, changes)
    weights.save_pretrained(tmp_path / "out", model, params, max_shard_size=30_000)
    options = {"add_pooling_layer": False} if name == "RobertaModel" else {}
    theirs, info = getattr(transformers, name).from_pretrained(
        tmp_path / "out", output_loading_info=True, **options
    )
    assert not any(info.values()), info
    extra = extra_inputs(changes)
    assert_same_outputs(apply(model, params, **extra), call_torch(theirs, name, extra))
    assert theirs.config.num_labels == model.config.num_labels


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_what_pytorch_classes_save_is_loaded(case, safe, tmp_path):
    name, changes = CASES[case]
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**config_of(name, changes).to_dict())
    theirs = getattr(transformers, name)(config)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path / "theirs", safe_serialization=safe)
    loaded = weights.load_pretrained(tmp_path / "theirs")
    assert type(loaded.model).__name__ == name
    assert loaded.weights.format == ("safetensors" if safe else "bin")
    assert not loaded.new
    extra = extra_inputs(changes)
    ours = apply(loaded.model, loaded.params, **extra)
    assert_same_outputs(ours, call_torch(theirs, name, extra))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_bit_for_bit(dtype, tmp_path):
    name = "RobertaForMaskedLM"
    config = transformers.RobertaConfig(**config_of(name, {}).to_dict())
    theirs = getattr(transformers, name)(config).to(dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = weights.load_pretrained(tmp_path / "theirs", param_dtype=None)
    weights.save_pretrained(tmp_path / "ours", loaded.model, loaded.params)
    reloaded = getattr(transformers, name).from_pretrained(tmp_path / "ours", dtype="auto")
    for (key, expected), tensor in zip(
        theirs.state_dict().items(), reloaded.state_dict().values(), strict=True
    ):
        assert tensor.dtype == expected.dtype == dtype, key
        assert torch.equal(tensor, expected), key


def test_auto_classes_load_the_model_and_its_tokenizer(tokenizer, tmp_path):
    model, params = checkpoints.build("RobertaForMaskedLM")
    weights.save_pretrained(tmp_path / "out", model, params, tokenizer)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert isinstance(theirs, transformers.RobertaForMaskedLM)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(checkpoints.IDS)).logits.numpy()
    logits = model.apply({"params": params}, checkpoints.IDS).logits
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("The cat <mask> on the mat.", " or so\nthey  say ", "naïve 猫 🐈"):
        assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text)


@pytest.mark.parametrize("name", ["RobertaForMaskedLM", "RobertaModel"])
def test_shards_by_transformers_are_loaded(name, tmp_path):
    torch.manual_seed(0)
    config = {k: v for k, v in checkpoints.CONFIG.to_dict().items() if k != "architectures"}
    theirs = getattr(transformers, name)(transformers.RobertaConfig(**config)).eval()
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    model, params = weights.from_pretrained(tmp_path / "one")
    assert type(model).__name__ == name
    checkpoints.assert_trees_equal(weights.from_pretrained(tmp_path / "shards")[1], params)
    with torch.no_grad():
        expected = theirs(torch.tensor(checkpoints.IDS))
    outputs = model.apply({"params": params}, checkpoints.IDS)
    for field in ("logits", "last_hidden_state", "pooler_output"):
        if field in expected:
            np.testing.assert_allclose(
                getattr(outputs, field), expected[field].numpy(), rtol=0, atol=1e-5
            )


def flax_class(name):
    return getattr(transformers, f"Flax{name}")


@pytest.fixture(autouse=True)
def _log_warnings_only():
    transformers.utils.logging.set_verbosity_warning()


@pytest.mark.parametrize("name", NAMES)
def test_flax_classes_load_what_is_saved(name, tmp_path, caplog):
    model, params = build(name, {})
    weights.save_pretrained(tmp_path / "out", model, params, format="flax")
    options = {"add_pooling_layer": False} if name == "RobertaModel" else {}
    transformers.utils.logging.get_logger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        theirs = flax_class(name).from_pretrained(tmp_path / "out", **options)
    transformers.utils.logging.get_logger("transformers").propagate = False
    assert "newly initialized" not in caplog.text
    assert "were not used" not in caplog.text
    flax_params = traverse_util.flatten_dict(theirs.params)
    expected = traverse_util.flatten_dict(unstack_layers(params))
    assert flax_params.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(flax_params[path], value, strict=True, err_msg=str(path))
    if name != "RobertaForCausalLM":  # whose positions in Flax depend on the cache
        expected = theirs(ids_of(name))
        outputs = apply(model, params)
        for field in ("logits", "last_hidden_state", "start_logits"):
            if field in expected:
                np.testing.assert_allclose(
                    getattr(outputs, field), expected[field], rtol=0, atol=5e-5
                )


@pytest.mark.parametrize("size", ["10GB", "20KB"])
@pytest.mark.parametrize("name", NAMES)
def test_what_flax_classes_save_is_loaded(name, size, tmp_path):
    config = transformers.RobertaConfig(**config_of(name, {}).to_dict())
    theirs = flax_class(name)(config, input_shape=(*ids_of(name).shape[:-1], 4))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    names = [path.name for path in (tmp_path / "theirs").glob("*.msgpack*")]
    assert (len(names) > 1) == (size == "20KB")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    # Hugging Face's Flax classes write their own names, without "Flax".
    assert config["architectures"] == [name]
    loaded = weights.load_pretrained(tmp_path / "theirs")
    assert type(loaded.model).__name__ == name
    params = traverse_util.flatten_dict(unstack_layers(loaded.params))
    expected = traverse_util.flatten_dict(theirs.params)
    assert params.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(params[path], value, strict=True, err_msg=str(path))


def test_torch_load_reads_a_fairseq_checkpoint_as_weights_only(tmp_path):
    model, params = build("RobertaForMaskedLM", {})
    weights.save_pretrained(tmp_path / "out", model, params, format="fairseq")
    state = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    tensors = state["model"]
    embedding = tensors["decoder.sentence_encoder.embed_tokens.weight"]
    assert torch.equal(embedding, tensors["decoder.lm_head.weight"])
    np.testing.assert_array_equal(
        embedding.numpy(), params["roberta"]["embeddings"]["word_embeddings"]["embedding"]
    )
    assert state["cfg"]["model"]["encoder_attention_heads"] == 4
    # Both of PyTorch's formats are read if PyTorch saves the same contents again.
    for zipped in (True, False):
        torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
        expected = weights.read_pretrained(tmp_path / "out")[1]
        params = weights.read_pretrained(tmp_path / "model.pt")[1]
        jax.tree.map(np.testing.assert_array_equal, params, expected)
