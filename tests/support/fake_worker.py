"""In place of `experiments.worker` in tests of the runner: trains nothing, and ends as told.

The variable FAKE_RUNS names a JSON file: for each point's number its workdir, its steps, and what
its processes do one after the other.
"""

import json
import os
import pathlib
import signal
import sys
import time

from experiments import worker


def train(number: str) -> None:
    plan = json.loads(pathlib.Path(os.environ["FAKE_RUNS"]).read_text())[number]
    workdir = pathlib.Path(plan["workdir"])
    starts = workdir / "starts.jsonl"
    times = len(starts.read_text().splitlines()) if starts.exists() else 0
    with open(starts, "a") as file:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        start = {"pid": os.getpid(), "at": time.time(), "cores": cores}
        start["cache"] = os.environ.get("JAX_COMPILATION_CACHE_DIR")
        file.write(json.dumps(start) + "\n")
    doing = plan["doing"][min(times, len(plan["doing"]) - 1)]
    print(f"start {times}: {doing}", flush=True)
    records = [{"step": 1, "loss": 5.0}]
    (workdir / "metrics.jsonl").write_text(json.dumps(records[0]) + "\n")
    if doing == "fail":
        print("\n".join(f"line {n}" for n in range(30)))
        sys.exit("error: so it must be")
    elif doing == "refuse":
        print("error: the corpus is too small\n" + "\n".join(f"noise {n}" for n in range(30)))
        sys.exit(2)
    elif doing == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif doing == "busy":
        sys.exit(worker.BUSY)
    elif doing == "stop":
        sys.exit(0)
    elif doing == "wait":  # for a request to stop, as training does
        signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), os._exit(0)))
        (workdir / "waits").touch()
        time.sleep(60)
    else:
        time.sleep(float(doing))
        records.append({"step": plan["steps"], "eval_perplexity": 5.5, "finished": 1.0})
        (workdir / "hf").mkdir(exist_ok=True)
        (workdir / "hf" / "config.json").write_text("{}")
        text = "".join(json.dumps(record) + "\n" for record in records)
        (workdir / "metrics.jsonl").write_text(text)


if __name__ == "__main__":
    worker.end_with(int(os.environ[worker.PARENT]))
    task, *rest = sys.argv[1:]
    if task == "evaluate":
        worker.evaluate(rest[0], rest[1:])
    (number,) = (part.removeprefix("--points=") for part in rest if part.startswith("--points="))
    train(number)
