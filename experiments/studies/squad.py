"""SQuAD (Table 6 of RoBERTa): 1.1 and 2.0 with the recipe of Table 10, 5 seeds.

    python -m experiments.sweep squad:paper --data=data --out=runs/squad
    python -m experiments.report squad:paper --data=data --runs=runs/squad

`paper` fine-tunes roberta-large, or --set=init_from=..., without further data, as the paper does.
--data is a folder with `squad/train-v2.0.json` and the other official files; without it they are
read from TensorFlow Datasets. `tiny` runs SQuAD 1.1 on 2 CPU cores in minutes, from the model of
--set=init_from=....
"""

from experiments.studies import _tasks as tasks
from experiments.study import Study

FORMS = ("tiny", "paper")


def get_study(form: str) -> Study:
    names = ("squad1",) if form == "tiny" else ("squad1", "squad2")
    changes = {"init_from": "FacebookAI/roberta-large"}
    if form == "tiny":
        changes = {"train.epochs": None, "train.steps": 30, "data.max_train_examples": 500}
        changes |= {"format.max_query_length": 12, "format.doc_stride": 8}
    base = tasks.config(names[0], changes)
    return Study(
        name=f"squad_{form}",
        question="Does fine-tuning reach the paper's results on SQuAD's development sets?",
        base=base,
        settings=tasks.sweep(names, base),
        seeds=range(2 if form == "tiny" else 5),
        columns={"F1": "score", "EM": "validation.exact_match", "majority baseline": "majority"},
        references={"paper, large, dev, F1": {"SQuAD 1.1": 94.6, "SQuAD 2.0": 89.4},
                    "paper, large, dev, EM": {"SQuAD 1.1": 88.9, "SQuAD 2.0": 86.5}},
        source="The paper's values are in Table 6 of Liu et al. 2019. The model card has none.",
        notes=tasks.TINY if form == "tiny" else (
            "For SQuAD 2.0 the paper adds a classifier that says whether a question is answerable, "
            "and sums the losses. Here, as in BERT and in Hugging Face's head, an answer at <s> "
            "stands for no answer."
        ),
    )  # fmt: skip
