"""Question answering: rows, targets, predictions and scores."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.tasks import loading
from roberta_jax.tasks.kinds import kind_class
from roberta_jax.tasks.kinds.question_answering import NO_TARGET, QuestionAnswering
from roberta_jax.tasks.squad import prediction_files, scoring
from roberta_jax.tokenizer import RobertaTokenizer
from tests.support.heads import build, config_of, summed_losses
from tests.support.squad import PASSAGES, formatting, question, read_squad, task
from tests.support.tokenizer_examples import TEXTS


@pytest.fixture(scope="module")
def tokenizer():
    return RobertaTokenizer.train([*TEXTS[:20], *PASSAGES * 2], vocab_size=500)


def kind(answerable=False, **changes) -> QuestionAnswering:
    return QuestionAnswering(task(answerable), (), formatting(**changes))


def rows_of(features):
    return [
        features.tokens[begin:end].tolist()
        for begin, end in zip(features.starts[:-1], features.starts[1:], strict=True)
    ]


def spans_of(features, examples):
    """The text that each row is trained to choose; "" for none, None for no target."""
    offsets, texts = features.host_arrays["passage_offsets"], []
    for row in range(features.num_rows):
        start, end = (int(features.columns[f"{each}_positions"][row]) for each in ("start", "end"))
        if start == NO_TARGET or start == 0:
            assert end == start
            texts.append("" if start == 0 else None)
            continue
        shift = features.host_arrays["passage_first"][row] - features.host_arrays["passage_at"][row]
        context = examples[features.example[row]].context
        texts.append(context[offsets[start + shift, 0] : offsets[end + shift, 1]])
    return texts


def logits_for(features, starts, ends, value=9.0):
    """Logits of each row that are zero but at one position; the last one if it is outside."""
    outputs = {}
    for name, positions in (("start_logits", starts), ("end_logits", ends)):
        outputs[name] = []
        for length, position in zip(features.row_lengths, positions, strict=True):
            logits = np.zeros(length, np.float32)
            if position < length:
                logits[position] = value
            outputs[name].append(logits)
    return outputs


def oracle(features):
    """Logits of a model that always chooses the target."""
    columns = features.columns
    return logits_for(features, columns["start_positions"], columns["end_positions"])


def test_the_table_finds_the_kind():
    assert kind_class("question_answering") is QuestionAnswering


def test_answers_are_no_labels():
    assert loading.label_names(task(), [question("A cat.", ("cat", 2))]) == ()


# Rows


def test_rows_have_the_question_and_windows_of_the_passage(tokenizer):
    example = question(PASSAGES[0] * 3)
    features = kind().encode([example], tokenizer)
    asked = tokenizer("Who is it?", add_special_tokens=False)["input_ids"]
    passage = tokenizer(example.context, add_special_tokens=False)["input_ids"]
    head = [0, *asked, 2, 2]
    room = 48 - len(head) - 1
    rows = rows_of(features)
    for number, row in enumerate(rows):
        window = passage[12 * number : 12 * number + room]
        assert row == [*head, *window, 2]
        assert features.host_arrays["passage_length"][number] == len(window)
    assert 12 * (len(rows) - 2) + room < len(passage) <= 12 * (len(rows) - 1) + room
    assert set(features.host_arrays["passage_at"]) == {len(head)}
    assert features.example.tolist() == [0] * len(rows)


def test_rows_are_those_of_a_tokenizer_with_the_overlap_as_its_stride(tokenizer):
    example = question(PASSAGES[0] * 3)
    features = kind().encode([example], tokenizer)
    room = 48 - int(features.host_arrays["passage_at"][0]) - 1
    rows = tokenizer(
        example.question,
        example.context,
        truncation="only_second",
        max_length=48,
        stride=room - 12,  # tokens that two windows share
        return_overflowing_tokens=True,
    )
    assert rows_of(features) == rows["input_ids"]


def test_a_question_is_truncated(tokenizer):
    example = dataclasses.replace(question("Short."), question="  why " * 40_000)
    asked = tokenizer(example.question.lstrip(), add_special_tokens=False)["input_ids"]
    [row] = rows_of(kind().encode([example], tokenizer))
    assert row[:19] == [0, *asked[:16], 2, 2]


def test_one_separator_and_prefixes(tokenizer):
    examples = [question("Short.", ("Short", 0))]
    changes = {"separators": 1, "prefix_a": "Q: ", "prefix_b": "A: "}
    features = kind(**changes).encode(examples, tokenizer)
    [row] = rows_of(features)
    assert tokenizer.decode(row) == "<s>Q: Who is it?</s>A: Short.</s>"
    assert spans_of(features, examples) == ["Short"]


def test_no_examples(tokenizer):
    features = kind().encode([], tokenizer)
    assert features.num_rows == 0
    none = {"start_logits": [], "end_logits": []}
    assert kind().predictions([], features, none) == []
    assert kind().scores([], []) == {}


def test_settings_without_room_for_the_passage_are_refused(tokenizer):
    with pytest.raises(UsageError, match=r"--config\.format\.max_length=20 has no room"):
        kind(max_length=20).encode([question("a")], tokenizer)
    assert kind(max_length=21).encode([question("a")], tokenizer).num_rows == 1


@pytest.mark.parametrize("name", ["doc_stride", "max_query_length", "max_answer_length", "n_best"])
def test_settings_below_one_are_refused(tokenizer, name):
    with pytest.raises(UsageError, match=rf"--config\.format\.{name}=0 must be at least 1"):
        kind(**{name: 0}).encode([question("a")], tokenizer)


# Targets


@pytest.mark.parametrize("passage", PASSAGES)
def test_every_window_with_the_whole_answer_is_trained_to_choose_it(tokenizer, passage):
    context = passage * 2
    ends = np.random.default_rng(0).integers(1, len(context), (20, 2))
    examples = []
    for i, (begin, length) in enumerate(ends.tolist()):
        text = context[begin : begin + min(length, 4)]
        if text.strip():
            examples.append(question(context, (text, begin), name=str(i)))
    features = kind(answerable=True).encode(examples, tokenizer)
    assert not features.skipped
    texts = spans_of(features, examples)
    for number, example in enumerate(examples):
        chosen = {t for t, row in zip(texts, features.example, strict=True) if row == number}
        [text] = chosen - {""}  # the same text in every window that holds all of it
        assert example.answers[0].strip() in text
        assert text in context


def test_a_window_with_a_part_of_the_answer_is_trained_to_choose_none(tokenizer):
    context = PASSAGES[0] * 3
    examples = [question(context, (context[i : i + 10], i)) for i in range(0, 200, 7)]
    features = kind().encode(examples, tokenizer)
    found = windows_with_answer = 0
    for row, tokens in enumerate(rows_of(features)):
        at = int(features.host_arrays["passage_at"][row])
        window = tokenizer.decode(tokens[at:-1])
        answer = examples[features.example[row]].answers[0].strip()
        found += features.columns["start_positions"][row] > 0
        windows_with_answer += answer in window
    # Some windows have the same words elsewhere, as the passage repeats.
    assert 0 < found <= windows_with_answer < features.num_rows


def test_questions_without_an_answer_and_without_a_label(tokenizer):
    unlabelled = dataclasses.replace(question(PASSAGES[0]), answers=None, starts=None)
    examples = [question(PASSAGES[0]), unlabelled]
    features = kind().encode(examples, tokenizer)
    assert spans_of(features, examples) == ["", "", None, None]
    assert not features.skipped


SKIPS = {
    "of the loss, but not of the predictions: the answer is not at its position in the passage": [
        question("A cat sat.", ("cat", 3)),
        question("A cat sat.", ("cat", -8)),
        question("A cat sat.", ("sat.x", 6)),
        question("A cat sat.", ("cat", 500)),
        question("A cat sat.", ("", 2)),
        question("", ("cat", 0)),
    ],
    "of the loss, but not of the predictions: the answer has no characters but white space": [
        question("A \u00a0 cat", (" \u00a0 ", 1))
    ],
    "of the loss, but not of the predictions: the position of the answer is not given": [
        dataclasses.replace(question("A cat.", ("cat", 2)), starts=None)
    ],
    "of the loss, but not of the predictions: the answer is longer than a window of the passage": [
        question(PASSAGES[0] * 3, (PASSAGES[0] * 2, 0))
    ],
}


@pytest.mark.parametrize("reason", SKIPS)
def test_what_cannot_be_trained_on_is_counted_and_still_predicted(tokenizer, reason):
    bad = SKIPS[reason]
    examples = [*bad, question("A cat sat.", ("cat", 2), name="good")]
    features = kind(answerable=True).encode(examples, tokenizer)
    assert features.skipped == {reason: len(bad)}
    texts = spans_of(features, examples)
    assert texts[-1] == "cat"
    assert set(texts[:-1]) == {None}
    assert len(kind().predictions(examples, features, oracle(features))) == len(examples)
    with pytest.raises(UsageError, match="can be a target of training: the"):
        kind(answerable=True).encode(bad, tokenizer)


def test_a_question_without_an_answer_is_counted_where_all_have_one(tokenizer):
    examples = [question("A cat."), question("A cat.", ("cat", 2))]
    features = kind(answerable=True).encode(examples, tokenizer)
    assert list(features.skipped.values()) == [1]
    assert spans_of(features, examples) == [None, "cat"]


def test_the_first_answer_that_is_at_its_position_is_the_target(tokenizer):
    examples = [question("A cat sat.", ("cat", 0), ("sat", 6), ("A", 0))]
    features = kind().encode(examples, tokenizer)
    assert spans_of(features, examples) == ["sat"]


def test_passages_of_a_hundred_thousand_characters(tokenizer):
    context = "".join(PASSAGES) * 310
    assert len(context) > 100_000
    at = context.rindex("👨\u200d👩\u200d👧\u200d👦")
    examples = [question(context, (context[at : at + 7], at)), question(context, name="other")]
    features = kind().encode(examples, tokenizer)
    texts = spans_of(features, examples)
    assert set(texts) == {"", context[at : at + 7]}
    [first, _] = kind().predictions(examples, features, oracle(features))
    # Every window without the answer chooses none, by the same score.
    assert (first["n_best"][0]["start"], first["n_best"][0]["end"]) == (at, at + 7)


# Losses


def test_rows_without_a_target_do_not_count_in_the_loss(tokenizer):
    unlabelled = dataclasses.replace(question(PASSAGES[2]), answers=None, starts=None)
    examples = [
        question(PASSAGES[0], ("Normandy", PASSAGES[0].index("Normandy"))),
        unlabelled,
        question(PASSAGES[0], ("Normandy", 0)),
    ]
    chosen = kind()
    features = chosen.encode(examples, tokenizer)
    config = config_of("RobertaForQuestionAnswering", vocab_size=500, max_position_embeddings=60)
    model, params = build("RobertaForQuestionAnswering", config)

    def losses(rows):
        rows = np.append(rows, [-1] * (features.num_rows + 2 - len(rows)))
        batch = features.gather(rows, 48, chosen.fill(), tokenizer.pad_token_id)
        sums = jax.device_get(summed_losses(model, params, **batch))
        return sums, jax.device_get(model.count(**batch))

    targets = np.flatnonzero(features.columns["start_positions"] < NO_TARGET)
    assert 0 < len(targets) < features.num_rows
    sums, counts = losses(np.arange(features.num_rows))
    expected, expected_counts = losses(targets)
    for name in ("start", "end"):
        assert counts[name] == expected_counts[name] == len(targets)
        np.testing.assert_allclose(sums[name], expected[name], rtol=1e-5)


def test_the_head_is_made_for_two_outputs():
    changes = kind().config_changes()
    config = config_of("RobertaForSequenceClassification").replace(**changes)
    assert config.num_labels == 2
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert kind().new_head == ("qa_outputs",)
    assert kind().per_token
    assert kind().model_class.__name__ == "RobertaForQuestionAnswering"


# Predictions


def test_predictions_of_a_model_that_is_always_right(tokenizer):
    examples = [
        question(PASSAGES[0], ("Normandy", PASSAGES[0].index("Normandy")), name="a"),
        question(PASSAGES[0], name="b"),
        question(PASSAGES[2], ("بخارى", PASSAGES[2].index("بخارى")), name="c"),
        question("", name="d"),
    ]
    chosen = kind(null_threshold=0.0)
    features = chosen.encode(examples, tokenizer)
    predictions = chosen.predictions(examples, features, oracle(features))
    assert [each["prediction"] for each in predictions] == ["Normandy", "", "بخارى", ""]
    for example, each in zip(examples, predictions, strict=True):
        assert list(each)[:2] == ["id", "prediction"]
        assert each["id"] == example.id
        assert each["label"] == list(example.answers)
        if each["prediction"]:
            assert example.context[each["start"] : each["end"]] == each["prediction"]
            assert each["null_odds"] < 0
        else:
            assert each["start"] is each["end"] is None
            assert each["null_odds"] > 0
        assert sum(a["probability"] for a in each["n_best"]) == pytest.approx(1)
        assert each["score"] == max(a["probability"] for a in each["n_best"])
        assert json.loads(json.dumps(each)) == each
    scores = chosen.scores(examples, predictions)
    assert list(scores)[:2] == ["f1", "exact_match"]
    assert scores["f1"] == scores["HasAns_f1"] == scores["NoAns_exact"] == scores["best_f1"] == 100


@pytest.mark.parametrize("passage", PASSAGES)
def test_predictions_are_the_characters_of_the_answer(tokenizer, passage):
    """Answers at random characters: predicted up to whole tokens, and cut from the passage."""
    rng = np.random.default_rng(1)
    examples = []
    for number in range(15):
        start = int(rng.integers(0, len(passage)))
        text = passage[start : start + int(rng.integers(1, 5))]
        if text.strip():
            examples.append(question(passage, (text, start), name=str(number)))
    chosen = kind(answerable=True)
    features = chosen.encode(examples, tokenizer)
    for example, each in zip(
        examples, chosen.predictions(examples, features, oracle(features)), strict=True
    ):
        assert passage[each["start"] : each["end"]] == each["prediction"]
        first, text = example.starts[0], example.answers[0]
        assert each["start"] <= first + len(text) - len(text.lstrip())
        assert each["end"] >= first + len(text.rstrip())


def test_a_span_that_begins_or_ends_within_a_character_has_all_of_it():
    bytewise = RobertaTokenizer.train(PASSAGES, vocab_size=261)
    context = "a👍🏽b"  # 1 + 4 + 4 + 1 tokens
    examples = [question(context, ("b", 3))]
    chosen = kind(answerable=True)
    features = chosen.encode(examples, bytewise)
    at = int(features.host_arrays["passage_at"][0])
    for first, last, expected in ((2, 3, "👍"), (3, 6, "👍🏽"), (8, 9, "🏽b"), (0, 1, "a👍")):
        outputs = logits_for(features, [at + first], [at + last])
        [prediction] = chosen.predictions(examples, features, outputs)
        assert prediction["prediction"] == expected


def test_version_1_always_answers(tokenizer):
    examples = [question(PASSAGES[0], ("France", PASSAGES[0].index("France"))), question("")]
    chosen = kind(answerable=True)
    examples[1:] = [dataclasses.replace(examples[1], answers=None, starts=None)]
    features = chosen.encode(examples, tokenizer)
    none = np.zeros(features.num_rows, int)
    first, empty = chosen.predictions(examples, features, logits_for(features, none, none))
    assert first["prediction"]
    assert "null_odds" not in first
    assert "" not in [each["text"] for each in first["n_best"]]
    assert (empty["prediction"], empty["score"], empty["n_best"]) == ("", 0.0, [])
    assert set(chosen.scores(examples, [first, empty])) == {"f1", "exact_match"}
    assert "null_odds.json" not in chosen.files([first, empty])


def test_the_threshold_decides_between_the_best_span_and_no_answer(tokenizer):
    examples = [question(PASSAGES[0], ("France", PASSAGES[0].index("France")))]
    features = kind().encode(examples, tokenizer)
    outputs = oracle(features)
    for row in range(features.num_rows):
        outputs["start_logits"][row][0] = 12
        outputs["end_logits"][row][0] = 12
    for threshold, expected in ((5.9, ""), (6.0, "France"), (7.0, "France")):
        chosen = kind(null_threshold=threshold)
        [prediction] = chosen.predictions(examples, features, outputs)
        assert prediction["null_odds"] == pytest.approx(6)
        assert prediction["prediction"] == expected


def test_the_threshold_is_searched_where_all_answers_are_known(tokenizer):
    rng = np.random.default_rng(3)
    contexts = ["".join(rng.permutation(PASSAGES[0].split(" "))) for _ in range(12)]
    examples = [
        question(c, *([(c[3:9], 3)] if i % 3 else []), name=str(i)) for i, c in enumerate(contexts)
    ]
    features = kind().encode(examples, tokenizer)
    outputs = oracle(features)
    for name in outputs:
        for row in outputs[name]:
            row += rng.normal(0, 2, len(row)).astype(np.float32)
            row[0] += 12
    scores = {}
    for threshold in (0.0, 4.0, None, 9.0, 15.0, 22.0):
        chosen = kind(null_threshold=threshold)
        predictions = chosen.predictions(examples, features, outputs)
        scores[threshold] = chosen.scores(examples, predictions)
        assert scores[threshold]["best_f1"] == scores[0.0]["best_f1"]
    best = max(each["f1"] for each in scores.values())
    assert scores[None]["f1"] == pytest.approx(best) == pytest.approx(scores[0.0]["best_f1"])
    assert scores[None]["f1"] > scores[0.0]["f1"]
    # The threshold can be used for other splits.
    assert scores[4.0]["null_threshold"] == 4
    found = kind().with_choices(scores[None])
    assert found.formatting.null_threshold == scores[None]["null_threshold"]
    assert kind(null_threshold=1.0).with_choices(scores[None]).formatting.null_threshold == 1
    assert kind(answerable=True).with_choices({"f1": 1.0}).formatting.null_threshold is None
    predictions = kind().predictions(examples, features, outputs)
    assert found.predictions(examples, features, outputs) == predictions
    # Examples without a label take part in no search; without any label the threshold is 0.
    hidden = [dataclasses.replace(each, answers=None, starts=None) for each in examples]

    def texts(examples, **changes):
        made = kind(**changes).predictions(examples, features, outputs)
        return [each["prediction"] for each in made]

    assert texts([*hidden[:1], *examples[1:]]) == texts(examples)
    assert texts(hidden) == texts(examples, null_threshold=0.0) != texts(examples)


def test_the_list_of_the_best_always_has_a_span_and_no_answer(tokenizer):
    examples = [question(PASSAGES[0], ("France", PASSAGES[0].index("France")))]
    for value, at_null in ((9, 0.0), (1, 5.0)):
        chosen = kind(n_best=1, null_threshold=0.0)
        features = chosen.encode(examples, tokenizer)
        outputs = oracle(features)
        for row in range(features.num_rows):
            for logits in outputs.values():
                logits[row] *= value / 9
                logits[row][0] = at_null
        [prediction] = chosen.predictions(examples, features, outputs)
        texts = [each["text"] for each in prediction["n_best"]]
        assert len(texts) == 2
        assert texts.count("") == 1
        assert texts[0] == prediction["prediction"]


def test_files_are_accepted_by_the_rules_of_the_script(tokenizer, tmp_path):
    examples = [question(p, (p.strip()[:4], p.index(p.strip())), name=p[:5]) for p in PASSAGES]
    examples.append(question(PASSAGES[0], name="none"))
    chosen = kind()
    features = chosen.encode(examples, tokenizer)
    predictions = chosen.predictions(examples, features, oracle(features))
    files = chosen.files(predictions)
    assert sorted(files) == ["nbest_predictions.json", "null_odds.json", "predictions.json"]
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(files["predictions.json"]))
    texts = prediction_files.read_predictions(path)
    coverage = prediction_files.check_predictions(examples, texts, answerable=False)
    assert coverage == prediction_files.Coverage((), ())
    official = scoring.evaluate_v2(examples, [texts[each.id] for each in examples])
    scores = chosen.scores(examples, predictions)
    assert (scores["f1"], scores["exact_match"]) == (official["f1"], official["exact"])


def test_majority_is_no_answer_in_version_2(tokenizer):
    examples = [question("a b", ("b", 2)), question("a"), question("b")]
    predictions = kind().majority(examples, examples)
    assert kind().scores(examples, predictions) == {
        "f1": pytest.approx(200 / 3),
        "exact_match": pytest.approx(200 / 3),
        "HasAns_exact": 0,
        "HasAns_f1": 0,
        "NoAns_exact": 100,
        "NoAns_f1": 100,
    }
    assert kind(answerable=True).majority(examples, examples) is None


def test_examples_without_a_label_do_not_count():
    hidden = dataclasses.replace(question("a"), answers=None, starts=None)
    made = [{"id": "1", "prediction": "b"}, {"id": "2", "prediction": "b"}]
    assert kind().scores([hidden, question("a b", ("b", 2))], made)["f1"] == 100
    assert kind().scores([hidden, hidden], made) == {}


# Real data


@pytest.mark.parametrize("version", [1, 2])
def test_targets_are_the_answers_of_real_questions(real_data, version):
    name = {1: "squad_v1_xquad_en.json.xz", 2: "squad_v2.json.xz"}[version]
    examples = read_squad(real_data / "squad" / name)[:600]
    tokenizer = RobertaTokenizer.from_pretrained(real_data / "bpe_gpt2")
    chosen = kind(version == 1, max_length=384, doc_stride=128, max_query_length=64)
    features = chosen.encode(examples, tokenizer)
    assert not features.skipped
    assert features.row_lengths.max() <= 384
    texts = spans_of(features, examples)
    for number, text in zip(features.example, texts, strict=True):
        assert not text or examples[number].answers[0] in text
    scores = chosen.scores(examples, chosen.predictions(examples, features, oracle(features)))
    # Not 100, because some answers begin or end within a word of the tokenizer.
    assert scores["exact_match"] > 99
    assert scores["f1"] > 99.5
