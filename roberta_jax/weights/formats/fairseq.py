"""Reads and writes fairseq's RoBERTa checkpoints, such as `model.pt` and `checkpoint_best.pt`.

A checkpoint is a dictionary in PyTorch's format. `model` holds the tensors, and `args` (before
release 0.10, an `argparse.Namespace`) or `cfg` the arguments of the training run. Tensors are named
as in `fairseq/models/roberta/model.py`. fairseq's releases differ in prefixes, in a few names and
in whether the query, key and value projections are one tensor; all variants are read. Checkpoints
are written with the names of the released models and separate projections. Their arguments are
plain values in `cfg`, because `torch.load(weights_only=True)` refuses the object in `args`. The
whole `config.json` is under `hf_config`, which fairseq ignores: it has fields that fairseq has no
argument for, such as `initializer_range` and the names of the labels.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from roberta_jax.errors import UsageError, listed
from roberta_jax.weights.files import FAIRSEQ_NAMES
from roberta_jax.weights.formats import pytorch, unpickler
from roberta_jax.weights.names import Leaf, canonical, split_leaves
from roberta_jax.weights.tensors import FileContents, LazyTensor

# fairseq's name -> Hugging Face's, within a layer and outside the layers. If Hugging Face's name
# occurs twice, checkpoints are written with the first one.
_IN_LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "layer_norms.0": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
    "layer_norms.1": "output.LayerNorm",
}
_OUTSIDE = {
    "embed_tokens": "embeddings.word_embeddings",
    "embed_positions": "embeddings.position_embeddings",
    "emb_layer_norm": "embeddings.LayerNorm",
    "layernorm_embedding": "embeddings.LayerNorm",
}
_PROJECTIONS = ("query", "key", "value")

_WORDS = "embeddings.word_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
_DECODER = "lm_head.decoder.weight"
# The name that fairseq's sentence_prediction task gives its head.
_HEAD = "classification_heads.sentence_classification_head"

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "relu": "relu",
    "tanh": "tanh",
}
_HF_CONFIG = "hf_config"  # the key of a checkpoint that has the whole config.json
# Fields of config.json that follow from the tensors.
_FROM_TENSORS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "tie_word_embeddings",
)
_LAYER_NORM_EPS = 1e-5  # PyTorch's default, which fairseq always uses
_PAD = 1


def read_weights(path: pathlib.Path) -> FileContents:
    """Finds the tensors and the config of a checkpoint.

    Unknown tensors keep their names, so that loading reports them as left over.

    Raises:
      UsageError: The file is damaged, is not a RoBERTa checkpoint, or contains code.
    """
    state = pytorch.read(path, inert=True)
    if not isinstance(state, dict):
        raise UsageError(f"{path} is not a fairseq checkpoint")
    model = state["model"] if isinstance(state.get("model"), dict) else state
    model = {name: value for name, value in model.items() if isinstance(value, LazyTensor)}
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in model.items():
        for hf_name, part in _rename(name, tensor, path):
            if hf_name in tensors:
                raise UsageError(f"{path} holds {hf_name} twice, the second time as {name}")
            tensors[hf_name] = part
    if _WORDS not in tensors or _POSITIONS not in tensors:
        names = ", ".join(sorted(map(str, model or state))[:8])
        raise UsageError(f"{path} is not a RoBERTa checkpoint of fairseq: it holds {names}")
    tensors = _name_head(tensors)
    tensors.setdefault(_TYPES, LazyTensor((1, tensors[_WORDS].shape[-1]), "float32"))
    arguments = _arguments(state)
    config = _config(path, arguments, tensors)
    return FileContents(tensors, _with_stored_fields(config, state.get(_HF_CONFIG), arguments))


def _rename(name: str, tensor: LazyTensor, path: pathlib.Path) -> list[tuple[str, LazyTensor]]:
    """Hugging Face's equivalent of a tensor: none, one or three (name, tensor)."""
    rest = re.sub(r"^(decoder|encoder)\.", "", name)
    in_encoder, rest = rest.startswith("sentence_encoder."), rest.removeprefix("sentence_encoder.")
    if rest.endswith(("version", "_float_tensor")):
        return []
    if rest.startswith("classification_heads."):
        return [(rest, tensor)]
    if rest.startswith("lm_head."):
        return [(_DECODER if rest == "lm_head.weight" else rest, tensor)]
    if in_encoder and rest.startswith("layer_norm."):
        raise UsageError(
            f"{path} normalises before each sub-layer (it holds {name}); RoBERTa normalises after "
            "each sub-layer, and pre-norm models are not supported"
        )
    match = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", rest)
    if match and match[2] in _IN_LAYER:
        return [(f"encoder.layer.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}", tensor)]
    match = re.fullmatch(r"layers\.(\d+)\.self_attn\.in_proj_(weight|bias)", rest)
    if match and tensor.shape and tensor.shape[0] % 3 == 0:
        rows = tensor.shape[0] // 3
        return [
            (
                f"encoder.layer.{match[1]}.attention.self.{projection}.{match[2]}",
                tensor.rows(i * rows, (i + 1) * rows),
            )
            for i, projection in enumerate(_PROJECTIONS)
        ]
    module, _, last = rest.rpartition(".")
    return [(f"{_OUTSIDE[module]}.{last}" if module in _OUTSIDE else name, tensor)]


