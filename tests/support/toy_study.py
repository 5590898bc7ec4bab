"""A study whose runs take seconds. Tests set its text, a corpus of `texts.write_corpus`."""

import pathlib

from experiments.study import Study
from tests.support import texts

PATH = str(pathlib.Path(__file__).resolve())
FORMS = ("quick", "evaluated", "wrong", "failing")

# The program of an evaluation: it writes the number of loss records of a run, and its seed.
COUNT_RECORDS = """
import json, pathlib, sys
workdir, output, seed = sys.argv[1:]
records = map(json.loads, (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines())
metrics = {"records": sum("loss" in record for record in records), "seed": int(seed)}
pathlib.Path(output).write_text(json.dumps(metrics))
"""


def get_study(form: str) -> Study:
    """Returns a study of two batch sizes.

    "evaluated" has an evaluation. "wrong" has two more settings that are not valid, and "failing"
    has one that is found to be wrong only when the text is packed.
    """
    settings = {"Small batch": {}, "LARGE (2x)": {"train.batch_size": 16, "train.steps": 8}}
    if form == "wrong":
        settings |= {"no steps": {"train.steps": 0}, "no rate": {"masking.rate": 2.0}}
    if form == "failing":  # a batch needs more rows than the text has
        settings = {"too large": {"train.batch_size": 4096}, **settings}
    command = ("{python}", "-c", COUNT_RECORDS, "{workdir}", "{output}", "{seed}")
    return Study(
        name="toy",
        question="Does a larger batch help?",
        base=texts.small_config("text.jsonl", ""),
        settings=settings,
        seeds=(0, 1),
        columns={
            "perplexity": "eval_perplexity",
            "records": "measured.records",
            "MNLI": "mnli.acc",
        },
        evaluations={"measured": command} if form == "evaluated" else {},
        paper={"LARGE (2x)": {"perplexity": "3.99", "MNLI": 84.7}},
        source="Nobody 2019, Table 0",
        notes="A note.",
    )
