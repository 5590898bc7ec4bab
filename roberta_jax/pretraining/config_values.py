"""The type and range of every value of the config, and the check against them.

Values out of these ranges would fail late or silently: a step counter of 32 bits overflows, a
number rounds to 0 in float32, a seed loses its upper half. What else a value must fulfil (names of
formats, sizes that divide each other) is checked by the modules that use it.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from roberta_jax.dotted_keys import nearest
from roberta_jax.errors import UsageError, shortened, spelled

_LONGEST_TEXT = 4096  # characters; no path is longer
_LARGEST_INT32 = 2**31 - 1
_MOST_ROWS = 10**6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """A number of the config.

    Attributes:
      low, high: the smallest and the largest value.
      above, below: whether `low` and `high` themselves are out of range.
      example: a good value; its type is that of the key.
      optional: whether the key may be unset (None).
    """

    low: float
    high: float
    example: float
    above: bool = False
    below: bool = False
    optional: bool = False

    def fits(self, value: Any) -> bool:
        kinds = int if isinstance(self.example, int) else int | float
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        is_above = value > self.low if self.above else value >= self.low
        return is_above and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        kind = "a whole number" if isinstance(self.example, int) else "a number"
        low, high = spelled(self.low), spelled(self.high)
        text = f"{kind} {f'above {low}' if self.above else f'from {low}'}"
        return f"{text} {f'and below {high}' if self.below else f'to {high}'}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A name, a path or a pattern: of at most 4096 characters, and valid Unicode.

    Attributes:
      example: a good value.
      optional: whether the key may be unset (None).
      may_be_empty: whether an empty text is the same as None.
    """

    example: str
    optional: bool = False
    may_be_empty: bool = False

    def fits(self, value: Any) -> bool:
        if not isinstance(value, str) or len(value) > _LONGEST_TEXT or "\0" in value:
            return False
        if not value and not self.may_be_empty:
            return False
        return not any("\ud800" <= character <= "\udfff" for character in value)

    def __str__(self) -> str:
        return f"a text of 1 to {_LONGEST_TEXT} characters in UTF-8"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """True or False."""

    example: bool = False
    optional: bool = False

    def fits(self, value: Any) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entries:
    """A tuple whose entries are checked where they are used."""

    example: tuple = ()
    optional: bool = False

    def fits(self, value: Any) -> bool:
        return isinstance(value, tuple | list)

    def __str__(self) -> str:
        return "a tuple"


def _path(example: str) -> Text:
    return Text(example=example, optional=True)


def _count(low: int, high: int, example: int, optional: bool = False) -> Number:
    return Number(low=low, high=high, example=example, optional=optional)


def _fraction(example: float, **limits: Any) -> Number:
    return Number(**{"low": 0, "high": 1, "example": example, **limits})


_SEED = _count(0, 2**32 - 1, 0)
# With larger factors 1 - beta has less than three digits in float32.
_BETA = _fraction(0.9, high=0.99999)
_DROPOUT = _fraction(0.1, below=True)
# Smaller numbers are 0 in float32, or become 0 when they are multiplied.
_EPSILON = _fraction(1e-6, low=1e-20)
_STEPS = _count(1, _LARGEST_INT32, 10_000)
_INTERVAL = _count(0, _LARGEST_INT32, 1000)
# Not much less than the second in which heartbeats are sent, and not more than a week.
_SECONDS = Number(low=3, high=604_800, example=60.0)
_AXIS = _count(-1, 10**6, -1)

