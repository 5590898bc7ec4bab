"""Runs one job in a process of its own, and prints its records as JSON lines.

    python -m experiments.benchmarks.accelerator.child KIND ARGUMENTS

A process gives its memory back when it ends, and can be ended at its time limit. It ends when its
standard input does, so that no job outlives the command that started it.
"""

import importlib
import json
import os
import sys
import threading

# Kind of a job -> (module, function). The function takes `emit` and the job's arguments.
JOBS = {
    "machine": ("machine", "describe"),
    "attention": ("attention_checks", "check"),
    "bits": ("step_checks", "check_bits"),
    "embeddings": ("step_checks", "check_embeddings"),
    "model": ("model_checks", "check"),
    "jax": ("jax_step", "measure"),
    "torch": ("torch_step", "measure"),
}

# The last line: processes that a job leaves behind may keep the pipe open.
END = "\n"


def main() -> None:
    kind, arguments = sys.argv[1], json.loads(sys.argv[2])
    # What libraries print goes to the standard error.
    records = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def emit(record: dict) -> None:
        records.write(json.dumps(record, allow_nan=False) + "\n")
        records.flush()

    module, function = JOBS[kind]
    module = importlib.import_module(f"experiments.benchmarks.accelerator.{module}")
    getattr(module, function)(emit, **arguments)
    records.write(END)
    records.flush()


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
