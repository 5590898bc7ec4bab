"""Commands that run the points of a study on a Slurm cluster, a TPU pod or this machine."""

import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence

from experiments.study.loading import ROOT

MODULE = ["-m", "experiments.sweep"]


def local_commands(arguments: Sequence[str], names: Sequence[str]) -> str:
    """Returns a command for each point, for this machine.

    Args:
      arguments: the arguments of `experiments.sweep` that name the study and --out.
      names: the names of the points.
    """
    lines = [_point_command([sys.executable], arguments, name) for name in names]
    return "\n".join([*_enter_folder(), *lines])


def slurm_script(arguments: Sequence[str], names: Sequence[str]) -> str:
    """Returns a script for `sbatch`: an array job with one task for each point.

    Slurm sends SIGTERM two minutes before a task's time ends, so that training can save a
    checkpoint. Arguments as in `local_commands`.
    """
    prepare = shlex.join([sys.executable, *MODULE, *arguments, "--prepare"])
    command = shlex.join([sys.executable, *MODULE, *arguments])
    return "\n".join(
        [
            "#!/bin/bash",
            "#SBATCH --job-name=sweep",
            f"#SBATCH --array=0-{len(names) - 1}",
            "#SBATCH --output=slurm-%x-%A_%a.txt",
            "#SBATCH --open-mode=append",
            "#SBATCH --requeue",
            "#SBATCH --signal=B:TERM@120",
            "# First prepare the text, once, on a machine that shares the cache with all tasks:",
            *_comment(prepare),
            "# Then submit this script with the resources that a task needs:",
            "#   sbatch --time=24:00:00 --cpus-per-task=8 --gres=gpu:1 sweep.sbatch",
            "# Submit it again to continue the points that are not finished.",
            "points=(",
            *(f"  {shlex.quote(name)}" for name in names),
            ")",
            *_enter_folder(" || exit 1"),
            f'exec {command} "--point=${{points[$SLURM_ARRAY_TASK_ID]}}"',
        ]
    )


def tpu_commands(arguments: Sequence[str], names: Sequence[str]) -> str:
    """Returns a command for each point that trains it on all hosts of a TPU pod, one by one.

    Arguments as in `local_commands`.
    """
    ssh = 'gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" --worker=all'
    lines = []
    for name in names:
        command = _point_command(["python3"], [*arguments, "--distributed"], name)
        lines.append(f"{ssh} --command={shlex.quote(f'cd ~/roberta_jax && {command}')}")
    head = [
        "# Every host of the pod needs a clone in ~/roberta_jax, with the package installed, and",
        "# the text and the cache of prepared text under the same paths.",
        ': "${TPU_NAME:?the name of the TPU}" "${TPU_ZONE:?its zone}"',
    ]
    return "\n".join(head + lines)


PRINTERS: dict[str, Callable[[Sequence[str], Sequence[str]], str]] = {
    "slurm": slurm_script,
    "tpu": tpu_commands,
    "local": local_commands,
}


def _point_command(interpreter: Sequence[str], arguments: Sequence[str], name: str) -> str:
    return shlex.join([*interpreter, *MODULE, *arguments, f"--point={name}"])


def _enter_folder(otherwise: str = "") -> list[str]:
    """Returns lines that enter the current folder, from which relative paths are, and find ROOT."""
    here = pathlib.Path.cwd()
    lines = [f"cd {shlex.quote(str(here))}{otherwise}"]
    if here != ROOT:
        lines.append(f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}")
    return lines


def _comment(command: str) -> list[str]:
    return [f"#   {line}" for line in command.splitlines()]
