"""The compiled training and evaluation steps.

A model is anything with these two methods (the heads in `modeling` describe them), which take the
arrays of a batch as keyword arguments:

    loss(**batch, deterministic=...) -> {objective: summed loss}
    count(**batch)                   -> {objective: what to divide that sum by}

The loss is the sum over the objectives of sum / count, with both taken over the whole global batch:
all devices, hosts and microbatches. A mean of means would be another loss wherever the counts of
the parts differ.

**Communication.** The partitioner adds up the gradients of devices with different rows where they
are computed: in the dtype of the matrix products, once per microbatch. Over the mesh axis `data`
this is avoided. The loss of each data shard is differentiated by itself (`jax.vmap` over the
shards, which is no loop: the devices hold one shard each), its gradient is accumulated in float32
over the microbatches, and the shards are added up once per step. Over `fsdp` gradients are reduced
once per microbatch, since a device that accumulates them needs memory for its part only.

A model must draw its random bits with `kernels.dropout`. These do not depend on the number of
shards; bits from `jax.random` would be the same on each shard.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from roberta_jax.training import agreement
from roberta_jax.training.partitioning import (
    RULES,
    Rules,
    of_one_data_shard,
    on_mesh,
    optimizer_sharding,
)
from roberta_jax.training.state import TrainState

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
EvalStep = Callable[[Any, Batch], tuple[Sums, Sums]]


def stream_key(seed: int, stream: str, step: jax.Array) -> jax.Array:
    """The random key of a stream ("dropout", ...) at a step; a function of nothing else."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    *,
    seed: int,
    accumulation: int = 1,
    deterministic: bool = False,
    rules: Rules = RULES,
) -> TrainStep:
    """Compiles one update: `step(state, batch) -> (state, metrics)`; the old state is consumed.

    The new state has the shardings of the one of the first call, so that the step is compiled once.

    Args:
      model: has `loss` and `count`, see the module's docstring.
      optimizer: turns gradients into updates.
      schedule: updates made -> learning rate, for the metrics alone.
      mesh: the mesh of the state and of the batch [B, ...].
      seed: seed of the dropout.
      accumulation: number of microbatches, which are computed one after the other. Each has
        B / accumulation rows, the same share of every device's rows, and its own random bits.
      deterministic: on a GPU, use only operations whose result does not vary from run to run, and
        do not select kernels by timing them. (CPUs and TPUs are deterministic as they are.)
      rules: the sharding of activations by logical axis, see `partitioning.RULES`.

    Returns:
      The step. Its metrics are float32 scalars: `loss`, `gradient_norm` (before clipping),
      `learning_rate` and, where there are several objectives, each one's part of the loss, such as
      `masked_lm_loss`. Its `lower(state, batch)` is that of jit's functions.
    """
    options = {"xla_gpu_deterministic_ops": True, "xla_gpu_autotune_level": 0}

    def compiled_for(state: TrainState) -> Callable:
        shardings = jax.tree.map(lambda leaf: _sharding_on(mesh, leaf), state)
        gradients = _gradients_of(model, mesh, accumulation, shardings.params, rules)

        def step(state: TrainState, batch: Batch):
            # A count of 0 (no target of an objective in the batch) comes with a sum of 0.
            counts = {name: jnp.maximum(n, 1) for name, n in model.count(**batch).items()}
            key = stream_key(seed, "dropout", state.step)
            (loss, means), grads = gradients(state.params, batch, key, counts)
            params, grads = _for_optimizer(state.params, grads, shardings.params, rules)
            updates, opt_state = optimizer.update(grads, state.opt_state, params)
            metrics = {
                "loss": loss,
                "gradient_norm": optax.tree.norm(grads),
                "learning_rate": schedule(state.step),
            }
            if len(means) > 1:
                metrics |= {f"{name}_loss": mean for name, mean in means.items()}
            params = optax.apply_updates(params, updates)
            return TrainState(state.step + 1, params, opt_state), metrics

        return jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
            compiler_options=options if deterministic else None,
        )

    return _Step(compiled_for, mesh, rules)


def make_eval_step(
    model: nn.Module, mesh: Mesh, method: str = "loss", rules: Rules = RULES
) -> EvalStep:
    """Compiles `step(params, batch) -> (sums, counts)`, without dropout.

    Args:
      model: has `count` and the method.
      mesh: the mesh of the parameters and of the batch.
      method: the method of the model that gives the sums, "loss" or another with its contract.
      rules: as for `make_train_step`.
    """

    def step(params: Any, batch: Batch) -> tuple[Sums, Sums]:
        return apply(model, method, params, batch, None), model.count(**batch)

    return _Step(lambda _: jax.jit(step), mesh, rules)


def apply(
    model: nn.Module, method: str, params: Any, batch: Batch, dropout_key: jax.Array | None
) -> Sums:
    """Calls a method of the model on a batch; without a key there is no dropout."""
    return model.apply(
        {"params": params},
        **batch,
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        method=method,
    )


