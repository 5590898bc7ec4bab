"""Measures fine-tuning on a GLUE task against Hugging Face's Trainer, on the same model and data.

    python -m experiments.benchmarks.finetune --folder=glue/MRPC
    python -m experiments.benchmarks.finetune --folder=glue/MRPC --model=runs/small/hf
    python -m experiments.benchmarks.finetune --task=sst2 --folder=glue/SST-2
    python -m experiments.benchmarks.finetune --folder=glue/MRPC --model=runs/small/hf --whole

Both sides train on a task's texts, MRPC's pairs by default, in batches of 16 in float32 with AdamW
and evaluate on its validation examples. Both read the same folder with a model; without --model it
has 4 layers of width 256 (--size=base: RoBERTa base) with random weights and a tokenizer that is
trained on the training texts.

    ours     the batches and steps of `roberta_jax.finetune`
    trainer  transformers.Trainer with dynamic padding, group_by_length and its default fused AdamW

Each side is a process of its own, which gives its peak memory. They are measured in turn, some
steps and one evaluation each, so that other work on the machine affects both. Compilation is not
part of the times; it is reported. A ratio is the median over the rounds of (time of Trainer / time
of ours).

With --whole, each side trains --epochs epochs with each of --seeds seeds, with one recipe: AdamW
with decay 0.1 and betas 0.9 and 0.98, --learning_rate with a warmup of 6% and a linear decay. It
reports the accuracy on the validation examples after the last step, and the time of each process
with imports, tokenisation and compilation.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import numpy as np

from experiments.benchmarks.arguments import positive
from experiments.benchmarks.sides import Side, peak_mb
from roberta_jax.errors import UsageError

if TYPE_CHECKING:
    import transformers
    from ml_collections import ConfigDict

SIDES = ("ours", "trainer")
SIZES = {
    "small": {
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    "base": {},
}
BATCH, EVAL_BATCH, LENGTH = 16, 64, 128
TASK_NAMES = ("mrpc", "sst2", "rte", "qnli")
WARM_UP = 40  # steps, in which all lengths of batches are compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASK_NAMES, default="mrpc")
    parser.add_argument("--folder", required=True, help="folder with the task's official files")
    parser.add_argument("--model", help="folder of a model in Hugging Face's format")
    parser.add_argument("--size", choices=SIZES, default="small", help="without --model")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--steps", type=positive, default=20, help="steps of a side per round")
    parser.add_argument("--unroll", type=positive, default=1, help="execution.scan_unroll of ours")
    parser.add_argument("--whole", action="store_true", help="compare whole trainings")
    parser.add_argument("--epochs", type=positive, default=3, help="of a whole training")
    parser.add_argument("--seeds", type=positive, default=3, help="number of whole trainings")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="of a whole training")
    # What a child runs.
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        os.environ["USE_TF"] = "0"  # otherwise transformers imports TensorFlow if it is installed
        _CHILDREN[arguments.side, arguments.whole](arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or _write_model(pathlib.Path(folder), arguments)
        compare = _compare_whole if arguments.whole else _compare
        print(json.dumps(compare(model, arguments)))


def _command(model: str, arguments: argparse.Namespace, *names: str) -> list[str]:
    """The command of a child, with the values of some arguments."""
    command = [sys.executable, "-m", "experiments.benchmarks.finetune", f"--model={model}"]
    names = ("task", "folder", "unroll", *names)
    return [*command, *(f"--{name}={getattr(arguments, name)}" for name in names)]


def _compare_whole(model: str, arguments: argparse.Namespace) -> dict:
    command = [*_command(model, arguments, "epochs", "learning_rate"), "--whole"]
    seconds = {side: [] for side in SIDES}
    accuracies = {side: [] for side in SIDES}
    for seed in range(arguments.seeds):
        for side in SIDES:
            start = time.perf_counter()
            child = Side([*command, f"--side={side}", f"--seed={seed}"])
            seconds[side].append(round(time.perf_counter() - start, 1))
            accuracies[side].append(child.ready["accuracy"])
            child.ask("stop")
    labels = [label for *_, label in _examples(arguments)["validation"]]
    commonest = labels.count(statistics.mode(labels)) / len(labels)
    result = {"task": arguments.task, "model": arguments.model or arguments.size}
    result |= {"epochs": arguments.epochs, "commonest_label": round(commonest, 4)}
    for side in SIDES:
        result[f"{side}_accuracy"] = accuracies[side]
        result[f"{side}_accuracy_mean"] = round(statistics.mean(accuracies[side]), 4)
        result[f"{side}_s"] = seconds[side]
    ratios = [t / o for t, o in zip(seconds["trainer"], seconds["ours"], strict=True)]
    return result | {"times": round(statistics.median(ratios), 2)}


def _compare(model: str, arguments: argparse.Namespace) -> dict:
    command = _command(model, arguments)
    sides = {side: Side([*command, f"--side={side}"]) for side in SIDES}
    seconds = {(side, what): [] for side in SIDES for what in ("train", "evaluate")}
    for _ in range(arguments.rounds):
        for side, process in sides.items():
            seconds[side, "train"].append(process.ask(f"train {arguments.steps}")["seconds"])
            seconds[side, "evaluate"].append(process.ask("evaluate")["seconds"])
    ready = sides["ours"].ready
    result = {"task": arguments.task, "model": arguments.model or arguments.size}
    result["compilation_s"] = ready["compilation"]
    examples = {"train": BATCH * arguments.steps, "evaluate": ready["validation"]}
    for what, number in examples.items():
        for side in SIDES:
            rate = number / statistics.median(seconds[side, what])
            result[f"{what}_{side}_examples_per_s"] = round(rate, 1)
        ratios = [
            theirs / ours
            for theirs, ours in zip(seconds["trainer", what], seconds["ours", what], strict=True)
        ]
        result[f"{what}_times"] = round(statistics.median(ratios), 2)
        result[f"{what}_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
    result |= {f"{side}_peak_mb": round(sides[side].ask("stop")["peak_mb"]) for side in SIDES}
    return result


def _write_model(folder: pathlib.Path, arguments: argparse.Namespace) -> str:
    """A masked language model with random weights, and a tokenizer of the task's own words."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from roberta_jax.modeling.config import RobertaConfig
    from roberta_jax.modeling.heads import RobertaForMaskedLM
    from roberta_jax.tokenizer import RobertaTokenizer
    from roberta_jax.weights.save import save_pretrained

    texts = [text for each in _examples(arguments)["train"] for text in each[:2] if text]
    tokenizer = RobertaTokenizer.train(texts, vocab_size=8192)
    config = RobertaConfig.base(vocab_size=len(tokenizer), **SIZES[arguments.size])
    model = RobertaForMaskedLM(config)
    params = nn.unbox(model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    save_pretrained(folder / "model", model, params, tokenizer)
    return str(folder / "model")


def _examples(arguments: argparse.Namespace) -> dict[str, list[tuple[str, str | None, str]]]:
    from roberta_jax.tasks.loading import load_split
    from roberta_jax.tasks.table import TASKS

    return {
        split: [
            (each.text_a, each.text_b, each.label)
            for each in load_split(TASKS[arguments.task], split, folder=arguments.folder)
        ]
        for split in ("train", "validation")
    }


def _answer(**values: float) -> None:
    print(json.dumps(values), flush=True)


def _config_of_ours(arguments: argparse.Namespace, cache: str) -> "ConfigDict":
    from configs.finetune import get_config

    config = get_config(arguments.task)
    config.init_from, config.data.folder = arguments.model, arguments.folder
    config.data.cache_dir = cache
    config.train.batch_size, config.eval.batch_size = BATCH, EVAL_BATCH
    config.format.max_length = LENGTH
    config.execution.scan_unroll = arguments.unroll
    return config


def _whole_of_ours(arguments: argparse.Namespace) -> None:
    from roberta_jax.finetune import finetune
    from roberta_jax.training.host_memory import use_one_heap

    use_one_heap()  # as the command does
    with tempfile.TemporaryDirectory() as folder:
        config = _config_of_ours(arguments, f"{folder}/cache")
        config.seed, config.train.epochs = arguments.seed, float(arguments.epochs)
        config.optimizer.learning_rate = arguments.learning_rate
        config.train.eval_every = 10**9  # once, after the last step
        with contextlib.redirect_stdout(sys.stderr):
            result = finetune(config, f"{folder}/run")
    _answer(accuracy=round(result.metrics["eval_accuracy"], 4))
    _stopped()


def _ours(arguments: argparse.Namespace) -> None:
    from roberta_jax.finetuning.job import Finetuning
    from roberta_jax.finetuning.prepare import prepare
    from roberta_jax.finetuning.spec import read_spec
    from roberta_jax.training.host_memory import KeptMemory, use_one_heap
    from roberta_jax.training.state import create_state

    use_one_heap()  # as the command does
    with tempfile.TemporaryDirectory() as cache:
        config = _config_of_ours(arguments, cache)
        config.train.epochs = 1000.0
        spec = read_spec(config)
        prepared = prepare(spec)
    run = Finetuning(spec, spec.training(prepared.train.features.num_rows), prepared, None)
    job, training = run.job(), run.training
    with contextlib.redirect_stdout(sys.stderr):
        params = job.pretrained_params()
    state = create_state(
        job.init_params, training.optimizer, training.mesh, params, rules=training.rules
    )
    del params
    batches = job.batches(0)
    pending = None

    def train(steps: int) -> None:
        """As the loop does it: the loss of a step is read after the next one was dispatched."""
        nonlocal state, pending
        for _ in range(steps):
            batch = next(batches)
            with memory.running(batch["input_ids"].shape):
                state, metrics = job.train_step(state, batch)
            if pending is not None:
                float(pending["loss"])
            pending = metrics
        float(pending["loss"])

    def evaluate() -> None:
        with memory.running("evaluate"):
            job.evaluate(state.params, lambda: False)

    memory = KeptMemory()
    start = time.perf_counter()
    train(WARM_UP)
    evaluate()
    first = time.perf_counter() - start
    start = time.perf_counter()
    train(WARM_UP)
    evaluate()
    compilation = max(0.0, first - (time.perf_counter() - start))
    _answer(compilation=round(compilation, 1), validation=len(prepared.validation.examples))
    for line in sys.stdin:
        request, *steps = line.split()
        if request == "stop":
            break
        start = time.perf_counter()
        train(int(steps[0])) if steps else evaluate()
        _answer(seconds=time.perf_counter() - start)
    memory.close()
    batches.close()
    _answer(peak_mb=peak_mb())


def _new_trainer(arguments: argparse.Namespace, output: str, **options) -> "transformers.Trainer":
    """Trainer, with some of its TrainingArguments."""
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        import accelerate  # noqa: F401
    except ImportError:
        raise UsageError("transformers' Trainer needs accelerate: pip install accelerate") from None
    examples = _examples(arguments)
    labels = sorted({label for *_, label in examples["train"]})
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)

    def dataset(split: str) -> list[dict]:
        first, second, names = zip(*examples[split], strict=True)
        pairs = [list(texts) for texts in (first, second) if texts[0] is not None]
        encoded = tokenizer(*pairs, truncation=True, max_length=LENGTH)
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": labels.index(name)}
            for ids, mask, name in zip(
                encoded["input_ids"], encoded["attention_mask"], names, strict=True
            )
        ]

    transformers.set_seed(options.get("seed", 0))
    trainer = transformers.Trainer(
        transformers.RobertaForSequenceClassification.from_pretrained(
            arguments.model, num_labels=len(labels)
        ),
        transformers.TrainingArguments(
            output,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=EVAL_BATCH,
            group_by_length=True,
            save_strategy="no",
            report_to=[],
            logging_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            **options,
        ),
        train_dataset=dataset("train"),
        eval_dataset=dataset("validation"),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float(np.mean(p[0].argmax(-1) == p[1]))},
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _whole_of_trainer(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as output:
        trainer = _new_trainer(
            arguments,
            output,
            seed=arguments.seed,
            num_train_epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            warmup_ratio=0.06,
            weight_decay=0.1,
            adam_beta2=0.98,
            adam_epsilon=1e-6,
            max_grad_norm=0.0,
        )
        trainer.train()
        _answer(accuracy=round(trainer.evaluate()["eval_accuracy"], 4))
    _stopped()


def _trainer(arguments: argparse.Namespace) -> None:
    from transformers import TrainerCallback

    class Requests(TrainerCallback):
        """Pauses the training between requests."""

        def __init__(self):
            self.left, self.started = WARM_UP, 0.0

        def on_step_begin(self, args, state, control, **_):
            if self.left > 0:
                self.left -= 1
                return None
            if self.started:
                _answer(seconds=time.perf_counter() - self.started)
            else:
                trainer.evaluate()
                _answer(ready=1)
            for line in sys.stdin:
                request, *steps = line.split()
                if request == "stop":
                    control.should_training_stop = True
                    self.left = 10**9
                    return control
                self.started = time.perf_counter()
                if steps:
                    self.left = int(steps[0]) - 1
                    return None
                trainer.evaluate()
                _answer(seconds=time.perf_counter() - self.started)
            return control

    with tempfile.TemporaryDirectory() as output:
        trainer = _new_trainer(arguments, output, max_steps=10**6)
        trainer.add_callback(Requests())
        trainer.train()
    _answer(peak_mb=peak_mb())


def _stopped() -> None:
    sys.stdin.readline()
    _answer(peak_mb=peak_mb())


_CHILDREN = {
    ("ours", False): _ours,
    ("ours", True): _whole_of_ours,
    ("trainer", False): _trainer,
    ("trainer", True): _whole_of_trainer,
}


if __name__ == "__main__":
    main()
