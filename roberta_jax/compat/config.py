"""The config of the drop-in classes, `model.config`.

In transformers one mutable object holds the model's shape, the defaults of a call
(`output_attentions`, ...) and any attribute that a script adds. This package describes a model's
shape by a frozen `RobertaConfig`; `FlaxRobertaConfig` is the mutable object that transformers'
scripts expect. The drop-in classes also accept transformers' own `RobertaConfig`: any object whose
`to_dict()` returns the contents of such a config's `config.json`.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.storage import hub
from roberta_jax.weights.config_file import CONFIG_NAME, read_config_dict, to_json

# Attributes of transformers' config, besides the model's shape, that these classes or users'
# scripts read.
_EXTRA_DEFAULTS = {
    "model_type": "roberta",
    "architectures": None,
    "finetuning_task": None,
    "is_encoder_decoder": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
}
_ROBERTA_FIELDS = tuple(field.name for field in dataclasses.fields(RobertaConfig))


class FlaxRobertaConfig:
    """A mutable model config with the attributes of transformers' `RobertaConfig`.

        config = FlaxRobertaConfig.from_pretrained("roberta-base", num_labels=3)

    A model takes its shape from the config when it is created. Of later changes to `model.config`,
    only those to `output_attentions`, `output_hidden_states` and `return_dict` affect its calls.

    Args:
      values: Fields of `RobertaConfig`, and any other attributes to hold.

    Raises:
      ValueError: The fields of `RobertaConfig` are invalid; see there.
    """

    def __init__(self, **values: Any):
        config = RobertaConfig.from_dict(values)
        fields = {name: getattr(config, name) for name in _ROBERTA_FIELDS if name != "num_labels"}
        vars(self).update(_EXTRA_DEFAULTS | values | fields)
        vars(self).pop("num_labels", None)  # a property

    @property
    def num_labels(self) -> int:
        """The number of labels in `id2label`; setting another number renames the labels."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if count != self.num_labels:
            self.id2label = {i: f"LABEL_{i}" for i in range(count)}
            self.label2id = {name: i for i, name in self.id2label.items()}

    @property
    def use_return_dict(self) -> bool:
        """Whether calls return objects rather than tuples by default."""
        return self.return_dict

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> "FlaxRobertaConfig":
        """Creates the config from a parsed `config.json` and sets the attributes in `changes`."""
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
          path: A folder, the path of a `config.json`, or a Hugging Face hub id.
          subfolder: The folder of the model inside `path`.
          revision: A branch, tag or commit of a hub id; ignored for a local path.
          token: A token of the hub; None uses `HF_TOKEN` or the stored one, False uses none.
          changes: Attributes to set.

        Raises:
          UsageError: There is no such file, or it is not a model's config.
        """
        filename = os.path.join(subfolder, CONFIG_NAME)
        if not hub.is_hub_id(path):
            revision = None
        path = hub.fetch(path, (filename,), revision=revision, token=token)
        file = path if path.is_file() else path / filename
        return cls.from_dict(read_config_dict(file), **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the contents of the model's `config.json`."""
        values = {
            name: value
            for name, value in vars(self).items()
            if name not in _EXTRA_DEFAULTS or value != _EXTRA_DEFAULTS[name]
        }
        if self.id2label == RobertaConfig().id2label:
            del values["id2label"], values["label2id"]
        return {"model_type": self.model_type} | values

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes `config.json` into a folder, which is created if it does not exist."""
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_NAME).write_text(to_json(self.to_dict()))

    def __repr__(self) -> str:
        return f"{type(self).__name__} {to_json(self.to_dict())}"

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, FlaxRobertaConfig) and vars(self) == vars(other)


def to_mutable_config(config: Any) -> Any:
    """Returns the object for `model.config`.

    That is `config` itself, or a `FlaxRobertaConfig` with its values if it is this package's
    frozen `RobertaConfig`.

    Raises:
      TypeError: `config` is not a config.
    """
    if isinstance(config, RobertaConfig):
        return FlaxRobertaConfig(**{name: getattr(config, name) for name in _ROBERTA_FIELDS})
    if not hasattr(config, "to_dict"):
        raise TypeError(
            "config must be a FlaxRobertaConfig, or a RobertaConfig of roberta_jax or of "
            f"transformers, not {config!r}"
        )
    return config


def to_roberta_config(config: Any) -> RobertaConfig:
    """Returns the frozen `RobertaConfig` of a mutable config.

    Raises:
      ValueError: The config is not a valid RoBERTa config.
    """
    return RobertaConfig.from_dict(config.to_dict())
