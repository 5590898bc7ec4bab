"""Starts the processes of a small pretraining run, as users do on several hosts."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import time

from roberta_jax.training.metrics import read_metrics
from tests.support import processes, texts

_CONFIG = """
import os
import time

from tests.support import texts


def get_config():
    return texts.small_config({corpus!r}, {cache!r})


def change_step(number, change):
    from roberta_jax.pretraining import datasets

    batches = datasets.device_train_batches

    def changed(spec, dataset, step, **options):
        for at, batch in enumerate(batches(spec, dataset, step, **options), step + 1):
            if at == int(number):
                change()
            yield batch

    datasets.device_train_batches = changed


def fail():
    raise RuntimeError("a mistake in the program")


def refuse():
    from roberta_jax.errors import UsageError

    raise UsageError("the text cannot be used")


if "TEST_WAIT_AT" in os.environ:
    change_step(os.environ["TEST_WAIT_AT"], lambda: time.sleep(1000))
if "TEST_FAIL_AT" in os.environ:
    change_step(os.environ["TEST_FAIL_AT"], fail)
if "TEST_PREPARE" in os.environ:
    from roberta_jax.pretraining import text

    prepare = {{"wait": lambda: time.sleep(1000), "refuse": refuse}}[os.environ["TEST_PREPARE"]]
    text.prepare = lambda *arguments, **options: prepare()
if "TEST_SPIKE_AT" in os.environ:
    from roberta_jax.training.spikes import SpikeWatch

    check = SpikeWatch.check

    def check_changed(self, step, values):
        if step == int(os.environ["TEST_SPIKE_AT"]) and not self.rewinds:
            values = dict(values, loss=float("inf"))
        check(self, step, values)

    SpikeWatch.check = check_changed
if "TEST_OTHER_CODE" in os.environ:
    from roberta_jax.training import same_start

    same_start.code_digest = lambda: "0123456789abcdef"
"""


@dataclasses.dataclass
class Run:
    """The processes of one run; what they print goes to files.

    Attributes:
      processes: by process index, without those that were not started.
      logs: the files of stdout and stderr of each.
    """

    processes: dict[int, subprocess.Popen]
    logs: dict[int, tuple[pathlib.Path, pathlib.Path]]
    started: float

    def wait(self, timeout: float = 900) -> list[int | None]:
        """Waits until all have ended; returns their exit statuses, None of one that has not."""
        end = time.monotonic() + timeout
        for each in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.wait(max(0.0, end - time.monotonic()))
        return [each.poll() for each in self.processes.values()]

    def errors(self, index: int) -> str:
        return self.logs[index][1].read_text(errors="replace")

    def output(self, index: int) -> str:
        return self.logs[index][0].read_text(errors="replace")

    def kill(self) -> None:
        for each in self.processes.values():
            if each.poll() is None:
                each.kill()
                each.wait()

    def all_errors(self) -> str:
        return "\n".join(f"--- {i}\n{self.errors(i)[-3000:]}" for i in self.processes)


class Launcher:
    """Starts runs in a folder, and kills what is left of them at the end of a test."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.runs: list[Run] = []
        if not (folder / "corpus.jsonl").exists():
            texts.write_corpus(folder / "corpus.jsonl")
        self.config = folder / "small.py"
        self.config.write_text(
            _CONFIG.format(corpus=str(folder / "corpus.jsonl"), cache=str(folder / "cache"))
        )

    def start(
        self,
        workdir,
        count: int,
        *,
        devices: int = 1,
        only=None,
        each=None,
        cwd=None,
        variables=None,
        mode=None,
        port: int | None = None,
        **changes,
    ) -> Run:
        """Starts the processes.

        Args:
          workdir: of the run.
          count: the processes of the run.
          devices: CPU devices of each.
          only: the indices of the processes that are started; by default all.
          each: process index -> changes of the config of that process.
          cwd: process index -> its working directory.
          variables: process index -> more environment variables.
          mode: of `--distributed`.
          port: of the coordinator.
          **changes: dotted config keys with their values, and "workdir".
        """
        address = f"localhost:{port or processes.free_port()}"
        run = Run({}, {}, time.monotonic())
        self.runs.append(run)
        for index in range(count) if only is None else only:
            values = {"workdir": workdir, **changes, **((each or {}).get(index) or {})}
            flags = [f"--workdir={values.pop('workdir')}"]
            flags += [f"--distributed={mode}"] if mode else []
            flags += [f"--config.{key}={value}" for key, value in values.items()]
            env = processes.environment(devices, **(variables or {}).get(index, {}))
            env["PYTHONUNBUFFERED"] = "1"
            if count > 1:
                env |= {
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(index),
                }
            name = f"{pathlib.Path(workdir).name}.{len(self.runs)}.{index}"
            logs = (self.folder / f"{name}.out", self.folder / f"{name}.err")
            with logs[0].open("w") as out, logs[1].open("w") as err:
                run.processes[index] = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "roberta_jax.pretrain",
                        f"--config={self.config}",
                        *flags,
                    ],
                    env=env,
                    stdout=out,
                    stderr=err,
                    cwd=(cwd or {}).get(index, processes.ROOT),
                )
            run.logs[index] = logs
        return run

    def kill_all(self) -> None:
        for run in self.runs:
            run.kill()


def last_step(workdir) -> int:
    """The last step that has a record, or 0."""
    if not os.path.exists(pathlib.Path(workdir) / "metrics.jsonl"):
        return 0
    return max((record["step"] for record in read_metrics(workdir)), default=0)


def wait_for_step(run: Run, workdir, step: int, timeout: float = 900) -> None:
    """Waits until the run has recorded the step."""
    end = time.monotonic() + timeout
    while last_step(workdir) < step:
        assert all(each.poll() is None for each in run.processes.values()), run.all_errors()
        assert time.monotonic() < end, run.all_errors()
        time.sleep(0.02)


def losses(workdir) -> dict[int, float]:
    return {each["step"]: each["loss"] for each in read_metrics(workdir) if "loss" in each}
