"""fairseq's checkpoints: all variants of their names, and models that they do not support."""

import collections

import numpy as np
import pytest

from roberta_jax import weights
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import (
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
)
from roberta_jax.weights.formats import fairseq, pytorch
from roberta_jax.weights.names import canonical, leaves, split_leaves
from tests.support.checkpoints import (
    CONFIG,
    assert_trees_equal,
    build,
    logits_of,
    random_params,
)

ARGUMENTS = {
    "arch": "roberta_base",
    "encoder_attention_heads": 4,
    "activation_fn": "gelu",
    "dropout": 0.2,
    "attention_dropout": 0.3,
    "pooler_dropout": 0.4,
    "untie_weights_roberta": False,
}


def fairseq_model(
    params, *, prefix="decoder.sentence_encoder.", merged=False, norm="emb_layer_norm"
):
    """A model's parameters under fairseq's names: {name: array}.

    Args:
      params: The parameters.
      prefix: The prefix of fairseq's names of the encoder.
      merged: Whether the query, key and value projections are one tensor.
      norm: fairseq's name of the embeddings' LayerNorm.
    """
    tensors = collections.OrderedDict()
    params_leaves = leaves(params)
    for torch_name, tensor in split_leaves(params_leaves, [leaf.value for leaf in params_leaves]):
        name = fairseq.name_of(canonical(torch_name))
        if name is not None:
            name = name.replace("decoder.sentence_encoder.", prefix)
            name = name.replace("decoder.lm_head", f"{prefix.split('.')[0]}.lm_head")
            tensors[name.replace("emb_layer_norm", norm)] = tensor
    if "lm_head" in params:
        head = f"{prefix.split('.')[0]}.lm_head.weight"
        tensors[head] = tensors[f"{prefix}embed_tokens.weight"]
    if merged:
        for name in list(tensors):
            if ".self_attn.q_proj." in name:
                parts = [tensors.pop(name.replace("q_proj", f"{p}_proj")) for p in "qkv"]
                tensors[name.replace("q_proj.", "in_proj_")] = np.concatenate(parts)
    tensors[f"{prefix}version"] = np.array([3.0], np.float32)
    return tensors


def write_checkpoint(path, model, **rest):
    """Writes a fairseq checkpoint of NumPy arrays."""
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
def test_all_variants_of_fairseqs_names_are_read(prefix, norm, merged, tmp_path):
    _, params = build("RobertaForMaskedLM")
    tensors = fairseq_model(params, prefix=prefix, merged=merged, norm=norm)
    write_checkpoint(tmp_path / "model.pt", tensors, cfg={"model": ARGUMENTS})
    loaded, loaded_params = weights.read_pretrained(tmp_path)
    assert type(loaded) is RobertaForMaskedLM
    expected = CONFIG.replace(
        hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3, num_labels=2
    )
    assert loaded.config == expected
    assert_trees_equal(loaded_params, params)
    assert_trees_equal(weights.read_pretrained(tmp_path / "model.pt")[1], params)


def test_the_class_is_inferred_from_the_classification_head(tmp_path):
    _, params = build("RobertaForSequenceClassification")
    tensors = fairseq_model(params)
    tensors = {k.replace("sentence_classification_head", "mnli"): v for k, v in tensors.items()}
    assert "classification_heads.mnli.out_proj.bias" in tensors
    write_checkpoint(tmp_path / "checkpoint_best.pt", tensors, cfg={"model": ARGUMENTS})
    loaded, loaded_params = weights.read_pretrained(tmp_path)
    assert type(loaded) is RobertaForSequenceClassification
    assert (loaded.config.num_labels, loaded.config.classifier_dropout) == (3, 0.4)
    assert_trees_equal(loaded_params, params)
    assert type(weights.read_pretrained(tmp_path, RobertaModel)[0]) is RobertaModel


def test_several_classification_heads_are_an_error(tmp_path):
    _, params = build("RobertaForSequenceClassification")
    tensors = fairseq_model(params)
    tensors |= {
        name.replace("sentence_classification_head", "other"): tensor
        for name, tensor in tensors.items()
        if "sentence_classification_head" in name
    }
    write_checkpoint(tmp_path / "model.pt", tensors, cfg={"model": ARGUMENTS})
    assert type(weights.read_pretrained(tmp_path)[0]) is RobertaModel
    with pytest.raises(
        UsageError, match="which of its heads other, sentence_classification_head to load"
    ):
        weights.read_pretrained(tmp_path, RobertaForSequenceClassification)


