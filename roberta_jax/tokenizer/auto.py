"""Loads tokenizers: as transformers' `AutoTokenizer` does, and for commands."""

import os
from typing import Any

from roberta_jax.errors import StoreUnavailable, UsageError
from roberta_jax.tokenizer.tokenizer import RobertaTokenizer


class AutoTokenizer:
    """Loads a `RobertaTokenizer`, which also reads the tokenizers of related models."""

    def __init__(self, *args: Any, **kwargs: Any):
        raise TypeError(
            "AutoTokenizer is not created itself; use AutoTokenizer.from_pretrained(PATH)"
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: Any = None,
        tokenizer_type: str | None = None,
        **options: Any,
    ) -> RobertaTokenizer:
        """Loads a tokenizer; takes the options of `RobertaTokenizer.from_pretrained`.

        Args:
          pretrained_model_name_or_path: A folder or a hub id.
          config, tokenizer_type: Ignored: the files say which tokenizer it is.
          options: See there.
        """
        return RobertaTokenizer.from_pretrained(pretrained_model_name_or_path, **options)


def load_tokenizer(folder: str | os.PathLike) -> RobertaTokenizer:
    """Loads a model's tokenizer for a command.

    Raises:
      UsageError: it is not there or damaged, or (`StoreUnavailable`) cannot be reached now.
    """
    try:
        return RobertaTokenizer.from_pretrained(folder)
    except StoreUnavailable:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load the model's tokenizer: {error}") from error
