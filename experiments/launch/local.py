"""Runs a training as several processes of this machine, such as a rehearsal of a pod on a laptop.

    python -m experiments.launch.local --processes=2 --devices=4 \\
        -- pretrain --config=configs/pretrain.py:tiny --workdir=runs/rehearsal

With --devices each process has so many virtual devices on the CPU. Without it the processes share
the GPUs of the machine, or each uses the CPU. It is `python -m roberta_jax.launch --processes=N`
with this environment, which restarts all processes when one crashes, passes SIGTERM and Ctrl-C on
to them, and exits with the status of the run.
"""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence

from experiments.command_line import command
from experiments.launch import supervised
from roberta_jax import launch
from roberta_jax.launch import whole
from roberta_jax.launching import command as launched


def launcher(arguments, words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Returns the environment variables of the launcher, and its arguments."""
    full = supervised.supervised(
        words, python=sys.executable, cache=arguments.compile_cache, distributed=False
    )
    variables = {}
    if arguments.devices:
        flag = f"--xla_force_host_platform_device_count={arguments.devices}"
        variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
    return variables, [f"--processes={arguments.processes}", *full[3:]]


@contextlib.contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables inside the context."""
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; exits with a message, without a traceback, on wrong input."""
    own, words = launched.split(sys.argv[1:] if argv is None else argv)
    parser = supervised.parser("local", __doc__)
    parser.add_argument("--processes", type=whole(1), default=2, metavar="N")
    parser.add_argument(
        "--devices", type=whole(1), metavar="N", help="virtual devices of a process"
    )
    with command():
        arguments = parser.parse_args(own)
        variables, own = launcher(arguments, words)
        if arguments.dry_run:
            environment = [f"{name}={value}" for name, value in variables.items()]
            start = ["env", *environment] if environment else []
            print(shlex.join([*start, sys.executable, "-m", "roberta_jax.launch", *own]))
            return
        with _set(variables):
            status = launch.launch(own)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
