"""What the model is (`RobertaConfig`) and how it is computed (`Execution`).

The first is Hugging Face's `config.json`, field by field, and decides every number the model
gives. The second changes speed and memory only: the same weights give the same results, to
rounding, under any of its settings.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from roberta_jax.modeling.activations import ACTIVATIONS

POSITION_EMBEDDING_TYPES = ("absolute", "relative_key", "relative_key_query")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# Architectures that are RoBERTa's under another name.
_MODEL_TYPES = ("roberta", "xlm-roberta", "camembert")


@dataclasses.dataclass(frozen=True)
class RobertaConfig:
    """The shape of a RoBERTa: Hugging Face's field names, meanings and defaults.

    The defaults are those of transformers 4.57's `RobertaConfig`, which are not the released
    models': `RobertaConfig.base()` and `.large()` are (514 position rows, one token type,
    LayerNorm epsilon 1e-5).

    Attributes:
      vocab_size: rows of the word table.
      hidden_size: width of the residual stream; a multiple of `num_attention_heads`.
      num_hidden_layers: transformer blocks.
      num_attention_heads: heads a block.
      intermediate_size: width of the feed-forward layer.
      hidden_act: its activation, one of `ACTIVATIONS`; "gelu" is the exact (erf) form.
      hidden_dropout_prob: dropout of the embeddings and of each sub-layer's output.
      attention_probs_dropout_prob: dropout of the attention probabilities.
      max_position_embeddings: rows of the position table. Positions start at
        `pad_token_id + 1`, so 514 rows hold 512 tokens; see `max_length`.
      type_vocab_size: rows of the token-type table.
      initializer_range: standard deviation of initial weights.
      layer_norm_eps: LayerNorm's epsilon.
      pad_token_id, bos_token_id, eos_token_id: ids of `<pad>`, `<s>`, `</s>`.
      position_embedding_type: "absolute" adds a vector for each position to the embeddings;
        "relative_key" (Shaw et al. 2018) adds to each attention score the query's product with a
        vector for the distance to the key; "relative_key_query" (Huang et al. 2020) the key's too.
      use_cache: whether the drop-in classes keep keys and values while they generate.
      classifier_dropout: dropout before a classifier; None is `hidden_dropout_prob`.
      is_decoder: each token sees only itself and those before it.
      add_cross_attention: a second attention in each block, to another model's hidden states;
        needs `is_decoder`.
      tie_word_embeddings: whether the masked and causal LM heads' decoder is the word table.
      num_labels: classes of the classification heads; 2 if None and not told by `id2label`.
      id2label, label2id: the classes' names, {0: "LABEL_0", …} unless given.
      problem_type: the loss of sequence classification, one of `PROBLEM_TYPES`; None decides by
        the labels, as in Hugging Face's classes.

    Raises:
      ValueError: a value is out of range, or two do not fit each other.
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
        self._name_labels()
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
            "num_labels",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} "
                "heads; make it a multiple of num_attention_heads"
            )
        for name, known in (
            ("hidden_act", ACTIVATIONS),
            ("position_embedding_type", POSITION_EMBEDDING_TYPES),
            ("problem_type", (None, *PROBLEM_TYPES)),
        ):
            if getattr(self, name) not in known:
                choices = ", ".join(choice for choice in known if choice)
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {choices}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            rate = getattr(self, name)
            if rate is None and name == "classifier_dropout":
                continue
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {rate!r}")
        if not self.layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps must be positive, not {self.layer_norm_eps!r}")
        if self.initializer_range < 0:
            raise ValueError(f"initializer_range must not be negative: {self.initializer_range!r}")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value < self.vocab_size:
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

    def _name_labels(self):
        """Makes num_labels, id2label and label2id agree; JSON knows string keys only."""
        id2label = self.id2label
        if id2label is None:
            count = 2 if self.num_labels is None else self.num_labels
            # A wrong count is reported with the other fields.
            id2label = {i: f"LABEL_{i}" for i in range(count if isinstance(count, int) else 0)}
        else:
            count = len(id2label) if self.num_labels is None else self.num_labels
            id2label = {int(i): name for i, name in id2label.items()}
        if isinstance(count, int) and len(id2label) != count:
            raise ValueError(
                f"num_labels is {count}, but id2label names {len(id2label)} labels; give either "
                "num_labels or id2label, or make them agree"
            )
        label2id = self.label2id
        if label2id is None or len(label2id) != len(id2label):
            label2id = {name: i for i, name in id2label.items()}
        object.__setattr__(self, "num_labels", count)
        object.__setattr__(self, "id2label", id2label)
        object.__setattr__(self, "label2id", dict(label2id))

    @property
    def classifier_dropout_prob(self) -> float:
        """Dropout before a classifier."""
        rate = self.classifier_dropout
        return self.hidden_dropout_prob if rate is None else rate

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def max_length(self) -> int:
        """The most tokens an input may have (512 for the released models)."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def base(cls, **changes) -> "RobertaConfig":
        """The released roberta-base: 12 layers of width 768, 124,697,433 parameters."""
        released = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
        return cls(**(released | changes))

    @classmethod
    def large(cls, **changes) -> "RobertaConfig":
        """The released roberta-large: 24 layers of width 1024, 355,412,057 parameters."""
        shape = {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        }
        return cls.base(**(shape | changes))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RobertaConfig":
        """The config that a parsed `config.json` describes.

        Keys that no model here reads (`architectures`, `transformers_version`, …) are passed
        over, and absent keys take Hugging Face's defaults.

        Raises:
          ValueError: `model_type` is another architecture's, or a value is refused (see the class).
        """
        model_type = values.get("model_type", "roberta")
        if model_type not in _MODEL_TYPES:
            raise ValueError(
                f"this config describes a {model_type!r} model, not a RoBERTa "
                f"(model_type one of {', '.join(_MODEL_TYPES)})"
            )
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        if known.get("id2label") is not None:
            known.pop("num_labels", None)  # the names decide, as in Hugging Face's class
        return cls(**known)

    @classmethod
    def from_json_file(cls, path: str | os.PathLike) -> "RobertaConfig":
        """Reads a `config.json`; FileNotFoundError, or ValueError where it is not a JSON object."""
        try:
            values = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds no JSON object, so it is no model's config")
        return cls.from_dict(values)

    def to_dict(self, architecture: str = "RobertaForMaskedLM") -> dict[str, Any]:
        """The contents of a `config.json` that transformers loads as this model."""
        header = {"architectures": [architecture], "model_type": "roberta"}
        fields = dataclasses.asdict(self)
        if self.id2label == RobertaConfig().id2label:
            del fields["id2label"], fields["label2id"]
        del fields["num_labels"]  # the names' number
        return header | fields

    def replace(self, **changes) -> "RobertaConfig":
        """This config with some fields changed; a new `num_labels` or `id2label` renames labels."""
        if {"num_labels", "id2label"} & set(changes):
            changes = {"num_labels": None, "id2label": None, "label2id": None} | changes
        return dataclasses.replace(self, **changes)
