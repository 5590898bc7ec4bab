"""`RobertaConfig`: the architecture of a model, field by field as in Hugging Face's `config.json`.

It determines the model's outputs. How they are computed is in `execution.py`.
"""

import dataclasses
import json
import os
import pathlib
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from roberta_jax.modeling.activations import ACTIVATIONS

POSITION_EMBEDDING_TYPES = ("absolute", "relative_key", "relative_key_query")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# Larger than any model's, and small enough that a wrong number is an error before it is too much
# work or memory to build the model. Ids and positions are int32.
_LARGEST = {
    "vocab_size": 2**31 - 1,
    "hidden_size": 2**20,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 2**20,
    "intermediate_size": 2**24,
    "max_position_embeddings": 2**31 - 1,
    "type_vocab_size": 2**24,
    "num_labels": 2**22,
}

# `model_type` of the architectures that are identical to RoBERTa.
MODEL_TYPES = ("roberta", "xlm-roberta", "camembert")


def check_model_type(model_type: str) -> None:
    """Raises ValueError if the architecture of this name is not RoBERTa's."""
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"this config describes a {_shortened(model_type)} model, not a RoBERTa "
            f"(model_type one of {', '.join(MODEL_TYPES)})"
        )


@dataclasses.dataclass(frozen=True)
class RobertaConfig:
    """The architecture of a model, with Hugging Face's field names, meanings and defaults.

    The defaults are those of `RobertaConfig` in transformers 4.57. They differ from the released
    models, which have 514 position rows, one token type and a LayerNorm epsilon of 1e-5; use
    `RobertaConfig.base()` and `RobertaConfig.large()` for those.

    Attributes:
      vocab_size: number of rows of the word embedding table.
      hidden_size: width of the residual stream; a multiple of `num_attention_heads`.
      num_hidden_layers: number of transformer blocks.
      num_attention_heads: number of attention heads in each block.
      intermediate_size: width of the feed-forward layer.
      hidden_act: activation of the feed-forward layer, a key of `activations.ACTIVATIONS`. "gelu"
        is the exact (erf) form.
      hidden_dropout_prob: dropout rate of the embeddings and of each sub-layer's output.
      attention_probs_dropout_prob: dropout rate of the attention probabilities.
      max_position_embeddings: number of rows of the position table. Positions start at
        `pad_token_id + 1`, so 514 rows allow 512 tokens; see `max_length`.
      type_vocab_size: number of token types.
      initializer_range: standard deviation of the initial weights.
      layer_norm_eps: epsilon of LayerNorm.
      pad_token_id, bos_token_id, eos_token_id: ids of `<pad>`, `<s>` and `</s>`.
      position_embedding_type: "absolute" adds a vector for each position to the embeddings.
        "relative_key" (Shaw et al. 2018) adds to each attention score the product of the query with
        a vector for its distance to the key. "relative_key_query" (Huang et al. 2020) also adds the
        product of the key with that vector.
      use_cache: whether the `Flax…` classes cache keys and values during generation.
      classifier_dropout: dropout rate before a classifier; None uses `hidden_dropout_prob`.
      is_decoder: whether attention is causal.
      add_cross_attention: whether each block has a cross-attention to `encoder_hidden_states`;
        needs `is_decoder`.
      tie_word_embeddings: whether the decoder of the LM heads shares the word embedding table.
      num_labels: number of classes of the classification heads. None takes it from `id2label`, or 2
        without it.
      id2label, label2id: names of the classes; {0: "LABEL_0", …} by default.
      problem_type: the loss of sequence classification, one of `PROBLEM_TYPES`. None infers it from
        the labels, as Hugging Face's classes do.

    Raises:
      ValueError: a value is out of range, or two values contradict each other.
    """

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 2
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True
    num_labels: int | None = None
    id2label: Mapping[int, str] | None = dataclasses.field(default=None, hash=False)
    label2id: Mapping[str, int] | None = dataclasses.field(default=None, hash=False)
    problem_type: str | None = None

    def __post_init__(self):
        self._check_types()
        self._name_labels()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} "
                "heads; make it a multiple of num_attention_heads"
            )
        for name, known in (
            ("hidden_act", tuple(ACTIVATIONS)),
            ("position_embedding_type", POSITION_EMBEDDING_TYPES),
            ("problem_type", (None, *PROBLEM_TYPES)),
        ):
            if getattr(self, name) not in known:
                choices = ", ".join(choice for choice in known if choice)
                raise ValueError(
                    f"unknown {name} {_shortened(getattr(self, name))}; known: {choices}"
                )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {rate!r}")
        eps, deviation = self.layer_norm_eps, self.initializer_range
        if not 0 < eps <= 1:
            raise ValueError(f"layer_norm_eps must be positive and at most 1, not {eps!r}")
        if not 0 <= deviation <= 1e6:
            raise ValueError(
                f"initializer_range must not be negative, and at most 1e6, not {deviation!r}"
            )
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"{name} must be an id below vocab_size {self.vocab_size}, not {value!r}"
                )
        if self.max_length < 1:
            raise ValueError(
                f"max_position_embeddings {self.max_position_embeddings} holds no token: positions "
                f"start at pad_token_id + 1 = {self.pad_token_id + 1}; use at least "
                f"{self.pad_token_id + 2}"
            )
        if self.add_cross_attention and not self.is_decoder:
            raise ValueError("add_cross_attention=True needs is_decoder=True")

    def _check_types(self):
        """Checks the type of every field, which a file may have wrong, and that sizes are positive.

        A JSON file has integers and floats, so that 0 is allowed for 0.0, but no other conversion.
        """
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if name == "num_labels" and value is None:
                continue
            if not _is_integer(value) or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {_shortened(value)}")
            if value > largest:
                raise ValueError(f"{name} must be at most {largest}, not {_shortened(value)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind, *others = typing.get_args(field.type) or (field.type,)
            if kind in _TYPES and not (value is None and types.NoneType in others):
                accepts, title = _TYPES[kind]
                if not accepts(value):
                    raise ValueError(f"{field.name} must be {title}, not {_shortened(value)}")

    def _name_labels(self):
        """Derives the fields of num_labels, id2label and label2id that are not given.

        Keys of `id2label` become integers, since JSON has only string keys.
        """
        id2label = self.id2label
        if id2label is None:
            count = 2 if self.num_labels is None else self.num_labels
            id2label = {i: f"LABEL_{i}" for i in range(count)}
        else:
            count = len(id2label) if self.num_labels is None else self.num_labels
            try:
                id2label = {int(i): name for i, name in id2label.items()}
                hash(tuple(id2label.values()))
            except (ValueError, TypeError, AttributeError):
                raise ValueError(
                    f"id2label must map numbers to names, not be {_shortened(self.id2label)}"
                ) from None
        if not id2label:
            raise ValueError("id2label must name at least one label")
        if len(id2label) != count:
            raise ValueError(
                f"num_labels is {count}, but id2label names {len(id2label)} labels; give either "
                "num_labels or id2label, or make them agree"
            )
        label2id = self.label2id
        if not isinstance(label2id, Mapping | None):
            raise ValueError(f"label2id must map names to numbers, not be {_shortened(label2id)}")
        if label2id is None or len(label2id) != len(id2label):
            label2id = {name: i for i, name in id2label.items()}
        object.__setattr__(self, "num_labels", count)
        object.__setattr__(self, "id2label", id2label)
        object.__setattr__(self, "label2id", dict(label2id))

    @property
    def classifier_dropout_prob(self) -> float:
        """Dropout rate before a classifier."""
        rate = self.classifier_dropout
        return self.hidden_dropout_prob if rate is None else rate

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def max_length(self) -> int:
        """Maximum number of tokens in an input (512 for the released models)."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def base(cls, **changes) -> "RobertaConfig":
        """roberta-base as released: 12 layers of width 768, 124,697,433 parameters."""
        released = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
        return cls(**(released | changes))

    @classmethod
    def large(cls, **changes) -> "RobertaConfig":
        """roberta-large as released: 24 layers of width 1024, 355,412,057 parameters."""
        shape = {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        }
        return cls.base(**(shape | changes))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RobertaConfig":
        """Creates a config from the contents of a `config.json`.

        Unknown keys (`architectures`, `transformers_version`, …) are ignored. Missing keys take
        Hugging Face's defaults, and so do ids of special tokens that are None. Of a list of ids,
        which `eos_token_id` may be, the first is taken.

        Raises:
          ValueError: `model_type` is another architecture, or a value is invalid (see the class).
        """
        check_model_type(values.get("model_type", "roberta"))
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        if known.get("id2label") is not None:
            known.pop("num_labels", None)  # `id2label` wins, as in Hugging Face's class
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if isinstance(known.get(name), list | tuple) and known[name]:
                known[name] = known[name][0]
            if name in known and known[name] is None:
                del known[name]
        return cls(**known)

    @classmethod
    def from_config(cls, config: Any) -> "RobertaConfig":
        """Creates the config from that of another class, such as transformers' `RobertaConfig`.

        Args:
          config: A config of this class, which is returned unchanged, or any object whose
            `to_dict()` returns the contents of a `config.json`.

        Raises:
          TypeError: It is not a config.
          ValueError: See `from_dict`.
        """
        if isinstance(config, cls):
            return config
        if not hasattr(config, "to_dict"):
            raise TypeError(
                f"config must be a RobertaConfig of roberta_jax or of transformers, not {config!r}"
            )
        return cls.from_dict(config.to_dict())

    @classmethod
    def from_json_file(cls, path: str | os.PathLike) -> "RobertaConfig":
        """Reads a `config.json`.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is not a JSON object, or as `from_dict`.
        """
        path = pathlib.Path(path)
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a file; give the path of a config.json")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except RecursionError:
            raise ValueError(f"{path} is not a model config: it is nested too deep") from None
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} contains no JSON object, so it is not a model config")
        return cls.from_dict(values)

    def to_dict(self, architecture: str = "RobertaForMaskedLM") -> dict[str, Any]:
        """The contents of a `config.json` with which transformers builds the same model."""
        header = {"architectures": [architecture], "model_type": "roberta"}
        fields = dataclasses.asdict(self)
        if self.id2label == RobertaConfig().id2label:
            del fields["id2label"], fields["label2id"]
        del fields["num_labels"]  # transformers derives it from `id2label`
        return header | fields

    def replace(self, **changes) -> "RobertaConfig":
        """Returns a copy with some fields changed.

        Changing `num_labels` or `id2label` resets the other label fields.
        """
        if {"num_labels", "id2label"} & set(changes):
            changes = {"num_labels": None, "id2label": None, "label2id": None} | changes
        return dataclasses.replace(self, **changes)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if not isinstance(value, float) and not _is_integer(value):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


# Type of a field -> (whether a value is of it, its name in messages).
_TYPES = {
    int: (_is_integer, "an integer"),
    float: (_is_number, "a finite number"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    str: (lambda value: isinstance(value, str), "a string"),
}


def _shortened(value: Any) -> str:
    """A value's representation in an error message."""
    if _is_integer(value) and abs(value) > 10**40:
        return "an integer of more than 40 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
