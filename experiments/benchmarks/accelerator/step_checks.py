"""Checks that a training step gives the same bits again, and that embeddings get their gradient.

Array names carry their shape: N tokens, V rows of a table, D its width.
"""

import hashlib
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.accelerator import jax_step
from experiments.benchmarks.accelerator.machine import Emit
from roberta_jax.modeling.layers import lookup
from roberta_jax.training.checkpoints import Checkpoints

_STEPS = 4  # of which a restored run makes the second half

# The largest error of a sum of float32 numbers, relative to the sum of their absolute values.
TOLERANCE = 1e-5
_PADDING = 1


def check_bits(emit: Emit, *, attention: str, small: bool) -> None:
    """Emits whether steps with `deterministic=True` repeat bit by bit.

    Some steps are run twice from the same state, and once with the state saved and restored.

    Args:
      emit: takes the record.
      attention: the implementation.
      small: whether to use a tiny model.
    """
    step = jax_step.TrainingStep(
        "tiny" if small else "base",
        length=32 if small else 128,
        rows=4 if small else 16,
        attention=attention,
        changes={} if small else {"num_hidden_layers": 2},
        deterministic=True,
    )
    first = _digests(_after(step, step.new_state(), _STEPS))
    again = _digests(_after(step, step.new_state(), _STEPS))
    half = _STEPS // 2
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        state = _after(step, step.new_state(), half)
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        checkpoints.save(half, state)
        checkpoints.wait()
        del state
        restored, _ = checkpoints.restore(like)
        resumed = _digests(_after(step, restored, _STEPS - half))
    problems = [
        f"{what}: {', '.join(differing[:4])} and {max(0, len(differing) - 4)} more"
        for what, other in (("run again", again), ("restored", resumed))
        if (differing := [leaf for leaf in first if first[leaf] != other[leaf]])
    ]
    emit(
        {
            "part": "same bits",
            "name": f"same bits {attention}",
            "attention": attention,
            "status": "failed" if problems else "passed",
            "steps": _STEPS,
            "arrays": len(first),
            "reason": "; ".join(problems) or None,
        }
    )


def _after(step: Any, state: Any, steps: int) -> Any:
    for _ in range(steps):
        state, _ = step.update(state, step.batch)
    return state


def _digests(state: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def check_embeddings(emit: Emit, *, small: bool) -> None:
    """Emits the error and the time of the gradient of an embedding table.

    The ids are all different in part, or all equal: then all tokens are added to one row.
    """
    tokens, words, width = (64, 50, 8) if small else (16384, 50265, 768)
    rng = np.random.default_rng(0)
    kinds = {
        "random ids": rng.integers(0, words, tokens, dtype=np.int32),
        "equal ids": np.full(tokens, words // 2, np.int32),
    }
    table_VD = np.zeros((words, width), np.float32)
    for dtype in ("float32", "bfloat16"):
        grad_ND = rng.standard_normal((tokens, width)).astype(dtype)
        for kind, ids_N in kinds.items():
            record = {
                "part": "embedding",
                "name": f"gradient of embeddings, {kind}, {dtype}",
                "tolerance": TOLERANCE,
            }
            try:
                emit(record | _gradient(table_VD, ids_N, grad_ND))
            except Exception as error:  # the other cases are still to be checked
                reason = f"{type(error).__name__}: {error}"
                emit(record | {"status": "failed", "reason": reason[:2000]})


def _gradient(table_VD: np.ndarray, ids_N: np.ndarray, grad_ND: np.ndarray) -> dict:
    """Compares the gradient with a sum in float64, and measures it."""

    @jax.jit
    def gradient(table, ids, grad):
        _, pull = jax.vjp(lambda table: lookup(table, ids, _PADDING, grad.dtype), table)
        return pull(grad)[0]

    arrays = jax.device_put((table_VD, ids_N, grad_ND))
    result = jax.block_until_ready(gradient(*arrays))
    start = time.perf_counter()
    jax.block_until_ready(gradient(*arrays))
    seconds = time.perf_counter() - start
    is_added = ids_N != _PADDING
    terms_ND = grad_ND.astype(np.float64)[is_added]
    expected_VD, absolute_VD = (np.zeros(table_VD.shape) for _ in range(2))
    np.add.at(expected_VD, ids_N[is_added], terms_ND)
    np.add.at(absolute_VD, ids_N[is_added], np.abs(terms_ND))
    difference = np.abs(np.asarray(result, np.float64) - expected_VD)
    is_zero = absolute_VD == 0
    error = float(np.max(difference / np.where(is_zero, 1, absolute_VD)))
    is_finite = np.isfinite(np.asarray(result)).all()
    passed = is_finite and error <= TOLERANCE and result.dtype == jnp.float32
    reason = None if passed else f"error {error:.1e} ({result.dtype}, tolerance {TOLERANCE})"
    return {
        "status": "passed" if passed else "failed",
        "error": error if is_finite else None,
        "seconds": seconds,
        "reason": reason,
    }
