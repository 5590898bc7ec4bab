"""A wrong call of a command."""

import dataclasses
import shlex

MODULES = {
    "roberta-jax": "roberta_jax.__main__",
    "pretrain": "roberta_jax.pretrain",
    "prepare": "roberta_jax.prepare",
    "evaluate": "roberta_jax.evaluate",
    "finetune": "roberta_jax.finetune",
    "predict": "roberta_jax.predict",
    "fill_mask": "roberta_jax.fill_mask",
    "convert": "roberta_jax.convert",
    "export": "roberta_jax.export",
    "plan": "roberta_jax.plan",
    "doctor": "roberta_jax.doctor",
    "launch": "roberta_jax.launch",
    "sweep": "experiments.sweep",
    "report": "experiments.report",
    "plot_metrics": "experiments.plot_metrics",
    "batch_pipeline": "experiments.benchmarks.batch_pipeline",
    "load_weights": "experiments.benchmarks.load_weights",
    "pack_rows": "experiments.benchmarks.pack_rows",
    "prepare_text": "experiments.benchmarks.prepare_text",
    "train_step": "experiments.benchmarks.train_step",
}


@dataclasses.dataclass(frozen=True)
class Call:
    """A call.

    Attributes:
      command: a key of `MODULES`.
      arguments: the command line. "{files}" stands for the folder of `wrong_files`, "{out}" for a
        path that does not exist.
      kind: what is wrong: "config value", "flags", "model", ...
      stdin: what the command can read from standard input.
      stdout: see `forked_runs.run`.
    """

    command: str
    arguments: tuple[str, ...]
    kind: str
    stdin: bytes = b""
    stdout: str | None = None

    def __str__(self) -> str:
        """The command line, as a shell takes it; long values are shortened."""
        arguments = [
            each if len(each) < 150 else f"{each[:60]}...({len(each)} characters)"
            for each in self.arguments
        ]
        text = f"{self.command} {shlex.join(arguments)}"
        text = text.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")
        if self.stdin:
            text += f" < {self.stdin[:20]!r}"
        return text + (f" > {self.stdout}" if self.stdout else "")
