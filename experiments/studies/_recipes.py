"""Base configs, data formats and columns that the studies of the paper's tables share."""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.pretrain import get_config
from experiments.study import changed_config

SEEDS = (0, 1, 2)

# All settings are evaluated on the same held-out rows with the same masks.
PERPLEXITIES = {
    "perplexity": "eval_perplexity",
    "perplexity, single sentences": "eval_short_perplexity",
}

# BERT's data format: segment pairs with token types, sampled ten times (dupe_factor).
SEGMENT_PAIR_NSP = {
    "data.format": "segment_pair",
    "data.dupe_factor": 10,
    "objective.next_sentence": True,
    "model.type_vocab_size": 2,
}

# A run of a tiny study: rows per batch, tokens per row, steps.
_TINY = (12, 96, 3600)
TINY_TOKENS = math.prod(_TINY)  # padding included

NOTES = {
    "paper": "",
    "tiny": (
        "This form of the study is for 2 CPU cores. It shows that the settings run and how they "
        "compare at the scale of the runs above, but says nothing about a model of the paper's "
        "size. Perplexities are measured on held-out text with the same masks for all settings; "
        "the paper's were measured on another text."
    ),
}


# What `experiments.downstream` takes for a task: the paper's medians are over 5 seeds. It does not
# say with which rates it fine-tuned the models of its Tables 1 to 4; these are those of the task's
# recipe (Table 10).
_DOWNSTREAM = {
    "paper": ("--seeds=5",),
    "tiny": (
        "--rates=2e-4",
        "--batch_sizes=16",
        "--set=train.epochs=2",
        "--set=data.max_train_examples=2000",
    ),
}
# Windows for the 96 positions of the tiny model.
_TINY_QUESTIONS = ("--set=format.max_query_length=24", "--set=format.doc_stride=32")


def downstream(form: str, *tasks: str) -> dict[str, tuple[str, ...]]:
    """Returns the tasks that the models of a study are fine-tuned on, for `Study.downstream`."""
    return {
        task: (
            *_DOWNSTREAM[form],
            *(_TINY_QUESTIONS if form == "tiny" and task.startswith("squad") else ()),
        )
        for task in tasks
    }


def bert_base() -> ConfigDict:
    """Returns the config of section 4: BERT base, batches of 256, 1M steps, learning rate 1e-4.

    The optimizer is BERT's (sections 2.4 and 3.1), with its warmup of 10,000 steps; beta2 = 0.98 is
    for large batches only.
    """
    return change(
        get_config("base"),
        {
            "train.batch_size": 256,
            "train.steps": 1_000_000,
            "optimizer.learning_rate": 1e-4,
            "optimizer.beta2": 0.999,
            "schedule.warmup_steps": 10_000,
            "eval.short_inputs": True,
        },
    )


def roberta_large() -> ConfigDict:
    """Returns the config of section 5: the large model with batches of 8K (Table 9)."""
    return change(get_config("large"), {"eval.short_inputs": True})


def tiny() -> ConfigDict:
    """Returns a config with a model and a batch for 2 CPU cores: a few minutes per run."""
    rows, length, steps = _TINY
    return change(
        get_config("tiny"),
        {
            "seq_len": length,
            "new_tokenizer.vocab_size": 2048,
            "train.batch_size": rows,
            "train.steps": steps,
            "train.log_every": 90,
            "train.eval_every": 450,
            "train.checkpoint_every": 900,
            "train.keep_checkpoints": 1,
            "schedule.warmup_steps": steps // 20,
            "data.engine": "numpy",
            "data.format": "full_sentences",
            "eval.short_inputs": True,
            "eval.ngram_baselines": False,
        },
    )


def change(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Returns a locked copy of the config with some values changed."""
    return changed_config(config, changes, "experiments/studies/_recipes.py")
