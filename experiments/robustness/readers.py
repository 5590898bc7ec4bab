"""Readers of every kind of file that the project reads.

A reader has the arguments (folder, root): the folder with files of which one may be damaged, and
the folder of `world.build`. It does what a command or a function of the library does with them and
returns what it got from them, as a JSON value.
"""

import hashlib
import json
import pathlib
import shutil
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import roberta_jax
from configs.pretrain import get_config
from experiments.reporting.collect import collect
from experiments.reporting.results import Results
from experiments.study.definition import Study
from roberta_jax import weights
from roberta_jax.data.pipeline import eval_batches, train_batches
from roberta_jax.data.store import build as store_build
from roberta_jax.data.store import layout
from roberta_jax.data.text import corpus
from roberta_jax.data.text.source import TextSource
from roberta_jax.exporting.stablehlo import load_stablehlo
from roberta_jax.modeling.heads import RobertaForPreTraining
from roberta_jax.pretrain import pretrain
from roberta_jax.pretraining import datasets
from roberta_jax.pretraining.ngrams import ngram_perplexities
from roberta_jax.pretraining.spec import read_spec
from roberta_jax.pretraining.text import prepare
from roberta_jax.pretraining.text_spec import read_text_spec
from roberta_jax.weights.names import leaves

FORMATS = ("full_sentences", "sentence_pair")  # of the packing index
_TEXTS = ("the cat <mask> on the mat.", "Ünïcödé 42, and 日本 too!\n")


def config_of(root: pathlib.Path, cache: pathlib.Path, format: str = FORMATS[0]) -> ConfigDict:
    """The config of a run of four steps of a very small model."""
    config = get_config("tiny")
    values = {
        "seq_len": 24,
        "new_tokenizer.vocab_size": 300,
        "data.source": "files",
        "data.files": f"{root}/text/corpus.jsonl",
        "data.validation_fraction": 0.2,
        "data.cache_dir": str(cache),
        "data.num_workers": 1,
        "data.engine": "numpy",
        "data.format": format,
        "model.hidden_size": 16,
        "model.num_hidden_layers": 1,
        "model.num_attention_heads": 2,
        "model.intermediate_size": 32,
        "schedule.name": "constant",
        "schedule.warmup_steps": 2,
        "train.steps": 4,
        "train.batch_size": 4,
        "train.per_device_batch_size": 4,
        "train.log_every": 1,
        "train.eval_every": 2,
        "train.checkpoint_every": 2,
        "train.keep_checkpoints": 2,
        "eval.batch_size": 8,
        "eval.short_inputs": False,
    }
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        setattr(config[group] if group else config, name, value)
    return config


def use_small_chunks() -> None:
    corpus.PIECE_BYTES, store_build.CHUNK_BYTES, layout.SHARD_TOKENS = 200, 1000, 4000


def study_of(root: pathlib.Path) -> Study:
    return Study(
        name="damaged",
        question="Does the report notice damage?",
        base=config_of(root, root / "cache"),
        settings={"one": {}},
        columns={"perplexity": "eval_perplexity"},
        seeds=(0, 1),
    )


def prepared_batches(cache: pathlib.Path, root: pathlib.Path, format: str = FORMATS[0]) -> Any:
    """The digest of all batches that a run would train on and be evaluated on."""
    spec = read_spec(config_of(root, cache, format))
    prepared = prepare(spec.text, progress=False)
    train = datasets.training_dataset(spec, prepared, token_types=False)
    hasher = _Hasher()
    for batch in train_batches(
        train, batch_size=16, seed=0, start_step=0, stop_step=30, engine="numpy"
    ):
        hasher.add(batch)
    for held_out in datasets.validation_datasets(spec, prepared, token_types=False).values():
        for batch in eval_batches(held_out, batch_size=16, seed=0, engine="numpy"):
            hasher.add(batch)
        scores = ngram_perplexities(train, held_out, seed=0)
    return [hasher.hexdigest(), prepared.tokenizer.fingerprint(), scores]


def read_prepared(folder: pathlib.Path, root: pathlib.Path) -> Any:
    return [prepared_batches(folder, root, format) for format in FORMATS]


def read_store(folder: pathlib.Path, root: pathlib.Path) -> Any:
    """Packs the rows again, too."""
    for packed in folder.glob("tokens/*/*/packed"):
        shutil.rmtree(packed)
    return read_prepared(folder, root)


