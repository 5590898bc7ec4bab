"""Does pretraining help? A pretrained model against the same model with random values, on 8 tasks.

    python -m experiments.sweep transfer:small --set=init_from=runs/model --data=data \\
        --out=runs/transfer
    python -m experiments.report transfer:small --set=init_from=runs/model --data=data \\
        --runs=runs/transfer

`init_from` is the pretrained model. The other setting of each task takes its config and tokenizer
only (`random_init`). Both have the same recipe, seeds and order of the examples.

The folder of --data has the official files of CoLA, SST-2, MRPC, RTE, STS-B, CoNLL-2003, DREAM and
SQuAD 2.0 in folders of their names, such as `data/glue/RTE` and `data/ner/conll2003`. The questions
are those of the file `squad/squad_v2.json.xz` in it, a tenth of which is held out.

`small` is for a small model on 2 CPU cores: at most 4,000 training examples and 3 epochs of each
task. `full` trains on all examples, with the task's recipe. `quick` shows in a few minutes that all
tasks run: 6 steps on 64 examples.
"""

from typing import Any

from experiments.studies import _tasks as tasks
from experiments.study import Study
from roberta_jax.tasks.table import TASKS

FORMS = ("small", "full", "quick")

_TASKS = ("cola", "sst2", "mrpc", "rte", "stsb", "conll2003", "squad2", "dream")
_SQUAD = {"data.train": "{data}/squad/squad_v2.json.xz", "data.validation": "0.1"}
# A small model that was pretrained briefly needs larger rates than the paper's models. They are the
# same for both settings of a task.
_SMALL = {"optimizer.learning_rate": 2e-4, "train.batch_size": 16, "train.epochs": 3.0}

# Windows of a passage for models with 128 positions, and with as few as 32.
_WINDOWS = {
    "small": {"format.max_query_length": 32, "format.doc_stride": 48},
    "full": {},
    "quick": {"format.max_query_length": 12, "format.doc_stride": 8},
}


def get_study(form: str) -> Study:
    base = tasks.config("cola", _changes(form))
    settings = {}
    for name in _TASKS:
        own = {
            key: value
            for key, value in tasks.of_task(name, base).items()
            if form == "full" or key not in (*_SMALL, "train.steps")
        }
        if name == "squad2":
            own |= {**_SQUAD, **_WINDOWS[form]}
        settings[f"{TASKS[name].title}, pretrained"] = own
        settings[f"{TASKS[name].title}, random"] = {**own, "random_init": True}
    return Study(
        name=f"transfer_{form}",
        question=(
            "Does pretraining help, compared with training the same model on the task alone?"
        ),
        base=base,
        settings=settings,
        seeds=(0, 1, 2),
        columns={"score": "score", "majority baseline": "majority", "epochs": "epochs"},
        notes=(
            "The majority baseline always gives the commonest label of the training examples, the "
            "mean of their numbers, or no answer. The two settings of a task differ in the values "
            "that the parameters start from, and in nothing else; the recipe was tuned for "
            "neither. Each run reports the best of its evaluations on the validation examples."
        ),
    )


def _changes(form: str) -> dict[str, Any]:
    if form == "full":
        return {}
    changes = {**_SMALL, "data.max_train_examples": 4000, "train.log_every": 50}
    if form == "quick":
        changes |= {"train.epochs": None, "train.steps": 6, "train.log_every": 2}
        changes |= {"data.max_train_examples": 64}
    return changes
