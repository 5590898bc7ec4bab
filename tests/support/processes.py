"""Runs a function of a test module in a separate process, such as one with several devices."""

import os
import pathlib
import socket
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


def free_port() -> int:
    """Returns a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start_together(
    module: str, function: str, *arguments: str, count: int, devices: int = 1, **variables: str
) -> list[subprocess.Popen]:
    """Calls the function in `count` processes that find each other by JAX's variables."""
    address = f"localhost:{free_port()}"
    return [
        subprocess.Popen(
            command(module, function, *arguments),
            env=environment(
                devices,
                JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES=str(count),
                JAX_PROCESS_ID=str(index),
                **variables,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def run_together(
    module: str, function: str, *arguments: str, count: int, devices: int = 1, **variables: str
) -> list[str]:
    """Calls the function in `count` processes and returns their standard outputs.

    Raises an AssertionError with the end of the standard error of one that fails.
    """
    started = start_together(
        module, function, *arguments, count=count, devices=devices, **variables
    )
    try:
        outputs = [each.communicate(timeout=300) for each in started]
    finally:
        for each in started:
            each.kill()
    for each, (_, errors) in zip(started, outputs, strict=True):
        assert each.returncode == 0, errors[-4000:]
    return [output for output, _ in outputs]
