"""The public `RobertaConfig`: the config of the drop-in classes, `model.config`.

In transformers one mutable object holds the model's shape, the defaults of a call
(`output_attentions`, ...) and any attribute that a script adds. This package computes with a frozen
config, `modeling.config.RobertaConfig`, which has the shape alone. The `RobertaConfig` of this
module is the mutable object that transformers' scripts expect. Wherever a model takes a config,
both are accepted, and so is transformers' own: any object whose `to_dict()` returns the contents of
such a config's `config.json`.
"""

import copy
import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from roberta_jax.compat.config_defaults import ATTRIBUTES, Dtype
from roberta_jax.compat.config_files import ConfigFilesMixin
from roberta_jax.modeling import config as architecture
from roberta_jax.storage import hub

logger = logging.getLogger(__name__)

_SHAPE = {
    field.name: field.default
    for field in dataclasses.fields(architecture.RobertaConfig)
    if field.name not in ("num_labels", "id2label", "label2id")
}
# The order of the constructor's positional arguments in transformers.
_POSITIONAL = tuple(_SHAPE)[: tuple(_SHAPE).index("classifier_dropout") + 1]
# An upper limit of `num_labels`, whose names are all created.
_MAX_LABELS = 10**6


class RobertaConfig(ConfigFilesMixin):
    """A mutable model config with the attributes and methods of transformers' `RobertaConfig`.

        config = RobertaConfig.from_pretrained("roberta-base", num_labels=3)
        model = RobertaForSequenceClassification(config)  # or FlaxRobertaForSequenceClassification

    As in transformers, it holds any values; the fields are checked when a model is created. A model
    takes its shape from the config at that time. Of later changes to `model.config`, only those to
    `output_attentions`, `output_hidden_states` and `return_dict` affect its calls.

    Args:
      positional: Fields of `modeling.config.RobertaConfig`, in its order; see there for their
        meanings and defaults. `pad_token_id`, `bos_token_id` and `eos_token_id` may be None and
        `eos_token_id` may be a list.
      values: Further fields by name, attributes of any transformers config, and any other
        attributes to hold. Keywords that say where to load from (`token`, `cache_dir`, ...) are
        dropped, since a config would be saved with them.

    Raises:
      ValueError: `model_type` is another architecture, `problem_type` is unknown, or the labels are
        not given as a number or as dictionaries.
    """

    model_type: ClassVar[str] = "roberta"
    # Attributes of transformers' class that its users read.
    attribute_map: ClassVar[dict[str, str]] = {}
    sub_configs: ClassVar[dict[str, type]] = {}
    has_no_defaults_at_init: ClassVar[bool] = False
    is_composition: ClassVar[bool] = False
    _own_defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, *positional: Any, **values: Any):
        if len(positional) > len(_POSITIONAL):
            raise TypeError(
                f"{type(self).__name__} takes at most {len(_POSITIONAL)} positional arguments"
            )
        for name, value in zip(_POSITIONAL, positional, strict=False):
            if name in values:
                raise TypeError(f"{type(self).__name__} got two values for {name}")
            values[name] = value
        values = hub.without_loading_keywords(values)
        architecture.check_model_type(values.get("model_type", self.model_type))
        if values.get("model_type") == self.model_type:
            del values["model_type"]  # it is the class's
        problem_type = values.get("problem_type")
        if problem_type not in (None, *architecture.PROBLEM_TYPES):
            raise ValueError(
                f"unknown problem_type {problem_type!r}; known: "
                f"{', '.join(architecture.PROBLEM_TYPES)}"
            )
        num_labels = values.pop("num_labels", None)
        labels = {name: values.pop(name, None) for name in ("id2label", "label2id")}
        torch_dtype = values.pop("torch_dtype", None)
        attributes = copy.deepcopy(ATTRIBUTES) | _SHAPE | self._own_defaults
        if values.get("dtype") is None:
            values["dtype"] = torch_dtype
        self._name_or_path = str(values.pop("name_or_path", values.pop("_name_or_path", "")))
        for name, value in (attributes | values).items():
            if name in _RESERVED:
                logger.warning("%s is ignored: it is a method of the config, not a field", name)
                continue
            setattr(self, name, value)
        self._set_labels(num_labels, **labels)

    def _set_labels(
        self,
        num_labels: int | None,
        id2label: Mapping[Any, str] | None,
        label2id: Mapping[str, int] | None,
    ) -> None:
        for name, labels in (("id2label", id2label), ("label2id", label2id)):
            if not isinstance(labels, Mapping | None):
                raise ValueError(f"{name} must be a dictionary, not {labels!r}")
        if id2label is None:
            self._name_labels(2 if num_labels is None else num_labels)
        else:
            if num_labels is not None and num_labels != len(id2label):
                logger.warning(
                    "num_labels=%s is ignored: id2label names %s labels", num_labels, len(id2label)
                )
            self.id2label = {int(i): name for i, name in id2label.items()}
            self.label2id = {name: i for i, name in self.id2label.items()}
        if label2id is not None:
            self.label2id = dict(label2id)

    def _name_labels(self, count: int) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MAX_LABELS:
            raise ValueError(f"num_labels must be a number of at most {_MAX_LABELS}, not {count!r}")
        self.id2label = {i: f"LABEL_{i}" for i in range(count)}
        self.label2id = {name: i for i, name in self.id2label.items()}

    @property
    def num_labels(self) -> int:
        """The number of labels in `id2label`; setting another number renames the labels."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if self.id2label is None or count != self.num_labels:
            self._name_labels(count)

    @property
    def use_return_dict(self) -> bool:
        """Whether calls return objects rather than tuples by default."""
        return bool(self.return_dict and not self.torchscript)

    @property
    def name_or_path(self) -> str:
        """The path or hub id that the config was loaded from; "" if it was not. Not saved."""
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, value: Any) -> None:
        self._name_or_path = str(value)

    @property
    def torch_dtype(self) -> Dtype:
        """The former name of `dtype`, the dtype of the saved weights."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: Dtype) -> None:
        self.dtype = value

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def classifier_dropout_prob(self) -> float:
        """Dropout rate before a classifier."""
        rate = self.classifier_dropout
        return self.hidden_dropout_prob if rate is None else rate

    # Released models

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """roberta-base as released; see `modeling.config.RobertaConfig.base`."""
        return cls(**(_released(architecture.RobertaConfig.base()) | changes))

    @classmethod
    def large(cls, **changes: Any) -> Self:
        """roberta-large as released; see `modeling.config.RobertaConfig.large`."""
        return cls(**(_released(architecture.RobertaConfig.large()) | changes))

    # Changed in place and compared

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Sets attributes."""
        for name, value in config_dict.items():
            setattr(self, name, value)

    def update_from_string(self, update_str: str) -> None:
        """Sets attributes from a string such as "hidden_size=64,is_decoder=true".

        Raises:
          ValueError: An attribute does not exist, or its value is not of the present one's type.
          TypeError: The present value is neither a number, a bool nor a string.
        """
        changes = {}
        for item in update_str.split(","):
            name, equals, text = item.partition("=")
            if not equals or not hasattr(self, name):
                raise ValueError(f"{item!r} does not set an attribute of this config")
            changes[name] = _parse_like(getattr(self, name), name, text)
        self.update(changes)

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some attributes changed."""
        config = copy.deepcopy(self)
        config.update(changes)
        if "id2label" in changes and "label2id" not in changes:
            config._set_labels(None, config.id2label, None)
        return config

    def get_text_config(self, decoder: bool = False, encoder: bool = False) -> Self:
        """Returns the config of the part of the model that reads text: itself."""
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, RobertaConfig):
            return NotImplemented
        return vars(self) | {"_name_or_path": ""} == vars(other) | {"_name_or_path": ""}

    __hash__ = None  # it is mutable