class _Step:
    """A jitted function under the mesh and the sharding rules; `compiled_for(state)` makes it.

    On a mesh of several processes each program runs only after all processes have compiled it. The
    first collectives connect the processes, and wait no longer than 30 s on CPUs, while compiling
    may take one process much longer than another.
    """

    def __init__(self, compiled_for: Callable[[Any], Callable], mesh: Mesh, rules: Rules):
        self._compiled_for, self._mesh, self._rules = compiled_for, mesh, rules
        self._jitted: Callable | None = None
        self._programs: dict[Any, Callable] = {}  # of several processes
        self._is_shared = len({device.process_index for device in mesh.devices.flat}) > 1

    def __call__(self, state, batch):
        with on_mesh(self._mesh, self._rules):
            function = self._of(state)
            if self._is_shared:
                function = self._compiled_by_all(function, state, batch)
            return function(state, batch)

    def lower(self, state, batch) -> jax.stages.Lowered:
        with on_mesh(self._mesh, self._rules):
            return self._of(state).lower(state, batch)

    def compilations(self) -> int:
        """How many programs were compiled for calls: one for each kind of arguments."""
        compiled_by_calls = 0 if self._jitted is None else self._jitted._cache_size()
        return compiled_by_calls + len(self._programs)

    def _of(self, state) -> Callable:
        if self._jitted is None:
            self._jitted = self._compiled_for(state)
        return self._jitted

    def _compiled_by_all(self, function, state, batch) -> Callable:
        kind = tuple((x.shape, x.dtype, x.sharding) for x in jax.tree.leaves((state, batch)))
        if kind not in self._programs:
            self._programs[kind] = function.lower(state, batch).compile()
            agreement.exchange("compiling", None)
        return self._programs[kind]


def _sharding_on(mesh: Mesh, leaf: Any) -> NamedSharding:
    """The leaf's sharding; replicated if it has none on the mesh."""
    sharding = getattr(leaf, "sharding", None)
    on_this_mesh = isinstance(sharding, NamedSharding) and sharding.mesh == mesh
    return sharding if on_this_mesh else NamedSharding(mesh, PartitionSpec())


def _gradients_of(
    model: nn.Module, mesh: Mesh, accumulation: int, shardings: Any, rules: Rules
) -> Callable:
    """(params, batch, key, counts) -> ((loss, {objective: its part}), gradients).

    The gradients have the parameters' shapes and are float32, as all parameters are.
    """
    rules_of_shard = of_one_data_shard(rules)
    shards = 1 if rules_of_shard is None else mesh.shape["data"]

    def constrain(tree: Any, *leading: str) -> Any:
        """Splits a tree of gradients like the parameters, behind some other axes."""
        if mesh.size == 1:
            return tree
        return jax.tree.map(
            lambda x, sharding: jax.lax.with_sharding_constraint(
                x, NamedSharding(mesh, PartitionSpec(*leading, *sharding.spec))
            ),
            tree,
            shardings,
        )

    def of_rows(params, batch, key, counts):
        def loss_of(params):
            sums = apply(model, "loss", params, batch, key)
            means = {name: sums[name] / counts[name] for name in sums}
            return sum(means.values()), means

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    def of_shards(params, batch, key, counts):
        """`of_rows` of each data shard [shards, rows, ...], stacked: no communication over data."""
        with nn.logical_axis_rules(rules_of_shard):
            return jax.vmap(of_rows, (None, 0, None, None), spmd_axis_name="data")(
                params, batch, key, counts
            )

    compute, leading = (of_rows, ()) if shards == 1 else (of_shards, ("data",))

    def of_microbatch(params, batch, key, counts):
        values, grads = compute(params, batch, key, counts)
        return values, constrain(grads, *leading)

    def accumulated(params, parts, key, counts):
        def add(total, microbatch):
            index, rows = microbatch
            part = of_microbatch(params, rows, jax.random.fold_in(key, index), counts)
            return jax.tree.map(jnp.add, total, part), None

        first = {name: x[0] for name, x in parts.items()}
        values, grads = jax.eval_shape(of_microbatch, params, first, key, counts)
        values, grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (values, grads))
        return jax.lax.scan(
            add, (values, constrain(grads, *leading)), (jnp.arange(accumulation), parts)
        )[0]

    def split(x):
        """[B, ...] to [accumulation, shards, rows, ...], without the axes that are not needed.

        Row r of a device goes to microbatch r % accumulation: no row changes its device.
        """
        x = x.reshape(shards, -1, accumulation, *x.shape[1:])
        x = jnp.moveaxis(x, 2, 0)
        if shards > 1:
            spec = PartitionSpec(None, "data", "fsdp")
            x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
        else:
            x = x[:, 0]
        return x if accumulation > 1 else x[0]

    def gradients(params, batch, key, counts):
        parts = {name: split(x) for name, x in batch.items()}
        result = (of_microbatch if accumulation == 1 else accumulated)(params, parts, key, counts)
        return result if shards == 1 else jax.tree.map(lambda x: jnp.sum(x, axis=0), result)

    return gradients


def _for_optimizer(params: Any, grads: Any, shardings: Any, rules: Rules) -> tuple[Any, Any]:
    """(params, grads), split as the optimizer's state is."""

    def constrain(x, sharding):
        if sharding.mesh.size == 1:
            return x
        sharding = optimizer_sharding(sharding, x.shape, rules)
        return jax.lax.with_sharding_constraint(x, sharding)

    return tuple(jax.tree.map(constrain, tree, shardings) for tree in (params, grads))
