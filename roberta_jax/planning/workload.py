"""What one run asks of its chips: shapes, counts and shard sizes, read from its specification.

Everything else in this package is computed from a `Workload`. The parameters and the optimizer's
state are counted on the shapes of the real state, so that their bytes are exact for any optimizer,
mesh and sharding rules.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from roberta_jax.data.batches import DTYPES
from roberta_jax.data.masking import num_slots
from roberta_jax.data.packing.index import FORMATS
from roberta_jax.kernels import attention, fused_attention, layer_norm
from roberta_jax.kernels.cross_entropy import keeps_logits
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution, has_loop
from roberta_jax.pretraining.datasets import model_inputs
from roberta_jax.pretraining.spec import PretrainingSpec
from roberta_jax.training.partitioning import batch_sharding
from roberta_jax.training.state import TrainState, abstract_state, count_parameters


@dataclasses.dataclass(frozen=True)
class Workload:
    """A run as its chips see it.

    Attributes:
      model: the model's shape.
      execution: how it computes.
      mesh: {axis: size}.
      rows: rows per chip and microbatch.
      accumulation: microbatches per step.
      batch_size: rows of the global batch.
      length: tokens per row.
      slots: prediction slots per row.
      steps: updates of the run.
      parameters: number of all parameters.
      shards: {path of a parameter: (its shape, its shard's shape, its partition spec)}.
      optimizer_bytes: of the optimizer's state on a chip.
      batch_bytes: of a global batch's share on a chip, all microbatches.
      platform: of the chips, "tpu", "gpu" or "cpu".
    """

    model: RobertaConfig
    execution: Execution
    mesh: dict[str, int]
    rows: int
    accumulation: int
    batch_size: int
    length: int
    slots: int
    steps: int
    parameters: int
    shards: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[Any, ...]]]
    optimizer_bytes: int
    batch_bytes: int
    platform: str

    @property
    def fuses_attention(self) -> bool:
        """Whether a kernel computes the attention and keeps the scores on the chip."""
        model, choice = self.model, attention.of_platform(self.execution.attention, self.platform)
        heads = model.num_attention_heads // self.mesh["tensor"]
        shape = (self.rows, self.length, heads, model.head_size)
        q_BLHK = jax.ShapeDtypeStruct(shape, self.execution.dtype)
        return (
            attention.is_fused(choice)
            and model.position_embedding_type == "absolute"
            and not fused_attention.why_not(choice, q_BLHK, q_BLHK, None)
        )

    @property
    def fuses_layer_norm(self) -> bool:
        """Whether a kernel computes LayerNorm, and the dropout and residual before it."""
        shape = (self.rows, self.length, self.model.hidden_size)
        x_BLD = jax.ShapeDtypeStruct(shape, self.execution.dtype)
        kind = layer_norm.of_platform(self.execution.layer_norm, x_BLD, self.platform)
        return layer_norm.is_fused(kind)

    @property
    def has_loop(self) -> bool:
        """Whether the layers are computed by a loop."""
        return has_loop(self.execution, self.model.num_hidden_layers)

    @property
    def keeps_logits(self) -> bool:
        """Whether the logits are kept for the backward pass, instead of computed again."""
        # The targets of one data shard and microbatch.
        targets = self.rows * self.mesh["fsdp"] * self.slots
        return self.mesh["tensor"] == 1 and keeps_logits(targets, self.model.vocab_size)

    @property
    def item(self) -> int:
        """Bytes of an activation."""
        return jnp.dtype(self.execution.dtype).itemsize

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.length

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the float32 parameters on a chip."""
        return 4 * sum(math.prod(shard) for _, shard, _ in self.shards.values())


def workload(spec: PretrainingSpec) -> Workload:
    """Counts what the run asks of a chip; creates no array."""
    training = spec.training
    state = state_shapes(spec)
    inputs = batch_shapes(spec)
    return Workload(
        model=spec.model,
        execution=spec.execution,
        mesh=dict(training.mesh.shape),
        rows=training.rows_per_microbatch,
        accumulation=training.accumulation,
        batch_size=training.batch_size,
        length=spec.seq_len,
        slots=slots_of(spec),
        steps=training.steps,
        parameters=count_parameters(state.params),
        shards={
            jax.tree_util.keystr(path, simple=True, separator="/"): _placed(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        },
        optimizer_bytes=shard_bytes((state.opt_state, state.step)),
        batch_bytes=shard_bytes(inputs),
        platform=_platform_of(training.mesh.devices.flat[0]),
    )


def _platform_of(device: Any) -> str:
    """JAX's platform of a device; that of a planned one is the name of its chip."""
    starts = {"TPU": "tpu", "NVIDIA": "gpu"}
    return starts.get(device.device_kind.split(" ")[0], device.platform)


def state_shapes(spec: PretrainingSpec) -> TrainState:
    """The shapes, dtypes and shardings of the state of the run."""
    model, training = spec.model_class(spec.model, spec.execution), spec.training

    def init_params() -> Any:
        return model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

    return abstract_state(init_params, training.optimizer, training.mesh, training.rules)


def batch_shapes(spec: PretrainingSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes, dtypes and shardings of a global batch of the run, as the train step takes it."""
    format = FORMATS[spec.format]
    widths = 4 * [spec.seq_len] + 3 * [slots_of(spec)] + 3 * [format.max_inputs]
    token_types = spec.model.type_vocab_size > 1 and format.is_pair
    rows = spec.training.batch_size
    arrays = {
        name: np.broadcast_to(np.zeros((), DTYPES[name]), (rows, width))
        for name, width in zip(DTYPES, widths, strict=True)
        if (token_types or name != "token_type_ids")
        and (spec.next_sentence or not name.startswith("next_sentence"))
    }
    sharding = batch_sharding(spec.training.mesh)
    return {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
        for name, array in model_inputs(arrays, format.max_inputs).items()
    }


def slots_of(spec: PretrainingSpec) -> int:
    """Prediction slots per row."""
    return num_slots(spec.seq_len, spec.masking.rate, FORMATS[spec.format].max_inputs)


def shard_bytes(tree: Any) -> int:
    """Bytes of the arrays of a tree on one chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _placed(leaf: jax.ShapeDtypeStruct) -> tuple[tuple, tuple, tuple]:
    sharding: NamedSharding = leaf.sharding
    spec = tuple(sharding.spec) + (None,) * (len(leaf.shape) - len(sharding.spec))
    return tuple(leaf.shape), tuple(sharding.shard_shape(leaf.shape)), spec


def mesh_text(mesh: Mesh | dict[str, int]) -> str:
    """Such as "data=4, fsdp=2, tensor=2"."""
    sizes = mesh.shape if isinstance(mesh, Mesh) else mesh
    return ", ".join(f"{name}={size}" for name, size in sizes.items())
