"""Measures fine-tuning on a GLUE task against Hugging Face's Trainer, on the same model and data.

    python -m experiments.benchmarks.finetune --folder=glue/MRPC
    python -m experiments.benchmarks.finetune --folder=glue/MRPC --model=runs/small/hf
    python -m experiments.benchmarks.finetune --task=sst2 --folder=glue/SST-2

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
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

from experiments.benchmarks.arguments import positive
from experiments.benchmarks.sides import Side, peak_mb
from roberta_jax.errors import UsageError

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
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # what a child runs
    arguments = parser.parse_args()
    if arguments.side:
        if arguments.side == "ours":
            _ours(arguments)
        else:
            _trainer(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or _write_model(pathlib.Path(folder), arguments)
        print(json.dumps(_compare(model, arguments)))


def _compare(model: str, arguments: argparse.Namespace) -> dict:
    command = [sys.executable, "-m", "experiments.benchmarks.finetune", f"--model={model}"]
    command += [f"--{name}={getattr(arguments, name)}" for name in ("task", "folder", "unroll")]
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


def _ours(arguments: argparse.Namespace) -> None:
    from configs.finetune import get_config
    from roberta_jax.finetuning.job import Finetuning
    from roberta_jax.finetuning.prepare import prepare
    from roberta_jax.finetuning.spec import read_spec
    from roberta_jax.training.host_memory import kept_memory, use_one_heap
    from roberta_jax.training.state import create_state

    use_one_heap()  # as the command does
    with tempfile.TemporaryDirectory() as cache:
        config = get_config(arguments.task)
        config.init_from, config.data.folder = arguments.model, arguments.folder
        config.data.cache_dir = cache
        config.train.batch_size, config.eval.batch_size = BATCH, EVAL_BATCH
        config.format.max_length = LENGTH
        config.execution.scan_unroll = arguments.unroll
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
            state, metrics = job.train_step(state, next(batches))
            if pending is not None:
                float(pending["loss"])
            pending = metrics
        float(pending["loss"])

    def evaluate() -> None:
        job.evaluate(state.params, lambda: False)

    start = time.perf_counter()
    train(1)
    memory = contextlib.ExitStack()
    memory.enter_context(kept_memory())
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


def _trainer(arguments: argparse.Namespace) -> None:
    import os

    os.environ["USE_TF"] = "0"  # otherwise transformers imports TensorFlow if it is installed
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

    class Requests(transformers.TrainerCallback):
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
        options = transformers.TrainingArguments(
            output,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=EVAL_BATCH,
            max_steps=10**6,
            group_by_length=True,
            save_strategy="no",
            report_to=[],
            logging_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            transformers.RobertaForSequenceClassification.from_pretrained(
                arguments.model, num_labels=len(labels)
            ),
            options,
            train_dataset=dataset("train"),
            eval_dataset=dataset("validation"),
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda p: {"accuracy": float(np.mean(p[0].argmax(-1) == p[1]))},
            callbacks=[Requests()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    _answer(peak_mb=peak_mb())


if __name__ == "__main__":
    main()
