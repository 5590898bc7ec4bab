"""Compares the attention implementations with the reference on the device that is at hand.

Array names carry their shape: B batch, Q queries, S keys, H heads, K head width.
"""

import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from experiments.benchmarks.accelerator.machine import Emit
from roberta_jax.kernels import attention, fused_attention
from roberta_jax.kernels.masks import Segments, mask_to_bias

RATES = (0.0, 0.1, 0.5)
_THREADS = min(8, os.cpu_count() or 1)  # which compile programs side by side
SEED = np.array([1, 2, 3, 4], np.uint32)

# The largest error of a result, relative to the largest value of the reference in float32. With
# bfloat16 the inputs of the products have 8 bits.
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.02}
RESULTS = ("context", "gradient of q", "gradient of k", "gradient of v")


class Size(NamedTuple):
    """The shape of the arrays: B rows, L queries and keys, H heads of width K."""

    rows: int
    length: int
    heads: int
    width: int


SIZE, SMALL_SIZE = Size(2, 512, 4, 64), Size(2, 32, 2, 8)


def check(emit: Emit, *, attentions: list[str], small: bool) -> None:
    """Emits a record for each implementation and dtype."""
    size = SMALL_SIZE if small else SIZE
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        expected = _Reference(size, threads)
        for name in attentions:
            if reason := refusal_of_platform(name, jax.default_backend()):
                emit(_record(name, None, "refused", reason=reason))
                continue
            for dtype in TOLERANCES:
                if (name, dtype) == ("reference", "float32"):
                    continue  # what the others are compared with
                try:
                    emit(_compare(name, dtype, size, expected, threads))
                except Exception as error:  # the other implementations are still to be checked
                    reason = f"{type(error).__name__}: {error}"
                    emit(_record(name, dtype, "failed", reason=reason[:2000]))


def refusal_of_platform(name: str, platform: str) -> str | None:
    """Why an implementation cannot run on the platform, or None if it can."""
    of_kernels = fused_attention.KINDS.get(name, (None,))[0]
    if of_kernels in (None, platform):
        return None
    return f"its kernels are for {of_kernels.upper()}s, and this is a {platform.upper()}"


def _record(name: str, dtype: str | None, status: str, **values) -> dict:
    title = " ".join(["attention", name, *([dtype] if dtype else [])])
    return {
        "part": "attention", "name": title, "status": status, "attention": name, "dtype": dtype,
    } | values  # fmt: skip


