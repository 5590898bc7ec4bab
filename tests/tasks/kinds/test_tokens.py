"""Tags of words: labels at first tokens, windows, and one prediction for each word."""

import lzma
import random

import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.tasks.examples import TokenExample
from roberta_jax.tasks.kinds.tokens import windows
from roberta_jax.tasks.task import Formatting
from tests.support import heads
from tests.support.kinds import batch_of, build, make_kind, mean_loss, outputs_of
from tests.support.small_tokenizer import small_tokenizer

TAGS = ("O", "B-PER", "I-PER", "B-LOC")


def kind_of(max_length=38, labels=TAGS, metrics=("f1", "precision", "recall")):
    return make_kind(
        "tokens", labels, formatting=Formatting(max_length=max_length), metrics=metrics
    )


def random_examples(count, seed=0, longest=60, tagged=True):
    rng = random.Random(seed)
    words = (
        "Paris",
        "returns",
        "a",
        "value",
        "extraordinarily",
        "",
        "\u200b",
        "x" * 30,
        "日本",
        "",
    )
    examples = []
    for number in range(count):
        chosen = tuple(rng.choice(words) for _ in range(rng.randint(1, longest)))
        tags = tuple(rng.choice(TAGS) for _ in chosen) if tagged else None
        examples.append(TokenExample(str(number), chosen, tags))
    return examples


def test_the_label_is_at_the_first_token_of_each_word():
    tokenizer, kind = small_tokenizer(), kind_of()
    example = TokenExample("1", ("Hello", "</s>", "unbelievable"), ("B-PER", "O", "B-LOC"))
    features = kind.encode([example], tokenizer)
    pieces = [
        tokenizer(f" {word}", add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for word in example.words
    ]
    assert features.tokens.tolist() == [0, *pieces[0], *pieces[1], *pieces[2], 2]
    labels = []
    for ids, tag in zip(pieces, example.tags, strict=True):
        labels += [TAGS.index(tag), *[-100] * (len(ids) - 1)]
    assert features.token_columns["labels"].tolist() == [-100, *labels, -100]
    assert features.token_columns["labels"].dtype == np.int32
    batch = batch_of(kind, features, [0, -1])
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}
    assert (batch["labels"][1] == -100).all()
    assert batch["attention_mask"].sum(1).tolist() == [len(features.tokens), 1]


@pytest.mark.parametrize("room", [1, 2, 5, 16, 36])
def test_windows_have_each_word_once_and_context_from_both_sides(room):
    rng = random.Random(room)
    for _ in range(200):
        counts = [
            rng.randint(1, min(room, rng.choice([1, 3, room]))) for _ in range(rng.randint(0, 60))
        ]
        parts = list(windows(counts, room))
        targets = [word for _, start, stop, _ in parts for word in range(start, stop)]
        assert targets == list(range(len(counts)))
        for first, start, stop, end in parts:
            assert first <= start < stop <= end
            assert sum(counts[first:end]) <= room
            assert sum(counts[first:start]) <= room // 4
            assert sum(counts[stop:end]) <= room // 4
        if sum(counts) <= room:
            assert len(parts) == (1 if counts else 0)
    assert list(windows([1] * 20, 8)) == [
        (0, 0, 6, 8), (4, 6, 10, 12), (8, 10, 14, 16), (12, 14, 20, 20),
    ]  # fmt: skip


@pytest.mark.parametrize("max_length", [3, 8, 20])
def test_every_word_gets_exactly_one_prediction(max_length):
    tokenizer, kind = small_tokenizer(), kind_of(max_length)
    examples = [*random_examples(30), TokenExample("no words", (), ())]
    features = kind.encode(examples, tokenizer)
    assert features.row_lengths.max() <= max_length
    words = features.host_arrays["words"]
    seen = set()
    for row, example in enumerate(features.example):
        begin, end = features.starts[row : row + 2]
        assert features.tokens[begin] == 0
        assert features.tokens[end - 1] == 2
        for place in np.flatnonzero(words[begin:end] >= 0) + begin:
            word = (int(example), int(words[place]))
            assert word not in seen
            seen.add(word)
            tag = examples[word[0]].tags[word[1]]
            assert features.token_columns["labels"][place] == TAGS.index(tag)
    # All words but the empty ones; a zero-width space has tokens in a byte-level vocabulary.
    assert seen == {
        (number, place)
        for number, each in enumerate(examples)
        for place, word in enumerate(each.words)
        if word
    }
    targets = features.token_columns["labels"] != -100
    np.testing.assert_array_equal(targets, words >= 0)
    empty = sum(not word for each in examples for word in each.words)
    assert features.notes["words without a token, which are in no input"] == empty
    assert ("words longer than an input, which are cut" in features.notes) == (max_length < 38)


def test_predictions_are_those_of_each_word_alone_in_its_window():
    """The tags that an oracle gives come back in the order of the words, whatever the windows."""
    tokenizer, kind = small_tokenizer(), kind_of(12)
    examples = random_examples(20)
    features = kind.encode(examples, tokenizer)
    outputs = {"tag": [], "probability": []}
    for begin, end in zip(features.starts[:-1], features.starts[1:], strict=True):
        labels = features.token_columns["labels"][begin:end]
        outputs["tag"].append(np.where(labels < 0, 3, labels))
        outputs["probability"].append(np.full(end - begin, 0.75, np.float32))
    predictions = kind.predictions(examples, features, outputs)
    for example, prediction in zip(examples, predictions, strict=True):
        assert list(prediction)[:2] == ["id", "prediction"]
        expected = [
            tag if word else "O" for word, tag in zip(example.words, example.tags, strict=True)
        ]
        assert prediction["prediction"] == expected
        assert prediction["scores"] == [0.75 if word else None for word in example.words]
        assert prediction["label"] == list(example.tags)


