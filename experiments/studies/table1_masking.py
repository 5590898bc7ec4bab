"""Table 1 of RoBERTa: static masking, with ten masks per row, against dynamic masking.

    python -m experiments.sweep table1:tiny --out=runs/table1
    python -m experiments.report table1:tiny --runs=runs/table1

With --data=FOLDER, a folder with the official files of the tasks in the columns, each finished
model is fine-tuned on them; without it these columns are not measured.

`tiny` runs on 2 CPU cores. It uses only as much text as gives 40 epochs, so that each of the 10
static masks of a row is seen 4 times, as in the paper. The text is Python's documentation, or other
text with --set=data.source=files --set=data.files=...

`paper` is the run of the paper: BERT's data format, 16 GB of books and Wikipedia
(--set=data.files=...) and batches of 256 for 1M steps, which is about 40 epochs of that text. The
paper does not name the data format. Its result for dynamic masking equals that of SEGMENT-PAIR in
Table 2, so we assume that format.
"""

from experiments.studies import _recipes as recipes
from experiments.study import Study

FORMS = ("tiny", "paper")


def get_study(form: str) -> Study:
    if form == "paper":
        base = recipes.change(recipes.bert_base(), recipes.SEGMENT_PAIR_NSP)
    else:
        # About 22% of the positions are padding, since rows this short end at sentences.
        max_tokens = int(recipes.TINY_TOKENS * 0.775 / 40)
        base = recipes.change(recipes.tiny(), {"data.max_tokens": max_tokens})
    return Study(
        name=f"table1_{form}",
        question="Does a new mask in every epoch help, compared with ten masks that are reused?",
        base=base,
        settings={
            "static": {"masking.dupe_factor": 10},
            "dynamic": {"masking.dupe_factor": None},
        },
        seeds=recipes.SEEDS,
        columns={
            **recipes.PERPLEXITIES,
            "epochs": "epochs",
            "SQuAD 2.0 F1": "squad2.f1",
            "MNLI-m": "mnli.accuracy",
            "SST-2": "sst2.accuracy",
        },
        downstream=recipes.downstream(form, "squad2", "mnli", "sst2"),
        paper={
            "static": {"SQuAD 2.0 F1": 78.3, "MNLI-m": 84.3, "SST-2": 92.5},
            "dynamic": {"SQuAD 2.0 F1": 78.7, "MNLI-m": 84.0, "SST-2": 92.9},
        },
        source="Liu et al. 2019, Table 1 (medians of 5 seeds)",
        notes=recipes.NOTES[form],
    )
