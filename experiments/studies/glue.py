"""GLUE (Table 5 of RoBERTa): the sweep over learning rates and batch sizes, 5 seeds, medians.

    python -m experiments.sweep glue:paper --data=glue --out=runs/glue
    python -m experiments.report glue:paper --data=glue --runs=runs/glue

`paper` fine-tunes roberta-large, or --set=init_from=..., on the eight tasks of the model card with
the learning rates 1e-5, 2e-5 and 3e-5 and batches of 16 and 32, as section 5.1 of the paper does
for its results on the development sets. Its report shows the best setting of each task beside the
paper's and the card's. --data is the folder of GLUE's official files; without it they are read from
TensorFlow Datasets.

`mnli` is for RTE, STS-B and MRPC, which start from the model of MNLI in the paper's submission to
the test server, in one command:

    python -m experiments.sweep glue:mnli --data=glue --out=runs/glue_mnli

It fine-tunes on MNLI, and the finished model on each of the three, with the same sweep and 5 seeds.
The runs with their models and submission files are in `finetune/TASK` of the workdir. From a model
of MNLI that is there already, each of the three is one command:

    python -m experiments.downstream rte --model=runs/mnli --data=glue --output=rte.json --keep \\
        --seeds=5 --rates=1e-5,2e-5,3e-5 --batch_sizes=16,32

`tiny` runs on 2 CPU cores in minutes: RTE and MRPC with two learning rates and two seeds, from the
model of --set=init_from=....
"""

from experiments.studies import _tasks as tasks
from experiments.study import Study
from roberta_jax.tasks.table import TASKS as TABLE

FORMS = ("tiny", "paper", "mnli")
TASKS = ("mnli", "qnli", "qqp", "rte", "sst2", "mrpc", "cola", "stsb")
MODEL = "FacebookAI/roberta-large"

RATES = (1e-5, 2e-5, 3e-5)
BATCH_SIZES = (16, 32)

# Liu et al. 2019, Table 5, single-task models on the development sets: medians of 5 seeds.
PAPER = {
    "MNLI": "90.2 / 90.2",
    "QNLI": 94.7,
    "QQP": 92.2,
    "RTE": 86.6,
    "SST-2": 96.4,
    "MRPC": 90.9,
    "CoLA": 68.0,
    "STS-B": 92.4,
}
# The card of roberta-large on the hub, which calls them results on the test set. They are those
# above, but for STS-B, whose 96.4 is a slip for 92.4.
CARD = PAPER | {"MNLI": 90.2, "STS-B": "96.4 (in error)"}


def get_study(form: str) -> Study:
    if form == "mnli":
        return _from_mnli()
    names = ("rte", "mrpc") if form == "tiny" else TASKS
    rates = (1e-4, 3e-4) if form == "tiny" else RATES
    batch_sizes = (16,) if form == "tiny" else BATCH_SIZES
    changes = {"init_from": MODEL}
    if form == "tiny":
        changes = {"train.epochs": None, "train.steps": 30, "train.log_every": 10}
        changes["data.max_train_examples"] = 500
    base = tasks.config(names[0], changes)
    return Study(
        name=f"glue_{form}",
        question="Does fine-tuning reach the paper's results on GLUE's development sets?",
        base=base,
        settings=tasks.sweep(names, base, rates, batch_sizes),
        seeds=range(2 if form == "tiny" else 5),
        columns={
            "score": "score",
            "majority baseline": "majority",
            "F1": "validation.f1",
            **(
                {}
                if form == "tiny"
                else {
                    "Spearman": "validation.spearman",
                    "MNLI-mm": "validation_mismatched.accuracy",
                }
            ),
        },
        references={"paper, large, dev": PAPER, "model card": CARD},
        source=(
            "The paper's values are those of single models in Table 5 of Liu et al. 2019 (medians "
            "of 5 seeds, MNLI as matched / mismatched). The card of roberta-large repeats them and "
            "calls them results on the test sets."
        ),
        notes=tasks.TINY if form == "tiny" else "",
    )


def _from_mnli() -> Study:
    base = tasks.config("mnli", {"init_from": MODEL})
    sweep = (
        "--seeds=5",
        f"--rates={','.join(f'{rate:g}' for rate in RATES)}",
        f"--batch_sizes={','.join(map(str, BATCH_SIZES))}",
        "--keep",
    )
    three = ("rte", "stsb", "mrpc")
    return Study(
        name="glue_mnli",
        question="What do RTE, STS-B and MRPC gain from starting at the model of MNLI?",
        base=base,
        settings={"MNLI": {}},
        seeds=(0,),
        columns={
            "MNLI-m": "score",
            "MNLI-mm": "validation_mismatched.accuracy",
            **{TABLE[name].title: f"{name}.score" for name in three},
        },
        downstream=dict.fromkeys(three, sweep),
        paper={"MNLI": {"MNLI-m": 90.2, "MNLI-mm": 90.2, "RTE": 86.6, "STS-B": 92.4, "MRPC": 90.9}},
        source="Liu et al. 2019, Table 5, where all tasks start from the pretrained model",
    )
