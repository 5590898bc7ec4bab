"""Small pretraining runs in forked processes, of which one can see what they are doing.

A process that has imported everything but has not started JAX forks the processes of the runs,
since starting Python would take most of the time. Each tells through a pipe which phase of a run it
has come to. Linux and macOS only.
"""

import atexit
import contextlib
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import random
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

OVERRIDES = {
    "seq_len": 16,
    "new_tokenizer.vocab_size": 320,
    "data.source": "files",
    "data.validation_fraction": 0.1,
    "data.num_workers": 1,
    "data.engine": "numpy",
    "model.hidden_size": 32,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 64,
    "model.hidden_dropout_prob": 0.1,
    "schedule.warmup_steps": 4,
    "train.steps": 60,
    "train.batch_size": 8,
    "train.log_every": 4,
    "train.eval_every": 7,
    "train.checkpoint_every": 10,
    "train.keep_every": 20,
    "eval.batch_size": 8,
    "distributed.start_timeout": 60.0,
    "distributed.heartbeat_timeout": 20.0,
}
PHASES = ("preparing", "compiling", "training", "evaluating", "saving", "exporting")
STORES = ("local", "objects")
BUCKET = "bucket"
TIMING = ("tokens_per_second", "mfu")


def write_corpus(path: pathlib.Path) -> None:
    """Writes 120 documents in which some words predict the next."""
    rng = random.Random(0)
    subjects, verbs = ["the cat", "a dog", "my friend", "that bird"], ["sees", "likes", "hears"]

    def sentence() -> str:
        words = f"{rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(subjects)}"
        return f"{words} {rng.randrange(99)} times."

    documents = [" ".join(sentence() for _ in range(rng.randint(2, 8))) for _ in range(120)]
    lines = [json.dumps({"text": text}) for text in documents]
    path.write_text("\n".join(lines) + "\n")


def import_everything() -> None:
    """Imports what a run imports, before forking. None of it starts JAX's backend."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import roberta_jax.pretrain
    import roberta_jax.pretraining.datasets
    import roberta_jax.pretraining.evaluation
    import roberta_jax.pretraining.text
    import roberta_jax.training.tensorboard
    import roberta_jax.weights.load
    import roberta_jax.weights.save  # noqa: F401


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the files of a run are.

    Attributes:
      folder: a local folder with the corpus and the logs.
      name: the name of the workdir.
      store: one of `STORES`: the workdir is in `folder`, or in a fake object store there, which
        allows neither appending nor renaming.
    """

    folder: pathlib.Path
    name: str
    store: str

    @property
    def root(self) -> pathlib.Path:
        """The folder of the objects."""
        return self.folder / "objects"

    @property
    def workdir(self) -> str:
        """As the run is told."""
        return f"gs://{BUCKET}/{self.name}" if self.store == "objects" else str(self.files)

    @property
    def files(self) -> pathlib.Path:
        """The files of the workdir, on this machine."""
        return (self.root / BUCKET if self.store == "objects" else self.folder) / self.name

    @property
    def cache(self) -> pathlib.Path:
        return self.folder / f"cache_{self.name}"

    @property
    def log(self) -> pathlib.Path:
        return self.folder / f"{self.name}.log"

    def printed(self) -> str:
        return self.log.read_text(errors="backslashreplace") if self.log.exists() else ""


class Running:
    """The processes of a run that was started with `start`.

    Attributes:
      phase: what the first process was at when it was looked at last, one of `PHASES`.
      statuses: the exit status of each process; negative if a signal ended it, None while it runs.
    """

    def __init__(self, children: list[int], pipe: int):
        self.phase = PHASES[0]
        self.statuses: list[int | None] = [None] * len(children)
        self._children, self._pipe = children, pipe

    def wait_for(self, phase: str, times: int, deadline: float) -> bool:
        """Waits until the phase has begun so many times; False if the run ends before."""
        count = int(phase == self.phase)
        while count < times and time.monotonic() < deadline and self.poll():
            count += sum(each == phase for each in self._read(0.05))
        return count >= times

    def look(self) -> str:
        """Returns the present phase."""
        self._read(0)
        return self.phase

    def _read(self, seconds: float) -> list[str]:
        ready, _, _ = select.select([self._pipe], [], [], seconds)
        data = os.read(self._pipe, 1 << 16) if ready else b""
        if ready and not data:
            time.sleep(0.01)  # closed
        phases = [PHASES[number] for number in data]
        if phases:
            self.phase = phases[-1]
        return phases

    def poll(self, process: int | None = None) -> bool:
        """Whether a process still runs, or any of them."""
        for number, child in enumerate(self._children):
            if self.statuses[number] is None:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    self.statuses[number] = os.waitstatus_to_exitcode(status)
        return None in (self.statuses if process is None else [self.statuses[process]])

    def send(self, number: int, process: int | None = None) -> None:
        """Sends a signal to one process, or to all."""
        for index, child in enumerate(self._children):
            if process in (None, index) and self.statuses[index] is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, number)

    def finish(self, seconds: float) -> bool:
        """Waits for the end; False, and it kills the processes, if it does not come in time."""
        deadline = time.monotonic() + seconds
        while self.poll():
            self._read(0.01)
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                while self.poll():
                    time.sleep(0.01)
                os.close(self._pipe)
                return False
        os.close(self._pipe)
        return True


