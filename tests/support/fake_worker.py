"""Replaces `experiments.running.worker` in tests of the runner, and does what a test tells it to.

The environment variable FAKE_RUNS names a JSON file, which maps the name of a point to its
workdir, its number of steps, and what its first, second, ... process does: see `train`.
"""

import json
import os
import pathlib
import signal
import sys
import time

from experiments.running import worker


def train(name: str) -> None:
    """Does what the plan says for this process of the point.

    "fail" and "refuse" exit with status 1 and 2, "die" is killed, "busy" reports that another
    process holds the point, "stop" exits as if asked to stop, "wait" waits for SIGTERM, and a
    number is the seconds to work before the run is finished.
    """
    plan = json.loads(pathlib.Path(os.environ["FAKE_RUNS"]).read_text())[name]
    workdir = pathlib.Path(plan["workdir"])
    starts = workdir / "starts.jsonl"
    number = len(starts.read_text().splitlines()) if starts.exists() else 0
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    start = {"pid": os.getpid(), "at": time.monotonic(), "cores": cores}
    start["cache"] = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    _append(starts, start)
    action = plan["actions"][min(number, len(plan["actions"]) - 1)]
    print(f"start {number}: {action}", flush=True)
    records = [{"step": 1, "loss": 5.0}]
    (workdir / "metrics.jsonl").write_text(json.dumps(records[0]) + "\n")
    if action == "fail":
        print("\n".join(f"line {n}" for n in range(30)))
        sys.exit("error: the plan says fail")
    elif action == "refuse":
        print("error: the corpus is too small\n" + "\n".join(f"noise {n}" for n in range(30)))
        sys.exit(2)
    elif action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "busy":
        sys.exit(worker.BUSY)
    elif action == "stop":
        sys.exit(0)
    elif action == "wait":  # as training does, it saves and exits with 0 on SIGTERM
        signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), os._exit(0)))
        (workdir / "waits").touch()
        time.sleep(60)
    else:
        time.sleep(float(action))
        records.append({"step": plan["steps"], "eval_perplexity": 5.5, "finished": 1.0})
        (workdir / "hf").mkdir(exist_ok=True)
        (workdir / "hf" / "config.json").write_text("{}")
        text = "".join(json.dumps(record) + "\n" for record in records)
        (workdir / "metrics.jsonl").write_text(text)
        _append(workdir / "ends.jsonl", {"at": time.monotonic()})


def _append(path: pathlib.Path, record: dict) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    worker.end_with(int(os.environ[worker.PARENT]))
    task, *arguments = sys.argv[1:]
    if task == "evaluate":
        worker.evaluate(arguments[0], arguments[1:])
    (name,) = (each.removeprefix("--points=") for each in arguments if "--points=" in each)
    train(name)
