"""Reading and writing of the public `RobertaConfig`: dictionaries, `config.json` and folders."""

import copy
import logging
import os
from collections.abc import Mapping
from typing import Any, Self

from etils import epath

from roberta_jax.compat.config_defaults import ATTRIBUTES, dtype_name
from roberta_jax.errors import UsageError, listed
from roberta_jax.storage import atomic, hub
from roberta_jax.weights.config_file import CONFIG_NAME, read_config_dict, to_json
from roberta_jax.weights.files import format_of, weights_in

logger = logging.getLogger(__name__)

# Attributes that `to_dict` leaves out: they say how the config was loaded.
_NOT_SERIALIZED = ("_attn_implementation", "_name_or_path")


class ConfigFilesMixin:
    """Reads and writes a config; `compat.config.RobertaConfig` is the class that inherits from it.

    It uses that class's constructor, its attributes, `update` and `model_type`.
    """

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **changes: Any) -> Any:
        """Creates the config from the contents of a `config.json`.

        Args:
          config_dict: The contents; unknown fields are kept as attributes.
          changes: Attributes to set. As in transformers, those that the config does not have are
            not set; a warning lists them.
          return_unused_kwargs: Whether to return `(config, unused)`, where `unused` are the changes
            that were not set, instead of the warning.

        Raises:
          ValueError: See the class; or `num_labels` and `id2label` in `changes` contradict each
            other.
        """
        return_unused = changes.get("return_unused_kwargs", False)
        changes = hub.without_loading_keywords(changes)
        config = cls(**{str(name): value for name, value in config_dict.items()})
        num_labels, id2label = changes.get("num_labels"), changes.get("id2label")
        if num_labels is not None and id2label is not None and len(id2label) != num_labels:
            raise ValueError(
                f"num_labels is {num_labels}, but id2label names {len(id2label)} labels; give only "
                "one of them, or make them agree"
            )
        if "attn_implementation" in changes:
            config._attn_implementation = changes.pop("attn_implementation")
        unused = {name: value for name, value in changes.items() if not hasattr(config, name)}
        config.update({name: changes[name] for name in changes if name not in unused})
        if return_unused:
            return config, unused
        if unused:
            logger.warning("%s has no %s: ignored", cls.__name__, listed(sorted(unused)))
        return config

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Self:
        """Reads a `config.json`, by its path.

        Raises:
          NotFoundError: There is no such file.
          UsageError: It is not a JSON object.
          ValueError: See the class.
        """
        return cls(**read_config_dict(epath.Path(json_file)))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Any:
        """Reads a model's `config.json`.

        Args:
          pretrained_model_name_or_path: A folder, the path of a `config.json` or of a weight file
            beside it, the workdir of a finished run, or a Hugging Face hub id.
          kwargs: Where the files are and how to fetch them, as in transformers (`revision`,
            `token`, `subfolder`, `cache_dir`, ...; see `storage.hub.HubOptions`); and attributes to
            set and `return_unused_kwargs`, see `from_dict`.

        Raises:
          NotFoundError: There is no such file. It is an `OSError`.
          UsageError: It is not a model's config.
        """
        return_unused = kwargs.get("return_unused_kwargs", False)
        config_dict, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        try:
            return cls.from_dict(config_dict, return_unused_kwargs=return_unused, **kwargs)
        except (TypeError, ValueError) as error:
            raise UsageError(f"cannot use {pretrained_model_name_or_path}: {error}") from error

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the contents of a model's `config.json`, and the arguments that are left.

        See `from_pretrained` for the arguments. The contents have a further key, `_name_or_path`.
        """
        path = pretrained_model_name_or_path
        options = hub.HubOptions.pop_from(kwargs, path)
        names = options.in_subfolder([CONFIG_NAME])
        file = hub.fetch(path, names, **options.fetch_arguments())
        if file.is_file() and format_of(file.name):  # a weight file, beside its config
            file = file.parent / CONFIG_NAME
        elif not file.is_file():
            folder = file / options.subfolder
            in_workdir = folder / "hf" / CONFIG_NAME
            is_workdir = folder.is_dir() and not weights_in(folder) and in_workdir.exists()
            file = in_workdir if is_workdir else folder / CONFIG_NAME
        return read_config_dict(file) | {"_name_or_path": os.fspath(path)}, kwargs

    def to_dict(self) -> dict[str, Any]:
        """Returns all attributes that a `config.json` may have."""
        values = copy.deepcopy(hub.without_loading_keywords(vars(self)))
        for name in _NOT_SERIALIZED:
            values.pop(name, None)
        if values.get("transformers_version") is None:
            values.pop("transformers_version", None)
        if values.get("dtype") is not None:
            values["dtype"] = dtype_name(values["dtype"])
        return {"model_type": self.model_type} | values

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns the attributes to save.

        As in transformers, these are the model's shape, and the attributes common to all models
        whose values are not the defaults of both this class and transformers' base class.
        """
        own_defaults = type(self)().to_dict()
        labels = {name: own_defaults[name] for name in ("id2label", "label2id")}
        defaults = ATTRIBUTES | labels
        values = self.to_dict()
        return {
            name: value
            for name, value in values.items()
            if name not in defaults or not value == defaults[name] == own_defaults.get(name)
        }

    def to_json_string(self, use_diff: bool = True) -> str:
        """Returns `to_diff_dict` or `to_dict` as JSON."""
        return to_json(self.to_diff_dict() if use_diff else self.to_dict())

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        """Writes `to_json_string` to a file."""
        atomic.write_text(json_file_path, self.to_json_string(use_diff))

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Writes `config.json` into a folder, which is created if it does not exist.

        Args:
          save_directory: The folder.
          push_to_hub: Not supported; use `hf upload`.
          kwargs: Arguments of an upload (`repo_id`, `commit_message`, `token`, ...), which have no
            effect.

        Raises:
          UsageError: The path is a file, or an upload is asked for.
        """
        hub.check_no_upload(save_directory, push_to_hub, kwargs, "save_pretrained")
        folder = epath.Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file; choose another name for the folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / CONFIG_NAME)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Raises UsageError: nothing is uploaded; use `hf upload`."""
        hub.check_no_upload("FOLDER", True, (), "push_to_hub")
