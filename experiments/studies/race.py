"""RACE (Table 7 of RoBERTa): reading comprehension with the recipe of Table 10, 5 seeds.

    python -m experiments.sweep race:paper --data=data --out=runs/race
    python -m experiments.report race:paper --data=data --runs=runs/race

`paper` fine-tunes roberta-large, or --set=init_from=.... The best checkpoint is chosen on the
development set, and the paper's values are those of the test set. --data is a folder with
`RACE/train`, `RACE/dev` and `RACE/test`; without it the examples are read from TensorFlow Datasets.
`tiny` runs on 2 CPU cores in minutes, from the model of --set=init_from=....
"""

from experiments.studies import _tasks as tasks
from experiments.study import Study

FORMS = ("tiny", "paper")


def get_study(form: str) -> Study:
    changes = {"init_from": "FacebookAI/roberta-large"}
    if form == "tiny":
        changes = {"train.epochs": None, "train.steps": 30, "data.max_train_examples": 500}
    base = tasks.config("race", changes)
    return Study(
        name=f"race_{form}",
        question="Does fine-tuning reach the paper's results on RACE?",
        base=base,
        settings=tasks.sweep(("race",), base),
        seeds=range(2 if form == "tiny" else 5),
        columns={
            "dev": "score",
            "test": "test.accuracy",
            "test, middle": "test.accuracy_middle",
            "test, high": "test.accuracy_high",
            "majority baseline": "majority",
        },
        references={
            "paper, large, test": {"RACE": 83.2},
            "paper, middle": {"RACE": 86.5},
            "paper, high": {"RACE": 81.3},
        },
        source="The paper's values are in Table 7 of Liu et al. 2019. The model card has none.",
        notes=tasks.TINY if form == "tiny" else "",
    )
