"""Runs a training as several processes of this machine, such as a rehearsal of a pod on a laptop.

    python -m experiments.launch.local --processes=2 --devices=4 \\
        -- pretrain --config=configs/pretrain.py:tiny --workdir=runs/rehearsal

With --devices each process has so many virtual devices on the CPU. Without it the processes share
the GPUs of the machine, or each uses the CPU. It is `python -m roberta_jax.launch --processes=N`
with this environment, which restarts all processes when one crashes.
"""

import shlex
import sys
from collections.abc import Sequence

from experiments.command_line import command
from experiments.launch import supervised
from experiments.launch.supervised import Commands
from roberta_jax.launch import whole
from roberta_jax.launching import command as launched


def commands(arguments, words: Sequence[str]) -> Commands:
    """Returns the command that starts the processes."""
    full = supervised.supervised(
        words, python=sys.executable, cache=arguments.compile_cache, distributed=False
    )
    environment = []
    if arguments.devices:
        flag = f"--xla_force_host_platform_device_count={arguments.devices}"
        environment = ["env", "JAX_PLATFORMS=cpu", f"XLA_FLAGS={flag}"]
    split = full.index("--")
    return [
        [*environment, *full[:split], f"--processes={arguments.processes}", *full[split:]],
    ]


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
        (full,) = commands(arguments, words)
        if arguments.dry_run:
            print(shlex.join(full))
            return
        supervised.run([full], dry_run=False)


if __name__ == "__main__":
    main()
