"""Runs a function of a test module in a separate process, such as one with several devices."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(module: str, function: str, *arguments: str) -> list[str]:
    """Returns the command line that calls `module.function(*arguments)`."""
    code = f"import sys, {module}; {module}.{function}(*sys.argv[1:])"
    return [sys.executable, "-c", code, *map(str, arguments)]


def environment(devices: int = 1, **variables: str) -> dict[str, str]:
    """Returns this process's environment with `devices` CPU devices and the package importable."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        **variables,
    }


def run(module: str, function: str, *arguments: str, devices: int = 1, **variables: str) -> str:
    """Calls the function in a new process and returns its standard output.

    Raises an AssertionError with the end of its standard error if it fails.
    """
    result = subprocess.run(
        command(module, function, *arguments),
        env=environment(devices, **variables),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout
