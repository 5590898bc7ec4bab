"""A study whose runs take seconds; a corpus of `texts.write_corpus` comes with --set."""

from experiments.study import Study
from tests.support import texts

FORMS = ("quick", "evaluated", "wrong", "failing")

# Writes how many records of the training loss the run has, and its seed.
MEASURE = (
    "import json, pathlib, sys;"
    "lines = (pathlib.Path(sys.argv[1]) / 'metrics.jsonl').read_text().splitlines();"
    "found = {'records': sum('loss' in json.loads(line) for line in lines)};"
    "pathlib.Path(sys.argv[2]).write_text(json.dumps({**found, 'seed': int(sys.argv[3])}))"
)


def get_study(form: str) -> Study:
    """Two batch sizes; `wrong` and `failing` have settings that cannot train beside a good one."""
    settings = {"Small batch": {}, "LARGE (2x)": {"train.batch_size": 16, "train.steps": 8}}
    if form == "wrong":
        settings |= {"no steps": {"train.steps": 0}, "no rate": {"masking.rate": 2.0}}
    if form == "failing":  # there is not so much text, which is seen when it is packed
        settings = {"too large": {"train.batch_size": 4096}, **settings}
    return Study(
        name="toy",
        question="Does a larger batch help?",
        base=texts.small_config("", ""),
        settings=settings,
        seeds=(0, 1),
        columns={
            "perplexity": "eval_perplexity",
            "records": "measured.records",
            "MNLI": "mnli.acc",
        },
        evaluations={"measured": ("{python}", "-c", MEASURE, "{workdir}", "{output}", "{seed}")}
        if form == "evaluated"
        else {},
        paper={"LARGE (2x)": {"perplexity": "3.99", "MNLI": 84.7}},
        source="Nobody 2019, Table 0",
        notes="A note.",
    )