def _name_head(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Renames the classification head to `classifier`, if there is exactly one."""
    heads = {
        ".".join(name.split(".")[:2])
        for name in tensors
        if name.startswith("classification_heads.")
    }
    if len(heads) != 1:
        return tensors
    [head] = heads
    return {
        f"classifier{name.removeprefix(head)}" if name.startswith(f"{head}.") else name: tensor
        for name, tensor in tensors.items()
    }


def _arguments(state: Mapping[str, Any]) -> dict[str, Any]:
    """The model's arguments: `args`, or the `model` part of `cfg`."""
    arguments = unpickler.plain(state.get("args"))
    if not isinstance(arguments, dict):
        cfg = unpickler.plain(state.get("cfg"))
        arguments = cfg.get("model") if isinstance(cfg, dict) else None
    return arguments if isinstance(arguments, dict) else {}


def _config(
    path: pathlib.Path, arguments: dict[str, Any], tensors: dict[str, LazyTensor]
) -> dict[str, Any]:
    """The contents of a `config.json`.

    Sizes are those of the tensors. The rest comes from the arguments, or else is as in the released
    models.
    """
    if arguments.get("encoder_normalize_before"):
        raise UsageError(
            f"{path} was trained with encoder_normalize_before; RoBERTa normalises after each "
            "sub-layer, and pre-norm models are not supported"
        )
    vocab_size, width = tensors[_WORDS].shape
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}
    intermediate = tensors.get("encoder.layer.0.intermediate.dense.weight")
    activation = arguments.get("activation_fn") or "gelu"
    if activation not in _ACTIVATIONS:
        raise UsageError(
            f"{path} has activation_fn={activation!r}; known: {', '.join(_ACTIVATIONS)}"
        )
    config = {
        "model_type": "roberta",
        "architectures": [_architecture(tensors)],
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": arguments.get("encoder_attention_heads") or max(1, width // 64),
        "intermediate_size": intermediate.shape[0] if intermediate else 4 * width,
        "hidden_act": _ACTIVATIONS[activation],
        "hidden_dropout_prob": _number(arguments, "dropout", 0.1),
        "attention_probs_dropout_prob": _number(arguments, "attention_dropout", 0.1),
        "max_position_embeddings": tensors[_POSITIONS].shape[0],
        "type_vocab_size": tensors[_TYPES].shape[0],
        "layer_norm_eps": _LAYER_NORM_EPS,
        "pad_token_id": _PAD,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "tie_word_embeddings": _tied(tensors),
    }
    if "classifier.out_proj.weight" in tensors:
        pooler = arguments.get("pooler_activation_fn") or "tanh"
        if pooler != "tanh":
            raise UsageError(f"{path} has a head with pooler_activation_fn={pooler!r}, not 'tanh'")
        labels = tensors["classifier.out_proj.weight"].shape[0]
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
        config["classifier_dropout"] = _number(arguments, "pooler_dropout", 0.0)
        if arguments.get("regression_target"):
            config["problem_type"] = "regression"
    return config


def _with_stored_fields(
    config: dict[str, Any], stored: Any, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Adds the fields of the stored `config.json`, unless they contradict the checkpoint.

    They do if someone changed the arguments or the tensors but not `hf_config`.
    """
    if not isinstance(stored, Mapping):
        return config
    merged = {**stored, **{name: config[name] for name in _FROM_TENSORS}}
    try:
        expected = _cfg(merged)["model"]
        labels = len(merged.get("id2label") or (0, 1))
    except (KeyError, TypeError):
        return config
    if any(arguments.get(name) != value for name, value in expected.items()):
        return config
    if "id2label" in config and labels != len(config["id2label"]):
        return config
    return merged


def _architecture(tensors: Mapping[str, LazyTensor]) -> str:
    if "classifier.out_proj.weight" in tensors:
        return "RobertaForSequenceClassification"
    has_lm_head = any(name.startswith("lm_head.") for name in tensors)
    return "RobertaForMaskedLM" if has_lm_head else "RobertaModel"


def _number(arguments: Mapping[str, Any], name: str, default: float) -> float:
    value = arguments.get(name)
    return float(value) if isinstance(value, int | float) else default


def _tied(tensors: Mapping[str, LazyTensor]) -> bool:
    decoder, words = tensors.get(_DECODER), tensors[_WORDS]
    if decoder is None or decoder.byte_ranges == words.byte_ranges:
        return True
    return decoder.shape == words.shape and np.array_equal(decoder.read(), words.read())


def name_of(name: str) -> str | None:
    """fairseq's name for a tensor with a canonical name; None if fairseq has no such tensor."""
    match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name)
    if match:
        for fairseq_name, hf_name in _IN_LAYER.items():
            if hf_name == match[2]:
                return f"decoder.sentence_encoder.layers.{match[1]}.{fairseq_name}.{match[3]}"
        return None
    module, _, last = name.rpartition(".")
    for fairseq_name, hf_name in _OUTSIDE.items():
        if hf_name == module:
            return f"decoder.sentence_encoder.{fairseq_name}.{last}"
    if name == _DECODER:
        return "decoder.lm_head.weight"
    if name.startswith("lm_head."):
        return f"decoder.{name}"
    if name.startswith(("classifier.dense.", "classifier.out_proj.")):
        return _HEAD + name.removeprefix("classifier")
    return None


