"""The JSON files beside a model's weights: read with an error that helps, written as HF does."""

import json
import os
from collections.abc import Mapping
from typing import Any

from roberta_jax.errors import UsageError


def read_settings(file: os.PathLike) -> dict[str, Any]:
    """A parsed `config.json`.

    Args:
      file: Its path, a `pathlib.Path` or an `epath.Path`.

    Raises:
      UsageError: There is none, or it holds no JSON object.
    """
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("no JSON object")
    except FileNotFoundError:
        raise UsageError(f"no {file}; give the folder of a model, or pass config=…") from None
    except ValueError as error:
        raise UsageError(f"{file} is no model's config ({error})") from None
    return settings


def to_json(values: Mapping[str, Any]) -> str:
    """Text as transformers writes its JSON files."""
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
