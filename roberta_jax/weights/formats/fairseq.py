"""fairseq's RoBERTa checkpoints (`model.pt`, `checkpoint_best.pt`): names and settings, both ways.

A checkpoint is a dictionary in PyTorch's format: `model`, the tensors, beside `args` (releases
before 0.10, an `argparse.Namespace`) or `cfg`, what the run was started with. Names are those of
`fairseq/models/roberta/model.py`; its releases differ in prefixes, in whether the attention's three
projections are one tensor, and in a few names, and all of these are read. What is written has the
names of the released files, with separate projections, and its settings in `cfg`, plain values
alone: `args` is an object, which `torch.load(weights_only=True)` refuses.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from roberta_jax.errors import UsageError
from roberta_jax.weights.formats import pytorch, unpickler
from roberta_jax.weights.tensors import StoredTensor

CHECKPOINTS = ("model.pt", "checkpoint_best.pt", "checkpoint_last.pt")

# Of one block, and of the whole; where two names stand for one, the first is written.
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
_THIRDS = ("query", "key", "value")

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
TYPES = "embeddings.token_type_embeddings.weight"
_DECODER = "lm_head.decoder.weight"
# The name under which fairseq's sentence_prediction task registers its head.
_HEAD = "classification_heads.sentence_classification_head"

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "relu": "relu",
    "tanh": "tanh",
}
_LAYER_NORM_EPS = 1e-5  # PyTorch's default, which fairseq never changes
_PAD = 1


def read(path: pathlib.Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Finds a checkpoint's tensors and what it says of the model.

    Args:
      path: The checkpoint.

    Returns:
      ({name as in Hugging Face's classes: tensor}, the values of a `config.json`). A name that no
      rule covers is kept, so that it is told as left over.

    Raises:
      UsageError: It is no RoBERTa checkpoint, damaged, or would run code.
    """
    state = pytorch.read(path, inert=True)
    if not isinstance(state, dict):
        raise UsageError(f"{path} is no checkpoint of fairseq's")
    model = state["model"] if isinstance(state.get("model"), dict) else state
    model = {name: value for name, value in model.items() if isinstance(value, StoredTensor)}
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in model.items():
        for ours, part in _translated(name, tensor, path):
            if ours in tensors:
                raise UsageError(f"{path} holds {ours} twice, the second time as {name}")
            tensors[ours] = part
    if WORDS not in tensors or POSITIONS not in tensors:
        names = ", ".join(sorted(map(str, model or state))[:8])
        raise UsageError(f"{path} is no RoBERTa of fairseq's: it holds {names}")
    tensors = _name_head(tensors)
    tensors.setdefault(TYPES, StoredTensor((1, tensors[WORDS].shape[-1]), "float32"))
    return tensors, _settings(path, _arguments(state), tensors)


def _translated(
    name: str, tensor: StoredTensor, path: pathlib.Path
) -> list[tuple[str, StoredTensor]]:
    """The tensors of Hugging Face's that one of fairseq's holds: one, none or three."""
    rest = re.sub(r"^(decoder|encoder)\.", "", name)
    inside, rest = rest.startswith("sentence_encoder."), rest.removeprefix("sentence_encoder.")
    if rest.endswith(("version", "_float_tensor")):
        return []
    if rest.startswith("classification_heads."):
        return [(rest, tensor)]
    if rest.startswith("lm_head."):
        return [("lm_head.decoder.weight" if rest == "lm_head.weight" else rest, tensor)]
    if inside and rest.startswith("layer_norm."):
        raise UsageError(
            f"{path} normalises before each sub-layer (it holds {name}); RoBERTa does so after, "
            "and no other form is built"
        )
    found = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", rest)
    if found and found[2] in _IN_LAYER:
        return [(f"encoder.layer.{found[1]}.{_IN_LAYER[found[2]]}.{found[3]}", tensor)]
    found = re.fullmatch(r"layers\.(\d+)\.self_attn\.in_proj_(weight|bias)", rest)
    if found and tensor.shape and tensor.shape[0] % 3 == 0:
        third = tensor.shape[0] // 3
        return [
            (
                f"encoder.layer.{found[1]}.attention.self.{part}.{found[2]}",
                tensor.rows(i * third, (i + 1) * third),
            )
            for i, part in enumerate(_THIRDS)
        ]
    part, _, last = rest.rpartition(".")
    return [(f"{_OUTSIDE[part]}.{last}" if part in _OUTSIDE else name, tensor)]


