"""The layers that blocks and heads are built from, and the embeddings.

Parameter names and shapes are those of Hugging Face's Flax classes; kernels are [in, out]. Every
parameter has logical axis names, and every activation that a mesh can split has a logical sharding
constraint. The rules in `training/partitioning.py` map these names to mesh axes. Without a mesh
they have no effect.

Array names carry their shape: B batch, L length, D hidden width, I and O the widths of a layer's
input and output.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from roberta_jax.kernels.dropout import dropout, seed_from_key
from roberta_jax.kernels.embedding import embedding_gradient
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import PRODUCT, Execution


class Dropout(nn.Module):
    """Dropout, with its key from the RNG stream "dropout".

    Attributes:
      rate: fraction of elements to drop. With 0 the layer is the identity and needs no key.
    """

    rate: float

    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        seed, rate = self.seed_and_rate(deterministic)
        return dropout(x, seed, rate) if rate else x

    @nn.compact
    def seed_and_rate(self, deterministic: bool) -> tuple[jax.Array | None, float]:
        """What to call a dropout with: its seed, uint32 [4], and its rate, or (None, 0)."""
        if deterministic or self.rate == 0:
            return None, 0.0
        return seed_from_key(self.make_rng("dropout")), self.rate


def add(*arrays: jax.Array) -> jax.Array:
    """Adds arrays in float32, or in a wider type if one has that.

    The gradient of an array that is broadcast is summed in this type too.
    """
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    total, *others = (x.astype(dtype) for x in arrays)
    for x in others:
        total = total + x
    return total


@jax.custom_vjp
def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., D] + bias [D] in x's dtype, whose gradient of the bias is summed in float32.

    Over thousands of tokens, a sum in bfloat16 would lose most of its digits. The addition itself
    is left in x's dtype: of float32 additions, XLA writes the queries, keys and values of the
    backward pass to memory in float32.
    """
    return x + bias.astype(x.dtype)


def _add_bias_backward(bias, grad):
    return grad, bias_gradient(grad).astype(bias.dtype)


_add_bias.defvjp(lambda x, bias: (_add_bias(x, bias), bias), _add_bias_backward)