def masks_of(size: Size) -> dict[str, tuple]:
    """Name -> (mask, bool [B, Q]: the queries that have a key).

    "segments" has several segments and padding in a row, so that queries of padding have no key.
    """
    rows, length, *_ = size
    everywhere = np.ones((rows, length), bool)
    tokens = np.full(rows, length)
    tokens[-1] = length * 2 // 3
    places = np.arange(length)
    is_token = places < tokens[:, None]
    segments = np.where(is_token, 1 + places * 3 // length, 0).astype(np.int32)
    rng = np.random.default_rng(1)
    bias = rng.standard_normal((rows, 1, length, length)).astype(np.float32)
    allowed = rng.random((rows, 1, 1, length)) < 0.8
    allowed[..., 0] = True
    return {
        "none": (None, everywhere),
        "padding": (Segments(None, is_token.astype(np.int32)), everywhere),
        "segments": (Segments(segments, segments), segments > 0),
        "bias": (bias + np.asarray(mask_to_bias(allowed)), everywhere),
    }


def _inputs(size: Size, dtype: str, is_used_BQ: np.ndarray) -> list[np.ndarray]:
    """q, k, v and a gradient of the output, which is 0 at queries without keys."""
    rng = np.random.default_rng(0)
    rows, length, heads, width = size
    *arrays, grad = (rng.standard_normal((rows, length, heads, width)) for _ in range(4))
    return [x.astype(dtype) for x in (*arrays, np.where(is_used_BQ[..., None, None], grad, 0))]


class _Reference:
    """The results of the reference in float32, computed once for all implementations.

    Attributes:
      runs: (mask, rate) -> a future of {dtype of the inputs: the results of `_run`}.
      kept: rate -> the elements that dropout keeps, bool [B, H, Q, S].
    """

    def __init__(self, size: Size, threads: concurrent.futures.Executor):
        masks = masks_of(size)

        def run(case: str, rate: float) -> dict[str, list[np.ndarray]]:
            # One after the other: the second one does not compile the program again.
            mask, is_used_BQ = masks[case]
            inputs = {dtype: _inputs(size, dtype, is_used_BQ) for dtype in TOLERANCES}
            return {
                dtype: _run("reference", [x.astype(np.float32) for x in arrays], mask, rate)
                for dtype, arrays in inputs.items()
            }

        self.runs = {
            (case, rate): threads.submit(run, case, rate) for case in masks for rate in RATES
        }
        concurrent.futures.wait(self.runs.values())
        q, k, *_ = _inputs(size, "float32", masks["none"][1])
        self.kept = {rate: kept_elements("reference", q, k, rate)[0] for rate in RATES}


def _compare(name: str, dtype: str, size: Size, expected: _Reference, threads) -> dict:
    """Compares values, gradients and dropped elements; returns the record."""
    problems, refused, runs = [], {}, {}
    errors = dict.fromkeys(RESULTS, 0.0)
    masks = masks_of(size)
    for case, (mask, is_used_BQ) in masks.items():
        arrays = _inputs(size, dtype, is_used_BQ)
        if reason := _why_not(name, arrays, mask):
            refused[case] = reason
            continue
        for rate in RATES:
            runs[case, rate] = threads.submit(_run, name, arrays, mask, rate)
    for (case, rate), run in runs.items():
        is_used_BQ = masks[case][1]
        of_reference = expected.runs[case, rate].result()[dtype]
        for what, result, reference in zip(RESULTS, run.result(), of_reference, strict=True):
            result = result.astype(np.float32)
            if not np.isfinite(result).all():
                problems.append(f"{what}: not finite ({case}, rate {rate})")
                continue
            if what == "context":  # nothing reads that of a query without keys
                result, reference = result[is_used_BQ], reference[is_used_BQ]
            error = float(np.abs(result - reference).max() / np.abs(reference).max())
            errors[what] = max(errors[what], error)
            if error > TOLERANCES[dtype]:
                problems.append(f"{what}: error {error:.1e} ({case}, rate {rate})")
    dropped = {}
    if "none" not in refused:
        q, k, *_ = _inputs(size, dtype, masks["none"][1])
        dropped, differing = _compare_dropped(name, q, k, expected.kept)
        problems = differing + problems
    status = "failed" if problems else "passed" if runs else "refused"
    reason = "; ".join(problems[:8]) or (None if runs else next(iter(refused.values())))
    return _record(
        name, dtype, status, errors=errors, tolerance=TOLERANCES[dtype], cases=len(runs),
        dropped=dropped, refused=refused, reason=reason,
    )  # fmt: skip


def _why_not(name: str, inputs: list[np.ndarray], mask) -> str | None:
    if not attention.is_fused(name):
        return None
    return fused_attention.why_not(name, *inputs[:2], mask)


@contextlib.contextmanager
def _precision(dtype: np.dtype) -> Iterator[None]:
    """Float32 products in full; those of bfloat16 arrays as a training step computes them."""
    with jax.default_matmul_precision("highest" if dtype == np.float32 else None):
        yield


def _run(name: str, arrays, mask, rate: float) -> list[np.ndarray]:
    """The context and the gradients of q, k and v."""
    with _precision(arrays[0].dtype):
        return [np.asarray(x) for x in _function(name, rate)(*arrays, mask)]


@functools.cache
def _function(name: str, rate: float) -> Callable:
    """(q, k, v, gradient of the context, mask) -> (context, gradients of q, k and v)."""
    seed = SEED if rate else None

    @jax.jit
    def run(q, k, v, grad, mask):
        def apply(q, k, v):
            return attention.dot_product_attention(q, k, v, mask, seed, rate, name)

        context, pull = jax.vjp(apply, q, k, v)
        return context, *pull(grad)

    return run


def _compare_dropped(name: str, q, k, expected: dict) -> tuple[dict, list[str]]:
    """({rate: the share of elements that are dropped}, what differs from the reference)."""
    shares, problems = {}, []
    for rate in RATES:
        passes = dict(zip(("forward", "backward"), kept_elements(name, q, k, rate), strict=True))
        shares[str(rate)] = float(1 - passes["forward"].mean())
        for which, kept in passes.items():
            if differing := int((kept != expected[rate]).sum()):
                problems.append(f"{differing} dropped elements differ ({which}, rate {rate})")
    return shares, problems


def kept_elements(name: str, q_BQHK, k_BSHK, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Which probabilities dropout keeps, in the forward and in the backward pass.

    With values that are 1 at one key for each of the K columns, the output is the probabilities of
    these keys, and a dropped one is exactly 0. With such a gradient of the output, the gradient of
    the values is the probabilities of K queries.

    Returns:
      Two arrays, bool [B, H, Q, S].
    """
    rows, queries, heads, width = q_BQHK.shape
    keys = k_BSHK.shape[1]
    # Small scores, so that no probability rounds to 0.
    q_BQHK = (q_BQHK / 8).astype(q_BQHK.dtype)
    forward = np.zeros((rows, heads, queries, keys), bool)
    backward = forward.copy()

    def chosen(first: int, number: int) -> np.ndarray:
        one_hot = np.arange(number)[:, None] == first + np.arange(width)
        shape = (rows, number, heads, width)
        return np.broadcast_to(one_hot[:, None], shape).astype(q_BQHK.dtype)

    for first in range(0, max(queries, keys), width):
        arrays = (q_BQHK, k_BSHK, chosen(first, keys), chosen(first, queries))
        context, _, _, grad_v = _run(name, arrays, None, rate)
        part = slice(first, first + width)
        if first < keys:
            kept = np.moveaxis(context, 1, 2) != 0
            forward[..., part] = kept[..., : keys - first]
        if first < queries:
            kept = np.transpose(grad_v, (0, 2, 3, 1)) != 0
            backward[:, :, part] = kept[:, :, : queries - first]
    return forward, backward
