"""Reads and writes the JSON files beside a model's weights, such as `config.json`."""

import json
import os
from collections.abc import Mapping
from typing import Any

from roberta_jax.errors import NotFoundError, UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.storage.reading import parse_json, read_text

CONFIG_NAME = "config.json"


def config_path(folder: os.PathLike) -> os.PathLike:
    """The `config.json` of a model's folder, or of the folder that a weight file is in."""
    return (folder.parent if folder.is_file() else folder) / CONFIG_NAME


def read_config_dict(file: os.PathLike) -> dict[str, Any]:
    """Parses a model's `config.json`.

    Args:
      file: Its path, a `pathlib.Path` or an `epath.Path`.

    Raises:
      NotFoundError: The file does not exist.
      UsageError: It cannot be read, or does not hold a JSON object.
    """
    try:
        text = read_text(file)
    except FileNotFoundError:
        raise NotFoundError(f"no {file}; give the folder of a model, or pass config=…") from None
    try:
        config = parse_json(text)
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise UsageError(f"{file} is not a model's config ({error})") from None
    return config


def parse_config(
    config_dict: Mapping[str, Any],
    source: os.PathLike,
    written_for: Mapping[str, Any] | None = None,
    **changes: Any,
) -> RobertaConfig:
    """Creates a model's config.

    Args:
      config_dict: The contents of its `config.json`.
      source: Where they are from, for error messages.
      written_for: Fields of the `config.json` that the weights were written with, if they say so.
      changes: Fields to change.

    Raises:
      UsageError: A field is invalid, or is not as in `written_for` and not among the changes.
    """
    try:
        config = RobertaConfig.from_dict(config_dict)
        check_written_for(config, written_for or {}, source, changes)
        return config.replace(**changes)
    except UsageError:
        raise
    except (ValueError, TypeError) as error:
        raise UsageError(f"cannot use {source}: {error}") from None


def check_written_for(
    config: RobertaConfig, written_for: Mapping[str, Any], source: os.PathLike, changes: Any
) -> None:
    """Compares the fields that the tensors do not show, so that no damaged value is used.

    Args:
      config: The config that was read.
      written_for: Fields of the `config.json` that the weights were written with.
      source: The config's file, for error messages.
      changes: The names of fields that are changed on purpose.

    Raises:
      UsageError: A field differs.
    """
    for name, expected in written_for.items():
        value = getattr(config, name, expected)
        if value != expected and name not in changes:
            raise UsageError(
                f"{source} has {name}={value!r}, but the weights beside it were written with "
                f"{expected!r}. Correct the file; to change the model on purpose, pass "
                f"{name}={value!r} to from_pretrained"
            )


def to_json(values: Mapping[str, Any]) -> str:
    """Formats a JSON file the way transformers does: indented, with sorted keys."""
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
