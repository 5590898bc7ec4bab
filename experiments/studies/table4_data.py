"""Table 4 of RoBERTa: more text, then more steps.

    python -m experiments.sweep table4:tiny --out=runs/table4
    python -m experiments.report table4:tiny --runs=runs/table4

With --data=FOLDER, a folder with the official files of the tasks in the columns, each finished
model is fine-tuned on them; without it these columns are not measured.

`paper` is the run of the paper: the large model and batches of 8K, on the 16 GB of books and
Wikipedia (--set=data.files=...) and, in the later rows, on three more corpora. Edit the paths of
these in `MORE_CORPORA`. All settings have RoBERTa's own tokenizer, which is downloaded, or that of
--set=tokenizer=FOLDER, and are evaluated on held-out text of the first corpus. The paper
does not say whether the runs of 300K and 500K steps continued the run of 100K steps; here each is a
separate run with its own schedule. To continue a finished run instead, run `roberta_jax.pretrain`
on its workdir with a larger --config.train.steps, and set --config.schedule.decay_steps.

`tiny` runs on 2 CPU cores: on an eighth of the text, on all of it, and on all of it for twice the
steps. Its text is Python's documentation, or other text with
--set=data.source=files --set=data.files=...
"""

from experiments.studies import _recipes as recipes
from experiments.study import Study

FORMS = ("tiny", "paper")

# The paper's corpora besides books and Wikipedia: 76, 38 and 31 GB of text.
MORE_CORPORA = (
    {"files": "data/cc_news/*.jsonl.zst"},
    {"files": "data/openwebtext/*.jsonl.zst"},
    {"files": "data/stories/*.jsonl.zst"},
)

TOKENIZER = "FacebookAI/roberta-base"  # on the hub: the tokenizer of the paper's models


def get_study(form: str) -> Study:
    if form == "paper":
        # The paper's vocabulary is GPT-2's for all rows (section 4.4). Trained on its own corpora,
        # each row would have another, and their perplexities could not be compared.
        base = recipes.change(recipes.roberta_large(), {"tokenizer": TOKENIZER})
        settings = {"16GB, 100K steps": _steps(100_000)}
        for thousands in (100, 300, 500):
            settings[f"160GB, {thousands}K steps"] = {"data.mixture": MORE_CORPORA} | _steps(
                thousands * 1000
            )
    else:
        base = recipes.tiny()
        short = base.train.steps // 2
        settings = {
            "an eighth of the text": {"data.max_tokens": recipes.TINY_TOKENS // 16} | _steps(short),
            "all of it": _steps(short),
            "all of it, 2 times the steps": _steps(2 * short),
        }
    scores = ((93.6, 87.3, 89.0, 95.3), (94.0, 87.7, 89.3, 95.6), (94.4, 88.7, 90.0, 96.1),
              (94.6, 89.4, 90.2, 96.4))  # fmt: skip
    finetuned = ("SQuAD 1.1", "SQuAD 2.0", "MNLI-m", "SST-2")
    paper = {}
    if form == "paper":
        paper = {
            name: dict(zip(finetuned, row, strict=True))
            for name, row in zip(settings, scores, strict=True)
        }
    return Study(
        name=f"table4_{form}",
        question="Do more text and more steps help?",
        base=base,
        settings=settings,
        seeds=recipes.SEEDS if form == "tiny" else (0,),
        columns={
            **recipes.PERPLEXITIES,
            "epochs": "epochs",
            "SQuAD 1.1": "squad1.f1",
            "SQuAD 2.0": "squad2.f1",
            "MNLI-m": "mnli.accuracy",
            "SST-2": "sst2.accuracy",
        },
        downstream=recipes.downstream(form, "squad1", "squad2", "mnli", "sst2"),
        paper=paper,
        source="Liu et al. 2019, Table 4",
        notes=recipes.NOTES[form],
    )


def _steps(steps: int) -> dict[str, int]:
    return {"train.steps": steps}
