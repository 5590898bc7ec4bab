"""Reads the groups of keys that the configs of pretraining and fine-tuning share."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from roberta_jax.config_ranges import SHARED, check_values
from roberta_jax.errors import UsageError
from roberta_jax.kernels.attention import dot_product_attention
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
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
from roberta_jax.training.partners import Timeouts
from roberta_jax.training.run import TrainingSpec
from roberta_jax.training.spikes import SpikePolicy
from roberta_jax.training.state import abstract_state

if TYPE_CHECKING:
    from roberta_jax.tokenizer import RobertaTokenizer


def read_training(
    config: Mapping[str, Any],
    devices: Sequence[jax.Device],
    *,
    steps: int,
    warmup_steps: int,
    schedule: optax.Schedule,
    **options: Any,
) -> TrainingSpec:
    """Reads `seed`, `train`, `optimizer`, `spikes` and `mesh`.

    Args:
      config: the config.
      devices: the devices of the mesh.
      steps: updates of the whole run.
      warmup_steps: updates until the learning rate has its peak.
      schedule: the learning rate.
      options: further fields of `TrainingSpec`.

    Raises:
      UsageError: a value is out of its range, or values do not fit each other or the devices.
    """
    train, mesh_config = config["train"], config["mesh"]
    mesh = create_mesh(
        **{name: mesh_config[name] for name in (*MESH_AXES, "slices")}, devices=devices
    )
    rows, accumulation = rows_and_accumulation(
        mesh, train["batch_size"], train["per_device_batch_size"]
    )
    optimizer = {
        key: value
        for key, value in config["optimizer"].items()
        if key not in ("name", "learning_rate")
    }
    return TrainingSpec(
        seed=config["seed"],
        steps=steps,
        batch_size=train["batch_size"],
        rows_per_microbatch=rows,
        accumulation=accumulation,
        cadence=Cadence(train["log_every"], train["eval_every"], train["checkpoint_every"]),
        keep_checkpoints=train["keep_checkpoints"],
        keep_every=train["keep_every"],
        spikes=SpikePolicy(**config["spikes"]),
        deterministic=train["deterministic"],
        optimizer=make_optimizer(config["optimizer"]["name"], schedule, optimizer),
        schedule=schedule,
        warmup_steps=warmup_steps,
        mesh=mesh,
        rules=rules_with(
            mesh_config["rules"], shard_optimizer_state=mesh_config["shard_optimizer_state"]
        ),
        **options,
    )


def read_timeouts(config: Mapping[str, Any], file: str = "configs/pretrain.py") -> Timeouts:
    """Reads `distributed`: how long to wait for the other processes of the run.

    Args:
      config: the config.
      file: the config file that has all keys, for error messages.

    Raises:
      UsageError: a value is out of its range, or the config has no such key.
    """
    keys = ("start_timeout", "heartbeat_timeout", "late_timeout")
    values = {f"distributed.{key}": config.get("distributed", {}).get(key) for key in keys}
    check_values(values, SHARED, values, file)
    start, heartbeat, late = values.values()
    return Timeouts(start=start, heartbeat=heartbeat, late=late)


def read_execution(options: Mapping[str, Any], devices: Sequence[jax.Device]) -> Execution:
    """Reads `execution`.

    Args:
      options: the group of the config.
      devices: where the model is computed; they decide what dtype "auto" is.

    Raises:
      UsageError: a value is unknown, or the devices cannot compute in the dtype.
    """
    platform = devices[0].platform
    dtypes = {
        "auto": jnp.float32 if platform == "cpu" else jnp.bfloat16,
        "float32": jnp.float32,
        "bfloat16": jnp.bfloat16,
    }
    check_one_of("execution.dtype", options["dtype"], dtypes)
    if options["dtype"] == "bfloat16" and platform == "cpu":
        check_bfloat16()
    try:
        return Execution(**{**options, "dtype": dtypes[options["dtype"]]})
    except ValueError as error:
        raise UsageError(f"--config.execution: {error}") from error


def check_bfloat16(option: str = "--config.execution.dtype") -> None:
    """Tries the model's matrix products: jaxlib 0.7 lacks some of them in bfloat16 on a CPU.

    Args:
      option: what sets the dtype, for the message.

    Raises:
      UsageError: some of them are missing.
    """

    def products(x, x_BLHK):  # which ones are missing depends on the CPU
        return x @ x.T, dot_product_attention(x_BLHK, x_BLHK, x_BLHK)

    shapes = (16, 16), (8, 16, 2, 16)
    try:
        jax.block_until_ready(jax.jit(products)(*(jnp.ones(x, jnp.bfloat16) for x in shapes)))
    except jax.errors.JaxRuntimeError as error:
        raise UsageError(
            f"{option}=bfloat16: this version of jaxlib cannot multiply bfloat16 matrices on this "
            f"machine's CPU. Use {option}=float32, or a newer jax."
        ) from error


def check_one_of(key: str, value: str, known: Collection[str]) -> None:
    """Raises a UsageError unless the value of a key is one of some names."""
    if value not in known:
        raise UsageError(f"--config.{key}={value} is unknown: use one of {', '.join(known)}.")


def check_tokenizer(tokenizer: "RobertaTokenizer", model: RobertaConfig) -> None:
    """Checks that a tokenizer is one for a model.

    Other special ids, or more ids than the model has rows, would train on the wrong tokens.

    Raises:
      UsageError: it is not.
    """
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


_LESS_SPLIT_TABLES = (
    " Or split the embedding tables over fewer devices: --config.mesh.rules="
    '\'(("embedding", "fsdp"),)\'.'
)


def check_sharding(model: nn.Module, training: TrainingSpec, is_pretrained: bool) -> None:
    """Checks that the parameters can be split as the mesh and its rules say.

    The vocabulary is left out: it is known only when the tokenizer is.

    Args:
      model: has a `config`.
      training: has the mesh, the rules and the optimizer.
      is_pretrained: whether the shape of the model is that of `init_from`, for error messages.

    Raises:
      UsageError: they cannot.
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
