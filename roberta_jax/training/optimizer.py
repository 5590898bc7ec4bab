"""Optimizers: AdamW as in fairseq or as in BERT, and LAMB.

The paper's recipe (Liu et al. 2019, Table 9) is fairseq's Adam with decoupled weight decay. The
update of a parameter p with gradient g, after n earlier updates, is

    m = beta1 m + (1 - beta1) g                 v = beta2 v + (1 - beta2) g^2
    p = p - lr(n) * (c m / (sqrt(v) + eps) + weight_decay p)
    c = sqrt(1 - beta2^(n+1)) / (1 - beta1^(n+1))

Here eps is added before the bias correction c. torch.optim.AdamW and optax.adamw add it after the
correction, which makes it up to seven times smaller in the first updates (with beta2 = 0.98); apart
from that they agree. BERT's optimizer has c = 1, clips the gradient to a global norm of 1, and does
not decay biases and layer norms. fairseq decays every parameter.

LAMB (You et al. 2020, algorithm 2), for large batches, uses the same moments. It adds eps where
torch and optax do, and scales the step of each tensor to the norm of the tensor times the rate:

    r = (m / (1 - beta1^(n+1))) / (sqrt(v / (1 - beta2^(n+1))) + eps) + weight_decay p
    p = p - lr(n) * (|p| / |r|) * r         with 1 for |p| / |r| where either norm is 0

A tensor belongs to one layer: an array that stacks the encoder's layers has one norm per layer.

Rules that treat parameters differently match the parameter's name, not its rank. In a stacked model
the layers share one array with a leading axis, so that its biases have rank 2.

To add an optimizer, write a function with the parameters

    (schedule, *, <options of its own>) -> optax.GradientTransformation

and add it to `OPTIMIZERS`. Each of its options is the config key `optimizer.<option>`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from roberta_jax.errors import UsageError
from roberta_jax.training.registry import check_finite, select

_LAYERS = ("encoder", "layer")  # path of the encoder's layers, stacked or not


def make_optimizer(
    name: str, schedule: optax.Schedule, options: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Builds an optimizer by its name.

    Args:
      name: a key of `OPTIMIZERS`.
      schedule: number of updates made before -> learning rate.
      options: the optimizer's options. None uses the optimizer's default.

    Raises:
      UsageError: an unknown name, an option that this optimizer does not have, or a value out of
        its range.
    """
    function, given = select(OPTIMIZERS, "optimizer", name, options)
    return function(schedule, **given)


class AdamState(NamedTuple):
    """The state of `scale_by_adam`.

    Attributes:
      count: updates made, int32 scalar.
      mu: running mean of the gradient, float32, a tree like the parameters.
      nu: running mean of the squared gradient, float32, a tree like the parameters.
    """

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_adam(
    beta1: float,
    beta2: float,
    eps: float,
    *,
    bias_correction: bool = True,
    eps_after_correction: bool = False,
) -> optax.GradientTransformation:
    """Replaces the gradient by c m / (sqrt(v) + eps), as in the module's docstring.

    Args:
      beta1, beta2, eps: as in `adamw`.
      bias_correction: False uses c = 1.
      eps_after_correction: True adds eps to the bias-corrected square root, as LAMB does.
    """

    def init(params):
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), params)
        return AdamState(jnp.zeros([], jnp.int32), zeros, jax.tree.map(jnp.copy, zeros))

    def update(grads, state, params=None):
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * jnp.square(g), state.nu, grads)
        c, scaled_eps = jnp.float32(1.0), eps
        if bias_correction:
            n = count.astype(jnp.float32)
            root = jnp.sqrt(1 - beta2**n)
            c = root / (1 - beta1**n)
            if eps_after_correction:
                scaled_eps = eps * root
        updates = jax.tree.map(lambda m, v: c * m / (jnp.sqrt(v) + scaled_eps), mu, nu)
        return updates, AdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """Multiplies each update by LAMB's |p| / |r|, one ratio per tensor and per stacked layer."""

    def update(updates, state, params):
        def scale(path, r, p):
            first_axis = 1 if _is_stacked(path) else 0
            p_norm, r_norm = (_norm(x, axes=tuple(range(first_axis, x.ndim))) for x in (p, r))
            nonzero = (p_norm > 0) & (r_norm > 0)
            return r * jnp.where(nonzero, p_norm / jnp.where(nonzero, r_norm, 1.0), 1.0)

        return jax.tree_util.tree_map_with_path(scale, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _is_stacked(path: jax.tree_util.KeyPath) -> bool:
    """Whether an array stacks all layers: no layer number follows `encoder/layer` in its path."""
    names = _name(path).split("/")
    below = [c for a, b, c in zip(names, names[1:], names[2:], strict=False) if (a, b) == _LAYERS]
    return any(not name.isdecimal() for name in below)


def _norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axes, keepdims=True))


