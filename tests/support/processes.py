"""Runs a function of a test module in a process of its own: other devices, signals, kills."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(module: str, function: str, *arguments: str) -> list[str]:
    """The command line that calls `module.function(*arguments)`."""
    code = f"import sys, {module}; {module}.{function}(*sys.argv[1:])"
    return [sys.executable, "-c", code, *map(str, arguments)]


def environment(devices: int = 1, **variables: str) -> dict[str, str]:
    """This process's environment with `devices` CPU devices and the root importable."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        **variables,
    }


def run(module: str, function: str, *arguments: str, devices: int = 1, **variables: str) -> str:
    """Calls the function in a new process and returns what it printed; fails if it fails."""
    done = subprocess.run(
        command(module, function, *arguments),
        env=environment(devices, **variables),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
