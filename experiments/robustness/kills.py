"""Kills and stops a small run at random moments, and compares the end with an uninterrupted run.

    python -m experiments.robustness.kills --kills=40 --out=/tmp/kills

Each workdir is interrupted a few times, by SIGKILL, SIGTERM, Ctrl-C, or Ctrl-C twice, and then runs
to its end. The weights, all other exported files, the digests of the last checkpoint (with the
optimizer's state), the records in metrics.jsonl and the values in TensorBoard's files must be those
of the uninterrupted run, bit by bit; only speeds may differ. No run may print a traceback.

The processes are forked from one that has imported everything but has not started JAX, since
starting Python would take most of the time. Linux and macOS only.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import sys
import time

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
    "train.steps": 120,
    "train.batch_size": 8,
    "train.log_every": 4,
    "train.eval_every": 7,
    "train.checkpoint_every": 10,
    "eval.batch_size": 8,
}
TIMING = ("tokens_per_second", "mfu")
KINDS = {
    "SIGKILL": [signal.SIGKILL],
    "SIGTERM": [signal.SIGTERM],
    "Ctrl-C": [signal.SIGINT],
    "Ctrl-C twice": [signal.SIGINT, signal.SIGINT],
}
# The exit statuses that each may give; a negative one is that of a signal. 0: it had finished.
STATUSES = {
    "SIGKILL": {-signal.SIGKILL, 0},
    "SIGTERM": {143, -signal.SIGTERM, 0},
    "Ctrl-C": {130, 0},
    "Ctrl-C twice": {130, -signal.SIGINT, 0},
}


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


def start(folder: pathlib.Path, workdir: pathlib.Path, log: pathlib.Path) -> int:
    """Forks a process that runs the command `pretrain`; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        from roberta_jax import cli, pretrain

        values = OVERRIDES | {
            "data.files": folder / "corpus.jsonl",
            "data.cache_dir": folder / f"cache_{workdir.name}",
        }
        argv = ["pretrain", "--config=configs/pretrain.py:tiny", f"--workdir={workdir}"]
        argv += [f"--config.{key}={value}" for key, value in values.items()]
        cli.run_config_job(pretrain.main, pretrain._flags, argv)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child: int) -> int:
    """Returns the exit status; negative if a signal ended the process."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def interrupt(child: int, kind: str, delay: float) -> int:
    """Sends the signals of a kind after a delay; returns the exit status."""
    time.sleep(delay)
    for number in KINDS[kind]:
        try:
            os.kill(child, number)
        except ProcessLookupError:
            break
        time.sleep(0.02)
    return wait(child)


def contents(workdir: pathlib.Path) -> dict[str, object]:
    """Everything about a finished run that must not depend on interruptions."""
    from roberta_jax.training.metrics import read_metrics

    last = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    meta = json.loads((last / "meta" / "metadata").read_text())
    records = [
        {key: value for key, value in record.items() if key not in TIMING}
        for record in read_metrics(workdir)
    ]
    files = {f"hf/{path.name}": path.read_bytes() for path in (workdir / "hf").iterdir()}
    return files | {
        "checkpoint": (last.name, meta["leaves"]),
        "records": records,
        "tensorboard": tensorboard(workdir / "tensorboard"),
        "temporary files": [str(path) for path in workdir.rglob("*tmp*")],
    }


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


def phase(log: pathlib.Path, workdir: pathlib.Path, before: int) -> str:
    """What the interrupted process was doing, by what it had printed."""
    printed = log.read_text()[before:]
    if (workdir / "hf").exists():
        return "after the export"
    if "Compiled" in printed:
        return "training, evaluating or saving"
    if "Compiling" in printed:
        return "compiling"
    return "starting or preparing text"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--per_workdir", type=int, default=5, help="interruptions of each workdir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="a new folder")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.out).absolute()
    folder.mkdir(parents=True)
    write_corpus(folder / "corpus.jsonl")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Imported before forking; none of them starts JAX's backend.
    import roberta_jax.pretrain
    import roberta_jax.pretraining.evaluation
    import roberta_jax.pretraining.text
    import roberta_jax.training.tensorboard
    import roberta_jax.weights.load
    import roberta_jax.weights.save  # noqa: F401

    rng = random.Random(arguments.seed)
    for warm_up in (True, False):  # the first one also fills the cache of compiled programs
        workdir = folder / f"straight_{warm_up}"
        began = time.monotonic()
        assert wait(start(folder, workdir, folder / "straight.log")) == 0
        duration = time.monotonic() - began
    expected = contents(workdir)
    print(f"an uninterrupted run takes {duration:.1f} s", flush=True)

    rows: collections.Counter = collections.Counter()
    wrong: list[str] = []
    done = number = 0
    while done < arguments.kills:
        number += 1
        workdir, log = folder / f"run_{number}", folder / f"run_{number}.log"
        log.touch()
        for _ in range(arguments.per_workdir):
            kind = list(KINDS)[done % len(KINDS)]
            before = len(log.read_text())
            child = start(folder, workdir, log)
            status = interrupt(child, kind, rng.uniform(0.02, 0.8) * duration)
            if status not in STATUSES[kind]:
                wrong.append(f"{workdir.name}: {kind} gave status {status}")
            if status == 0:  # it ended before the signal
                break
            rows[kind, phase(log, workdir, before), status] += 1
            done += 1
        status = wait(start(folder, workdir, log))
        if status:
            wrong.append(f"{workdir.name}: the last run ended with status {status}")
            continue
        found = contents(workdir)
        wrong += [
            f"{workdir.name}: {key} differs"
            for key in sorted(found.keys() | expected.keys())
            if found.get(key) != expected.get(key)
        ]
        if "Traceback" in log.read_text():
            wrong.append(f"{workdir.name}: a traceback")
        print(f"{done} interruptions, {len(wrong)} differences", flush=True)

    print("\n| signal | the run was | exit status | times |\n|---|---|---|---|")
    for (kind, where, status), times in sorted(rows.items()):
        print(f"| {kind} | {where} | {status} | {times} |")
    print(f"\n{done} interruptions of {number} runs; differences from the uninterrupted run:")
    print("\n".join(wrong) or "none")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
