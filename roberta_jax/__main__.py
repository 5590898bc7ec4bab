"""The command `roberta-jax COMMAND ...`, which is also `python -m roberta_jax COMMAND ...`.

A command is a module that runs with `python -m`: `roberta-jax pretrain --config=...` does the same
as `python -m roberta_jax.pretrain --config=...`. Nothing heavy is imported before the command is
known.
"""

import difflib
import os
import runpy
import sys
from collections.abc import Sequence

from roberta_jax import __version__, project_files
from roberta_jax.training import preemption

# Command -> its module, and what `roberta-jax --help` says about it.
COMMANDS = {
    "prepare": (
        "roberta_jax.prepare",
        "Tokenize a corpus ahead of the training.",
    ),
    "pretrain": ("roberta_jax.pretrain", "Pretrain a model, or resume its training."),
    "finetune": ("roberta_jax.finetune", "Fine-tune a model on a task, or on your own files."),
    "predict": ("roberta_jax.predict", "Predict for a file with a fine-tuned model."),
    "plan": (
        "roberta_jax.plan",
        "Plan a run: memory, traffic and time on chips that need not be there.",
    ),
    "doctor": ("roberta_jax.doctor", "Check machines and file systems before a long run."),
    "launch": ("roberta_jax.launch", "Run a command, and restart it when it crashes."),
    "evaluate": ("roberta_jax.evaluate", "Score a trained model on text, or compare two models."),
    "fill-mask": ("roberta_jax.fill_mask", "Predict the masked words of texts."),
    "convert": ("roberta_jax.convert", "Convert weights between Hugging Face, Flax and fairseq."),
    "export": ("roberta_jax.export", "Export a model to StableHLO or a TensorFlow SavedModel."),
    "sweep": ("experiments.sweep", "Train the models of an ablation study."),
    "downstream": ("experiments.downstream", "Fine-tune a model on a task with several seeds."),
    "report": ("experiments.report", "Compare the results of a study: table, CSV and plots."),
    "plot-metrics": ("experiments.plot_metrics", "Plot the loss and perplexity of runs."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: The command and its arguments. Default: `sys.argv[1:]`.

    Returns:
      The exit status, unless the command exits itself.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help", "--version"):
        with preemption.checked_output():
            version = arguments and arguments[0] == "--version"
            print(f"roberta_jax {__version__}" if version else _usage())
        return 0
    name, available = arguments[0].replace("_", "-"), _available()
    if name not in available:
        print(f"error: unknown command {arguments[0]!r}{_advice(name, available)}", file=sys.stderr)
        return 2
    module, _ = COMMANDS[name]
    _make_importable(module)
    sys.argv = [name, *arguments[1:]]
    with preemption.interruptible_command("Stopping. Ctrl-C again quits at once."):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _available() -> list[str]:
    """Returns the commands whose module is installed; `experiments` can be missing."""
    root = project_files.project_root()
    return [
        name
        for name, (module, _) in COMMANDS.items()
        if module.startswith("roberta_jax.") or (root / f"{module.replace('.', '/')}.py").is_file()
    ]


def _make_importable(module: str) -> None:
    """Puts the project's root on the path of this process and its children, for `experiments`."""
    if module.startswith("roberta_jax."):
        return
    root = str(project_files.project_root())
    sys.path.insert(0, root)
    paths = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([root, paths] if paths else [root])


def _usage() -> str:
    lines = [f"  {name:<14} {COMMANDS[name][1]}" for name in _available()]
    return "\n".join(
        [
            "usage: roberta-jax COMMAND [ARGUMENTS]",
            "",
            "Pretrain, ablate and run RoBERTa models in JAX.",
            "",
            "Commands:",
            *lines,
            "",
            "roberta-jax COMMAND --help describes a command. python -m roberta_jax is the same as",
            "roberta-jax.",
        ]
    )


def _advice(name: str, available: Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, available, n=1)
    if matches:
        return f": did you mean {matches[0]}?"
    return f": the commands are {', '.join(available)}."


if __name__ == "__main__":
    sys.exit(main())
