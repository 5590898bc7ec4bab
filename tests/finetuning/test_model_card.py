import dataclasses

import pytest
import yaml
from huggingface_hub import ModelCard

from roberta_jax.finetuning.model_card import model_card
from roberta_jax.finetuning.results import with_intervals
from roberta_jax.tasks.examples import TextExample
from roberta_jax.tasks.task import KINDS
from tests.support import split_results

COMMAND = "python -m roberta_jax.finetune --config=configs/finetune.py:rte"
ABOUT = {"command": COMMAND, "init_from": "runs/tiny", "seed": 3, "versions": {"jax": "0.10.2"}}
COUNTS = {"train": 2490, "validation": 4}
LABELS = ("entailment", "not_entailment")
# Kind -> metric, gold, predictions, labels.
CASES = {
    "classification": ("accuracy", list("aabb"), list("aaab"), ("a", "b")),
    "multi_label": ("micro_f1", [("a",), ()], [["a"], ["b"]], ("a", "b")),
    "regression": ("pearson", [1.0, 2.0, 3.0], [1.0, 2.0, 2.0], ()),
    "tokens": ("f1", [("B-A", "O")], [["B-A", "O"]], ("O", "B-A")),
    "choice": ("accuracy", [0, 2], [0, 1], ()),
    "question_answering": ("f1", [("a",), ()], ["a", "b"], ()),
    "pronoun": ("accuracy", [True, False], [True, True], ()),
}


def card(kind="classification", **fields):
    metric, gold, predicted, labels = CASES[kind]
    task = split_results.task(kind, title="RTE", metrics=(metric,), **fields)
    scores = {"scores": {"f1": 80.0}} if kind == "question_answering" else {}
    result = split_results.result(task, gold, predicted, labels, **scores)
    result = with_intervals(task, labels, result, samples=20)
    return model_card(task, labels, [result], ABOUT, folder="runs/rte/hf", examples=COUNTS)


def header(text):
    start, yaml_text, _ = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(yaml_text)


def code(text):
    """The blocks of Python."""
    return [part.split("```")[0] for part in text.split("```python\n")[1:]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_is_complete_for_every_kind(kind):
    text = card(kind)
    data = header(text)
    assert ModelCard(text).data.eval_results[0].dataset_name == "RTE"
    assert data["library_name"] == "transformers"
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"]["name"] == "RTE"
    assert result["task"]["type"] == data["pipeline_tag"]
    assert isinstance(result["metrics"][0]["value"], float)
    for part in ("2,490 examples", "runs/tiny", "runs/rte/hf", f"\n{COMMAND}\n", "- seed: 3"):
        assert part in text
    for placeholder in ("{", "TODO", "None", "[More", "nan", "..."):
        assert placeholder not in text.replace("top_k=None", ""), placeholder
    with_transformers, here = code(text)
    for block in (with_transformers, here):
        compile(block, "card", "exec")


def test_scores_stand_beside_intervals_and_baseline():
    metric, gold, predicted, labels = CASES["classification"]
    task = split_results.task(title="RTE", metrics=(metric,))
    result = split_results.result(
        task,
        gold,
        predicted,
        labels,
        baseline={"accuracy": 0.5},
        baseline_name="always 'a'",
        intervals={"accuracy": (0.25, 1.0)},
    )
    text = model_card(task, labels, [result], ABOUT, folder="hf", examples=COUNTS)
    assert "| RTE | validation | 4 | 75.0 (25.0 to 100.0) | 50.0 (always 'a') |" in text
    assert "the model is not better than the baseline, within the interval." in text
    assert header(text)["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.75


def test_pairs_scales_and_thresholds_are_explained():
    assert "The output times 5 is the prediction." in card("regression", label_scale=5.0)
    assert "The output times" not in card("regression")
    assert "score is at least 0.5" in card("multi_label")
    task = split_results.task()
    assert "text_pair" not in card()
    result = split_results.result(task, ["a"], ["a"], ("a",))
    result = dataclasses.replace(result, examples=[TextExample("0", "a text", "another", "a")])
    text = model_card(task, ("a",), [result], {}, folder="hf", examples={})
    assert '"text_pair": "The second text."' in text


def test_names_cannot_break_the_card():
    labels = ("a\n---\nb", "c|d", "x" * 500)
    task = split_results.task(title="My: 'task' #1\n---\n| <b>", tfds=None)
    result = split_results.result(task, list(labels), list(labels), labels)
    about = {"command": "a ``` b\n---", "note": "c\n# d"}
    text = model_card(task, labels, [result], about, folder="a 'b'\\c", examples={"a\nb": 1})
    assert header(text)["model-index"][0]["name"] == "My: 'task' #1\\n---\\n| <b>"
    assert "\n# d" not in text
    for block in code(text):
        compile(block, "card", "exec")
    assert "````\na ``` b\n---\n````" in text


def test_a_model_without_labelled_examples_has_no_scores():
    task = split_results.task()
    result = split_results.result(task, [None], ["a"])
    text = model_card(task, ("a",), [result], {}, folder="hf", examples={"train": 3})
    assert "## Scores" not in text
    assert "model-index" not in header(text)
    assert "fine-tuned from" not in text
