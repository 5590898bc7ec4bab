"""Table 2 of RoBERTa: what an input is made of, and whether to predict the next sentence.

    python -m experiments.sweep table2:tiny --out=runs/table2
    python -m experiments.report table2:tiny --runs=runs/table2

The paper's four formats, and SEGMENT-PAIR without next-sentence prediction, which tells the two
apart: the format and the objective. Short inputs share rows, so that all train on about as many
tokens; what is left of padding is a column.

`paper` is the table's own run: 16 GB of books and Wikipedia (--set=data.files=...), batches of 256
for 1M steps. `tiny` runs on 2 cores, on Python's documentation or, with
--set=data.source=files --set=data.files=..., on other text.
"""

from experiments import recipes
from experiments.study import Study

FORMS = ("tiny", "paper")


def get_study(form: str) -> Study:
    finetuned = ("SQuAD 1.1", "SQuAD 2.0", "MNLI-m", "SST-2", "RACE")
    return Study(
        name=f"table2_{form}",
        question="Which input format is best, and does next-sentence prediction help?",
        base=recipes.bert_base() if form == "paper" else recipes.tiny(),
        settings={
            "SEGMENT-PAIR+NSP": recipes.SEGMENT_PAIR_NSP,
            "SEGMENT-PAIR": {**recipes.SEGMENT_PAIR_NSP, "objective.next_sentence": False},
            "SENTENCE-PAIR+NSP": {
                **recipes.SEGMENT_PAIR_NSP,
                "data.format": "sentence_pair",
            },
            "FULL-SENTENCES": {"data.format": "full_sentences"},
            "DOC-SENTENCES": {"data.format": "doc_sentences"},
        },
        seeds=recipes.SEEDS,
        columns={
            **recipes.PERPLEXITIES,
            "pairs told right": "next_sentence_accuracy",
            "padding": "padding_share",
            "SQuAD 1.1": "squad1.f1",
            "SQuAD 2.0": "squad2.f1",
            "MNLI-m": "mnli.accuracy",
            "SST-2": "sst2.accuracy",
            "RACE": "race.accuracy",
        },
        paper={
            name: dict(zip(finetuned, figures, strict=True))
            for name, figures in {
                "SEGMENT-PAIR+NSP": (90.4, 78.7, 84.0, 92.9, 64.2),
                "SENTENCE-PAIR+NSP": (88.7, 76.2, 82.9, 92.1, 63.0),
                "FULL-SENTENCES": (90.4, 79.1, 84.7, 92.5, 64.8),
                "DOC-SENTENCES": (90.6, 79.7, 84.7, 92.7, 65.6),
            }.items()
        },
        source="Liu et al. 2019, Table 2 (medians of 5 seeds)",
        notes=recipes.NOTES[form],
    )
