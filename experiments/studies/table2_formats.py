"""Table 2 of RoBERTa: input formats, with and without next-sentence prediction.

    python -m experiments.sweep table2:tiny --out=runs/table2
    python -m experiments.report table2:tiny --runs=runs/table2

With --data=FOLDER, a folder with the official files of the tasks in the columns, each finished
model is fine-tuned on them; without it these columns are not measured.

It compares the paper's four formats, and adds SEGMENT-PAIR without next-sentence prediction, which
separates the effect of the format from that of the objective. Short inputs share rows, so that all
settings train on about the same number of tokens; the share of padding is a column.

`paper` is the run of the paper: 16 GB of books and Wikipedia (--set=data.files=...) and batches of
256 for 1M steps. `tiny` runs on 2 CPU cores. Its text is Python's documentation, or other text with
--set=data.source=files --set=data.files=...
"""

from experiments.studies import _recipes as recipes
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
            "next-sentence accuracy": "next_sentence_accuracy",
            "padding": "padding_share",
            "SQuAD 1.1": "squad1.f1",
            "SQuAD 2.0": "squad2.f1",
            "MNLI-m": "mnli.accuracy",
            "SST-2": "sst2.accuracy",
            "RACE": "race.accuracy",
        },
        downstream=recipes.downstream(form, "squad1", "squad2", "mnli", "sst2", "race"),
        paper={
            name: dict(zip(finetuned, scores, strict=True))
            for name, scores in {
                "SEGMENT-PAIR+NSP": (90.4, 78.7, 84.0, 92.9, 64.2),
                "SENTENCE-PAIR+NSP": (88.7, 76.2, 82.9, 92.1, 63.0),
                "FULL-SENTENCES": (90.4, 79.1, 84.7, 92.5, 64.8),
                "DOC-SENTENCES": (90.6, 79.7, 84.7, 92.7, 65.6),
            }.items()
        },
        source="Liu et al. 2019, Table 2 (medians of 5 seeds)",
        notes=recipes.NOTES[form],
    )
