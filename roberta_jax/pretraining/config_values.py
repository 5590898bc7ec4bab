"""The type and range of every value of a pretraining config, and the check against them."""

from collections.abc import Collection, Mapping
from typing import Any

from roberta_jax import config_ranges
from roberta_jax.config_ranges import (
    DROPOUT,
    INTERVAL,
    LARGEST_INT32,
    MOST_ROWS,
    SEED,
    SHARED,
    STEPS,
    Entries,
    Flag,
    Number,
    Range,
    Text,
    count,
    fraction,
    path,
)

VALUES: dict[str, Range] = {
    "seed": SEED,
    # The order of masks is drawn with the bits of a 32-bit hash that the position leaves.
    "seq_len": count(2, 2**16, 512),
    "tokenizer": path("roberta-base"),
    "init_from": path("roberta-base"),
    "new_tokenizer.vocab_size": count(261, 10**7, 50265),
    "new_tokenizer.min_frequency": count(1, LARGEST_INT32, 2),
    "data.source": Text(example="files"),
    "data.files": path("text/*.txt"),
    "data.text_field": Text(example="text"),
    "data.sentences": Text(example="split"),
    "data.language": Text(example="en"),
    "data.tfds_name": path("wikipedia/20230601.en"),
    "data.tfds_split": path("train"),
    "data.tfds_field": path("text"),
    "data.tfds_data_dir": path("tensorflow_datasets"),
    "data.validation_fraction": fraction(0.01, below=True),
    "data.validation_max_overlap": fraction(0.5),
    "data.cache_dir": Text(example="cache", optional=True, may_be_empty=True),
    "data.num_workers": count(1, 1024, 4, optional=True),
    "data.engine": Text(example="auto"),
    "data.order": Text(example="full"),
    "data.order_block_tokens": count(1, 2**40, 1 << 22),
    "data.order_window_blocks": count(1, 10**6, 16),
    "data.order_streams": count(1, MOST_ROWS, 16),
    "data.format": Text(example="full_sentences"),
    "data.max_tokens": count(1, 2**62, 10**9, optional=True),
    "data.dupe_factor": count(1, 10_000, 10),
    "data.short_seq_prob": fraction(0.1),
    "data.num_separators": count(1, 2, 2),
    "data.mixture": Entries(),
    "objective.next_sentence": Flag(),
    # With smaller rates most batches would have nothing to predict.
    "masking.rate": fraction(0.15, low=0.001, below=True),
    "masking.mask_replace_prob": fraction(0.8),
    "masking.random_replace_prob": fraction(0.1),
    "masking.mask_special_tokens": Flag(example=True),
    "masking.scheme": Text(example="token"),
    "masking.geometric_p": fraction(0.2, low=0.001),
    "masking.max_span_length": count(1, 2**16, 10),
    "masking.dupe_factor": count(1, LARGEST_INT32, 10, optional=True),
    "model.hidden_size": count(1, 10**6, 768),
    "model.num_hidden_layers": count(1, 10_000, 12),
    "model.num_attention_heads": count(1, 10**6, 12),
    "model.intermediate_size": count(1, 10**7, 3072),
    "model.hidden_act": Text(example="gelu"),
    "model.hidden_dropout_prob": DROPOUT,
    "model.attention_probs_dropout_prob": DROPOUT,
    "model.initializer_range": Number(low=1e-6, high=10, example=0.02),
    "model.layer_norm_eps": fraction(1e-5, low=1e-20),
    "model.type_vocab_size": count(1, 2, 1),
    "schedule.name": Text(example="polynomial"),
    "schedule.warmup_steps": INTERVAL,
    "schedule.decay_steps": count(1, LARGEST_INT32, 10_000, optional=True),
    "schedule.power": Number(low=0.01, high=100, example=1.0, optional=True),
    "schedule.end_learning_rate": Number(low=0, high=10, example=0.0),
    "train.steps": STEPS,
    "train.batch_size": count(1, MOST_ROWS, 256),
    "train.per_device_batch_size": count(-1, MOST_ROWS, 16, optional=True),
    "train.log_every": count(1, LARGEST_INT32, 100),
    "train.eval_every": INTERVAL,
    "train.checkpoint_every": INTERVAL,
    "train.keep_checkpoints": count(1, 10**6, 2),
    "train.keep_every": INTERVAL,
    "train.deterministic": Flag(),
    "eval.batch_size": count(1, MOST_ROWS, 256),
    "eval.seed": SEED,
    "eval.max_rows": count(1, LARGEST_INT32, 8192, optional=True),
    "eval.short_inputs": Flag(),
    "eval.ngram_baselines": Flag(),
    **SHARED,
    "execution.scan_unroll": count(-1, 10_000, 1, optional=True),
}
"""Dotted key -> what its value must be. It has every key of the config."""


def check_values(values: Mapping[str, Any], keys: Collection[str] = VALUES) -> None:
    """Checks the keys of a config, and the type and range of each value.

    Args:
      values: the values by dotted key.
      keys: the keys that there must be.

    Raises:
      UsageError: a key is missing or unknown, or a value is not what `VALUES` says.
    """
    config_ranges.check_values(values, VALUES, keys, "configs/pretrain.py")
