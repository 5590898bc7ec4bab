"""The versions of the libraries, and those with known faults that matter here."""

import dataclasses
import importlib.metadata
import platform
import re
from collections.abc import Mapping

from roberta_jax.diagnostics.report import Result, ok, warning

CHECK = "versions"
# All that decides what a run computes, or whether hosts can work together.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")
ACCELERATORS = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault of a library.

    Attributes:
      package: the library.
      first: the first version that has it.
      before: the first later version that is not known to have it.
      platform: of JAX's devices that it concerns, "gpu" or "tpu".
      text: what happens.
      advice: what to do.
    """

    package: str
    first: str
    before: str
    platform: str
    text: str
    advice: str


FAULTS = (
    # https://github.com/jax-ml/jax/issues/38806, https://github.com/openxla/xla/issues/46225
    Fault(
        "jaxlib",
        "0.10.2",
        "0.11.1",
        "gpu",
        "scatter-adds in float32 can take 450 times as long or more where indices repeat (jax "
        "issue 38806). The gradient of the embeddings avoids them; your own code may be concerned",
        "install jax 0.10.1, or 0.11.1 and later; see the line embedding for the speed here",
    ),
    # https://github.com/jax-ml/jax/issues/39025
    Fault(
        "libtpu",
        "0.0.42",
        "0.0.43",
        "tpu",
        "gradients of array indexing outside of jax.jit can be wrong (jax issue 39025). Training "
        "is compiled and not concerned; your own code may be",
        "compute gradients inside jax.jit",
    ),
    # https://github.com/openxla/xla/issues/49143, reported for 0.0.48. Of a loop that scatters into
    # a replicated sum, compiled for v5e:2x2, the versions 0.0.41, 0.0.42.1, 0.0.48 and 0.0.49 move
    # the all-reduce out, and 0.0.40, 0.0.50 and 0.0.52 do not. The train step (tiny; data=4, fsdp=4
    # or two of both) has the same collectives with 0.0.48 and 0.0.52.
    Fault(
        "libtpu",
        "0.0.41",
        "0.0.50",
        "tpu",
        "gradients that several chips scatter into a sum within jax.lax.scan can be wrong (xla "
        "issue 49143). Training adds gradients up in another way; your own code may be concerned",
        "install libtpu 0.0.50 or later, or set "
        "XLA_FLAGS=--xla_disable_hlo_passes=while-loop-all-reduce-code-motion",
    ),
)


def installed(roberta_jax: str) -> dict[str, str]:
    """Returns {package: version} of roberta_jax, Python and the libraries that are installed."""
    versions = {"roberta_jax": roberta_jax, "Python": platform.python_version()}
    for package in (*PACKAGES, *ACCELERATORS):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def check(versions: Mapping[str, str], device_platform: str) -> list[Result]:
    """Lists the versions, and the known faults of them on a platform of devices.

    Args:
      versions: as `installed` returns them.
      device_platform: "cpu", "gpu" or "tpu".
    """
    listed = ", ".join(f"{package} {version}" for package, version in versions.items())
    results = [ok(CHECK, listed)]
    for fault in FAULTS:
        version = versions.get(fault.package)
        if version is None or fault.platform != device_platform:
            continue
        if number(fault.first) <= number(version) < number(fault.before):
            text = f"{fault.package} {version}: {fault.text}."
            results.append(warning(CHECK, text, f"{fault.advice}."))
    return results


def number(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version, "0.10.2.dev3" -> (0, 10, 2), for comparisons."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
