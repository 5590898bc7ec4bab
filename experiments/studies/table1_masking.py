"""Table 1 of RoBERTa: the same mask of a row in several epochs, or a new one in each.

    python -m experiments.sweep table1:tiny --out=runs/table1
    python -m experiments.report table1:tiny --runs=runs/table1

`tiny` runs on 2 cores; it cuts the corpus to what gives 40 epochs, so that each of the 10 static
masks of a row is seen 4 times, as in the paper. It trains on Python's documentation; other text is
named with --set=data.source=files --set=data.files=....

`paper` is the table's own run: BERT's data format, 16 GB of books and Wikipedia
(--set=data.files=...), batches of 256 for 1M steps, which on that text are about 40 epochs. The
table's dynamic row equals the row SEGMENT-PAIR of Table 2, from which we take it that it was run in
that format; Liu et al. do not say so.
"""

from experiments import recipes
from experiments.study import Study

FORMS = ("tiny", "paper")


def get_study(form: str) -> Study:
    if form == "paper":
        base = recipes.change(recipes.bert_base(), recipes.SEGMENT_PAIR_NSP)
    else:
        # Of such short rows, cut at sentences, about 22% are padding.
        few = int(recipes.TINY_TOKENS * 0.775 / 40)
        base = recipes.change(recipes.tiny(), {"data.max_tokens": few})
    return Study(
        name=f"table1_{form}",
        question="Does a new mask in every epoch help, against ten that are seen again and again?",
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
        paper={
            "static": {"SQuAD 2.0 F1": 78.3, "MNLI-m": 84.3, "SST-2": 92.5},
            "dynamic": {"SQuAD 2.0 F1": 78.7, "MNLI-m": 84.0, "SST-2": 92.9},
        },
        source="Liu et al. 2019, Table 1 (medians of 5 seeds)",
        notes=recipes.NOTES[form],
    )
