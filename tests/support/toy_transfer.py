"""A study of fine-tuning whose runs take seconds. Tests set its model and its data."""

import pathlib

from experiments.study import Study, changed_config
from tests.support import finetuning

PATH = str(pathlib.Path(__file__).resolve())
FORMS = ("quick", "sweep")


def get_study(form: str) -> Study:
    """Returns a study of a pretrained model and random values on RTE.

    "sweep" has two learning rates instead, and values of others.
    """
    config = finetuning.small_run("rte", "", "", **{"train.epochs": None, "train.steps": 6})
    base = changed_config(config, {"init_from": None, "data.cache_dir": None}, "toy")
    settings = {"RTE, pretrained": {}, "RTE, random": {"random_init": True}}
    if form == "sweep":
        rates = {"low": 1e-3, "high": 3e-3}
        settings = {name: {"optimizer.learning_rate": rate} for name, rate in rates.items()}
    return Study(
        name="toy_transfer",
        question="Does pretraining help?",
        base=base,
        settings=settings,
        seeds=(0, 1),
        columns={"score": "score", "majority": "majority"},
        references={"card": {"RTE": 86.6}} if form == "sweep" else {},
        source="Nobody 2019" if form == "sweep" else "",
    )
