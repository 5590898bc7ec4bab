"""The specification of a pretraining run: the config, checked and made concrete.

The config is read here, and in `text_spec` what it says about text. No text and no tensors are
read, so that a mistake in the config is reported before hours of preparing text. What the tokenizer
decides (the vocabulary size and the special ids) is filled in later by
`PretrainingSpec.model_config`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from roberta_jax.config_groups import (
    check_one_of,
    check_sharding,
    check_tokenizer,
    read_execution,
    read_training,
)
from roberta_jax.data.masking import Masking
from roberta_jax.data.packing.index import PAIR_FORMATS, PairOptions, check_packing
from roberta_jax.data.pipeline import ENGINES
from roberta_jax.data.row_order import FULL, ORDERS, RowOrder, WindowedOrder
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM, RobertaForPreTraining
from roberta_jax.pretraining.text_spec import TextSpec, read_text_spec
from roberta_jax.training.partitioning import (
    rows_and_accumulation,
)
from roberta_jax.training.run import TrainingSpec
from roberta_jax.training.schedules import make_schedule

if TYPE_CHECKING:
    from roberta_jax.tokenizer import RobertaTokenizer

# Heads that start from random values where the model to start from has none.
NEW_HEADS = ("next_sentence",)

# The keys that can be left to the memory of the devices, each with the value that says so and the
# value that takes the least memory.
LEFT_TO_MEMORY = {
    "execution.remat": ("auto", "full"),
    "train.per_device_batch_size": (-1, 1),
}


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """How held-out text is scored; see `config.eval`.

    Attributes:
      batch_size: rows of a global batch.
      seed: of the masks and of the order of the rows.
      max_rows: score at most so many rows of each set; None scores all.
      short_inputs: whether to score single sentences, too.
      ngram_baselines: whether to compute the perplexities of n-gram models.
    """

    batch_size: int
    seed: int
    max_rows: int | None
    short_inputs: bool
    ngram_baselines: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingSpec:
    """A pretraining run, as far as the config decides it.

    Attributes:
      config: the config as nested dictionaries, as it is written to the workdir.
      seq_len: tokens per row.
      text: the corpora, the tokenizer and the cache.
      format: input format, one of `packing.index.FORMATS`.
      pairs: how pairs of texts are sampled.
      masking: what is masked and how.
      row_order: the order in which training goes through the rows.
      next_sentence: whether next-sentence prediction is an objective.
      engine: what drives the input pipeline, one of `pipeline.ENGINES`.
      model: the model's shape. Without `init_from` its vocabulary and special ids are those of
        `config.new_tokenizer`, and the tokenizer's own replace them.
      model_class: the class of the model that is trained.
      init_from: the model to start from, or None.
      execution: how the model computes.
      training: how it is trained.
      evaluation: how it is evaluated.
      left_to_memory: the keys of `LEFT_TO_MEMORY` whose values are still to be chosen by what fits
        into memory. Until then the run has those that take the least.
    """

    config: Mapping[str, Any]
    seq_len: int
    text: TextSpec
    format: str
    pairs: PairOptions
    masking: Masking
    row_order: RowOrder
    next_sentence: bool
    engine: str
    model: RobertaConfig
    model_class: type[nn.Module]
    init_from: str | None
    execution: Execution
    training: TrainingSpec
    evaluation: EvaluationSpec
    left_to_memory: frozenset[str] = frozenset()

    def with_memory_use(self, remat: str, rows: int) -> "PretrainingSpec":
        """The run with all of `left_to_memory` chosen.

        Args:
          remat: see `Execution`.
          rows: per device and microbatch; divides a device's share of the batch.
        """
        share = self.training.rows_per_microbatch * self.training.accumulation
        return dataclasses.replace(
            self,
            execution=dataclasses.replace(self.execution, remat=remat),
            training=dataclasses.replace(
                self.training, rows_per_microbatch=rows, accumulation=share // rows
            ),
            left_to_memory=frozenset(),
        )

    def model_config(self, tokenizer: "RobertaTokenizer") -> RobertaConfig:
        """The model's config with the tokenizer's vocabulary and special ids.

        Raises:
          UsageError: the tokenizer is not one for the model to start from.
        """
        if self.init_from:
            check_tokenizer(tokenizer, self.model)
            return self.model
        return self.model.replace(
            vocab_size=len(tokenizer),
            max_position_embeddings=self.seq_len + tokenizer.pad_token_id + 1,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )


def read_spec(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> PretrainingSpec:
    """Reads and checks the config.

    Args:
      config: as `configs/pretrain.py` returns it.
      devices: the devices of the mesh, by default every device of every process. A run can be
        planned with those of `jax.experimental.topologies`, which need not exist.

    Raises:
      UsageError: a value is out of its range, values do not fit each other or the devices, or the
        model in `init_from` cannot be loaded.
    """
    text = read_text_spec(config)  # first, since it checks every value by itself
    pairs = PairOptions(
        config.data.dupe_factor,
        config.data.short_seq_prob,
        config.data.num_separators,
        config.seed,
    )
    check_packing(config.data.format, config.seq_len, pairs)
    next_sentence = config.objective.next_sentence
    if next_sentence and config.data.format not in PAIR_FORMATS:
        raise UsageError(
            "--config.objective.next_sentence=true needs pairs of texts, but "
            f"--config.data.format={config.data.format}: use {' or '.join(PAIR_FORMATS)}, or "
            "--config.objective.next_sentence=false."
        )
    model_class = RobertaForPreTraining if next_sentence else RobertaForMaskedLM
    check_one_of("data.engine", config.data.engine, ENGINES)
    devices = jax.devices() if devices is None else devices
    left_to_memory, values = _left_to_memory(config)
    training = _training(config, values["train"], devices)
    evaluation = EvaluationSpec(**config.eval)
    rows_and_accumulation(training.mesh, evaluation.batch_size, key="eval.batch_size")
    masking = Masking(**config.masking)
    if values["execution"]["scan_unroll"] is None:
        values["execution"]["scan_unroll"] = -1 if training.mesh.shape["fsdp"] == 1 else 1
    execution = read_execution(values["execution"], devices)
    model = _model(config, model_class)  # last, since it may fetch a model from the hub
    check_sharding(model_class(model, execution), training, bool(config.init_from))
    return PretrainingSpec(
        config=config.to_dict(),
        seq_len=config.seq_len,
        text=text,
        format=config.data.format,
        pairs=pairs,
        masking=masking,
        row_order=_row_order(config),
        next_sentence=next_sentence,
        engine=config.data.engine,
        model=model,
        model_class=model_class,
        init_from=config.init_from,
        execution=execution,
        training=training,
        evaluation=evaluation,
        left_to_memory=left_to_memory,
    )


def _left_to_memory(config: ConfigDict) -> tuple[frozenset[str], dict[str, dict[str, Any]]]:
    """(the keys whose values are to be chosen, their groups with values in their place)."""
    groups = {name: dict(config[name]) for name in ("execution", "train")}
    left = set()
    for key, (chosen_later, least) in LEFT_TO_MEMORY.items():
        group, name = key.split(".")
        if groups[group][name] == chosen_later:
            groups[group][name] = least
            left.add(key)
    return frozenset(left), groups


def check_schedule_is_stated(config: ConfigDict, previous: Mapping[str, Any] | None) -> None:
    """Refuses a longer run whose learning rates would silently differ from those planned.

    Args:
      config: of the run that is to continue.
      previous: the config in its workdir, or None for a new run.

    Raises:
      UsageError: `train.steps` grew and `schedule.decay_steps` is not set.
    """
    if previous is None or config.schedule.decay_steps is not None:
        return
    if config.schedule.name == "constant":
        return
    try:
        planned, steps = decay_steps(previous), config.train.steps
    except (KeyError, TypeError):
        return  # of another version; comparing the configs will show what differs
    if steps <= planned:
        return
    before, after = (float(_schedule(config, n)(planned)) for n in (planned, steps))
    raise UsageError(
        f"this run was planned for {planned} steps, over which its learning rate decays; to train "
        f"for {steps} steps, state how it continues. --config.schedule.decay_steps={steps}: as if "
        f"{steps} steps had been planned from the start; at step {planned} the learning rate is "
        f"then {after:.3g} instead of {before:.3g}. --config.schedule.decay_steps={planned}: as "
        "planned, and constant at its end value from there on."
    )


def decay_steps(config: Mapping[str, Any]) -> int:
    """The step at which the learning rate has decayed: `schedule.decay_steps`, else the last."""
    stated = config["schedule"]["decay_steps"]
    return config["train"]["steps"] if stated is None else stated


def _row_order(config: ConfigDict) -> RowOrder:
    data = config.data
    check_one_of("data.order", data.order, ORDERS)
    if data.order == "full":
        return FULL
    if config.train.batch_size % data.order_streams:
        raise UsageError(
            f"--config.data.order_streams={data.order_streams} does not divide a batch of "
            f"--config.train.batch_size={config.train.batch_size} rows into equal parts, one for "
            "each stream. Use a number of streams that divides the batch, such as "
            f"{math.gcd(config.train.batch_size, data.order_streams)}."
        )
    return WindowedOrder(
        block_rows=max(1, data.order_block_tokens // config.seq_len),
        window_blocks=data.order_window_blocks,
        streams=data.order_streams,
        stream_rows=config.train.batch_size // data.order_streams,
    )


def _training(
    config: ConfigDict, train: Mapping[str, Any], devices: Sequence[jax.Device]
) -> TrainingSpec:
    return read_training(
        {**config, "train": train},
        devices,
        steps=config.train.steps,
        warmup_steps=config.schedule.warmup_steps,
        schedule=_schedule(config, decay_steps(config)),
    )


def _schedule(config: ConfigDict, decay_steps: int) -> optax.Schedule:
    schedule = config.schedule
    return make_schedule(
        schedule.name,
        config.optimizer.learning_rate,
        warmup_steps=schedule.warmup_steps,
        decay_steps=decay_steps,
        end=schedule.end_learning_rate,
        power=schedule.power,
    )


def _model(config: ConfigDict, model_class: type[nn.Module]) -> RobertaConfig:
    """The model's shape, of `init_from` or of `config.model` with a provisional vocabulary."""
    try:
        if config.init_from:
            # Imported here, because most runs start from nothing.
            from roberta_jax.weights.load import check_pretrained, model_folder, read_config

            dropouts = ("hidden_dropout_prob", "attention_probs_dropout_prob")
            folder = model_folder(config.init_from)  # once: it may ask the hub
            model = read_config(folder)
            check_pretrained(folder, model_class, new_head=NEW_HEADS)
            model = model.replace(**{key: config.model[key] for key in dropouts})
        else:
            model = RobertaConfig(
                vocab_size=config.new_tokenizer.vocab_size,
                max_position_embeddings=config.seq_len + 2,
                **config.model,
            )
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"--config.model: {error}") from error
    if config.seq_len > model.max_length:
        raise UsageError(
            f"--config.seq_len={config.seq_len} is longer than the {model.max_length} positions of "
            f"the model in {config.init_from}. Use --config.seq_len={model.max_length} or less."
        )
    return model