# Names that a field must not have, since it would replace a method.
_RESERVED = frozenset(
    name
    for name, value in (vars(ConfigFilesMixin) | vars(RobertaConfig)).items()
    if callable(value)
    or isinstance(value, classmethod)
    or (isinstance(value, property) and value.fset is None)
)


class XLMRobertaConfig(RobertaConfig):
    """The config of XLM-R, whose architecture is RoBERTa's."""

    model_type = "xlm-roberta"
    _own_defaults: ClassVar[dict[str, Any]] = {"vocab_size": 30522}


class CamembertConfig(RobertaConfig):
    """The config of CamemBERT, whose architecture is RoBERTa's."""

    model_type = "camembert"
    _own_defaults: ClassVar[dict[str, Any]] = {"vocab_size": 30522}


# By `model_type`; their architecture is the same.
CONFIG_CLASSES: dict[str, type[RobertaConfig]] = {
    config_class.model_type: config_class
    for config_class in (RobertaConfig, XLMRobertaConfig, CamembertConfig)
}

FlaxRobertaConfig = RobertaConfig  # its name in version 0.1


def to_mutable_config(config: Any, config_class: type[RobertaConfig] = RobertaConfig) -> Any:
    """Returns the object for `model.config`.

    That is `config` itself, or a `config_class` with its values if it is the frozen config.

    Raises:
      TypeError: `config` is not a config.
    """
    if isinstance(config, architecture.RobertaConfig):
        return config_class(**_shape_of(config))
    if not hasattr(config, "to_dict"):
        raise TypeError(
            f"config must be a RobertaConfig of roberta_jax or of transformers, not {config!r}"
        )
    return config


def to_roberta_config(config: Any) -> architecture.RobertaConfig:
    """Returns the frozen config of a mutable one.

    Raises:
      ValueError: The config is not a valid RoBERTa config.
    """
    return architecture.RobertaConfig.from_config(config)


def _shape_of(config: architecture.RobertaConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _released(config: architecture.RobertaConfig) -> dict[str, Any]:
    return {name: value for name, value in _shape_of(config).items() if name in _SHAPE}


def _parse_like(present: Any, name: str, text: str) -> Any:
    """Converts a string to the type of an attribute's present value."""
    if isinstance(present, bool):
        known = {"true": True, "1": True, "y": True, "yes": True}
        known |= {"false": False, "0": False, "n": False, "no": False}
        if text.lower() not in known:
            raise ValueError(f"{name} must be true or false, not {text!r}")
        return known[text.lower()]
    if isinstance(present, int | float | str):
        try:
            return type(present)(text)
        except ValueError:
            raise ValueError(f"{name} must be a number, not {text!r}") from None
    raise TypeError(f"{name} is {json.dumps(present, default=str)}, which no string can replace")
