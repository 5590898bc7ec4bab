"""Trains the points of a study as tasks of a Ray cluster.

Each task runs `experiments.sweep --point=NAME` for one point, with its evaluations. Ray places the
tasks on nodes with enough free CPU cores and GPUs and starts a task again if its node is lost; the
point then continues from its newest checkpoint. The nodes need the same project at the same path
and share the folder of the workdirs and the cache of prepared text.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from experiments.running.child_processes import StopRequests
from experiments.running.jobs import LOG_LINES, Outcome
from experiments.study.definition import Point
from experiments.study.loading import ROOT
from roberta_jax.data.cluster_executors import connected_to_ray
from roberta_jax.errors import UsageError

RETRIES = 3  # of a task whose node or worker is lost; Ray counts them
POLL_SECONDS = 1.0
OUTPUT_BYTES = 1 << 16  # of the end of a point's output that are kept
SWEEP = [sys.executable, "-m", "experiments.sweep"]  # in a test, another program


class RayRunner:
    """Runs points on the Ray cluster that is running here, or on a new one of this machine."""

    def __init__(
        self, study_arguments: Sequence[str], out: str, *, cpus: float = 1.0, gpus: float = 0.0
    ):
        """Prepares to run.

        Args:
          study_arguments: the command-line arguments that name the study.
          out: the folder of the workdirs, which all nodes share.
          cpus: CPU cores that a point needs.
          gpus: GPUs that a point needs; a fraction lets points share one.

        Raises:
          UsageError: Ray is not installed.
        """
        try:
            import ray
        except ImportError:
            raise UsageError(
                "--runner=ray needs Ray, which is not installed: pip install 'roberta_jax[ray]'"
            ) from None
        self._ray = ray
        self._arguments = [*study_arguments, f"--out={out}"]
        self._out = out
        self._cpus, self._gpus = cpus, gpus
        self._stop = StopRequests()

    @property
    def stop_signal(self) -> int | None:
        """The signal that asked to stop, SIGINT or SIGTERM; None if there was none."""
        return self._stop.signal

    def run(self, points: Sequence[Point]) -> Outcome:
        """Runs the points that are not finished.

        SIGTERM and Ctrl-C stop the tasks after they have saved checkpoints.

        Raises:
          UsageError: the cluster cannot be reached, or no node of it can run a point.
        """
        finished = [each for each in points if each.progress(self._out).finished]
        waiting = [each for each in points if each not in finished]
        if finished:
            print(f"{len(finished)} of {len(points)} points were finished before", flush=True)
        failed: list[Point] = []
        with self._stop, connected_to_ray():
            self._check_resources()
            train = self._ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=RETRIES)(
                _train
            )
            tasks = {
                train.remote(SWEEP, [*self._arguments, f"--point={point.name}"], str(ROOT)): point
                for point in waiting
            }
            cancelled = False
            while tasks:
                if self._stop and not cancelled:
                    cancelled = True
                    print("Stopping: waiting for the points to save checkpoints.", flush=True)
                    for task in tasks:
                        self._ray.cancel(task)
                done, _ = self._ray.wait(list(tasks), timeout=POLL_SECONDS)
                for task in done:
                    point = tasks.pop(task)
                    message = self._message(task)
                    if point.progress(self._out).finished:
                        finished.append(point)
                        waiting.remove(point)
                        print(f"finished {point}", flush=True)
                    elif not cancelled:
                        failed.append(point)
                        waiting.remove(point)
                        print(f"failed {point}: {message}", flush=True)
        lists = (finished, failed, [], waiting)
        return Outcome(*([point.name for point in each] for each in lists))

    def _check_resources(self) -> None:
        """Raises a UsageError where tasks would wait for ever."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(
            node.get("CPU", 0) >= self._cpus and node.get("GPU", 0) >= self._gpus for node in nodes
        ):
            most = {
                kind: max((node.get(kind, 0) for node in nodes), default=0)
                for kind in ("CPU", "GPU")
            }
            raise UsageError(
                f"no node of the Ray cluster has --cpus_per_point={self._cpus:g} and "
                f"--gpus_per_point={self._gpus:g}: a node has at most {most['CPU']:g} CPU cores "
                f"and {most['GPU']:g} GPUs."
            )

    def _message(self, task) -> str:
        """Why a task did not finish its point, with the end of its output."""
        try:
            status, output = self._ray.get(task)
        except Exception as error:  # Ray's, of a lost node or a cancelled task
            return str(error).strip().splitlines()[-1]
        shown = [f"    {line}" for line in output.splitlines()[-LOG_LINES:]]
        return "\n".join([f"status {status}; the end of its output:", *shown])


def _train(sweep: Sequence[str], arguments: Sequence[str], root: str) -> tuple[int, str]:
    """Runs a point on the node of a task, and returns the exit status and the output.

    A task that is cancelled gets KeyboardInterrupt; the point then saves a checkpoint.
    """
    paths = [root, os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*sweep, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            # Ray interrupts the main thread between two instructions, and not while it waits.
            while process.poll() is None:
                time.sleep(0.1)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
        output.seek(0, os.SEEK_END)
        output.seek(max(0, output.tell() - OUTPUT_BYTES))
        return process.returncode, output.read().decode("utf-8", "replace")
