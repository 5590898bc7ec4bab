"""A small corpus and a small config, for tests of pretraining."""

import json
import pathlib
import random

from ml_collections import ConfigDict

from configs.pretrain import get_config

SUBJECTS = ("the cat", "a dog", "my old friend", "that bird", "every child", "the teacher")
VERBS = ("sees", "likes", "follows", "remembers", "hears", "paints")
PLACES = ("in the garden", "by the river", "at home", "on a hill", "near the school")


def documents(count: int, seed: int = 0) -> list[str]:
    """Returns documents of a few generated sentences, in which some words predict the next."""
    rng = random.Random(seed)

    def sentence():
        verb = rng.choice(VERBS)
        words = f"{rng.choice(SUBJECTS)} {verb} {rng.choice(SUBJECTS)}"
        return f"{words} {rng.choice(PLACES)} {rng.randrange(100)} times.".capitalize()

    return [" ".join(sentence() for _ in range(rng.randint(2, 8))) for _ in range(count)]


def write_corpus(path: pathlib.Path, count: int = 120) -> pathlib.Path:
    """Writes `count` documents as JSON lines and returns the path."""
    lines = [json.dumps({"text": text}) for text in documents(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def small_config(corpus: pathlib.Path, cache: pathlib.Path, **changes) -> ConfigDict:
    """Returns a config for a few steps of a very small model.

    Args:
      corpus: a file of `write_corpus`.
      cache: the folder for the tokenised corpus.
      **changes: dotted config keys with their values.
    """
    config = get_config("tiny")
    small = {
        "seq_len": 16,
        "new_tokenizer.vocab_size": 320,
        "data.source": "files",
        "data.format": "full_sentences",
        "data.files": str(corpus),
        "data.validation_fraction": 0.1,
        "data.cache_dir": str(cache),
        "data.num_workers": 1,
        "data.engine": "numpy",
        "model.hidden_size": 32,
        "model.num_attention_heads": 2,
        "model.intermediate_size": 64,
        "execution.scan_unroll": 1,  # compiles faster
        "model.hidden_dropout_prob": 0.1,
        "schedule.warmup_steps": 4,
        "train.steps": 12,
        "train.batch_size": 8,
        "train.log_every": 2,
        "train.eval_every": 5,
        "train.checkpoint_every": 4,
        "train.keep_checkpoints": 2,
        "eval.batch_size": 8,
        "eval.short_inputs": False,
    }
    for key, value in {**small, **changes}.items():
        group, _, name = key.rpartition(".")
        setattr(config[group] if group else config, name, value)
    return config
