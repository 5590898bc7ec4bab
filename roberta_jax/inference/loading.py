"""Loads a masked language model together with its tokenizer."""

import dataclasses
import os
from typing import Any

from flax import linen as nn

from roberta_jax import weights
from roberta_jax.errors import UsageError
from roberta_jax.modeling.execution import Execution, for_inference
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.tokenizer.auto import load_tokenizer
from roberta_jax.tokenizer.files import FAIRSEQ_FILES, HF_FILES, TOKENIZER_FILE


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModel:
    """A model with its tokenizer.

    Attributes:
      model: A `RobertaForMaskedLM`.
      params: Its parameters, NumPy arrays on the host.
      tokenizer: The tokenizer that it was trained with.
    """

    model: nn.Module
    params: Any
    tokenizer: RobertaTokenizer


def load_masked_lm(
    path: str | os.PathLike, execution: Execution | None = None
) -> MaskedLanguageModel:
    """Loads a model and its tokenizer.

    Args:
      path: The workdir of a finished training run, a folder in Hugging Face's or fairseq's format,
        or a hub id.
      execution: How the model computes; by default as `modeling.execution.for_inference` says.

    Raises:
      UsageError: There is no such model, it has no masked-LM head, its weights are not finite, or
        its tokenizer cannot be loaded or is another model's.
    """
    execution = for_inference() if execution is None else execution
    model, params = weights.read_pretrained(path, RobertaForMaskedLM, execution)
    folder = weights.tokenizer_folder(path)
    tokenizer = load_tokenizer(folder)
    # In fairseq's files <mask> comes after the last line of dict.txt. If lines are missing there,
    # it has another id, and nothing else shows it.
    is_fairseq = (folder / FAIRSEQ_FILES[2]).exists() and not any(
        (folder / name).exists() for name in (TOKENIZER_FILE, *HF_FILES)
    )
    if is_fairseq and len(tokenizer) != model.config.vocab_size:
        raise UsageError(
            f"{folder / FAIRSEQ_FILES[2]} gives {len(tokenizer)} ids, and the model has "
            f"{model.config.vocab_size}: it is cut short or belongs to another model"
        )
    if len(tokenizer) > model.config.vocab_size:
        raise UsageError(
            f"the tokenizer in {folder} has {len(tokenizer)} ids and the model "
            f"{model.config.vocab_size}: use the tokenizer that the model was trained with"
        )
    return MaskedLanguageModel(model, params, tokenizer)
