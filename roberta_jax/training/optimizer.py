"""AdamW as fairseq or as BERT has it, LAMB, their schedule and their rules.

The recipe of the paper (Table 9) is fairseq's Adam with decoupled weight decay. One update of a
parameter p with gradient g, n updates having been made before this one:

    m = beta1 m + (1 - beta1) g                 v = beta2 v + (1 - beta2) g^2
    p = p - lr(n) * (c m / (sqrt(v) + eps) + weight_decay p)
    c = sqrt(1 - beta2^(n+1)) / (1 - beta1^(n+1))

Here eps is added before the bias correction c. torch.optim.AdamW and optax.adamw add it after,
which makes it up to seven times smaller in the first updates (beta2 = 0.98); elsewhere they agree.
BERT's optimizer is the same with c = 1, the gradient clipped to a global norm of 1, and no decay
on biases and layer norms; fairseq decays every parameter.

LAMB (You et al. 2020, algorithm 2), for large batches, goes on from the same moments. It adds eps
where torch and optax do, and makes each tensor's step as long as the tensor times the rate:

    r = (m / (1 - beta1^(n+1))) / (sqrt(v / (1 - beta2^(n+1))) + eps) + weight_decay p
    p = p - lr(n) * (|p| / |r|) * r         with 1 for |p| / |r| where either norm is 0

A tensor is one layer's: a leaf that stacks the encoder's layers has a norm for each of them.

Rules that treat parameters differently go by name, never by rank: the layers of a stacked model
share one array with a leading axis, which lifts its biases to rank 2.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from roberta_jax.errors import UsageError

_LAYERS = ("encoder", "layer")  # the path under which the encoder's layers lie, stacked or not


def polynomial_schedule(
    peak: float, *, warmup_steps: int, decay_steps: int, power: float = 1.0, end: float = 0.0
) -> optax.Schedule:
    """Linear warmup from 0, then polynomial decay to `end` (fairseq's `polynomial_decay`).

    The rate of an update is a function of the updates made before it, as in fairseq, where the
    scheduler is asked once with 0 before training and then after each update. So the first update
    of a run with warmup has rate 0, update number warmup_steps + 1 has the peak, and update number
    decay_steps + 1 and all after it have `end`.

    Args:
      peak: the rate at the end of the warmup.
      warmup_steps: updates until the peak; 0 starts at the peak.
      decay_steps: updates, warmup included, until `end`.
      power: 1 is linear.
      end: the rate that stays.

    Raises:
      UsageError: the warmup does not end before the decay does, or a negative rate or length.
    """
    if warmup_steps < 0 or decay_steps <= warmup_steps:
        raise UsageError(
            f"schedule.warmup_steps={warmup_steps} must lie between 0 and the number of steps over "
            f"which the rate decays, {decay_steps} (schedule.decay_steps, else train.steps)."
        )
    if not 0 <= end <= peak:
        raise UsageError(
            f"optimizer.learning_rate={peak} must be at least schedule.end_learning_rate={end}, "
            "and that at least 0."
        )

    def schedule(updates_before: jax.Array) -> jax.Array:
        n = jnp.asarray(updates_before, jnp.float32)
        rising = peak * n / max(warmup_steps, 1)
        left = jnp.clip(1.0 - (n - warmup_steps) / (decay_steps - warmup_steps), 0.0, 1.0)
        falling = (peak - end) * left**power + end
        return jnp.where(n < warmup_steps, rising, falling)

    return schedule


class AdamState(NamedTuple):
    """Moments of the gradient, float32, in the parameters' shapes; and the updates made, int32."""

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
    """The quotient c m / (sqrt(v) + eps) of the module's docstring, as an optax transformation.

    With `eps_after_correction` it is LAMB's: eps is added to the corrected root.
    """

    def init(params):
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), params)
        return AdamState(jnp.zeros([], jnp.int32), zeros, jax.tree.map(jnp.copy, zeros))

    def update(grads, state, params=None):
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * jnp.square(g), state.nu, grads)
        c, added = jnp.float32(1.0), eps
        if bias_correction:
            n = count.astype(jnp.float32)
            root = jnp.sqrt(1 - beta2**n)
            c = root / (1 - beta1**n)
            if eps_after_correction:
                added = eps * root
        updates = jax.tree.map(lambda m, v: c * m / (jnp.sqrt(v) + added), mu, nu)
        return updates, AdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """LAMB's |p| / |r|, a ratio for each tensor and for each layer of stacked ones."""

    def update(updates, state, params):
        def scale(path, r, p):
            first = 1 if _is_stacked(path) else 0
            p_norm, r_norm = (_norm(x, axes=tuple(range(first, x.ndim))) for x in (p, r))
            usable = (p_norm > 0) & (r_norm > 0)
            return r * jnp.where(usable, p_norm / jnp.where(usable, r_norm, 1.0), 1.0)

        return jax.tree_util.tree_map_with_path(scale, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _is_stacked(path: jax.tree_util.KeyPath) -> bool:
    """Whether a leaf holds all layers: it lies in `encoder/layer`, but not under a number."""
    names = _name(path).split("/")
    below = [c for a, b, c in zip(names, names[1:], names[2:], strict=False) if (a, b) == _LAYERS]
    return any(not name.isdecimal() for name in below)


def _norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axes, keepdims=True))


