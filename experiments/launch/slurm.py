"""Runs a training on GPU nodes of a Slurm cluster.

    python -m experiments.launch.slurm --nodes=4 --gpus=8 --time=24:00:00 --partition=gpu \\
        --setup='source ~/env/bin/activate' \\
        -- pretrain --config=configs/pretrain.py:base --workdir=/shared/runs/base ...

It writes a script and submits it with sbatch; --dry_run prints the script. There is one task on
each node, which uses all its GPUs (--tasks=node), or one for each GPU (--tasks=gpu). Two minutes
before the time is over Slurm sends SIGTERM, the run saves a checkpoint, and the job is put into the
queue again to go on. It is also queued again if a node fails or the job is preempted. `scancel`
ends it.
"""

import pathlib
import shlex
import sys
from collections.abc import Sequence

from experiments.command_line import command
from experiments.launch import supervised
from roberta_jax.errors import UsageError
from roberta_jax.launch import whole
from roberta_jax.launching import command as launched
from roberta_jax.training.preemption import TERMINATED


def script(arguments, words: Sequence[str]) -> str:
    """Returns the script for sbatch."""
    supervised.check_shared(words)
    tasks = arguments.gpus if arguments.tasks == "gpu" else 1
    several = arguments.nodes * tasks > 1
    full = supervised.supervised(
        words, python="python", cache=arguments.compile_cache, distributed=several
    )
    options = {
        "job-name": arguments.name,
        "nodes": arguments.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": arguments.gpus,
        "time": arguments.time,
        "partition": arguments.partition,
        "account": arguments.account,
        "output": f"{arguments.name}-%j.txt",
        "open-mode": "append",
        # To the tasks, not to this script.
        "signal": "TERM@120",
    }
    # A task must not be bound to one core, which is what it gets by default.
    srun = ["srun", "--kill-on-bad-exit=1", "--cpu-bind=none", *full]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{name}={value}" for name, value in options.items() if value),
            "#SBATCH --exclusive",
            "#SBATCH --requeue",
            *arguments.setup,
            f"cd {shlex.quote(arguments.folder or str(pathlib.Path.cwd()))} || exit 1",
            *supervised.lines(srun),
            "status=$?",
            f'if [ "$status" -eq {TERMINATED} ]; then  # the time is over',
            '  scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$status"',
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; exits with a message, without a traceback, on wrong input."""
    own, words = launched.split(sys.argv[1:] if argv is None else argv)
    parser = supervised.parser("slurm", __doc__)
    parser.add_argument("--nodes", type=whole(1), default=1, metavar="N")
    parser.add_argument(
        "--gpus", type=whole(1), default=8, metavar="N", help="of a node (default: 8)"
    )
    parser.add_argument(
        "--tasks", choices=("node", "gpu"), default="node", help="one for each (default: node)"
    )
    parser.add_argument(
        "--time", default="24:00:00", help="limit of the job (default: %(default)s)"
    )
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--name", default="roberta", help="of the job (default: %(default)s)")
    parser.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="COMMAND",
        help="a line of the script before the run, such as 'source env/bin/activate' (repeatable)",
    )
    parser.add_argument("--folder", help="where the run starts (default: the current folder)")
    with command():
        arguments = parser.parse_args(own)
        text = script(arguments, words)
        if arguments.dry_run:
            print(text, end="")
            return
        path = pathlib.Path(f"{arguments.name}.sbatch")
        if path.exists() and path.read_text() != text:
            raise UsageError(f"{path} exists and differs. Delete it, or choose another --name.")
        path.write_text(text)
        supervised.run([["sbatch", str(path)]], dry_run=False)


if __name__ == "__main__":
    main()
