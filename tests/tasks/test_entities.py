"""Entities of tags, by hand, against the golden values and against seqeval."""

import json
import lzma
import random

import pytest

from roberta_jax.tasks import entities
from roberta_jax.tasks.entities import Counts


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", []),
        ("O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("I-PER I-PER B-PER I-LOC", [("PER", 0, 2), ("PER", 2, 3), ("LOC", 3, 4)]),  # IOB1
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("I-PER E-PER I-PER", [("PER", 0, 2), ("PER", 2, 3)]),  # IOE
        ("S-PER S-PER B-PER E-PER", [("PER", 0, 1), ("PER", 1, 2), ("PER", 2, 4)]),  # IOBES
        ("U-PER U-PER B-PER L-PER", [("PER", 0, 1), ("PER", 1, 2), ("PER", 2, 4)]),  # BILOU
        ("PER PER O ORG", [("PER", 0, 2), ("ORG", 3, 4)]),  # no prefixes
        ("B-a-b I-a-b", [("a-b", 0, 2)]),
        ("B I O I", [("_", 0, 2), ("_", 3, 4)]),
        ("LOC SIGN", [("LOC", 0, 1), ("SIGN", 1, 2)]),  # they begin with letters of prefixes
    ],
)
def test_entities_of_tags(tags, expected):
    assert entities.entities(tags.split()) == expected


def test_counts_are_by_type_and_border():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "O"]]
    assert entities.counts_by_type(gold, predicted) == {
        "LOC": Counts(1, 2, 1),
        "ORG": Counts(0, 0, 1),
        "PER": Counts(0, 1, 1),
    }
    assert entities.entity_scores(gold, predicted) == pytest.approx(
        {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3}
    )


def test_entities_do_not_continue_in_the_next_sentence():
    assert entities.counts_by_type([["I-A"], ["I-A"]], [["I-A"], ["O"]]) == {"A": Counts(1, 1, 2)}


def test_nothing_to_find_scores_zero():
    assert entities.entity_scores([["O"]], [["O"]]) == {"precision": 0, "recall": 0, "f1": 0}
    assert entities.entity_scores([], []) == {"precision": 0, "recall": 0, "f1": 0}


def test_another_number_of_tags_is_an_error():
    with pytest.raises(ValueError, match="2 tags, but 1"):
        entities.sentence_counts(["O", "O"], ["O"])


def read_tags(path, column):
    sentences, tags = [], []
    for line in lzma.decompress(path.read_bytes()).decode().splitlines():
        fields = line.split()
        if fields and fields[0] != "-DOCSTART-":
            tags.append(fields[column])
        elif tags:
            sentences.append(tags)
            tags = []
    return [*sentences, tags] if tags else sentences


@pytest.mark.parametrize(
    ("name", "gold", "predictions"),
    [
        ("conll_testa", "ner/conll2003/eng.testa.xz", "ner_conll_testa_pred.json.xz"),
        ("wikiann_en_dev", "ner/wikiann_en/dev.xz", "ner_wikiann_en_dev_pred.json.xz"),
    ],
)
def test_golden_values_of_seqeval(real_data, name, gold, predictions):
    folder = real_data / "golden_metrics"
    expected = json.loads((folder / "expected_ner_seqeval.json").read_text())[name]
    gold = read_tags(real_data / gold, -1)
    predicted = json.loads(lzma.decompress((folder / predictions).read_bytes()))
    assert (len(gold), sum(map(len, gold))) == (expected["sentences"], expected["tokens"])
    scores = entities.entity_scores(gold, predicted)
    assert scores == pytest.approx(expected["seqeval_default"], abs=1e-12, rel=0)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_seqeval_counts_the_same():
    sequence_labeling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    seqeval = pytest.importorskip("seqeval.metrics")
    rng = random.Random(0)
    tags = ["O", "B", "I", *(f"{p}-{t}" for p in "BIES" for t in ("PER", "LOC", "a-b"))]
    gold, predicted = [], []
    for _ in range(3000):
        length = rng.randint(1, 12)
        gold.append(rng.choices(tags, k=length))
        predicted.append([t if rng.random() < 0.6 else rng.choice(tags) for t in gold[-1]])
    for sentence in gold:
        assert entities.entities(sentence) == [
            (type_, start, last + 1)
            for type_, start, last in sequence_labeling.get_entities(sentence)
        ]
    scores = entities.entity_scores(gold, predicted)
    assert scores["f1"] == pytest.approx(seqeval.f1_score(gold, predicted), abs=1e-12, rel=0)
    precision, recall, f1, support = sequence_labeling.precision_recall_fscore_support(
        gold, predicted, average=None
    )
    by_type = list(entities.counts_by_type(gold, predicted).values())
    assert [each.precision for each in by_type] == pytest.approx(precision, abs=1e-12, rel=0)
    assert [each.recall for each in by_type] == pytest.approx(recall, abs=1e-12, rel=0)
    assert [each.f1 for each in by_type] == pytest.approx(f1, abs=1e-12, rel=0)
    assert [each.gold for each in by_type] == list(support)
