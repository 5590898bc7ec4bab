"""Prints the commands that run a study's points on a cluster, on a TPU pod, or here."""

import shlex
import sys
from collections.abc import Callable, Sequence

from experiments.study_files import ROOT

MODULE = ["-m", "experiments.sweep"]


def local(arguments: Sequence[str], names: Sequence[str]) -> str:
    """A line a point, for this machine."""
    lines = [_point([sys.executable], arguments, name) for name in names]
    return "\n".join([f"cd {shlex.quote(str(ROOT))}", *lines])


def slurm(arguments: Sequence[str], names: Sequence[str]) -> str:
    """A script for `sbatch`: an array with a task a point, told to stop in time to save."""
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
            "# Prepare the text once, on a machine that all tasks share the cache with:",
            *_comment(prepare),
            "# Then submit this file, with what a task needs:",
            "#   sbatch --time=24:00:00 --cpus-per-task=8 --gres=gpu:1 sweep.sbatch",
            "# The same again goes on with what is not finished.",
            "points=(",
            *(f"  {shlex.quote(name)}" for name in names),
            ")",
            f"cd {shlex.quote(str(ROOT))} || exit 1",
            f'exec {command} "--point=${{points[$SLURM_ARRAY_TASK_ID]}}"',
        ]
    )


def tpu(arguments: Sequence[str], names: Sequence[str]) -> str:
    """A line a point, that starts it on all hosts of a TPU pod and waits for its end."""
    ssh = 'gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" --worker=all'
    lines = []
    for name in names:
        command = _point(["python3"], [*arguments, "--distributed"], name)
        lines.append(f"{ssh} --command={shlex.quote(f'cd ~/roberta_jax && {command}')}")
    head = [
        "# Each host of the pod has a clone in ~/roberta_jax, with the package installed, and sees",
        "# the text and the cache of prepared text under the same names.",
        ': "${TPU_NAME:?the name of the TPU}" "${TPU_ZONE:?its zone}"',
    ]
    return "\n".join(head + lines)


PRINTERS: dict[str, Callable[[Sequence[str], Sequence[str]], str]] = {
    "slurm": slurm,
    "tpu": tpu,
    "local": local,
}


def _point(interpreter: Sequence[str], arguments: Sequence[str], name: str) -> str:
    return shlex.join([*interpreter, *MODULE, *arguments, f"--point={name}"])


def _comment(command: str) -> list[str]:
    return [f"#   {line}" for line in command.splitlines()]
