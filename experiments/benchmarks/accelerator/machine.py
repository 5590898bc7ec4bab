"""The machine: its device, the versions, and how fast it multiplies large matrices."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata

Emit = Callable[[dict], None]

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "libtpu")
_OF_THE_OTHER_SIDE = ("torch", "triton", "transformers", "pytest")
_ROUNDS, _PRODUCTS = 5, 20


def describe(emit: Emit, *, width: int) -> None:
    """Emits what the machine is and the rate of bfloat16 products of `width` x `width` matrices."""
    import jax

    from roberta_jax.kernels import attention, fused_attention

    device = jax.devices()[0]
    chip = chip_of(device.device_kind)
    record = {
        "part": "machine",
        "name": "machine",
        "status": "measured",
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "chip": chip and chip.name,
        "peak_flops": chip and chip.flops,
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions((*_PACKAGES, *_OF_THE_OTHER_SIDE)),
        "compiler_of_device": device.client.platform_version.strip(),
        # {attention: the platform that it is for, or null for all}
        "attentions": {
            name: fused_attention.KINDS.get(name, (None,))[0] for name in attention.IMPLEMENTATIONS
        },
    }
    emit(record)
    rate, spread = product_rate(width)
    emit(record | {"product_width": width, "product_flops": rate, "product_spread": spread})


def chip_of(kind: str):
    """The `planning.chips.Chip` that JAX calls `kind`, or None if the table lacks it."""
    from roberta_jax.planning.chips import CHIPS

    return next((chip for chip in CHIPS.values() if chip.kind == kind), None)


def product_rate(width: int) -> tuple[float, list[float]]:
    """Operations per second of bfloat16 products of random matrices, [width, width] each.

    Returns:
      (the median over some rounds, [the least, the most]). Random, because products of zeros are
      faster on some GPUs.
    """
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 2)
    x, y = (jax.random.normal(key, (width, width), jnp.bfloat16) for key in keys)
    product = jax.jit(lambda x, y: x @ y).lower(x, y).compile()
    for _ in range(3):
        jax.block_until_ready(product(x, y))
    rates = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(_PRODUCTS):
            result = product(x, y)
        jax.block_until_ready(result)
        rates.append(_PRODUCTS * 2 * width**3 / (time.perf_counter() - start))
    return statistics.median(rates), [min(rates), max(rates)]


def versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """The version of each package, or None where it is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
