"""Reads and writes the JSON files beside a model's weights, such as `config.json`."""

import json
import os
from collections.abc import Mapping
from typing import Any

from roberta_jax.errors import NotFoundError, UsageError

CONFIG_NAME = "config.json"


def read_config_dict(file: os.PathLike) -> dict[str, Any]:
    """Parses a model's `config.json`.

    Args:
      file: Its path, a `pathlib.Path` or an `epath.Path`.

    Raises:
      NotFoundError: The file does not exist.
      UsageError: It does not hold a JSON object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        raise NotFoundError(f"no {file}; give the folder of a model, or pass config=…") from None
    except ValueError as error:
        raise UsageError(f"{file} is not a model's config ({error})") from None
    return config


def to_json(values: Mapping[str, Any]) -> str:
    """Formats a JSON file the way transformers does: indented, with sorted keys."""
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
