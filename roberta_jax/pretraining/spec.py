"""What a pretraining config means: everything that follows from it alone, checked at once.

Building a `Plan` takes no text and no training, so that a mistake in the config is told before
hours of preparing text, and not after.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from roberta_jax import weights
from roberta_jax.data.masking import Masking
from roberta_jax.data.packing.index import PAIR_FORMATS, PairOptions, check_packing
from roberta_jax.data.pipeline import ENGINES
from roberta_jax.data.text.sources import list_sources
from roberta_jax.errors import UsageError
from roberta_jax.kernels.attention import dot_product_attention
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.training.loop import Cadence
from roberta_jax.training.optimizer import OPTIMIZERS
from roberta_jax.training.partitioning import create_mesh, rows_and_accumulation
from roberta_jax.training.schedules import polynomial_schedule
from roberta_jax.weights.next_sentence import read_head


class Plan:
    """What a run is made of, as far as the config alone says.

    Attributes:
      masking, pairs, cadence, schedule, optimizer, mesh, execution: built from their parts of the
        config.
      rows: a device works on at once.
      accumulation: microbatches a batch is worked off in.
      initial: (model, parameters on the host) of `config.init_from`, or None. The parameters hold
        "next_sentence" where that is an objective and the folder has such a head.

    Raises:
      UsageError: a value is out of its range, or values do not fit each other or the devices.
    """

    def __init__(self, config: ConfigDict):
        train = config.train
        if train.steps < 1:
            raise UsageError(f"train.steps={train.steps}: a run has at least one step.")
        _one_of("optimizer.name", config.optimizer.name, OPTIMIZERS)
        _one_of("data.engine", config.data.engine, ENGINES)
        self.pairs = PairOptions(
            config.data.dupe_factor,
            config.data.short_seq_prob,
            config.data.num_separators,
            config.seed,
        )
        check_packing(config.data.format, config.seq_len, self.pairs)
        if config.objective.next_sentence and config.data.format not in PAIR_FORMATS:
            raise UsageError(
                f"objective.next_sentence needs pairs of texts, but data.format is "
                f"{config.data.format!r}: use {' or '.join(PAIR_FORMATS)}, or "
                "--config.objective.next_sentence=false."
            )
        list_sources(config.data)
        self.masking = Masking(**config.masking)
        self.cadence = Cadence(train.log_every, train.eval_every, train.checkpoint_every)
        self.schedule = _schedule(config, decay_steps(config))
        settings = {
            key: value
            for key, value in config.optimizer.items()
            if key not in ("name", "learning_rate")
        }
        self.optimizer = OPTIMIZERS[config.optimizer.name](self.schedule, **settings)
        self.mesh = create_mesh(**config.mesh)
        self.rows, self.accumulation = rows_and_accumulation(
            self.mesh, train.batch_size, train.per_device_batch_size
        )
        rows_and_accumulation(self.mesh, config.eval.batch_size, key="eval.batch_size")
        self.execution = _execution(config.execution)
        self.initial = None
        if config.init_from:
            self.initial = _initial(config, self.execution)
        self.model_config(config)  # any vocabulary shows what is wrong with the rest

    def model_config(
        self, config: ConfigDict, tokenizer: RobertaTokenizer | None = None
    ) -> RobertaConfig:
        """The model's config: of `config.model` and the tokenizer, or of `config.init_from`."""
        dropouts = {
            key: config.model[key]
            for key in ("hidden_dropout_prob", "attention_probs_dropout_prob")
        }
        try:
            if self.initial is not None:
                found = self.initial[0].config.replace(**dropouts)
            else:
                found = RobertaConfig(**_tokenizers_part(config, tokenizer), **config.model)
        except ValueError as error:
            raise UsageError(f"config.model: {error}") from error
        if config.seq_len > found.max_length:
            raise UsageError(
                f"seq_len={config.seq_len} is longer than the {found.max_length} positions of the "
                f"model in {config.init_from}. Use --config.seq_len={found.max_length} or less."
            )
        if tokenizer is not None:
            _check_tokenizer(tokenizer, found)
        return found


def decay_steps(config: Mapping[str, Any]) -> int:
    """The steps until the learning rate has fallen: as stated, else those of the run."""
    stated = config["schedule"]["decay_steps"]
    return config["train"]["steps"] if stated is None else stated


