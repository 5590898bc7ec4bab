"""The kinds of tasks: how each encodes its examples, which head it trains, and how it is scored."""

import importlib

from roberta_jax.tasks.kinds.base import Kind

# Kind -> its module and class. They are imported when a task needs them.
_CLASSES = {
    "classification": ("text", "Classification"),
    "multi_label": ("text", "MultiLabel"),
    "regression": ("text", "Regression"),
    "tokens": ("tokens", "Tokens"),
    "choice": ("choice", "Choice"),
    "question_answering": ("question_answering", "QuestionAnswering"),
    "pronoun": ("pronoun", "Pronoun"),
}


def kind_class(name: str) -> type[Kind]:
    """The class of a kind, one of `task.KINDS`."""
    module, cls = _CLASSES[name]
    return getattr(importlib.import_module(f"roberta_jax.tasks.kinds.{module}"), cls)
