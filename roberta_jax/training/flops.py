"""Peak FLOP/s of accelerators, to report the model FLOPs utilisation (MFU) of a run."""

import jax

# Device kind -> peak dense bfloat16 FLOP/s (float16 where there is no bfloat16), without sparsity.
# A multiply-add counts as two.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "Tesla T4": 65e12,
    "Tesla V100-SXM2-16GB": 125e12,
}


def peak_flops() -> float | None:
    """The peak of all devices together in FLOP/s, or None if the table lacks their kind."""
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return peak and peak * jax.device_count()
