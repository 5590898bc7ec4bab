"""The table of tasks. A new task is a row here and, if no reader fits, one in `tasks.readers`.

GLUE's rows are in `tasks.glue_rows`. Recipes are those of Liu et al. 2019, Table 10, and of
fairseq's `examples/roberta`; its warmup in updates is here the same share of all updates.
"""

import functools

from roberta_jax.tasks.glue_rows import GLUE_ROWS
from roberta_jax.tasks.readers.conll import read_conll
from roberta_jax.tasks.readers.multiple_choice import (
    read_commonsenseqa,
    read_dream,
    read_hellaswag,
    read_race,
    read_swag,
)
from roberta_jax.tasks.readers.squad import read_squad
from roberta_jax.tasks.readers.wsc import read_wsc
from roberta_jax.tasks.task import Formatting, Recipe, Task


def _files(folder: str, **splits: str) -> dict[str, tuple[str, ...]]:
    """Where a file may be: in the task's folder, or in that of all tasks."""
    return {split: (name, f"{folder}/{name}") for split, name in splits.items()}


def _entity_tags(*types: str) -> tuple[str, ...]:
    return ("O", *(f"{place}-{name}" for name in types for place in "BI"))


_SQUAD_RECIPE = Recipe(
    learning_rate=1.5e-5, batch_size=48, epochs=2, weight_decay=0.01, max_length=384
)
_SQUAD_FORMAT = Formatting(
    max_length=384, doc_stride=128, max_query_length=64, max_answer_length=30, n_best=20
)

_QUESTION_ROWS = (
    Task(
        name="squad1",
        title="SQuAD 1.1",
        kind="question_answering",
        reader=read_squad,
        files=_files("squad", train="train-v1.1.json", validation="dev-v1.1.json"),
        metrics=("f1", "exact_match"),
        recipe=_SQUAD_RECIPE,
        formatting=_SQUAD_FORMAT,
        tfds="squad/v1.1",
        download="train-v1.1.json and dev-v1.1.json (rajpurkar.github.io/SQuAD-explorer)",
        source="Rajpurkar et al. 2016; Liu et al. 2019, Table 10; windows of Devlin et al. 2019",
    ),
    Task(
        name="squad2",
        title="SQuAD 2.0",
        kind="question_answering",
        reader=read_squad,
        files=_files("squad", train="train-v2.0.json", validation="dev-v2.0.json"),
        metrics=("f1", "exact_match"),
        recipe=_SQUAD_RECIPE,
        formatting=_SQUAD_FORMAT,
        tfds="squad/v2.0",
        answerable=False,
        download="train-v2.0.json and dev-v2.0.json (rajpurkar.github.io/SQuAD-explorer)",
        # The paper adds a classifier of answerability and sums the losses; here an answer at <s>
        # stands for none, as in Devlin et al. 2019 and in Hugging Face's head.
        source="Rajpurkar et al. 2018; Liu et al. 2019, Table 10; windows and null score of Devlin "
        "et al. 2019",
    ),
)

_CHOICE_ROWS = (
    Task(
        name="race",
        title="RACE",
        kind="choice",
        reader=read_race,
        files={
            "train": ("train", "RACE/train", "train.jsonl", "race_sample.train.jsonl"),
            "validation": ("dev", "RACE/dev", "dev.jsonl"),
            "test": ("test", "RACE/test", "test.jsonl"),
        },
        recipe=Recipe(learning_rate=1e-5, batch_size=16, epochs=4),
        formatting=Formatting(max_option_length=128),
        tfds="race",
        tfds_splits={
            "train": "race/middle:train+race/high:train",
            "validation": "race/middle:dev+race/high:dev",
            "test": "race/middle:test+race/high:test",
        },
        download="RACE.tar.gz (www.cs.cmu.edu/~glai1/data/race)",
        source="Lai et al. 2017; Liu et al. 2019, Table 10; fairseq's README.race.md",
    ),
    Task(
        name="swag",
        title="SWAG",
        kind="choice",
        reader=read_swag,
        files=_files("swag", train="train.csv", validation="val.csv", test="test.csv"),
        recipe=Recipe(learning_rate=2e-5, batch_size=16, epochs=3),
        formatting=Formatting(context_first=True),
        download="train.csv, val.csv and test.csv (github.com/rowanz/swagaf, folder data)",
        source="Zellers et al. 2018; rate, batch size and epochs of Devlin et al. 2019",
    ),
    Task(
        name="hellaswag",
        title="HellaSwag",
        kind="choice",
        reader=read_hellaswag,
        files=_files(
            "hellaswag",
            train="hellaswag_train.jsonl",
            validation="hellaswag_val.jsonl",
            test="hellaswag_test.jsonl",
        ),
        recipe=Recipe(learning_rate=1e-5, batch_size=16, epochs=4),
        formatting=Formatting(context_first=True),
        tfds="hellaswag",
        download="hellaswag_train.jsonl and the others (github.com/rowanz/hellaswag, folder data)",
        source="Zellers et al. 2019; the recipe is RACE's",
    ),
    Task(
        name="commonsenseqa",
        title="CommonsenseQA",
        kind="choice",
        reader=read_commonsenseqa,
        files={
            "train": ("train_rand_split.jsonl", "train.jsonl"),
            "validation": ("dev_rand_split.jsonl", "valid.jsonl", "dev.jsonl"),
            "test": ("test_rand_split_no_answers.jsonl", "test.jsonl"),
        },
        recipe=Recipe(
            learning_rate=1e-5,
            batch_size=16,
            epochs=None,
            steps=3000,
            warmup_ratio=150 / 3000,
            weight_decay=0.01,
        ),
        formatting=Formatting(separators=1, prefix_a="Q: ", prefix_b="A: "),
        download="train_rand_split.jsonl and the others (www.tau-nlp.org/commonsenseqa)",
        source="Talmor et al. 2019; fairseq's examples/roberta/commonsense_qa",
    ),
    Task(
        name="dream",
        title="DREAM",
        kind="choice",
        reader=read_dream,
        files=_files("dream", train="train.json", validation="dev.json", test="test.json"),
        recipe=Recipe(learning_rate=1e-5, batch_size=16, epochs=4),
        formatting=Formatting(max_option_length=128),
        download="train.json, dev.json and test.json (github.com/nlpdata/dream, folder data)",
        source="Sun et al. 2019; recipe and format are RACE's",
    ),
)