def start(place: Place, processes: int, **overrides: object) -> Running:
    """Forks the processes of a run, which continues where the workdir is."""
    sys.stdout.flush()
    environment = {}
    if processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    reading, writing = os.pipe()
    children = []
    for index in range(processes):
        child = os.fork()
        if child == 0:
            os.close(reading)
            if processes > 1:
                os.environ |= environment | {"JAX_PROCESS_ID": str(index)}
            _run(place, processes, writing if index == 0 else None, overrides)
        children.append(child)
    os.close(writing)
    return Running(children, reading)


def _run(place: Place, processes: int, pipe: int | None, overrides: dict[str, object]) -> None:
    """The forked process's part: the command `pretrain`. It does not return."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        output = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        from roberta_jax import cli, pretrain

        if place.store == "objects":
            importlib.import_module("fsspec").config.conf.pop("gcs", None)  # of the real client
            importlib.import_module("tests.support.object_store").install(place.root)
        if pipe is not None:
            _tell_phases(lambda phase: os.write(pipe, bytes([PHASES.index(phase)])))
        values = OVERRIDES | {
            "data.files": place.folder / "corpus.jsonl",
            "data.cache_dir": place.cache,
            **overrides,
        }
        argv = ["pretrain", "--config=configs/pretrain.py:tiny", f"--workdir={place.workdir}"]
        argv += ["--distributed"] if processes > 1 else []
        argv += [f"--config.{key}={value}" for key, value in values.items()]
        sys.argv = argv  # the command's own, so that it also ends as the command does
        cli.run_config_job(pretrain.main, pretrain._flags)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()  # as the interpreter does: JAX leaves the other processes
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _tell_phases(tell: Callable[[str], object]) -> None:
    """Wraps what makes up a run, so that it tells when a phase begins.

    Checkpoints are written in the background: "saving" lasts until they are on disk.
    """
    from roberta_jax.pretraining import datasets, evaluation
    from roberta_jax.training import loop
    from roberta_jax.training.checkpoints import Checkpoints
    from roberta_jax.weights import save

    is_training = False

    def telling(owner: object, name: str, phase: str) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def call(*args, **kwargs):
            nonlocal is_training
            is_training = False
            tell(phase)
            return function(*args, **kwargs)

        setattr(owner, name, call)

    telling(datasets, "device_train_batches", "compiling")
    telling(evaluation.Evaluation, "__call__", "evaluating")
    telling(Checkpoints, "save", "saving")
    telling(save, "save_pretrained", "exporting")
    add = loop.Meter.add

    def add_a_step(*args) -> None:
        nonlocal is_training
        saving = any(thread.name == "save_finalize" for thread in threading.enumerate())
        if not (is_training or saving):
            is_training = True
            tell("training")
        add(*args)

    loop.Meter.add = add_a_step


def contents(workdir: pathlib.Path) -> dict[str, object]:
    """Everything about a finished run that must not depend on interruptions."""
    from roberta_jax.training.metrics import read_metrics

    # Where objects were deleted, the fake store leaves empty folders.
    metas = sorted((workdir / "checkpoints").glob("*/meta/metadata"))
    digests = {
        path.parts[-3]: json.loads(path.read_text())["leaves"]
        for path in metas
        if path.parts[-3].isdigit()
    }
    records = [
        {key: value for key, value in record.items() if key not in TIMING}
        for record in read_metrics(workdir)
    ]
    last = max(digests, key=int)
    files = {f"hf/{path.name}": path.read_bytes() for path in (workdir / "hf").iterdir()}
    return files | {
        "last checkpoint": (last, digests[last]),
        "milestones": {step: digests[step] for step in digests if _is_milestone(step)},
        "records": records,
        "tensorboard": tensorboard(workdir / "tensorboard"),
        "temporary files": [
            str(path.relative_to(workdir))
            for path in workdir.rglob("*")
            if path.is_file() and "tmp" in str(path.relative_to(workdir))
        ],
    }


def _is_milestone(step: str) -> bool:
    return int(step) % OVERRIDES["train.keep_every"] == 0


def tensorboard(folder: pathlib.Path) -> list[tuple[int, str, float]]:
    """What TensorBoard shows, without speeds: (step, name, value)."""
    from tensorboardX.proto import event_pb2

    from roberta_jax.training.tensorboard import _tf_records

    shown: list[tuple[int, str, float]] = []
    for path in sorted(folder.iterdir()):
        for data in _tf_records(path.read_bytes()):
            event = event_pb2.Event.FromString(data)
            if event.HasField("session_log"):
                shown = [each for each in shown if each[0] < event.step]
            shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return [each for each in shown if each[1] not in TIMING]
