"""The command `predict`, on models with random heads: what it refuses, and what it continues."""

import csv
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from roberta_jax import config_groups
from roberta_jax import predict as command
from roberta_jax.errors import UsageError
from roberta_jax.finetuning import finished
from roberta_jax.modeling.heads import MODEL_CLASSES
from roberta_jax.predict import predict
from roberta_jax.weights.save import save_pretrained
from tests.support.messages import one_screen
from tests.support.small_config import small_config
from tests.support.small_tokenizer import small_tokenizer


def write_model(folder, head, labels):
    tokenizer = small_tokenizer()
    config = small_config(
        vocab_size=len(tokenizer),
        initializer_range=0.3,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={name: number for number, name in enumerate(labels)},
    )
    model = MODEL_CLASSES[head](config)
    params = nn.unbox(model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    save_pretrained(folder, model, params, tokenizer)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    return write_model(folder, "RobertaForSequenceClassification", ("bad", "good"))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagger")
    return write_model(folder, "RobertaForTokenClassification", ("O", "B-PER"))


@pytest.fixture
def blocks_of_4(monkeypatch):
    monkeypatch.setattr(command, "_BLOCK", 4)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def texts(tmp_path):
    rows = [{"a": f"a film {n}", "b": f"some book {n}"} for n in range(12)]
    return write_jsonl(tmp_path / "in.jsonl", rows)


def interrupt(monkeypatch, calls):
    """Predictions are interrupted at the third block."""
    predictions = finished.FinishedModel.predictions

    def interrupted(self, examples):
        calls.append([each.text_a for each in examples])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predictions(self, examples)

    monkeypatch.setattr(finished.FinishedModel, "predictions", interrupted)


_NO_BFLOAT16 = pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="jaxlib 0.7 lacks bfloat16 on CPUs"
)


@pytest.mark.parametrize(
    "changes",
    [
        {"text_column": "b"},
        {"task": "sst2"},
        pytest.param({"dtype": "bfloat16"}, marks=_NO_BFLOAT16),
    ],
    ids=str,
)
def test_predictions_with_other_options_are_not_continued(
    tmp_path, monkeypatch, texts, blocks_of_4, changes
):
    labels = ("negative", "positive")
    model = write_model(tmp_path / "model", "RobertaForSequenceClassification", labels)
    options, output = {"text_column": "a"}, tmp_path / "out.csv"
    predict(model, texts, tmp_path / "whole.csv", **(options | changes))
    calls = []
    interrupt(monkeypatch, calls)
    with pytest.raises(KeyboardInterrupt):
        predict(model, texts, output, **options)
    predict(model, texts, output, **(options | changes))
    assert len(calls) == 3 + 3  # all blocks again
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_predictions_with_the_same_options_are_continued(
    classifier, tmp_path, monkeypatch, texts, blocks_of_4
):
    calls = []
    interrupt(monkeypatch, calls)
    for _ in range(2):
        try:
            predict(classifier, texts, tmp_path / "out.csv", text_column="a")
        except KeyboardInterrupt:
            continue
    assert [len(call) for call in calls] == [4, 4, 4, 4]
    assert calls[2] == calls[3]
    assert len(read_csv(tmp_path / "out.csv")) == 12


@pytest.mark.parametrize(
    ("head", "rows", "options", "message"),
    [
        (
            "tagger",
            [{"tokens": ["one", "word"]}] * 9 + [{"tokens": []}],
            {},
            r"in 1 row 'tokens' is not a list of words \(line 10\)",
        ),
        (
            "classifier",
            [{"text": "one", "key": "1"}, {"text": "two", "key": ""}] * 5,
            {"id_column": "key"},
            r"in 5 rows the id is missing \(lines 2, 4, ",
        ),
        (
            "classifier",
            [{"text": "one"}] * 9 + [{"text": ["a", "list"]}],
            {"text_column": "text"},
            r"column 'text' is a list, and a text is needed \(line 10\)",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_reported_before_the_model_is_loaded(
    request, tmp_path, monkeypatch, blocks_of_4, head, rows, options, message
):
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    monkeypatch.setattr(finished, "read_pretrained", lambda *_: pytest.fail("the model is loaded"))
    before = set(tmp_path.iterdir())
    with pytest.raises(UsageError, match=message) as error:
        predict(request.getfixturevalue(head), file, tmp_path / "out.jsonl", **options)
    one_screen(error.value)
    assert set(tmp_path.iterdir()) == before


def test_a_block_without_a_word_is_predicted(tagger, tmp_path, blocks_of_4):
    rows = [{"tokens": ["some", "words"]}] * 4 + [{"tokens": [""]}] * 4
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    assert predict(tagger, file, tmp_path / "out.jsonl") == 8
    lines = list(map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()))
    assert [each["prediction"] for each in lines[4:]] == [["O"]] * 4
    assert [each["scores"] for each in lines[4:]] == [[None]] * 4


@_NO_BFLOAT16
def test_the_dtype_of_the_computation(classifier, tmp_path, texts):
    for name in ("float32", "bfloat16"):
        files = f"--input={texts}", f"--output={tmp_path / name}.csv"
        command.main([str(classifier), *files, "--text_column=a", f"--dtype={name}"])
    predict(classifier, texts, tmp_path / "default.csv", text_column="a")
    exact, rounded = (
        [float(row["score_good"]) for row in read_csv(tmp_path / f"{name}.csv")]
        for name in ("float32", "bfloat16")
    )
    assert exact != rounded
    assert exact == pytest.approx(rounded, abs=0.05)
    assert (tmp_path / "default.csv").read_bytes() == (tmp_path / "float32.csv").read_bytes()


def test_a_dtype_that_the_cpu_cannot_multiply(classifier, tmp_path, monkeypatch, texts):
    def refuse(products):
        raise jax.errors.JaxRuntimeError("no such dot")

    monkeypatch.setattr(config_groups.jax, "jit", refuse)
    with pytest.raises(UsageError, match=r"--dtype=bfloat16: .* Use --dtype=float32, or a newer"):
        predict(classifier, texts, tmp_path / "out.csv", text_column="a", dtype="bfloat16")
