"""Table 4 of RoBERTa: more text, then more steps.

    python -m experiments.sweep table4:tiny --out=runs/table4
    python -m experiments.report table4:tiny --runs=runs/table4

`paper` is the table's own run: the large model, batches of 8K, the 16 GB of books and Wikipedia
(--set=data.files=...) and with them the further corpora, which `MORE` names: change it to where
they lie. All are scored on held-out text of the first corpus. The paper does not say whether the
runs of 300K and 500K steps went on from the one of 100K; here each is a run of its own with a
schedule of its own. To go on with a finished run instead, call
`roberta_jax.pretrain` on its workdir with more --config.train.steps and say how the rate goes on,
with --config.schedule.decay_steps.

`tiny` runs on 2 cores: an eighth of the first corpus (Python's documentation, or what
--set=data.files=... names) or all of it, then more steps.
"""

from experiments import recipes
from experiments.study import Study

FORMS = ("tiny", "paper")

# The corpora beside books and Wikipedia, in the paper's sizes: 76, 38 and 31 GB of text.
MORE = (
    {"files": "data/cc_news/*.jsonl.zst"},
    {"files": "data/openwebtext/*.jsonl.zst"},
    {"files": "data/stories/*.jsonl.zst"},
)


def get_study(form: str) -> Study:
    if form == "paper":
        base = recipes.roberta_large()
        settings = {"16GB, 100K steps": _steps(100_000)}
        for thousands in (100, 300, 500):
            settings[f"160GB, {thousands}K steps"] = {"data.mixture": MORE} | _steps(
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
    figures = ((93.6, 87.3, 89.0, 95.3), (94.0, 87.7, 89.3, 95.6), (94.4, 88.7, 90.0, 96.1),
               (94.6, 89.4, 90.2, 96.4))  # fmt: skip
    finetuned = ("SQuAD 1.1", "SQuAD 2.0", "MNLI-m", "SST-2")
    paper = {}
    if form == "paper":
        paper = {
            name: dict(zip(finetuned, row, strict=True))
            for name, row in zip(settings, figures, strict=True)
        }
    return Study(
        name=f"table4_{form}",
        question="How far do more text and more steps go?",
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
        paper=paper,
        source="Liu et al. 2019, Table 4",
        notes=recipes.NOTES[form],
    )


def _steps(steps: int) -> dict[str, int]:
    return {"train.steps": steps}