def _name(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def bert_decay_mask(params: Any) -> Any:
    """Marks what BERT decays: True but for biases and layer norms (BERT `optimization.py`).

    LAMB's authors leave out the same parameters, of the decay and of the trust ratio.
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
    """Builds the optimizer of the module's docstring.

    Args:
      schedule: updates made before -> learning rate.
      beta1, beta2, eps: Adam's.
      weight_decay: times the rate, taken off the parameter itself.
      decay_mask: "all" decays every parameter (fairseq), "bert" leaves out biases and layer norms.
      bias_correction: False is BERT's.
      clip_norm: the largest global norm of the gradient; 0 does not clip.

    Raises:
      UsageError: a value that is not in its range.
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
    """Builds LAMB as the module's docstring has it; the defaults are its authors'.

    Args:
      schedule: updates made before -> learning rate: the share of its own norm that a tensor
        moves by, so useful rates are larger than AdamW's.
      beta1, beta2, eps: Adam's.
      weight_decay: times the parameter, a part of the step before the trust ratio.
      decay_mask: "all" decays and adapts every parameter, "bert" leaves out biases and layer norms
        of both: they take Adam's plain steps.
      bias_correction: False leaves the moments as they are.
      clip_norm: the largest global norm of the gradient; 0 does not clip.

    Raises:
      UsageError: a value that is not in its range.
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


OPTIMIZERS = {"adamw": adamw, "lamb": lamb}
"""By name; all take the same arguments."""


def _check(
    beta1: float, beta2: float, eps: float, weight_decay: float, decay_mask: str, clip_norm: float
) -> None:
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise UsageError(f"optimizer.{name}={beta} must be at least 0 and below 1.")
    for name, value in (("weight_decay", weight_decay), ("clip_norm", clip_norm)):
        if value < 0:
            raise UsageError(f"optimizer.{name}={value} must not be negative; 0 turns it off.")
    if eps <= 0:
        raise UsageError(f"optimizer.eps={eps} must be positive.")
    if decay_mask not in _MASKS:
        raise UsageError(
            f"optimizer.decay_mask={decay_mask!r} is unknown: use one of {', '.join(_MASKS)}."
        )


def _clipping(clip_norm: float) -> list[optax.GradientTransformation]:
    return [optax.clip_by_global_norm(clip_norm)] if clip_norm else []


def _weight_decay(weight_decay: float, decay_mask: str) -> list[optax.GradientTransformation]:
    return (
        [optax.add_decayed_weights(weight_decay, mask=_MASKS[decay_mask])] if weight_decay else []
    )