_ENTITY_METRICS = ("f1", "precision", "recall")
_ENTITY_RECIPE = Recipe(learning_rate=3e-5, batch_size=32, epochs=4)
_ENTITY_SOURCE = "range of Devlin et al. 2019, appendix A.3; weight decay of Liu et al. 2019"

_TOKEN_ROWS = (
    Task(
        name="conll2003",
        title="CoNLL-2003",
        kind="tokens",
        reader=functools.partial(read_conll, iob1=True),
        files={
            "train": ("eng.train", "train.txt"),
            "validation": ("eng.testa", "valid.txt"),
            "test": ("eng.testb", "test.txt"),
        },
        labels=_entity_tags("PER", "ORG", "LOC", "MISC"),
        metrics=_ENTITY_METRICS,
        recipe=_ENTITY_RECIPE,
        tfds="conll2003",
        tfds_splits={"validation": "dev"},
        download="eng.train, eng.testa and eng.testb (www.clips.uantwerpen.be/conll2003/ner)",
        source=f"Tjong Kim Sang and De Meulder 2003; recipe in the {_ENTITY_SOURCE}",
    ),
    Task(
        name="wnut17",
        title="WNUT-17",
        kind="tokens",
        reader=read_conll,
        files={
            "train": ("wnut17train.conll", "train.conll"),
            "validation": ("emerging.dev.conll", "dev.conll"),
            "test": ("emerging.test.annotated", "test.conll"),
        },
        labels=_entity_tags(
            "corporation", "creative-work", "group", "location", "person", "product"
        ),
        metrics=_ENTITY_METRICS,
        recipe=_ENTITY_RECIPE,
        download="wnut17train.conll, emerging.dev.conll and emerging.test.annotated "
        "(noisy-text.github.io/2017/emerging-rare-entities.html)",
        source=f"Derczynski et al. 2017; recipe in the {_ENTITY_SOURCE}",
    ),
    Task(
        name="wikiann",
        title="WikiANN (en)",
        kind="tokens",
        reader=functools.partial(read_conll, language_prefix=True),
        files={"train": ("train",), "validation": ("dev",), "test": ("test",)},
        labels=_entity_tags("PER", "ORG", "LOC"),
        metrics=_ENTITY_METRICS,
        recipe=_ENTITY_RECIPE,
        tfds="wikiann/en",
        download="the archive en.tar.gz of WikiANN, divided by Rahimi et al. 2019",
        source=f"Pan et al. 2017; Rahimi et al. 2019; recipe in the {_ENTITY_SOURCE}",
    ),
)

_PRONOUN_ROWS = (
    Task(
        name="wsc",
        title="WSC",
        kind="pronoun",
        reader=read_wsc,
        files=_files("WSC", train="train.jsonl", validation="val.jsonl", test="test.jsonl"),
        metrics=("accuracy",),
        # fairseq: 16 examples on each of 4 GPUs.
        recipe=Recipe(
            learning_rate=2e-5,
            batch_size=64,
            epochs=None,
            steps=2000,
            warmup_ratio=250 / 2000,
            weight_decay=0.01,
        ),
        tfds="super_glue/wsc.fixed",
        submission={"test": "WSC.jsonl"},
        download="WSC.zip of SuperGLUE (super.gluebenchmark.com/tasks)",
        source="Levesque et al. 2012; Wang et al. 2019b; fairseq's examples/roberta/wsc",
    ),
)

# The user's own files: what they hold decides everything but the recipe; see `tasks.user_task`.
_USER_ROWS = tuple(
    Task(
        name=name,
        title=f"{name} files",
        kind="classification",
        reader=None,
        recipe=Recipe(learning_rate=2e-5, batch_size=32, epochs=3, max_length=256),
        source="the user's own files",
    )
    for name in ("csv", "tsv", "jsonl")
)

TASKS = {
    task.name: task
    for task in (
        *GLUE_ROWS,
        *_QUESTION_ROWS,
        *_CHOICE_ROWS,
        *_TOKEN_ROWS,
        *_PRONOUN_ROWS,
        *_USER_ROWS,
    )
}
"""Name -> task: the values of FILE:TASK on the command line."""