def test_the_head_trains_on_the_columns_and_predicts_without_labels():
    tokenizer, kind = small_tokenizer(), kind_of()
    first = TokenExample("short", ("Paris", "", "returns"), ("B-LOC", "O", "O"))
    examples = [first, *random_examples(5, longest=9)]
    unknown = [TokenExample(each.id, each.words) for each in examples]
    features, unlabelled = kind.encode(examples, tokenizer), kind.encode(unknown, tokenizer)
    model, params = build(kind)
    assert model.config.id2label == dict(enumerate(TAGS))
    batch = batch_of(kind, features)
    assert model.count(**batch)["token_classification"] == sum(
        bool(word) for each in examples for word in each.words
    )
    assert np.isfinite(mean_loss(model, params, batch))
    assert model.count(**batch_of(kind, unlabelled))["token_classification"] == 0
    predictions = kind.predictions(unknown, unlabelled, outputs_of(kind, model, params, unlabelled))
    labelled = kind.predictions(examples, features, outputs_of(kind, model, params, features))
    assert [each["prediction"] for each in predictions] == [each["prediction"] for each in labelled]
    assert predictions[0]["label"] is None
    # The largest logit at the first token of each word.
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = np.asarray(heads.apply(model, params, **inputs).logits)[0]
    first_tokens = [place for place, label in enumerate(batch["labels"][0]) if label >= 0]
    chosen = [TAGS[tag] for tag in logits[first_tokens].argmax(-1)]
    assert predictions[0]["prediction"] == [chosen[0], "O", chosen[1]]


def test_scores_are_of_entities_and_of_words():
    kind = kind_of()
    examples = [
        TokenExample("1", ("a", "b", "c"), ("O", "B-PER", "I-PER")),
        TokenExample("2", ("c",), None),
        TokenExample("3", ("d", "e"), ("B-LOC", "O")),
    ]
    predicted = (["B-LOC", "B-PER", "I-PER"], ["B-PER"], ["O", "O"])
    predictions = [{"prediction": tags} for tags in predicted]
    scores = kind.scores(examples, predictions)
    assert scores == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.6}
    assert next(iter(scores)) == "f1"
    assert kind.scores(examples[1:2], predictions[1:2]) == {}
    assert kind_of(metrics=("accuracy",)).scores(examples, predictions) == {"accuracy": 0.6}
    named = kind_of(metrics=("entity_f1", "token_accuracy")).scores(examples, predictions)
    assert named == {"entity_f1": 0.5, "token_accuracy": 0.6}


def test_the_baseline_is_the_commonest_tag():
    kind = kind_of()
    train = [TokenExample("1", tuple("abc"), ("O", "B-PER", "O")), TokenExample("2", ("a",))]
    predictions = kind.majority(train, [TokenExample("9", ("x", "y"))])
    assert predictions == [{"id": "9", "prediction": ["O", "O"]}]
    assert kind.majority(train[1:], train) is None


def test_bad_examples_are_errors_that_name_them():
    kind, tokenizer = kind_of(), small_tokenizer()
    with pytest.raises(UsageError, match="example s7 has 2 words and 1 tags"):
        kind.encode([TokenExample("s7", ("a", "b"), ("O",))], tokenizer)
    with pytest.raises(UsageError, match="'I-ORG'.*example s8"):
        kind.encode([TokenExample("s8", ("a",), ("I-ORG",))], tokenizer)
    for examples in ([], [TokenExample("1", ("",), ("O",))]):
        with pytest.raises(UsageError, match="no sentence with a word"):
            kind.encode(examples, tokenizer)


def test_sentences_without_a_token_are_predicted():
    """There is nothing to train on, but `O` is predicted for each word."""
    kind, examples = kind_of(), [TokenExample("1", ("", "")), TokenExample("2", ("",))]
    features = kind.encode(examples, small_tokenizer())
    model, params = build(kind)
    assert model.count(**batch_of(kind, features))["token_classification"] == 0
    predictions = kind.predictions(examples, features, outputs_of(kind, model, params, features))
    assert [each["prediction"] for each in predictions] == [["O", "O"], ["O"]]
    assert [each["scores"] for each in predictions] == [[None, None], [None]]


def test_conll_words_keep_their_tags(real_data):
    """Real sentences, in windows of 16 tokens, give back all their tags."""
    with lzma.open(real_data / "ner" / "conll2003" / "eng.testa.xz", "rt") as file:
        lines = file.read().split("\n")
    sentences, rows = [], []
    for line in lines:
        if line.strip() and not line.startswith("-DOCSTART-"):
            rows.append((line.split()[0], line.split()[-1]))
        elif rows:
            sentences.append(rows)
            rows = []
    examples = [
        TokenExample(str(n), *map(tuple, zip(*rows, strict=True)))
        for n, rows in enumerate(sentences[:400])
    ]
    tags = sorted({tag for each in examples for tag in each.tags})
    kind, tokenizer = kind_of(16, tags), small_tokenizer()
    features = kind.encode(examples, tokenizer)
    starts = zip(features.starts[:-1], features.starts[1:], strict=True)
    found = [features.token_columns["labels"][begin:end] for begin, end in starts]
    outputs = {"tag": found, "probability": [np.ones(len(each)) for each in found]}
    predictions = kind.predictions(examples, features, outputs)
    assert [tuple(each["prediction"]) for each in predictions] == [each.tags for each in examples]
    assert features.num_rows > 2 * len(examples)
