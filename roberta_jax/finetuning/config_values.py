"""The type and range of every value of a fine-tuning config."""

from roberta_jax.config_ranges import (
    INTERVAL,
    LARGEST_INT32,
    MOST_ROWS,
    SEED,
    SHARED,
    Entries,
    Flag,
    Number,
    Range,
    Text,
    count,
    fraction,
    path,
)

_OPTIONAL_DROPOUT = Number(low=0, high=1, below=True, example=0.1, optional=True)
_TOKENS = count(1, 2**16, 128, optional=True)
_OPTIONAL_INTERVAL = count(1, LARGEST_INT32, 500, optional=True)

VALUES: dict[str, Range] = {
    "task": Text(example="rte"),
    "seed": SEED,
    "init_from": path("FacebookAI/roberta-base"),
    "random_init": Flag(),
    "tokenizer": path("FacebookAI/roberta-base"),
    "data.folder": path("glue/RTE"),
    "data.tfds_data_dir": path("tensorflow_datasets"),
    "data.train": path("train.csv"),
    "data.validation": path("0.1"),
    "data.test": path("test.csv"),
    "data.kind": path("classification"),
    "data.labels": Entries(),
    "data.text_column": path("text"),
    "data.pair_column": path("text2"),
    "data.label_column": path("label"),
    "data.id_column": path("id"),
    "data.choice_columns": Entries(),
    "data.max_train_examples": count(1, LARGEST_INT32, 1000, optional=True),
    "data.num_lengths": count(1, 64, 6),
    "data.cache_dir": Text(example="cache", optional=True, may_be_empty=True),
    "data.engine": Text(example="auto"),
    "format.max_length": count(8, 2**16, 128, optional=True),
    "format.separators": count(1, 2, 2, optional=True),
    "format.max_option_length": _TOKENS,
    "format.doc_stride": _TOKENS,
    "format.max_query_length": _TOKENS,
    "format.max_answer_length": _TOKENS,
    "format.n_best": count(1, 1000, 20, optional=True),
    "format.null_threshold": Number(low=-1e6, high=1e6, example=0.0, optional=True),
    "model.hidden_dropout_prob": _OPTIONAL_DROPOUT,
    "model.attention_probs_dropout_prob": _OPTIONAL_DROPOUT,
    "model.classifier_dropout": _OPTIONAL_DROPOUT,
    "adapt.layer_decay": fraction(0.9, above=True),
    "adapt.reinit_layers": count(0, 10_000, 1),
    "adapt.frozen_layers": count(0, 10_000, 6),
    "adapt.freeze_embeddings": Flag(),
    "adapt.lora_rank": count(0, 10_000, 8),
    "adapt.lora_alpha": Number(low=0, high=1e6, example=16.0, above=True),
    "adapt.lora_targets": Entries(),
    "schedule.name": Text(example="polynomial"),
    "schedule.warmup_ratio": fraction(0.06),
    "schedule.power": Number(low=0.01, high=100, example=1.0, optional=True),
    "schedule.end_learning_rate": Number(low=0, high=10, example=0.0),
    "train.epochs": Number(low=0, high=1e6, above=True, example=10.0, optional=True),
    "train.steps": count(1, LARGEST_INT32, 2000, optional=True),
    "train.batch_size": count(1, MOST_ROWS, 32),
    "train.per_device_batch_size": count(1, MOST_ROWS, 16, optional=True),
    "train.log_every": count(1, LARGEST_INT32, 20),
    "train.eval_every": _OPTIONAL_INTERVAL,
    "train.patience": count(0, LARGEST_INT32, 3),
    "train.checkpoint_every": _OPTIONAL_INTERVAL,
    "train.keep_checkpoints": count(1, 10**6, 1),
    "train.keep_every": INTERVAL,
    "train.deterministic": Flag(),
    "eval.batch_size": count(1, MOST_ROWS, 64),
    **SHARED,
}
"""Dotted key -> what its value must be. It has every key of the config."""

# A resumed run may change how often it logs and saves, and where and in which portions it computes:
# this changes the updates by rounding alone, and with dropout by the bits of another number of
# microbatches. A key that ends in a dot stands for its whole group.
MAY_CHANGE = (
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.per_device_batch_size",
    "eval.batch_size",
    "spikes.",
    "mesh.",
    "execution.attention",
    "execution.layer_norm",
    "data.cache_dir",
    "data.engine",
    "distributed.",
)

# The hosts of one run may differ in these keys.
MAY_DIFFER = ("data.cache_dir", "data.engine")
