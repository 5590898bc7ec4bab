"""Commands that run the points of a study on Slurm, Kubernetes, a TPU pod or this machine."""

import dataclasses
import hashlib
import json
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from experiments.study.loading import ROOT
from roberta_jax.errors import UsageError
from roberta_jax.storage.atomic import is_local

MODULE = ["-m", "experiments.sweep"]
RETRIES = 3  # of a point on Kubernetes whose container was killed
KEPT_HOURS = 24  # of a Job of Kubernetes and its logs, after its end


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a point gets on a cluster.

    Attributes:
      cpus: CPU cores; None leaves it to the scheduler. Slurm takes whole numbers only.
      gpus: GPUs; None as well. Slurm and Kubernetes take whole numbers only.
      processes: how many points may run at a time.
      image: of the container, for Kubernetes.
      volume: CLAIM:PATH, a persistent volume claim of Kubernetes and where it is mounted.
    """

    cpus: float | None = None
    gpus: float | None = None
    processes: int = 1
    image: str | None = None
    volume: str | None = None


def local_commands(
    arguments: Sequence[str], names: Sequence[str], resources: Resources = Resources()
) -> str:
    """Returns a command for each point, for this machine.

    Args:
      arguments: the arguments of `experiments.sweep` that name the study and --out.
      names: the names of the points.
      resources: has no effect here.
    """
    lines = [_point_command([sys.executable], arguments, name) for name in names]
    return "\n".join([*_enter_folder(), *lines])


def slurm_script(
    arguments: Sequence[str], names: Sequence[str], resources: Resources = Resources()
) -> str:
    """Returns a script for `sbatch`: an array job with one task for each point.

    Slurm sends SIGTERM two minutes before a task's time ends, so that training can save a
    checkpoint. Arguments as in `local_commands`; `resources` says what a task asks for, and with
    several processes how many tasks run at a time.

    Raises:
      UsageError: the number of CPU cores or GPUs is not a whole number.
    """
    needs = {
        "cpus-per-task": _whole(resources.cpus, "--cpus_per_point", "Slurm"),
        "gpus-per-task": _whole(resources.gpus, "--gpus_per_point", "Slurm"),
    }
    limit = f"%{resources.processes}" if resources.processes > 1 else ""
    prepare = shlex.join([sys.executable, *MODULE, *arguments, "--prepare"])
    command = shlex.join([sys.executable, *MODULE, *arguments])
    return "\n".join(
        [
            "#!/bin/bash",
            "#SBATCH --job-name=sweep",
            f"#SBATCH --array=0-{len(names) - 1}{limit}",
            "#SBATCH --ntasks=1",  # of each element of the array; --gpus-per-task requires it
            *(f"#SBATCH --{name}={number}" for name, number in needs.items() if number),
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


def kubernetes_job(
    arguments: Sequence[str], names: Sequence[str], resources: Resources = Resources()
) -> str:
    """Returns an indexed Job for `kubectl apply -f`, as JSON, with a container for each point.

    A point whose container is killed, or whose node is lost or preempted, is started again and
    continues from its newest checkpoint; one that fails is not. The Job has a name of its own for
    each study, --out and selection of points, and is deleted `KEPT_HOURS` after its end. Arguments
    as in `local_commands`.

    Raises:
      UsageError: the image is missing, the folder of the workdirs is in no volume, or the number of
        GPUs is not a whole number.
    """
    if not resources.image:
        raise UsageError("--print=k8s needs the container's image: --image=REGISTRY/NAME:TAG")
    out = next(each for each in arguments if each.startswith("--out=")).removeprefix("--out=")
    claim, _, path = (resources.volume or "").partition(":")
    if resources.volume and not (claim and path.startswith("/")):
        raise UsageError(f"--volume={resources.volume} is not CLAIM:/PATH")
    if is_local(out) and not (path and pathlib.PurePath(out).is_relative_to(path)):
        raise UsageError(
            f"--out={out} is lost with the container. Give a folder on an object store "
            "(--out=gs://...), or one in a volume that all nodes share (--volume=CLAIM:/PATH and "
            "--out=/PATH/...)."
        )
    script = (
        f"points=({shlex.join(names)})\nexec {shlex.join(['roberta-jax', 'sweep', *arguments])} "
    )
    container = {
        "name": "point",
        "image": resources.image,
        "command": ["bash", "-c", script + '"--point=${points[$JOB_COMPLETION_INDEX]}"'],
    }
    gpus = _whole(resources.gpus, "--gpus_per_point", "Kubernetes")
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    requests = {"cpu": f"{resources.cpus:g}"} if resources.cpus else {}
    if limits or requests:
        container["resources"] = {"limits": limits, "requests": requests}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,  # to save a checkpoint
        "containers": [container],
    }
    if resources.volume:
        container["volumeMounts"] = [{"name": "runs", "mountPath": path}]
        pod["volumes"] = [{"name": "runs", "persistentVolumeClaim": {"claimName": claim}}]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": _job_name(arguments, names),
            "annotations": {"kubernetes.io/description": kubernetes_note(arguments, names)},
        },
        "spec": {
            "ttlSecondsAfterFinished": KEPT_HOURS * 3600,
            "completionMode": "Indexed",
            "completions": len(names),
            "parallelism": min(resources.processes, len(names)),
            "backoffLimitPerIndex": RETRIES,
            "maxFailedIndexes": len(names),
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                    {
                        "action": "FailIndex",
                        "onExitCodes": {"operator": "In", "values": [1, 2]},
                    },
                ]
            },
            "template": {"spec": pod},
        },
    }
    return json.dumps(job, indent=2)


def kubernetes_note(arguments: Sequence[str], names: Sequence[str]) -> str:
    """Returns what to do before the Job of `kubernetes_job` is applied, and to continue it."""
    prepare = shlex.join(["roberta-jax", "sweep", *arguments, "--prepare"])
    return (
        "First prepare the text, once, on a machine that shares the cache of prepared text with "
        f"the points: {prepare}\n"
        "To continue points that are not finished after the Job has ended, delete it with "
        f"`kubectl delete job {_job_name(arguments, names)}` and apply it again. Kubernetes "
        f"deletes it by itself {KEPT_HOURS} hours after its end."
    )


def tpu_commands(
    arguments: Sequence[str], names: Sequence[str], resources: Resources = Resources()
) -> str:
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


SCHEDULERS = ("slurm", "k8s")  # those that read `Resources`

NOTES = {"k8s": kubernetes_note}  # printed on stderr; the others are comments in what is printed

PRINTERS: dict[str, Callable[[Sequence[str], Sequence[str], Resources], str]] = {
    "slurm": slurm_script,
    "k8s": kubernetes_job,
    "tpu": tpu_commands,
    "local": local_commands,
}


def _whole(number: float | None, option: str, scheduler: str) -> int | None:
    if number is not None and number != int(number):
        raise UsageError(
            f"{option}={number:g}: {scheduler} gives out whole ones only. Give a whole number; "
            "parts of one are for --runner=ray."
        )
    return None if number is None else int(number)


def _job_name(arguments: Sequence[str], names: Sequence[str]) -> str:
    """A name for Kubernetes: of a study, and different for each --out and selection of points."""
    study = pathlib.PurePath(arguments[0]).name.replace(".py", "")
    words = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")[:32].strip("-")
    digest = hashlib.sha256(json.dumps([list(arguments), list(names)]).encode()).hexdigest()
    return "-".join(part for part in ("sweep", words, digest[:8]) if part)


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