@jax.custom_vjp
def product(x: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """x [..., I] @ kernel in x's dtype, whose gradient of the kernel is float32 at least.

    A gradient in bfloat16 would be rounded before it is added up over devices and microbatches.
    """
    return _plain_product(x, kernel_IO)


def _plain_product(x, kernel_IO):
    return jnp.einsum("...i,io->...o", x, kernel_IO.astype(x.dtype))


def bias_gradient(grad: jax.Array) -> jax.Array:
    """The sum of grad [..., O] over all other axes, [O] in float32 or the array's wider dtype."""
    if grad.dtype != jnp.bfloat16:
        return _sum(grad)
    return jax.lax.platform_dependent(grad, tpu=_sum_by_product, default=_sum)


def _sum(grad):
    return jnp.sum(grad, tuple(range(grad.ndim - 1)), dtype=_accumulator(grad))


def _sum_by_product(grad):
    # A TPU's matrix unit adds up faster than its vector units: for 8192 tokens of width 768 the
    # compiler estimates 3,000 cycles instead of 88,000. Products with 1 are exact. A single row of
    # ones would be no matrix, and XLA would make a sum of the product again.
    ones = jnp.ones((8, *grad.shape[:-1]), grad.dtype)
    return jnp.einsum("r...,...o->ro", ones, grad, preferred_element_type=jnp.float32)[0]


def kernel_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
    """The sum of x_I grad_O over all other axes, x [..., I] and grad [..., O].

    Returns:
      [I, O], float32 or the arrays' wider dtype.
    """
    return jax.lax.platform_dependent(x, grad, cpu=_with_transposed_copy, default=_sum_of_products)


def _sum_of_products(x, grad):
    return jnp.einsum("...i,...o->io", x, grad, preferred_element_type=_accumulator(x))


def _with_transposed_copy(x, grad):
    # XLA's fast products on a CPU sum over the last axis of their first array. XLA would undo the
    # transpositions that make it so, unless they are kept apart. The narrower array is copied: it
    # is smaller, and the wider one of a feed-forward layer is slow to copy, because XLA fuses that
    # with the activation function, on one core.
    apart = jax.lax.optimization_barrier
    dtype = _accumulator(x)
    if x.shape[-1] <= grad.shape[-1]:
        x = apart(jnp.moveaxis(x, -1, 0))
        return jnp.einsum("i...,...o->io", x, grad, preferred_element_type=dtype)
    grad = apart(jnp.moveaxis(grad, -1, 0))
    return apart(jnp.einsum("o...,...i->oi", grad, x, preferred_element_type=dtype)).T


def _accumulator(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _product_forward(x, kernel_IO):
    return _plain_product(x, kernel_IO), (x, kernel_IO)


def _product_backward(residuals, grad):
    x, kernel_IO = residuals
    grad_x = jnp.einsum("...o,io->...i", grad, kernel_IO.astype(x.dtype))
    return grad_x, kernel_gradient(x, grad).astype(kernel_IO.dtype)


product.defvjp(_product_forward, _product_backward)


class Dense(nn.Module):
    """x @ kernel + bias, computed in `dtype` from float32 parameters.

    The gradients of both are float32; see `product` and `_add_bias`.

    Attributes:
      features: output width.
      axes: logical names of the kernel's two axes.
      initializer_range: standard deviation of the initial kernel.
      dtype: dtype of the computation and of the output.
    """

    features: int
    axes: tuple[str, str]
    initializer_range: float
    dtype: jnp.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.parameters(x.shape[-1])
        # Named, because a policy of `jax.checkpoint` does not see the product in a custom gradient.
        # With its bias, so that the backward pass need not add that again.
        y = _add_bias(product(x.astype(self.dtype), kernel), bias)
        return checkpoint_name(y, PRODUCT)

    def without_bias(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(x @ kernel, the bias), for a kernel that adds the bias."""
        kernel, bias = self.parameters(x.shape[-1])
        return checkpoint_name(product(x.astype(self.dtype), kernel), PRODUCT), bias

    @nn.compact
    def parameters(self, width: int) -> tuple[jax.Array, jax.Array]:
        """The kernel [width, features] and the bias [features]."""
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(nn.initializers.normal(self.initializer_range), self.axes),
            (width, self.features),
            jnp.float32,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:]),
            (self.features,),
            jnp.float32,
        )
        return kernel, bias


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, computed in float32.

    The variance is computed from centred values, because E[x^2] - E[x]^2 loses precision when the
    mean is large.

    Attributes:
      epsilon: added to the variance.
      dtype: dtype of the output.
    """

    epsilon: float
    dtype: jnp.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = self.parameters(x.shape[-1])
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)

    @nn.compact
    def parameters(self, width: int) -> tuple[jax.Array, jax.Array]:
        """The scale and the bias, float32 [width]."""
        shape = (width,)
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
            shape,
            jnp.float32,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
            shape,
            jnp.float32,
        )
        return scale, bias


class Embedding(nn.Module):
    """An embedding table; see `lookup` for how it differs from `nn.Embed`.

    Attributes:
      num_embeddings, features: the table's shape.
      rows_axis: logical name of the table's first axis.
      initializer_range: standard deviation of the initial table.
      dtype: dtype of the output.
      padding_row: a row that is initially zero and gets no gradient from look-ups, like torch's
        `padding_idx`. None for no such row.
    """

    num_embeddings: int
    features: int
    rows_axis: str
    initializer_range: float
    dtype: jnp.dtype
    padding_row: int | None = None

    def setup(self):
        def initialize(key, shape, dtype):
            table = nn.initializers.normal(self.initializer_range)(key, shape, dtype)
            return table if self.padding_row is None else table.at[self.padding_row].set(0)

        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(initialize, (self.rows_axis, "embedding")),
            (self.num_embeddings, self.features),
            jnp.float32,
        )

    def __call__(self, ids: jax.Array) -> jax.Array:
        return lookup(self.embedding, ids, self.padding_row, self.dtype)


