"""The specification of a pretraining run: the config, checked and made concrete.

The config is read here, and in `text_spec` what it says about text. No text and no tensors are
read, so that a mistake in the config is reported before hours of preparing text. What the tokenizer
decides (the vocabulary size and the special ids) is filled in later by
`PretrainingSpec.model_config`.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from roberta_jax.data.masking import Masking
from roberta_jax.data.packing.index import PAIR_FORMATS, PairOptions, check_packing
from roberta_jax.data.pipeline import ENGINES
from roberta_jax.data.row_order import FULL, ORDERS, RowOrder, WindowedOrder
from roberta_jax.errors import UsageError
from roberta_jax.kernels.attention import dot_product_attention
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM, RobertaForPreTraining
from roberta_jax.pretraining.text_spec import TextSpec, read_text_spec
from roberta_jax.training.loop import Cadence
from roberta_jax.training.optimizer import make_optimizer
from roberta_jax.training.partitioning import (
    MESH_AXES,
    RULES,
    create_mesh,
    mesh_size,
    rows_and_accumulation,
    rules_with,
)
from roberta_jax.training.run import TrainingSpec
from roberta_jax.training.schedules import make_schedule
from roberta_jax.training.spikes import SpikePolicy
from roberta_jax.training.state import abstract_state

if TYPE_CHECKING:
    from roberta_jax.tokenizer import RobertaTokenizer

# Heads that start from random values where the model to start from has none.
NEW_HEADS = ("next_sentence",)


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

    def model_config(self, tokenizer: "RobertaTokenizer") -> RobertaConfig:
        """The model's config with the tokenizer's vocabulary and special ids.

        Raises:
          UsageError: the tokenizer is not one for the model to start from.
        """
        if self.init_from:
            _check_tokenizer(tokenizer, self.model)
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
    _check_one_of("data.engine", config.data.engine, ENGINES)
    devices = jax.devices() if devices is None else devices
    training = _training(config, devices)
    evaluation = EvaluationSpec(**config.eval)
    rows_and_accumulation(training.mesh, evaluation.batch_size, key="eval.batch_size")
    masking = Masking(**config.masking)
    execution = _execution(config.execution, devices)
    model = _model(config, model_class)  # last, since it may fetch a model from the hub
    _check_sharding(model_class(model, execution), training, bool(config.init_from))
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
    )


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
    _check_one_of("data.order", data.order, ORDERS)
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


def _training(config: ConfigDict, devices: Sequence[jax.Device]) -> TrainingSpec:
    train = config.train
    schedule = _schedule(config, decay_steps(config))
    sizes = {name: config.mesh[name] for name in (*MESH_AXES, "slices")}
    mesh = create_mesh(**sizes, devices=devices)
    rows, accumulation = rows_and_accumulation(mesh, train.batch_size, train.per_device_batch_size)
    options = {
        key: value
        for key, value in config.optimizer.items()
        if key not in ("name", "learning_rate")
    }
    return TrainingSpec(
        seed=config.seed,
        steps=train.steps,
        batch_size=train.batch_size,
        rows_per_microbatch=rows,
        accumulation=accumulation,
        cadence=Cadence(train.log_every, train.eval_every, train.checkpoint_every),
        keep_checkpoints=train.keep_checkpoints,
        keep_every=train.keep_every,
        spikes=SpikePolicy(**config.spikes),
        deterministic=train.deterministic,
        optimizer=make_optimizer(config.optimizer.name, schedule, options),
        schedule=schedule,
        warmup_steps=config.schedule.warmup_steps,
        mesh=mesh,
        rules=rules_with(
            config.mesh.rules, shard_optimizer_state=config.mesh.shard_optimizer_state
        ),
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


_LESS_SPLIT_TABLES = (
    " Or split the embedding tables over fewer devices: --config.mesh.rules="
    '\'(("embedding", "fsdp"),)\'.'
)


def _check_sharding(model: nn.Module, training: TrainingSpec, is_pretrained: bool) -> None:
    """Checks that the parameters can be split as the mesh and its rules say.

    The vocabulary is left out: it is known only when the tokenizer is.
    """
    is_split = math.prod(training.mesh.shape.values()) > training.mesh.shape["data"]
    if not is_split and training.rules == RULES:
        return
    axes_of = dict(training.rules)
    # A tensor with all heads has the size of their product with the head's width, so that its shape
    # does not show whether heads are cut in two.
    for name, key in (
        ("heads", "num_attention_heads"),
        ("mlp", "intermediate_size"),
        ("embed", "hidden_size"),
        ("embedding", "hidden_size"),
    ):
        size, parts = getattr(model.config, key), mesh_size(training.mesh, axes_of[name])
        if size % parts:
            axes = axes_of[name] if isinstance(axes_of[name], tuple) else (axes_of[name],)
            sizes = {axis: training.mesh.shape[axis] for axis in axes}
            split = " times ".join(
                f"--config.mesh.{axis}={size}" for axis, size in sizes.items() if size > 1
            )
            where = (
                f"the {key} {size} of the model in init_from"
                if is_pretrained
                else (f"--config.model.{key}={size}")
            )
            best = next(n for n in range(parts, 0, -1) if size % n == 0)
            raise UsageError(
                f"{where} is not divisible by the {parts} devices that split it ({split}). Use a "
                f"mesh that splits it over {best}, or another --config.model.{key}."
                + (_LESS_SPLIT_TABLES if name == "embedding" else "")
            )
    rules = tuple((name, None if name == "vocab" else axes) for name, axes in training.rules)
    abstract_state(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"],
        training.optimizer,
        training.mesh,
        rules=rules,
    )


def _execution(options: ConfigDict, devices: Sequence[jax.Device]) -> Execution:
    platform = devices[0].platform
    dtypes = {
        "auto": jnp.float32 if platform == "cpu" else jnp.bfloat16,
        "float32": jnp.float32,
        "bfloat16": jnp.bfloat16,
    }
    _check_one_of("execution.dtype", options.dtype, dtypes)
    if options.dtype == "bfloat16" and platform == "cpu":
        _check_bfloat16()
    try:
        return Execution(**{**options, "dtype": dtypes[options.dtype]})
    except ValueError as error:
        raise UsageError(f"--config.execution: {error}") from error


def _check_bfloat16() -> None:
    """Tries the model's matrix products: jaxlib 0.7 lacks some of them in bfloat16 on a CPU."""

    def products(x, x_BLHK):  # which ones are missing depends on the CPU
        return x @ x.T, dot_product_attention(x_BLHK, x_BLHK, x_BLHK)

    shapes = (16, 16), (8, 16, 2, 16)
    try:
        jax.block_until_ready(jax.jit(products)(*(jnp.ones(x, jnp.bfloat16) for x in shapes)))
    except jax.errors.JaxRuntimeError as error:
        raise UsageError(
            "--config.execution.dtype=bfloat16: this version of jaxlib cannot multiply bfloat16 "
            "matrices on this machine's CPU. Use --config.execution.dtype=float32, or a newer jax."
        ) from error


def _check_one_of(key: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UsageError(f"--config.{key}={value} is unknown: use one of {', '.join(known)}.")


def _check_tokenizer(tokenizer: "RobertaTokenizer", model: RobertaConfig) -> None:
    """Other special ids, or more ids than the model has rows, would train on the wrong tokens."""
    if len(tokenizer) > model.vocab_size:
        raise UsageError(
            f"the tokenizer has {len(tokenizer)} ids, the model to start from {model.vocab_size}. "
            "Leave --config.tokenizer unset to use the model's own."
        )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        of_tokenizer, of_model = getattr(tokenizer, name), getattr(model, name)
        if of_tokenizer != of_model:
            raise UsageError(
                f"the tokenizer's {name} is {of_tokenizer}, the model's {of_model}. Leave "
                "--config.tokenizer unset to use the model's own."
            )