def _name_head(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Gives a single classification head the name that its class has for it."""
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
    """The model's arguments: of `args`, or of the `model` part of `cfg`."""
    found = unpickler.plain(state.get("args"))
    if not isinstance(found, dict):
        found = unpickler.plain(state.get("cfg"))
        found = found.get("model") if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _settings(
    path: pathlib.Path, arguments: dict[str, Any], tensors: dict[str, StoredTensor]
) -> dict[str, Any]:
    """A `config.json`: sizes from the tensors, the rest from the arguments or as released."""
    if arguments.get("encoder_normalize_before"):
        raise UsageError(
            f"{path} was trained with encoder_normalize_before; RoBERTa normalises after each "
            "sub-layer, and no other form is built"
        )
    vocabulary, width = tensors[WORDS].shape
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}
    intermediate = tensors.get("encoder.layer.0.intermediate.dense.weight")
    activation = arguments.get("activation_fn") or "gelu"
    if activation not in _ACTIVATIONS:
        raise UsageError(
            f"{path} has activation_fn={activation!r}; known: {', '.join(_ACTIVATIONS)}"
        )
    settings = {
        "model_type": "roberta",
        "architectures": [_architecture(tensors)],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": arguments.get("encoder_attention_heads") or max(1, width // 64),
        "intermediate_size": intermediate.shape[0] if intermediate else 4 * width,
        "hidden_act": _ACTIVATIONS[activation],
        "hidden_dropout_prob": _number(arguments, "dropout", 0.1),
        "attention_probs_dropout_prob": _number(arguments, "attention_dropout", 0.1),
        "max_position_embeddings": tensors[POSITIONS].shape[0],
        "type_vocab_size": tensors[TYPES].shape[0],
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
        settings["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        settings["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
        settings["classifier_dropout"] = _number(arguments, "pooler_dropout", 0.0)
        if arguments.get("regression_target"):
            settings["problem_type"] = "regression"
    return settings


def _architecture(tensors: Mapping[str, StoredTensor]) -> str:
    if "classifier.out_proj.weight" in tensors:
        return "RobertaForSequenceClassification"
    head = any(name.startswith("lm_head.") for name in tensors)
    return "RobertaForMaskedLM" if head else "RobertaModel"


def _number(arguments: Mapping[str, Any], name: str, default: float) -> float:
    value = arguments.get(name)
    return float(value) if isinstance(value, int | float) else default


def _tied(tensors: Mapping[str, StoredTensor]) -> bool:
    decoder, words = tensors.get(_DECODER), tensors[WORDS]
    if decoder is None or decoder.extents == words.extents:
        return True
    return decoder.shape == words.shape and np.array_equal(decoder.read(), words.read())


def name_of(name: str) -> str | None:
    """fairseq's name of a tensor of Hugging Face's (without "roberta."); None if it has none."""
    found = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name)
    if found:
        for theirs, ours in _IN_LAYER.items():
            if ours == found[2]:
                return f"decoder.sentence_encoder.layers.{found[1]}.{theirs}.{found[3]}"
        return None
    part, _, last = name.rpartition(".")
    for theirs, ours in _OUTSIDE.items():
        if ours == part:
            return f"decoder.sentence_encoder.{theirs}.{last}"
    if name == _DECODER:
        return "decoder.lm_head.weight"
    if name.startswith("lm_head."):
        return f"decoder.{name}"
    if name.startswith(("classifier.dense.", "classifier.out_proj.")):
        return _HEAD + name.removeprefix("classifier")
    return None


def write(
    path: pathlib.Path,
    settings: Mapping[str, Any],
    shapes: Mapping[str, tuple[tuple[int, ...], str]],
    tensors: Iterable[tuple[str, np.ndarray]],
) -> None:
    """Writes a checkpoint.

    Args:
      path: The file.
      settings: The model's `config.json`; see `check_writable`.
      shapes: {Hugging Face's name: (shape, type)}.
      tensors: (name, array), the token-type table before the positions, whose rows its first row
        is added to, since fairseq has no other place for it. Consumed one by one.
    """
    names = {name: name_of(name) for name in shapes if name != TYPES}
    keys = {name: key for key, name in enumerate(names)}
    model = {names[name]: pytorch.Reference(keys[name], *shapes[name]) for name in names}
    if settings.get("tie_word_embeddings", True) and "lm_head.bias" in shapes:
        model["decoder.lm_head.weight"] = pytorch.Reference(keys[WORDS], *shapes[WORDS])
    state = {
        "args": None,
        "cfg": _cfg(settings),
        "model": model,
        # fairseq looks at the last entry when it opens a file.
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

    def folded():
        row = None
        for name, array in tensors:
            if name == TYPES:
                row = array[:1]
            elif name == POSITIONS and row is not None and row.any():
                yield keys[name], (array.astype(np.float32) + row).astype(array.dtype)
            else:
                yield keys[name], array

    pytorch.write(path, state, folded())


def check_writable(settings: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Says why fairseq has no place for a model; [] if it has."""
    problems = [f"it has no {name}" for name in names if name != TYPES and name_of(name) is None]
    if settings["hidden_act"] not in _ACTIVATIONS.values():
        problems.append(f"it has no activation {settings['hidden_act']!r}")
    if settings["layer_norm_eps"] != _LAYER_NORM_EPS:
        problems.append(
            f"its LayerNorms have epsilon {_LAYER_NORM_EPS}, not {settings['layer_norm_eps']}"
        )
    if settings["pad_token_id"] != _PAD:
        problems.append(f"its <pad> is {_PAD}, not {settings['pad_token_id']}")
    if settings.get("position_embedding_type", "absolute") != "absolute":
        problems.append("it has absolute positions alone")
    return problems


def _cfg(settings: Mapping[str, Any]) -> dict[str, Any]:
    length = settings["max_position_embeddings"] - settings["pad_token_id"] - 1
    activations = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    return {
        "_name": None,
        "model": {
            "_name": "roberta",
            "arch": "roberta",
            "encoder_layers": settings["num_hidden_layers"],
            "encoder_embed_dim": settings["hidden_size"],
            "encoder_ffn_embed_dim": settings["intermediate_size"],
            "encoder_attention_heads": settings["num_attention_heads"],
            "activation_fn": activations[settings["hidden_act"]],
            "pooler_activation_fn": "tanh",
            "dropout": settings["hidden_dropout_prob"],
            "attention_dropout": settings["attention_probs_dropout_prob"],
            "activation_dropout": 0.0,
            "pooler_dropout": settings.get("classifier_dropout") or 0.0,
            "max_positions": length,
            "tokens_per_sample": length,
            "untie_weights_roberta": not settings.get("tie_word_embeddings", True),
        },
        "task": {"_name": "masked_lm", "data": ".", "tokens_per_sample": length},
    }
