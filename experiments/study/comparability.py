"""Finds settings of a study that cannot be compared, or that cannot differ in their outcome."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.study.config_changes import finetunes, values_that_affect_results
from experiments.study.definition import Point, Study
from roberta_jax.data.packing.index import PAIR_FORMATS
from roberta_jax.errors import UsageError, shortened
from roberta_jax.pretraining.spec import decay_steps
from roberta_jax.tasks.table import TASKS

STATIC_MASKS = "masking.dupe_factor"

# What decides on which rows, with which masks, a model is scored. (The masking of the config is for
# training only.)
_SCORED_ROWS = ("seq_len", "eval.seed", "eval.max_rows", "data.validation_fraction")
_SOURCE = (
    "data.source",
    "data.files",
    "data.text_field",
    "data.sentences",
    "data.language",
    "data.tfds_name",
    "data.tfds_split",
    "data.tfds_field",
    "data.tfds_data_dir",
)


def effective_values(config: ConfigDict) -> dict[str, Any]:
    """Returns the values that affect the results, without keys that another value switches off.

    Two configs with the same effective values and the same seed give the same model.
    """
    values = values_that_affect_results(config)
    if finetunes(config):
        return values
    values["schedule.decay_steps"] = decay_steps(config)
    if config.schedule.name == "polynomial" and config.schedule.power is None:
        values["schedule.power"] = 1.0
    off = switched_off(config)
    return {key: value for key, value in values.items() if key not in off}


def switched_off(config: ConfigDict) -> dict[str, str]:
    """Returns the keys that have no effect because of another value: {key: what they need}."""
    off: dict[str, str] = {}
    if finetunes(config):
        return off
    if config.masking.scheme != "span":
        needs = "--set=masking.scheme=span"
        off |= dict.fromkeys(("masking.geometric_p", "masking.max_span_length"), needs)
    if config.data.format not in PAIR_FORMATS:
        off |= dict.fromkeys(("data.dupe_factor", "data.num_separators"), "a pair format")
    if config.data.format != "segment_pair":
        off["data.short_seq_prob"] = "--set=data.format=segment_pair"
    if config.tokenizer or config.init_from:
        keys = ("new_tokenizer.vocab_size", "new_tokenizer.min_frequency")
        off |= dict.fromkeys(keys, "a run without tokenizer and init_from")
    if config.init_from:
        keys = [f"model.{key}" for key in config.model if "dropout" not in key]
        off |= dict.fromkeys(keys, "a run without init_from")
    if not config.data.mixture:  # its corpora have the values of `data` that they do not set
        if config.data.source != "files":
            needs = "--set=data.source=files"
            off |= dict.fromkeys(("data.files", "data.text_field"), needs)
        if config.data.source != "tfds":
            keys = [key for key in _SOURCE if key.startswith("data.tfds_")]
            off |= dict.fromkeys(keys, "--set=data.source=tfds")
    if config.schedule.name == "constant":
        keys = ("schedule.decay_steps", "schedule.end_learning_rate")
        off |= dict.fromkeys(keys, "a schedule that decays")
    return off


def check_changes(study: Study) -> None:
    """Checks that each change of the base config has an effect on some setting.

    Raises:
      UsageError: one has none.
    """
    off = [switched_off(config) for config in _configs(study).values()]
    for key, value in study.changes.items():
        if all(key in each for each in off):
            raise UsageError(
                f"--set={key}={shortened(str(value))} has no effect in any setting: it needs "
                f"{off[0][key]}."
            )


def tokenizer_identity(config: ConfigDict) -> str:
    """Returns a text that is equal for two configs if their runs have the same tokenizer."""
    named = config.tokenizer or config.init_from
    if named:
        return _text({"named": named})
    values = effective_values(config)
    keys = ("new_tokenizer.vocab_size", "new_tokenizer.min_frequency", "data.validation_fraction")
    corpora = [
        {key: value for key, value in corpus.items() if key not in ("weight", "max_tokens")}
        for corpus in config.data.mixture
        if isinstance(corpus, Mapping)
    ]
    return _text([{key: values.get(key) for key in (*keys, *_SOURCE)}, corpora])


def have_one_tokenizer(study: Study) -> bool:
    """Whether all settings have the same tokenizer, so that losses per token can be compared.

    Fine-tuning has no losses per token.
    """
    if study.finetunes:
        return True
    return len({tokenizer_identity(config) for config in _configs(study).values()}) == 1


def warnings(study: Study) -> list[str]:
    """Returns a sentence for each comparison of the study that its configs rule out."""
    configs = _configs(study)
    messages = []
    if study.data:
        messages += [
            f"The folder of --data has no training and validation examples of {TASKS[task].title}; "
            "its columns stay empty."
            for task in study.downstream
            if task not in study.evaluations
        ]
    for one, other in itertools.combinations(configs, 2):
        values = [effective_values(configs[name]) for name in (one, other)]
        if _text(values[0]) == _text(values[1]):
            all_values = [values_that_affect_results(configs[name]) for name in (one, other)]
            keys = _differing(*all_values)
            reason = f"their {' and '.join(keys)} has no effect here" if keys else "they are equal"
            messages.append(f"The settings {one!r} and {other!r} train the same model: {reason}.")
    if study.finetunes:  # each task has its own examples
        return messages
    if not have_one_tokenizer(study):
        messages.append(
            "The settings have different tokenizers, because each trains one on its own corpora, "
            "or names another. Losses and perplexities per token are not comparable between "
            "tokenizers, and are not shown. Give all settings one: --set=tokenizer=FOLDER."
        )
    scored = (*_SCORED_ROWS, *_SOURCE)
    rows = {
        name: {key: effective_values(config).get(key) for key in scored}
        for name, config in configs.items()
    }
    first = next(iter(rows.values()))
    keys = sorted({key for other in rows.values() for key in _differing(first, other)})
    if keys:
        messages.append(
            f"The settings are not scored on the same rows: they differ in {', '.join(keys)}."
        )
    return messages


def mask_warnings(study: Study, epochs: Mapping[str, float]) -> list[str]:
    """Returns a sentence for each two settings whose static masks are hardly repeated.

    The first n epochs of static masking with n masks per row are those of dynamic masking, bit for
    bit, and of static masking with more masks.

    Args:
      study: the study.
      epochs: maps settings to the epochs of their runs, as far as they are known.
    """
    if study.finetunes:
        return []
    configs = _configs(study)
    messages = []
    for one, other in itertools.combinations([name for name in configs if name in epochs], 2):
        values = [effective_values(configs[name]) for name in (one, other)]
        copies = {each.pop(STATIC_MASKS) for each in values}
        if _text(values[0]) != _text(values[1]) or len(copies) < 2:
            continue
        equal, length = min(copies - {None}), min(epochs[one], epochs[other])
        if length <= equal:
            messages.append(
                f"The settings {one!r} and {other!r} train the same model: their masks are the "
                f"same in the first {equal} epochs, and the runs end after {length:.3g}."
            )
        elif length < 2 * equal:
            messages.append(
                f"The settings {one!r} and {other!r} are the same in the first {equal} of "
                f"{length:.3g} epochs, so that they can differ only in the last "
                f"{1 - equal / length:.0%} of the run. In the paper each mask is seen 4 times."
            )
    return messages


def largest_number_of_epochs(point: Point, tokens: int) -> float:
    """Returns how often a run sees a corpus of so many tokens if its rows have no padding."""
    config = point.config()
    if config.data.max_tokens is not None:
        tokens = min(tokens, config.data.max_tokens)
    return config.train.steps * config.train.batch_size * config.seq_len / tokens


def _configs(study: Study) -> dict[str, ConfigDict]:
    return {name: Point(study, name, study.seeds[0]).config() for name in study.settings}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [key for key in one if _text(one[key]) != _text(other[key])]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