def prepare_leaves(leaves: Sequence[Leaf], config: Mapping[str, Any]) -> list[Leaf]:
    """Checks that fairseq supports a model, and puts its leaves in the order to write them in.

    Args:
      leaves: The parameters.
      config: The model's `config.json`.

    Raises:
      UsageError: fairseq does not support the model; the message lists the reasons.
    """
    names = [canonical(name) for leaf in leaves for name in leaf.names]
    problems = _unsupported(config, names)
    if problems:
        raise UsageError(
            f"fairseq's RoBERTa does not support this {config['architectures'][0]}: "
            f"{listed(problems)}"
        )
    # The token types are added to the positions, so that they must be known before these.
    return sorted(leaves, key=lambda leaf: canonical(leaf.names[0]) != _TYPES)


def _unsupported(config: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The reasons why fairseq does not support a model; empty if it does."""
    problems = [f"it has no {name}" for name in names if name != _TYPES and name_of(name) is None]
    if config["hidden_act"] not in _ACTIVATIONS.values():
        problems.append(f"it has no activation {config['hidden_act']!r}")
    if config["layer_norm_eps"] != _LAYER_NORM_EPS:
        problems.append(
            f"its LayerNorms have epsilon {_LAYER_NORM_EPS}, not {config['layer_norm_eps']}"
        )
    if config["pad_token_id"] != _PAD:
        problems.append(f"its <pad> is {_PAD}, not {config['pad_token_id']}")
    if config.get("position_embedding_type", "absolute") != "absolute":
        problems.append("it has only absolute position embeddings")
    return problems


def write_weights(
    folder: pathlib.Path,
    leaves: Sequence[Leaf],
    arrays: Iterable[np.ndarray],
    config: Mapping[str, Any],
    max_shard_size: int,
) -> None:
    """Writes the checkpoint `model.pt`.

    fairseq has no token types. The first row of their table is added to each position's row.

    Args:
      folder: Where to write it.
      leaves: The parameters, as `prepare_leaves` returns them.
      arrays: The leaves' values on the host, in the same order; consumed one at a time.
      config: The model's `config.json`.
      max_shard_size: Not used here; a checkpoint is never split.
    """
    shapes = {
        canonical(name): (leaf.tensor_shape, np.dtype(leaf.value.dtype).name)
        for leaf in leaves
        for name in leaf.names
    }
    names = {name: name_of(name) for name in shapes if name != _TYPES}
    keys = {name: key for key, name in enumerate(names)}
    model = {names[name]: pytorch.Reference(keys[name], *shapes[name]) for name in names}
    if config.get("tie_word_embeddings", True) and "lm_head.bias" in shapes:
        model["decoder.lm_head.weight"] = pytorch.Reference(keys[_WORDS], *shapes[_WORDS])
    state = {
        "args": None,
        "cfg": _cfg(config),
        _HF_CONFIG: dict(config),
        "model": model,
        # fairseq reads the last entry when it opens a file.
        "optimizer_history": [
            {
                "criterion_name": "MaskedLmLoss",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {},
                "num_updates": 0,
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }

    def keyed_tensors():
        token_type = None
        for torch_name, tensor in split_leaves(leaves, arrays):
            name = canonical(torch_name)
            if name == _TYPES:
                token_type = tensor[:1]
            elif name == _POSITIONS and token_type is not None and token_type.any():
                yield keys[name], (tensor.astype(np.float32) + token_type).astype(tensor.dtype)
            else:
                yield keys[name], tensor

    pytorch.write(folder / FAIRSEQ_NAMES[0], state, keyed_tensors())


def _cfg(config: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint's `cfg`, from a `config.json`."""
    max_length = config["max_position_embeddings"] - config["pad_token_id"] - 1
    activations = {hf_name: name for name, hf_name in reversed(_ACTIVATIONS.items())}
    return {
        "_name": None,
        "model": {
            "_name": "roberta",
            "arch": "roberta",
            "encoder_layers": config["num_hidden_layers"],
            "encoder_embed_dim": config["hidden_size"],
            "encoder_ffn_embed_dim": config["intermediate_size"],
            "encoder_attention_heads": config["num_attention_heads"],
            "activation_fn": activations[config["hidden_act"]],
            "pooler_activation_fn": "tanh",
            "dropout": config["hidden_dropout_prob"],
            "attention_dropout": config["attention_probs_dropout_prob"],
            "activation_dropout": 0.0,
            "pooler_dropout": config.get("classifier_dropout") or 0.0,
            "max_positions": max_length,
            "tokens_per_sample": max_length,
            "untie_weights_roberta": not config.get("tie_word_embeddings", True),
        },
        "task": {"_name": "masked_lm", "data": ".", "tokens_per_sample": max_length},
    }