def verify(folder: pathlib.Path, root: pathlib.Path) -> Any:
    """`prepare --verify`, and then the batches."""
    prepare(read_text_spec(config_of(root, folder)), progress=False, verify=True)
    return read_prepared(folder, root)


def finish_preparation(folder: pathlib.Path, root: pathlib.Path) -> Any:
    use_small_chunks()
    return prepared_batches(folder, root)


def read_text(folder: pathlib.Path, root: pathlib.Path) -> Any:
    """Reads compressed text."""
    opened = corpus.open_corpus(TextSource(files=f"{folder}/corpus*"))
    return [hashlib.sha256(piece.data).hexdigest() for piece in opened.pieces()]


def resume_older(folder: pathlib.Path, root: pathlib.Path) -> Any:
    """Continues the run, from an older checkpoint if need be."""
    return resume(folder, root, on_damage="older")


def resume(folder: pathlib.Path, root: pathlib.Path, on_damage: str = "stop") -> Any:
    """Continues the run for two more steps."""
    config = config_of(root, root / "cache")
    config.train.steps = 6
    result = pretrain(config, folder, on_damage)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("tokens_per_second", None)
        if "finished" in record and record["step"] < config.train.steps:
            # A run that goes back before its former end makes the evaluation of that step again,
            # but not the record of a finished run.
            for key in record.keys() - {"step", "eval_loss", "eval_perplexity"}:
                del record[key]
    return [read_model(folder / "hf", root), records, {"start": result.start}]


def read_finished_run(folder: pathlib.Path, root: pathlib.Path) -> Any:
    """Asks a finished run for its result, and loads its model."""
    result = pretrain(config_of(root, root / "cache"), folder)
    return [read_model(folder, root), result.metrics]


def read_model(folder: pathlib.Path, root: pathlib.Path) -> Any:
    """Loads a model and its tokenizer."""
    loaded = weights.load_pretrained(folder)
    hasher = _Hasher()
    for leaf in leaves(loaded.params):
        hasher.add({leaf.names[0]: np.asarray(leaf.value)})
    return [str(loaded.model.config), hasher.hexdigest(), read_tokenizer(folder, root)]


def read_tokenizer(folder: pathlib.Path, root: pathlib.Path) -> Any:
    tokenizer = roberta_jax.RobertaTokenizer.from_pretrained(weights.tokenizer_folder(folder))
    ids = tokenizer(list(_TEXTS))["input_ids"]
    everything = " ".join(sorted(tokenizer.get_vocab()))
    return [
        ids,
        tokenizer.fingerprint(),
        tokenizer.model_max_length,
        hashlib.sha256(everything.encode()).hexdigest(),
        tokenizer.batch_decode(ids),
    ]


def read_with_next_sentence_head(folder: pathlib.Path, root: pathlib.Path) -> Any:
    _, params = weights.from_pretrained(folder, RobertaForPreTraining)
    hasher = _Hasher()
    for leaf in leaves(params):
        hasher.add({leaf.names[0]: np.asarray(leaf.value)})
    return hasher.hexdigest()


def read_generation_config(folder: pathlib.Path, root: pathlib.Path) -> Any:
    model = roberta_jax.FlaxRobertaForCausalLM.from_pretrained(folder)
    return str(model.generation_config)


def run_program(folder: pathlib.Path, root: pathlib.Path) -> Any:
    run = load_stablehlo(folder)
    ids = np.full((1, 8), 5, np.int32)
    outputs = run(input_ids=ids, attention_mask=np.ones_like(ids))
    hasher = _Hasher()
    hasher.add({name: np.asarray(x) for name, x in outputs.items()})
    return hasher.hexdigest()


def report(folder: pathlib.Path, root: pathlib.Path) -> Any:
    results = collect(study_of(root), folder)
    return [results.table(), results.missing(), results.files()]


def read_report(folder: pathlib.Path, root: pathlib.Path) -> Any:
    results = Results.from_folder(folder)
    return [results.table(), results.missing(), results.files()]


class _Hasher:
    def __init__(self):
        self._hash = hashlib.sha256()

    def add(self, arrays: dict[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            self._hash.update(f"{name} {array.dtype} {array.shape}".encode())
            self._hash.update(np.ascontiguousarray(array))

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