VALUES: dict[str, Number | Text | Flag | Entries] = {
    "seed": _SEED,
    # The order of masks is drawn with the bits of a 32-bit hash that the position leaves.
    "seq_len": _count(2, 2**16, 512),
    "tokenizer": _path("roberta-base"),
    "init_from": _path("roberta-base"),
    "new_tokenizer.vocab_size": _count(261, 10**7, 50265),
    "new_tokenizer.min_frequency": _count(1, _LARGEST_INT32, 2),
    "data.source": Text(example="files"),
    "data.files": _path("text/*.txt"),
    "data.text_field": Text(example="text"),
    "data.sentences": Text(example="split"),
    "data.language": Text(example="en"),
    "data.tfds_name": _path("wikipedia/20230601.en"),
    "data.tfds_split": _path("train"),
    "data.tfds_field": _path("text"),
    "data.tfds_data_dir": _path("tensorflow_datasets"),
    "data.validation_fraction": _fraction(0.01, below=True),
    "data.validation_max_overlap": _fraction(0.5),
    "data.cache_dir": Text(example="cache", optional=True, may_be_empty=True),
    "data.num_workers": _count(1, 1024, 4, optional=True),
    "data.engine": Text(example="auto"),
    "data.order": Text(example="full"),
    "data.order_block_tokens": _count(1, 2**40, 1 << 22),
    "data.order_window_blocks": _count(1, 10**6, 16),
    "data.order_streams": _count(1, _MOST_ROWS, 16),
    "data.format": Text(example="full_sentences"),
    "data.max_tokens": _count(1, 2**62, 10**9, optional=True),
    "data.dupe_factor": _count(1, 10_000, 10),
    "data.short_seq_prob": _fraction(0.1),
    "data.num_separators": _count(1, 2, 2),
    "data.mixture": Entries(),
    "objective.next_sentence": Flag(),
    # With smaller rates most batches would have nothing to predict.
    "masking.rate": _fraction(0.15, low=0.001, below=True),
    "masking.mask_replace_prob": _fraction(0.8),
    "masking.random_replace_prob": _fraction(0.1),
    "masking.mask_special_tokens": Flag(example=True),
    "masking.scheme": Text(example="token"),
    "masking.geometric_p": _fraction(0.2, low=0.001),
    "masking.max_span_length": _count(1, 2**16, 10),
    "masking.dupe_factor": _count(1, _LARGEST_INT32, 10, optional=True),
    "model.hidden_size": _count(1, 10**6, 768),
    "model.num_hidden_layers": _count(1, 10_000, 12),
    "model.num_attention_heads": _count(1, 10**6, 12),
    "model.intermediate_size": _count(1, 10**7, 3072),
    "model.hidden_act": Text(example="gelu"),
    "model.hidden_dropout_prob": _DROPOUT,
    "model.attention_probs_dropout_prob": _DROPOUT,
    "model.initializer_range": Number(low=1e-6, high=10, example=0.02),
    "model.layer_norm_eps": _fraction(1e-5, low=1e-20),
    "model.type_vocab_size": _count(1, 2, 1),
    "execution.dtype": Text(example="auto"),
    "execution.scan_layers": Flag(example=True),
    "execution.scan_unroll": _count(1, 10_000, 1),
    "execution.remat": Text(example="dots"),
    "execution.attention": Text(example="xla"),
    "optimizer.name": Text(example="adamw"),
    "optimizer.learning_rate": Number(low=0, high=1e30, example=6e-4),
    "optimizer.beta1": _BETA,
    "optimizer.beta2": _BETA,
    "optimizer.eps": _EPSILON,
    "optimizer.weight_decay": Number(low=0, high=10, example=0.01),
    "optimizer.decay_mask": Text(example="all"),
    "optimizer.bias_correction": Flag(example=True),
    "optimizer.clip_norm": Number(low=0, high=1e6, example=1.0),
    "schedule.name": Text(example="polynomial"),
    "schedule.warmup_steps": _INTERVAL,
    "schedule.decay_steps": _count(1, _LARGEST_INT32, 10_000, optional=True),
    "schedule.power": Number(low=0.01, high=100, example=1.0, optional=True),
    "schedule.end_learning_rate": Number(low=0, high=10, example=0.0),
    "train.steps": _STEPS,
    "train.batch_size": _count(1, _MOST_ROWS, 256),
    "train.per_device_batch_size": _count(1, _MOST_ROWS, 16, optional=True),
    "train.log_every": _count(1, _LARGEST_INT32, 100),
    "train.eval_every": _INTERVAL,
    "train.checkpoint_every": _INTERVAL,
    "train.keep_checkpoints": _count(1, 10**6, 2),
    "train.keep_every": _INTERVAL,
    "train.deterministic": Flag(),
    "spikes.policy": Text(example="skip"),
    "spikes.window": _count(2, 10**5, 100),
    "spikes.deviations": Number(low=0, high=1e6, example=6.0),
    "spikes.min_increase": Number(low=0, high=1e6, example=0.5),
    "spikes.skip_batches": _INTERVAL,
    "spikes.max_rewinds": _count(0, 10**6, 3),
    "eval.batch_size": _count(1, _MOST_ROWS, 256),
    "eval.seed": _SEED,
    "eval.max_rows": _count(1, _LARGEST_INT32, 8192, optional=True),
    "eval.short_inputs": Flag(),
    "eval.ngram_baselines": Flag(),
    "mesh.data": _AXIS,
    "mesh.fsdp": _count(-1, 10**6, 1),
    "mesh.tensor": _count(-1, 10**6, 1),
    "mesh.slices": _count(1, 10**6, 2, optional=True),
    "mesh.shard_optimizer_state": Flag(),
    "mesh.rules": Entries(),
    "distributed.start_timeout": _SECONDS,
    "distributed.heartbeat_timeout": _SECONDS,
    "distributed.late_timeout": _SECONDS,
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
    for key in values:
        if key not in VALUES:
            hint = nearest(key, list(VALUES))
            advice = f"Did you mean --config.{hint}? " if hint else ""
            raise UsageError(
                f"the config has the unknown key --config.{shortened(key)}. {advice}Remove it; "
                "configs/pretrain.py has all keys."
            )
    missing = [key for key in keys if key not in values]
    if missing:
        raise UsageError(
            f"the config has no key --config.{missing[0]}. Add it, such as "
            f"config.{missing[0]} = {VALUES[missing[0]].example!r}, or start from "
            "configs/pretrain.py, which has all keys."
        )
    for key, value in values.items():
        wanted = VALUES[key]
        if not wanted.fits(value) and not (value is None and wanted.optional):
            raise UsageError(
                f"--config.{key}={shortened(spelled(value))}: give {wanted}"
                f"{', or none' if wanted.optional else ''}, such as "
                f"--config.{key}={spelled(wanted.example)}."
            )