def replicated(table: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Casts the table to `dtype` and replicates it on every device.

    With a look-up in a table that is split over devices, the partitioner replicates the result on
    all devices ("full rematerialization"). It is cheaper to cast the table and gather it first.
    """
    return nn.with_logical_constraint(jnp.asarray(table, dtype), (None, None))


def lookup(
    table: jax.Array, ids: jax.Array, padding_row: int | None, dtype: jnp.dtype
) -> jax.Array:
    """table[ids] in `dtype`. Ids outside the table give NaN; they and `padding_row` no gradient.

    Negative ids are outside the table as well: they do not count from its end. The gradient has the
    table's dtype, whatever `dtype` is.
    """
    return _lookup(table, jnp.where(ids < 0, table.shape[0], ids), padding_row, dtype)


def _take(table, ids, padding_row, dtype):
    del padding_row
    return replicated(table, dtype).at[ids].get(mode="fill", fill_value=jnp.nan)


def _take_forward(table, ids, padding_row, dtype):
    return _take(table, ids, padding_row, dtype), (table, ids)


def _take_backward(padding_row, dtype, residuals, grad):
    # Summed in float32, because the many small gradients of a frequent id vanish in bfloat16.
    del dtype
    table, ids = residuals
    num_rows = table.shape[0]
    if padding_row is not None:
        ids = jnp.where(ids == padding_row, num_rows, ids)  # outside the table
    grad_table = embedding_gradient(grad, ids, num_rows)
    # Added up as a whole, like the table that was looked up in: split, `grad` would be gathered.
    return replicated(grad_table, table.dtype), None


_lookup = jax.custom_vjp(_take, nondiff_argnums=(2, 3))
_lookup.defvjp(_take_forward, _take_backward)


class Embeddings(nn.Module):
    """LayerNorm(word + token type + position), then dropout."""

    config: RobertaConfig
    execution: Execution

    def setup(self):
        config, dtype = self.config, self.execution.dtype

        def table(rows, rows_axis, padding_row):
            return Embedding(
                rows, config.hidden_size, rows_axis, config.initializer_range, dtype, padding_row
            )

        pad_id = config.pad_token_id
        self.word_embeddings = table(config.vocab_size, "vocab", pad_id)
        self.position_embeddings = table(config.max_position_embeddings, "positions", pad_id)
        self.token_type_embeddings = table(config.type_vocab_size, "token_types", None)
        self.LayerNorm = LayerNorm(config.layer_norm_eps, dtype)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: jax.Array | None,
        token_type_ids: jax.Array | None,
        position_ids: jax.Array,
        inputs_embeds: jax.Array | None,
        deterministic: bool,
    ) -> jax.Array:
        """Embeds ids [B, L], or takes the word vectors `inputs_embeds` [B, L, D]; gives [B, L, D].

        Token types are 0 if `token_type_ids` is None.
        """
        if inputs_embeds is None:
            x_BLD = self.word_embeddings(input_ids)
        else:
            x_BLD = inputs_embeds.astype(self.execution.dtype)
        if token_type_ids is None:
            token_type_ids = jnp.zeros((1, 1), jnp.int32)
        parts = [x_BLD, self.token_type_embeddings(token_type_ids)]
        if self.config.position_embedding_type == "absolute":
            parts.append(self.position_embeddings(position_ids))
        else:  # creates the unused table, which Hugging Face's files contain as well
            self.position_embeddings(position_ids[:, :1])
        x_BLD = self.dropout(self.LayerNorm(add(*parts)), deterministic)
        return nn.with_logical_constraint(x_BLD, ("batch", "length", None))