def _name(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def bert_decay_mask(params: Any) -> Any:
    """Returns a tree of booleans: False for biases and layer norms (BERT's `optimization.py`).

    LAMB's authors exclude the same parameters from weight decay and from the trust ratio.
    """

    def decays(path, _) -> bool:
        return not any(word in _name(path) for word in ("LayerNorm", "layer_norm", "bias"))

    return jax.tree_util.tree_map_with_path(decays, params)


_MASKS = {"all": None, "bert": bert_decay_mask}


def adamw(
    schedule: optax.Schedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.98,
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    decay_mask: str = "all",
    bias_correction: bool = True,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Builds AdamW as the module's docstring defines it.

    Args:
      schedule: number of updates made before -> learning rate.
      beta1: decay rate of the mean of the gradient.
      beta2: decay rate of the mean of the squared gradient.
      eps: added to the square root of that mean, before the bias correction.
      weight_decay: coefficient of the decoupled weight decay; 0 turns it off.
      decay_mask: "all" decays every parameter (fairseq); "bert" excludes biases and layer norms.
      bias_correction: False for BERT's optimizer.
      clip_norm: the gradient is scaled down to this global norm if it is larger; 0 turns it off.

    Raises:
      UsageError: a value is out of its range.
    """
    _check(beta1, beta2, eps, weight_decay, decay_mask, clip_norm)
    return optax.chain(
        *_clipping(clip_norm),
        scale_by_adam(beta1, beta2, eps, bias_correction=bias_correction),
        *_weight_decay(weight_decay, decay_mask),
        optax.scale_by_learning_rate(schedule),
    )


def lamb(
    schedule: optax.Schedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    decay_mask: str = "bert",
    bias_correction: bool = True,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Builds LAMB as the module's docstring defines it, with its authors' defaults.

    Args:
      schedule: number of updates made before -> learning rate. The rate is the fraction of its own
        norm by which a tensor changes, so it is usually larger than AdamW's.
      beta1: decay rate of the mean of the gradient.
      beta2: decay rate of the mean of the squared gradient.
      eps: added to the square root of that mean, after the bias correction.
      weight_decay: coefficient of the weight decay, which is part of the step that the trust ratio
        scales; 0 turns it off.
      decay_mask: "all" applies decay and trust ratio to every parameter; "bert" excludes biases and
        layer norms from both, so that they take plain Adam steps.
      bias_correction: False uses the moments without correction.
      clip_norm: the gradient is scaled down to this global norm if it is larger; 0 turns it off.

    Raises:
      UsageError: a value is out of its range.
    """
    _check(beta1, beta2, eps, weight_decay, decay_mask, clip_norm)
    ratio, mask = scale_by_trust_ratio(), _MASKS[decay_mask]
    return optax.chain(
        *_clipping(clip_norm),
        scale_by_adam(
            beta1, beta2, eps, bias_correction=bias_correction, eps_after_correction=True
        ),
        *_weight_decay(weight_decay, decay_mask),
        ratio if mask is None else optax.masked(ratio, mask),
        optax.scale_by_learning_rate(schedule),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "lamb": lamb,
}
"""The values of `--config.optimizer.name`."""


def _check(
    beta1: float, beta2: float, eps: float, weight_decay: float, decay_mask: str, clip_norm: float
) -> None:
    check_finite(
        "optimizer",
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
    )
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= np.float32(beta) < 1:  # in float32, 1 - 1e-8 is 1
            raise UsageError(f"--config.optimizer.{name}={beta} must be at least 0 and below 1.")
    for name, value in (("weight_decay", weight_decay), ("clip_norm", clip_norm)):
        if value < 0:
            raise UsageError(
                f"--config.optimizer.{name}={value} must not be negative; 0 turns it off."
            )
    if np.float32(eps) < np.finfo(np.float32).tiny:  # smaller numbers are 0 on accelerators
        raise UsageError(
            f"--config.optimizer.eps={eps} must be positive, and at least 1.2e-38 as float32."
        )
    if decay_mask not in _MASKS:
        raise UsageError(
            f"--config.optimizer.decay_mask={decay_mask!r} is unknown: use one of "
            f"{', '.join(_MASKS)}."
        )


def _clipping(clip_norm: float) -> list[optax.GradientTransformation]:
    return [optax.clip_by_global_norm(clip_norm)] if clip_norm else []


def _weight_decay(weight_decay: float, decay_mask: str) -> list[optax.GradientTransformation]:
    return (
        [optax.add_decayed_weights(weight_decay, mask=_MASKS[decay_mask])] if weight_decay else []
    )
