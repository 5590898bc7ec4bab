"""What the studies of the paper's tables share: base configs, formats, columns."""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.pretrain import get_config
from experiments.study import changed_config

SEEDS = (0, 1, 2)

# All settings are scored on the same masks of the same held-out rows (see `pretraining.datasets`).
PERPLEXITIES = {
    "perplexity": "eval_perplexity",
    "perplexity, single sentences": "eval_short_perplexity",
}

# BERT's data format: pairs of segments with token types, sampled ten times.
SEGMENT_PAIR_NSP = {
    "data.format": "segment_pair",
    "data.dupe_factor": 10,
    "objective.next_sentence": True,
    "model.type_vocab_size": 2,
}

# A run of a tiny study: rows, tokens a row, steps.
_TINY = (12, 96, 3600)
TINY_TOKENS = math.prod(_TINY)  # padding included

NOTES = {
    "paper": "",
    "tiny": (
        "Two layers of width 128 that have seen four million tokens: this shows that the settings "
        "run and how they compare at that scale, and says nothing about a model of the paper's "
        "size. Perplexities are on held-out text, all on the same masks; the paper's own are on "
        "another text."
    ),
}


def bert_base() -> ConfigDict:
    """Section 4's runs: BERT base with batches of 256, for 1M steps, at a rate of 1e-4.

    They follow BERT's optimization (sections 2.4 and 3.1); beta2 = 0.98 is for large batches.
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
    """Section 5's runs: the large model with batches of 8K (Table 9)."""
    return change(get_config("large"), {"eval.short_inputs": True})


def tiny() -> ConfigDict:
    """A model and a batch for 2 cores: some minutes a run."""
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
            "eval.short_inputs": True,
            "eval.ngram_baselines": False,
        },
    )


def change(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """The config with other values, locked."""
    return changed_config(config, changes, "a recipe")
