"""The gradient of an embedding table: for each id, the sum of the gradients of its tokens.

`reference_gradient` is the definition. The others are made for accelerators:

- A GPU adds up the tokens of one id in any order, and they wait for one another: an eighth of the
  tokens are `<mask>`. `blocked_gradient` adds up with matrix products and writes each row once.
- A TPU's compiler adds up sorted rows in the chip's memory, row after row. It sorts large batches
  itself, and reads and writes the table once for each token of small ones; `sorted_gradient` sorts
  in every case.
- Of a table with few rows, such as that of the positions, `one_hot_gradient` is one product.

To add an implementation, write a function with the reference's signature and add it to
`IMPLEMENTATIONS`; the tests compare every entry with the reference.

Array names carry their shape: N tokens, D hidden width, V rows of the table, P parts of a batch
that is split over devices, C blocks of T tokens each.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

# Number of tokens in a block of `blocked_gradient`, and so the size of its matrix products.
BLOCK_SIZE = 128

# Number of rows up to which accelerators compute the gradient of a table by `one_hot_gradient`.
MAX_ONE_HOT_ROWS = 1024

Implementation = Callable[[jax.Array, jax.Array, int], jax.Array]


def embedding_gradient(
    grad: jax.Array, ids: jax.Array, num_rows: int, implementation: str | None = None
) -> jax.Array:
    """The gradient of a table [V, D] from the gradient of `table[ids]`.

    The default does not depend on the order in which a GPU's threads run: a compiled program gives
    the same bits every time.

    Args:
      grad: [..., D], any floating dtype. In the implementations with matrix products, a value that
        is not finite makes its column of the result NaN in other rows as well.
      ids: int [...]. The gradients of ids outside [0, V) are ignored; negative ids are outside.
      num_rows: V.
      implementation: a key of `IMPLEMENTATIONS`, or None for the best one by platform and V.

    Returns:
      [V, D], in float32 or grad's wider dtype, in which it is added up.

    Raises:
      ValueError: grad has not one more axis than ids.
    """
    if grad.shape[:-1] != ids.shape:
        raise ValueError(f"ids of shape {ids.shape} need gradients [*{ids.shape}, D]: {grad.shape}")
    grad = jnp.asarray(grad)
    ids = jnp.where((ids >= 0) & (ids < num_rows), ids.astype(jnp.int32), num_rows)
    if grad.size == 0:
        return jnp.zeros((num_rows, grad.shape[-1]), _accumulator(grad))
    if implementation is not None:
        return IMPLEMENTATIONS[implementation](grad, ids, num_rows)
    few = num_rows <= MAX_ONE_HOT_ROWS
    by_platform = {
        "cpu": reference_gradient,
        "tpu": one_hot_gradient if few else sorted_gradient,
        "default": one_hot_gradient if few else blocked_gradient,
    }
    return jax.lax.platform_dependent(
        grad,
        ids,
        **{
            platform: functools.partial(function, num_rows=num_rows)
            for platform, function in by_platform.items()
        },
    )


def reference_gradient(grad: jax.Array, ids: jax.Array, num_rows: int) -> jax.Array:
    """`embedding_gradient` by its definition; as for all of them, ids to ignore are `num_rows`."""
    dtype = _accumulator(grad)
    zeros_VD = jnp.zeros((num_rows, grad.shape[-1]), dtype)
    return zeros_VD.at[ids].add(grad.astype(dtype), mode="drop")


def one_hot_gradient(grad: jax.Array, ids: jax.Array, num_rows: int) -> jax.Array:
    """`embedding_gradient` as one matrix product, with V x D operations for each token."""
    is_row = ids[..., None] == jnp.arange(num_rows)
    return _product("...v,...d->vd", is_row, _without_ignored(grad, ids, num_rows))


def sorted_gradient(grad: jax.Array, ids: jax.Array, num_rows: int) -> jax.Array:
    """`embedding_gradient` that sorts the tokens by their ids before it adds them to the rows."""
    return _sum_of_parts(_sorted_gradient, grad, ids, num_rows)


def _sorted_gradient(grad_ND, ids_N, num_rows):
    grad_ND, ids_N = _sort(grad_ND, ids_N)
    dtype = _accumulator(grad_ND)
    zeros_VD = jnp.zeros((num_rows, grad_ND.shape[1]), dtype)
    return zeros_VD.at[ids_N].add(grad_ND.astype(dtype), mode="drop", indices_are_sorted=True)


def blocked_gradient(grad: jax.Array, ids: jax.Array, num_rows: int) -> jax.Array:
    """`embedding_gradient` that sorts the tokens by their ids and writes each row at most once.

    Tokens of the same id are added up by matrix products: first within blocks of `BLOCK_SIZE`
    sorted tokens, then over the blocks.
    """
    return _sum_of_parts(_blocked_gradient, grad, ids, num_rows)


def _blocked_gradient(grad_ND, ids_N, num_rows):
    num_tokens, width = grad_ND.shape
    size = min(BLOCK_SIZE, num_tokens)
    padding = -num_tokens % size
    ids_N = jnp.pad(ids_N, (0, padding), constant_values=num_rows)
    # The padding is sorted to the end. It has the gradient of some token, which is ignored.
    grad_ND, ids_N = _sort(grad_ND, ids_N)
    grad_ND = _without_ignored(grad_ND, ids_N, num_rows)

    # Each token gets the sum over the tokens of its block with the same id.
    ids_CT = ids_N.reshape(-1, size)
    is_same_CTT = ids_CT[:, :, None] == ids_CT[:, None, :]
    sums_CTD = _product("ctu,cud->ctd", is_same_CTT, grad_ND.reshape(-1, size, width))

    # If its id is the block's first, it also gets the sums of the blocks before that end with it.
    first_C, last_C = ids_CT[:, 0], ids_CT[:, -1]
    index_C = jnp.arange(len(ids_CT))
    is_before_CC = (index_C < index_C[:, None]) & (last_C == first_C[:, None])
    before_CD = _product("cb,bd->cd", is_before_CC, sums_CTD[:, -1])
    is_first_CT = ids_CT == first_C[:, None]
    sums_CTD = sums_CTD + jnp.where(is_first_CT[..., None], before_CD[:, None], 0)

    # So the last token of an id has the sum over all. The others get rows outside the table. These
    # are different ones, because rows that are declared as unique have to be, wherever they are.
    is_last_N = jnp.append(ids_N[1:] != ids_N[:-1], True)
    rows_N = jnp.where(is_last_N, ids_N, num_rows + 1 + jnp.arange(len(ids_N)))
    zeros_VD = jnp.zeros((num_rows, width), sums_CTD.dtype)
    return zeros_VD.at[rows_N].add(sums_CTD.reshape(-1, width), mode="drop", unique_indices=True)


def _sort(grad_ND, ids_N):
    """The gradients and the ids in the order of the ids; more ids than gradients are allowed."""
    ids_N, order_N = jax.lax.sort((ids_N, jnp.arange(len(ids_N))), num_keys=1)
    return grad_ND.at[order_N].get(mode="clip"), ids_N


def _sum_of_parts(gradient, grad, ids, num_rows):
    """`gradient(grad_ND, ids_N, num_rows)`, for each part of the batch where devices split it.

    The batch is the first of several axes of `ids`. To sort the whole batch, the devices would have
    to exchange the gradients of the tokens.
    """
    parts = _parts_of_batch(ids)
    grad_PND, ids_PN = grad.reshape(parts, -1, grad.shape[-1]), ids.reshape(parts, -1)
    gradient = functools.partial(gradient, num_rows=num_rows)
    if parts == 1:
        return gradient(grad_PND[0], ids_PN[0])
    grad_PND = nn.with_logical_constraint(grad_PND, ("batch", None, None))
    ids_PN = nn.with_logical_constraint(ids_PN, ("batch", None))
    return jnp.sum(jax.vmap(gradient)(grad_PND, ids_PN), axis=0)


def _parts_of_batch(ids):
    """The number of equal parts of the batch that the devices have, by the sharding rules."""
    axes = dict(nn.get_logical_axis_rules()).get("batch") or ()
    sizes = jax.sharding.get_abstract_mesh().shape
    axes = (axes,) if isinstance(axes, str) else axes
    parts = math.prod(sizes.get(axis, 1) for axis in axes)
    return parts if ids.ndim > 1 and ids.shape[0] % parts == 0 else 1


def _accumulator(grad):
    return jnp.promote_types(grad.dtype, jnp.float32)


def _product(spec, mask, x):
    """The product of the mask, as 0 and 1, with x, without loss in the dtype that adds it up."""
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum(
        spec, mask.astype(x.dtype), x, precision=highest, preferred_element_type=_accumulator(x)
    )


def _without_ignored(grad, ids, num_rows):
    """Gradients that are 0 where they are ignored: in a product, NaN would reach all rows."""
    return jnp.where((ids < num_rows)[..., None], grad, 0)


# The keys are values of `implementation`. "one_hot" and "blocked" use matrix products.
IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": reference_gradient,
    "one_hot": one_hot_gradient,
    "sorted": sorted_gradient,
    "blocked": blocked_gradient,
}
