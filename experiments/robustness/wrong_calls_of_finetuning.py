"""Wrong calls of `finetune` and `predict`: wrong values, files, models and workdirs."""

from collections.abc import Iterator

from configs.finetune import get_config
from experiments.robustness.wrong_call import Call
from experiments.robustness.wrong_calls_of_configs import bad_values
from experiments.robustness.wrong_calls_of_tools import BAD_FOLDERS, BAD_MODELS, BAD_TOKENIZERS

# A run of two steps on a small table, from a small model.
SMALL = {
    "init_from": "{files}/run",
    "data.train": "{files}/reviews.csv",
    "data.validation": "0.2",
    "data.cache_dir": "{files}/cache",
    "data.num_lengths": 1,
    "train.epochs": "none",
    "train.steps": 2,
    "train.batch_size": 4,
    "eval.batch_size": 8,
}
_TABLES = (
    "no-such-file.csv", "{files}/full-folder", "{files}/loop", "{files}/corpus.txt", "/dev/null",
    "{files}/broken.jsonl", "{files}/empty.csv", "{files}/header.csv", "{files}/one-label.csv",
    "{files}/no-label.csv", "{files}/quotes.csv", "{files}/binary.csv", "{files}/cut.csv.gz",
)  # fmt: skip
_COMBINATIONS = (
    {"train.epochs": 1},
    {"train.steps": "none"},
    {"task": "rte"},
    {"task": "squad1"},
    {"data.kind": "regression"},
    {"data.kind": "choice"},
    {"data.kind": "tokens"},
    {"data.label_column": "text", "data.text_column": "text"},
    {"data.labels": "('good','fair')"},
    {"data.labels": "('good','good')"},
    {"data.test": "{files}/no-label.csv", "data.text_column": "body"},
    {"adapt.lora_rank": 2, "adapt.layer_decay": 0.9},
    {"adapt.lora_rank": 2, "adapt.lora_targets": "('nothing',)"},
    {"adapt.frozen_layers": 5},
    {"adapt.reinit_layers": 5},
    {"format.max_length": 4000},
    {"mesh.data": 3},
    {"optimizer.name": "lamb", "adapt.lora_rank": 10**4},
)


def small_finetuning(**changes: object) -> tuple[str, ...]:
    """The arguments of a run that works, with some of its keys changed."""
    values = {**SMALL, **changes}
    arguments = ("--config=configs/finetune.py:csv", "--workdir={out}")
    return (*arguments, *(f"--config.{key}={value}" for key, value in values.items()))


def finetuning_calls() -> Iterator[Call]:
    """Wrong calls of `finetune` and `predict`."""
    for key, value in bad_values(get_config("csv")):
        yield Call("finetune", small_finetuning(**{key: value}), "config value")
    for changes in _COMBINATIONS:
        yield Call("finetune", small_finetuning(**changes), "config values together")
    for split in ("train", "validation", "test"):
        for file in _TABLES:
            yield Call("finetune", small_finetuning(**{f"data.{split}": file}), "table")
    for source in (*BAD_MODELS, *BAD_TOKENIZERS):
        yield Call("finetune", small_finetuning(init_from=source), "model")
        yield Call("finetune", small_finetuning(tokenizer=source), "model")
    sound = small_finetuning()
    for folder in (*BAD_FOLDERS, "{files}/run"):
        arguments = (f"--workdir={folder}", *(each for each in sound if "{out}" not in each))
        yield Call("finetune", arguments, "workdir")
    for arguments in (
        (), ("--workdir={out}",), ("--config=configs/finetune.py:snli", "--workdir={out}"),
        ("--config=configs/pretrain.py:tiny", "--workdir={out}"), sound[:1], (*sound, "more"),
        (*sound, "--unknown=1"), (*sound, "--config.data.text=text"),
    ):  # fmt: skip
        yield Call("finetune", arguments, "flags")
    output = "--output={out}.csv"
    for source in (*BAD_MODELS, "{files}/run", "{files}/run/hf", "no-such-model", ""):
        yield Call("predict", (source, "--input={files}/reviews.csv", output), "model")
    for arguments in ((), ("{files}/run",), ("{files}/run", output), ("--task=rte",)):
        yield Call("predict", arguments, "flags")
    for file in _TABLES:
        yield Call("predict", ("{files}/run", f"--input={file}", output), "table")
