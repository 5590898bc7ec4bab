"""What a run exports, loaded by transformers: no warning, its labels, and the same logits."""

import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax

from roberta_jax.finetune import finetune
from roberta_jax.weights.load import from_pretrained
from tests.support import finetuning, small_tasks

pytestmark = pytest.mark.parity

# Task -> its head, and what config.json says besides.
HEADS = {
    "single": ("SequenceClassification", "single_label_classification", ("bad", "good")),
    "pairs": (
        "SequenceClassification",
        "single_label_classification",
        ("label 0", "label 1", "label 2"),
    ),
    "regression": ("SequenceClassification", "regression", None),
    "multi_label": (
        "SequenceClassification",
        "multi_label_classification",
        ("first", "second", "third"),
    ),
    "tokens": ("TokenClassification", None, ("O", "B-ADJ")),
    "choice": ("MultipleChoice", None, None),
    "squad": ("QuestionAnswering", None, None),
    "wsc": ("MaskedLM", None, None),
}


@pytest.mark.parametrize("name", small_tasks.TASKS)
def test_transformers_loads_the_export_and_computes_the_same(
    base_model, cache, tmp_path, caplog, capfd, name
):
    head, problem, labels = HEADS[name]
    task, changes = small_tasks.TASKS[name](tmp_path)
    steps = {"train.epochs": None, "train.steps": 1, "data.num_lengths": 1}
    finetune(finetuning.small_run(task, base_model, cache, **steps, **changes), tmp_path / "run")
    capfd.readouterr()
    caplog.clear()
    folder = tmp_path / "run" / "hf"
    with caplog.at_level(logging.INFO):
        theirs, report = getattr(transformers, f"AutoModelFor{head}").from_pretrained(
            folder, output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert not any(report.values()), report
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert capfd.readouterr().err == ""
    assert type(theirs).__name__ == f"RobertaFor{head}"
    assert theirs.config.problem_type == problem
    if labels is not None:
        assert theirs.config.id2label == dict(enumerate(labels))
        assert theirs.config.label2id == {label: number for number, label in enumerate(labels)}
    texts = [finetuning.sentence(number)[0] for number in range(40, 46)]
    length = {"padding": True, "truncation": True, "max_length": 24}
    encoded = tokenizer(texts, [small_tasks.PASSAGE] * 6, **length, return_tensors="np")
    inputs = {key: np.asarray(encoded[key]) for key in ("input_ids", "attention_mask")}
    if head == "MultipleChoice":
        inputs = {key: value.reshape(2, 3, -1) for key, value in inputs.items()}
    model, params = from_pretrained(tmp_path / "run")
    with jax.default_matmul_precision("highest"):
        ours = model.apply({"params": params}, **inputs)
    with torch.no_grad():
        expected = theirs.eval()(**{key: torch.from_numpy(x) for key, x in inputs.items()})
    for key in ("start_logits", "end_logits") if name == "squad" else ("logits",):
        wanted = getattr(expected, key).numpy()
        assert np.ptp(wanted) > 1e-4  # they differ from each other
        np.testing.assert_allclose(getattr(ours, key), wanted, rtol=0, atol=1e-5)