def test_without_arguments_the_config_is_inferred_from_the_shapes(tmp_path):
    config = RobertaConfig.base(
        vocab_size=50, hidden_size=128, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=20,
    )  # fmt: skip
    model = RobertaModel(config)
    params = random_params(model, token_types=False)
    tensors = fairseq_model(params)
    write_checkpoint(tmp_path / "model.pt", tensors)
    loaded, loaded_params = weights.read_pretrained(tmp_path)
    assert loaded == model
    assert_trees_equal(loaded_params, params)


def test_an_untied_checkpoint_has_its_own_decoder(tmp_path):
    model, params = build("RobertaForMaskedLM", tie_word_embeddings=False)
    weights.save_pretrained(tmp_path / "out", model, params, format="fairseq")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.pt"]
    loaded, loaded_params = weights.read_pretrained(tmp_path / "out")
    assert not loaded.config.tie_word_embeddings
    assert_trees_equal(loaded_params, params)


def test_token_types_are_added_to_the_positions(tmp_path):
    model, params = build("RobertaForMaskedLM")
    row = np.random.default_rng(1).normal(size=(1, 32)).astype(np.float32)
    params["roberta"]["embeddings"]["token_type_embeddings"]["embedding"] = row
    weights.save_pretrained(tmp_path / "out", model, params, format="fairseq")
    loaded, loaded_params = weights.read_pretrained(tmp_path / "out")
    embeddings = loaded_params["roberta"]["embeddings"]
    assert not embeddings["token_type_embeddings"]["embedding"].any()
    before = params["roberta"]["embeddings"]["position_embeddings"]["embedding"]
    np.testing.assert_array_equal(embeddings["position_embeddings"]["embedding"], before + row)
    np.testing.assert_allclose(
        logits_of(loaded, loaded_params), logits_of(model, params), atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("RobertaForQuestionAnswering", {}, r"no qa_outputs\.weight"),
        ("RobertaForMaskedLM", {"layer_norm_eps": 1e-12}, "epsilon"),
        ("RobertaForMaskedLM", {"pad_token_id": 3}, "<pad> is 1"),
        ("RobertaForMaskedLM", {"hidden_act": "silu"}, "no activation 'silu'"),
        ("RobertaForMaskedLM", {"position_embedding_type": "relative_key"}, "distance_embedding"),
    ],
)
def test_a_model_that_fairseq_does_not_support_is_an_error(name, changes, message, tmp_path):
    with pytest.raises(UsageError, match=f"fairseq's RoBERTa does not support.*{message}"):
        weights.save_pretrained(tmp_path / "out", *build(name, **changes), format="fairseq")
    assert not (tmp_path / "out").exists()


def test_bad_checkpoints_are_errors(tmp_path):
    _, params = build("RobertaForMaskedLM")
    tensors = fairseq_model(params)

    def assert_error(message, tensors, **rest):
        write_checkpoint(tmp_path / "model.pt", tensors, **rest)
        with pytest.raises(UsageError, match=message):
            weights.read_pretrained(tmp_path)

    arguments = {"model": ARGUMENTS | {"activation_fn": "swish!"}}
    assert_error("activation_fn='swish!'", tensors, cfg=arguments)
    before = {"model": ARGUMENTS | {"encoder_normalize_before": True}}
    assert_error("encoder_normalize_before", tensors, cfg=before)
    final = "decoder.sentence_encoder.layer_norm.weight"
    assert_error("normalises before", tensors | {final: np.zeros(32, np.float32)})
    assert_error("left over.*bias_k", tensors | {"decoder.bias_k": np.zeros(3, np.float32)})
    assert_error(
        "not a RoBERTa checkpoint of fairseq: it holds linear", {"linear": np.zeros(3, np.float32)}
    )
    head = "classification_heads.a.out_proj.weight"
    relu = {"model": ARGUMENTS | {"pooler_activation_fn": "relu"}}
    with_head = tensors | {head: np.zeros((3, 32), np.float32)}
    assert_error("pooler_activation_fn='relu'", with_head, cfg=relu)
    incomplete = dict(tensors)
    incomplete.pop("decoder.sentence_encoder.layers.1.fc2.bias")
    assert_error(r"missing \(1\): encoder\.layer\.1\.output\.dense\.bias", incomplete)
