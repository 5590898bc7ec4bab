"""The config that the drop-in classes show as `model.config`.

transformers' classes have one object for the model's shape, for defaults of the call
(`output_attentions`, …) and for notes of the user's, and scripts write to it. Here the shape is a
`RobertaConfig`, which is frozen; this object is that and the rest. A `RobertaConfig` of
transformers' own serves as well: any object whose `to_dict()` is such a config's.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.storage import hub
from roberta_jax.weights.config_file import read_settings, to_json
from roberta_jax.weights.save import CONFIG

# What transformers' config has besides the shape and the classes here or users' scripts read.
_OTHERS = {
    "model_type": "roberta",
    "architectures": None,
    "finetuning_task": None,
    "is_encoder_decoder": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
}
_FIELDS = tuple(field.name for field in dataclasses.fields(RobertaConfig))


class FlaxRobertaConfig:
    """`RobertaConfig`'s fields, others' names, and whatever else it is made with; may be written.

        config = FlaxRobertaConfig.from_pretrained("roberta-base", num_labels=3)

    A model takes its shape from it when it is made. Of what is written to a model's config later,
    `output_attentions`, `output_hidden_states` and `return_dict` still change its calls.

    Raises:
      ValueError: as `RobertaConfig`.
    """

    def __init__(self, **values: Any):
        shape = RobertaConfig.from_dict(values)
        named = {name: getattr(shape, name) for name in _FIELDS if name != "num_labels"}
        vars(self).update(_OTHERS | values | named)
        vars(self).pop("num_labels", None)

    @property
    def num_labels(self) -> int:
        """How many labels `id2label` names; a new number gives them new names."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if count != self.num_labels:
            self.id2label = {i: f"LABEL_{i}" for i in range(count)}
            self.label2id = {name: i for i, name in self.id2label.items()}

    @property
    def use_return_dict(self) -> bool:
        """Whether a model's outputs are objects rather than tuples, if a call does not say."""
        return self.return_dict

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> "FlaxRobertaConfig":
        """The config of a parsed `config.json`, with changes."""
        config = cls(**values)
        for name, value in changes.items():
            setattr(config, name, value)
        return config

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        *,
        subfolder: str = "",
        revision: str | None = None,
        token: str | bool | None = None,
        **changes: Any,
    ) -> "FlaxRobertaConfig":
        """Reads a model's `config.json`.

        Args:
          path: A folder, a `config.json`, or a hub id.
          subfolder: Where in it the model is.
          revision, token: As in `interchange.hf.from_pretrained`.
          changes: Attributes to change.

        Raises:
          UsageError: There is none, or it describes no RoBERTa.
        """
        name = os.path.join(subfolder, CONFIG)
        if not hub.is_hub_id(path):
            revision = None
        folder = hub.fetch(path, (name,), revision=revision, token=token)
        file = folder if folder.is_file() else folder / name
        return cls.from_dict(read_settings(file), **changes)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as a `config.json` holds it."""
        values = {k: v for k, v in vars(self).items() if k not in _OTHERS or v != _OTHERS[k]}
        if self.id2label == RobertaConfig().id2label:
            del values["id2label"], values["label2id"]
        return {"model_type": self.model_type} | values

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes `config.json` into a folder, which is made if need be."""
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(to_json(self.to_dict()))

    def __repr__(self) -> str:
        return f"{type(self).__name__} {to_json(self.to_dict())}"

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, FlaxRobertaConfig) and vars(self) == vars(other)


def as_config(config: Any) -> Any:
    """What `model.config` is: the object given, or one with its values if that is frozen.

    Raises:
      TypeError: It is no config.
    """
    if isinstance(config, RobertaConfig):
        return FlaxRobertaConfig(**{name: getattr(config, name) for name in _FIELDS})
    if not hasattr(config, "to_dict"):
        raise TypeError(
            f"a config is a RobertaConfig, of roberta_jax or of transformers, not {config!r}"
        )
    return config


def shape_of(config: Any) -> RobertaConfig:
    """The model's shape, of a config of either kind.

    Raises:
      ValueError: The config describes no RoBERTa.
    """
    return RobertaConfig.from_dict(config.to_dict())