def check_schedule_is_stated(config: ConfigDict, started_with: Mapping[str, Any] | None) -> None:
    """Raises a UsageError where more steps would change the rate without being told to.

    Args:
      config: of the run as it is to go on.
      started_with: the config in its workdir, or None for a new run.
    """
    if started_with is None or config.schedule.decay_steps is not None:
        return
    try:
        planned, steps = decay_steps(started_with), config.train.steps
    except (KeyError, TypeError):
        return  # of another version; the comparison of the configs will say what differs
    if steps <= planned:
        return
    before, after = (float(_schedule(config, n)(planned)) for n in (planned, steps))
    raise UsageError(
        f"this run was planned for {planned} steps, over which its learning rate falls; for "
        f"{steps} steps state how it goes on. --config.schedule.decay_steps={steps}: as if {steps} "
        f"had been planned from the start; at step {planned} the rate is then {after:.3g}, where "
        f"it was to be {before:.3g}. --config.schedule.decay_steps={planned}: as planned, and at "
        "its end from there on."
    )


def _schedule(config: ConfigDict, decay_steps: int) -> optax.Schedule:
    return polynomial_schedule(
        config.optimizer.learning_rate,
        warmup_steps=config.schedule.warmup_steps,
        decay_steps=decay_steps,
        power=config.schedule.power,
        end=config.schedule.end_learning_rate,
    )


def _one_of(key: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UsageError(f"{key}={value!r} is unknown: use one of {', '.join(known)}.")


def _initial(config: ConfigDict, execution: Execution) -> tuple[RobertaForMaskedLM, dict]:
    model, params = weights.read_pretrained(config.init_from, RobertaForMaskedLM, execution)
    if config.objective.next_sentence:
        head = read_head(weights.model_folder(config.init_from), model.config.hidden_size)
        if head is not None:
            params = {**params, "next_sentence": head}
    return model, params


def _tokenizers_part(config: ConfigDict, tokenizer: RobertaTokenizer | None) -> dict[str, int]:
    """The model's fields that the tokenizer and `seq_len` decide; positions follow the pad's."""
    if tokenizer is None:
        vocab_size = config.new_tokenizer.vocab_size
        return {"vocab_size": vocab_size, "max_position_embeddings": config.seq_len + 2}
    return {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": config.seq_len + tokenizer.pad_token_id + 1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _execution(settings: ConfigDict) -> Execution:
    kinds = {
        "auto": jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16,
        "float32": jnp.float32,
        "bfloat16": jnp.bfloat16,
    }
    _one_of("execution.dtype", settings.dtype, kinds)
    if settings.dtype == "bfloat16" and jax.default_backend() == "cpu":
        _check_bfloat16()
    try:
        return Execution(**{**settings, "dtype": kinds[settings.dtype]})
    except ValueError as error:
        raise UsageError(f"config.execution: {error}") from error


def _check_bfloat16() -> None:
    """Tries products as the model has them: jaxlib 0.7 lacks some in bfloat16 on a CPU."""

    def products(x, x_BLHK):  # which of them are there depends on the CPU
        return x @ x.T, dot_product_attention(x_BLHK, x_BLHK, x_BLHK)

    shapes = (16, 16), (8, 16, 2, 16)
    try:
        jax.block_until_ready(jax.jit(products)(*(jnp.ones(x, jnp.bfloat16) for x in shapes)))
    except jax.errors.JaxRuntimeError as error:
        raise UsageError(
            "execution.dtype=bfloat16: this jaxlib cannot multiply such matrices on this machine's "
            "CPU. Use --config.execution.dtype=float32, or a newer jax."
        ) from error


def _check_tokenizer(tokenizer: RobertaTokenizer, model: RobertaConfig) -> None:
    """A tokenizer with other special ids, or with more ids than rows, would train nonsense."""
    if len(tokenizer) > model.vocab_size:
        raise UsageError(
            f"the tokenizer has {len(tokenizer)} ids, the model to start from {model.vocab_size}. "
            "Use the tokenizer that belongs to it."
        )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        ours, models = getattr(tokenizer, name), getattr(model, name)
        if ours != models:
            raise UsageError(
                f"the tokenizer's {name} is {ours}, the model's {models}. Use the tokenizer that "
                "belongs to the model."
            )
