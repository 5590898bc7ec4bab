"""What a pretraining config means: everything that follows from it alone, checked at once.

Building a `Plan` takes no text and no training, so that a mistake in the config is told before
hours of preparing text, and not after.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from roberta_jax.data.masking import Masking
from roberta_jax.data.packing import FORMATS
from roberta_jax.data.pipeline import ENGINES
from roberta_jax.errors import UsageError
from roberta_jax.interchange import hf
from roberta_jax.modeling.config import Execution, RobertaConfig
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.training.loop import Cadence
from roberta_jax.training.optimizer import adamw, polynomial_schedule
from roberta_jax.training.partitioning import create_mesh, rows_and_accumulation


class Plan:
    """What a run is made of, as far as the config alone says.

    Attributes:
      masking, cadence, schedule, optimizer, mesh, execution: built from their parts of the config.
      rows: a device works on at once.
      accumulation: microbatches a batch is worked off in.
      initial: (model, parameters on the host) of `config.init_from`, or None.

    Raises:
      UsageError: a value is out of its range, or values do not fit each other or the devices.
    """

    def __init__(self, config: ConfigDict):
        train, schedule = config.train, config.schedule
        if train.steps < 1:
            raise UsageError(f"train.steps={train.steps}: a run has at least one step.")
        _one_of("optimizer.name", config.optimizer.name, ["adamw"])
        _one_of("data.format", config.data.format, FORMATS)
        _one_of("data.engine", config.data.engine, ENGINES)
        if config.seq_len < 2:
            raise UsageError(f"seq_len={config.seq_len}: a row holds <s> and at least one token.")
        self.masking = Masking(**config.masking)
        self.cadence = Cadence(train.log_every, train.eval_every, train.checkpoint_every)
        self.schedule = polynomial_schedule(
            config.optimizer.learning_rate,
            warmup_steps=schedule.warmup_steps,
            decay_steps=train.steps if schedule.decay_steps is None else schedule.decay_steps,
            power=schedule.power,
            end=schedule.end_learning_rate,
        )
        settings = {
            key: value
            for key, value in config.optimizer.items()
            if key not in ("name", "learning_rate")
        }
        self.optimizer = adamw(self.schedule, **settings)
        self.mesh = create_mesh(**config.mesh)
        self.rows, self.accumulation = rows_and_accumulation(
            self.mesh, train.batch_size, train.rows_per_device
        )
        rows_and_accumulation(self.mesh, config.eval.batch_size, key="eval.batch_size")
        self.execution = _execution(config.execution)
        self.initial = None
        if config.init_from:
            self.initial = hf.read_pretrained(config.init_from, RobertaForMaskedLM, self.execution)
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


def _one_of(key: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UsageError(f"{key}={value!r} is unknown: use one of {', '.join(known)}.")


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
    _check_computable(kinds[settings.dtype])
    try:
        return Execution(**{**settings, "dtype": kinds[settings.dtype]})
    except ValueError as error:
        raise UsageError(f"config.execution: {error}") from error


def _check_computable(dtype: jnp.dtype) -> None:
    """Tries a product of matrices: jaxlib 0.7 has none in bfloat16 on a CPU."""
    try:
        jax.block_until_ready(jax.jit(jnp.matmul)(*2 * [jnp.ones((16, 16), dtype)]))
    except jax.errors.JaxRuntimeError as error:
        raise UsageError(
            f"execution.dtype={jnp.dtype(dtype).name}: this jaxlib cannot multiply such matrices "
            f"on this machine's {jax.default_backend().upper()}. Use "
            "--config.execution.dtype=float32, or a newer jax."
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
