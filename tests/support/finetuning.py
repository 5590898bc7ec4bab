"""A small model to start from, small tasks, and configs of fine-tuning runs on them."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs.finetune import get_config
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.weights.save import save_pretrained
from tests.support.small_config import small_config
from tests.support.small_tokenizer import small_tokenizer

_GOOD = ("good", "fine", "great", "nice")
_BAD = ("bad", "poor", "awful", "sad")
_REST = ("the film", "a book", "this place", "the food", "an idea", "that song")


def write_model(folder: pathlib.Path) -> pathlib.Path:
    """A masked language model with random parameters, as a folder."""
    tokenizer = small_tokenizer()
    model = RobertaForMaskedLM(small_config(vocab_size=len(tokenizer), initializer_range=0.1))
    params = nn.unbox(model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    save_pretrained(folder, model, params, tokenizer)
    return folder


def sentence(number: int) -> tuple[str, str]:
    """(a text, its label): a few words, of which one decides the label."""
    rng = np.random.default_rng(number)
    is_good = bool(number % 2)
    word = rng.choice(_GOOD if is_good else _BAD)
    more = " ".join(rng.choice(_REST) for _ in range(rng.integers(0, 4)))
    return f"{rng.choice(_REST)} is {word} {more}".strip(), "good" if is_good else "bad"


def write_csv(path: pathlib.Path, numbers: range) -> pathlib.Path:
    """Texts with labels as a csv file."""
    lines = ["text,label", *(f"{text},{label}" for text, label in map(sentence, numbers))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_rte(folder: pathlib.Path, sizes=(("train", 48), ("dev", 20), ("test", 10))) -> None:
    """Files as those of RTE; a pair is entailment if both texts have the same label."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in sizes:
        header = ["index", "sentence1", "sentence2"] + ["label"] * (split != "test")
        lines = ["\t".join(header)]
        for number in range(size):
            (a, first), (b, second) = sentence(3 * number), sentence(5 * number + number // 2)
            label = "entailment" if first == second else "not_entailment"
            lines.append("\t".join([str(number), a, b] + [label] * (split != "test")))
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def small_run(task: str, model: pathlib.Path, cache: pathlib.Path, /, **changes):
    """The config of a run of a few steps, with some values changed ("train.steps")."""
    config = get_config(task)
    values = {
        "init_from": str(model),
        "data.cache_dir": str(cache),
        "format.max_length": 24,
        "data.num_lengths": 2,
        "optimizer.learning_rate": 3e-3,
        "train.batch_size": 8,
        "train.epochs": 3.0,
        "train.steps": None,
        "train.log_every": 4,
        "eval.batch_size": 8,
    } | changes
    with config.unlocked():
        for key, value in values.items():
            *groups, last = key.split(".")
            functools.reduce(lambda group, each: group[each], groups, config)[last] = value
    return config
