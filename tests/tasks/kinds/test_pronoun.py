"""WSC: what is masked, the score of a phrase, the loss, and the prediction."""

import json

import jax
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.tasks.examples import PronounExample
from roberta_jax.tasks.task import Formatting
from roberta_jax.weights import from_pretrained, save_pretrained
from tests.support import heads
from tests.support.kinds import batch_of, build, make_kind, mean_loss, outputs_of
from tests.support.small_tokenizer import small_tokenizer

MASK = 999
TEXT = "The trophy is not in the case as it is too big."
PRONOUN = (TEXT.index(" it ") + 1, TEXT.index(" it ") + 3)


def example(query="the trophy", candidates=("the case",), label=True, text=TEXT, pronoun=PRONOUN):
    start = text.lower().find(query)
    return PronounExample("1", text, pronoun, query, start, tuple(candidates), label)


EXAMPLES = (
    example(),
    example("the case", ("the trophy", "some other class"), False),
    example(label=None),
    example(candidates=()),
)


def kind_of(max_length=38):
    return make_kind("pronoun", formatting=Formatting(max_length=max_length))


def encode(*examples, max_length=38):
    return kind_of(max_length).encode(examples, small_tokenizer())


def sequences_of(features):
    return [
        features.tokens[begin:end].tolist()
        for begin, end in zip(features.starts[:-1], features.starts[1:], strict=True)
    ]


def filled(features, row, choice):
    """The tokens of a sequence with what is masked put back."""
    tokens = list(sequences_of(features)[row * features.choices + choice])
    slots = features.columns["masked_weights"][row, choice] > 0
    positions = features.columns["masked_positions"][row, choice][slots]
    assert [i for i, token in enumerate(tokens) if token == MASK] == positions.tolist()
    for position, token in zip(
        positions, features.columns["masked_labels"][row, choice][slots], strict=True
    ):
        tokens[position] = int(token)
    return tokens


def test_each_phrase_is_in_place_of_the_pronoun_and_masked():
    features = encode(*EXAMPLES)
    assert features.choices == 3
    tokenizer = small_tokenizer()
    for row, each in enumerate(EXAMPLES):
        for choice, phrase in enumerate((each.query, *each.candidates)):
            text = TEXT[: PRONOUN[0]] + phrase + TEXT[PRONOUN[1] :]
            assert filled(features, row, choice) == tokenizer(text)["input_ids"]
            expected = tokenizer(f" {phrase}", add_special_tokens=False)["input_ids"]
            weights = features.columns["masked_weights"][row, choice]
            assert features.columns["masked_labels"][row, choice][weights > 0].tolist() == expected
    assert sequences_of(features)[2] == [0, 2]
    assert features.columns["masked_weights"].sum(-1)[0, 2] == 0
    # Only true examples with other phrases are trained on.
    assert features.columns["labels"].tolist() == [0, -100, -100, -100]


def test_phrases_at_the_borders_of_a_text_and_special_tokens_in_it():
    first = example(text="It is big </s><mask>.", pronoun=(0, 2))
    last = example(text="Big is it", pronoun=(7, 9))
    features = encode(first, last)
    tokenizer = small_tokenizer()
    for row, text in enumerate(("the trophy is big </s><mask>.", "Big is the trophy")):
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert filled(features, row, 0) == ids
        assert ids.count(2) == 1


@pytest.mark.parametrize("place", [0, 500, 1000])
def test_a_long_text_keeps_the_part_around_the_pronoun(place):
    words = ["class"] * 1000
    words.insert(place, "it")
    start = len(" ".join(words[:place])) + (place > 0)
    features = encode(example(text=" ".join(words), pronoun=(start, start + 2)), max_length=20)
    assert features.row_lengths.tolist() == [20]
    assert features.notes == {"examples cut to 20 tokens": 1}
    expected = small_tokenizer()(" the trophy" if place else "the trophy", add_special_tokens=False)
    weights = features.columns["masked_weights"][0, 0] > 0
    assert features.columns["masked_labels"][0, 0][weights].tolist() == expected["input_ids"]
    masked = [i for i, token in enumerate(sequences_of(features)[0]) if token == MASK]
    assert len(masked) == len(expected["input_ids"])
    if place == 500:
        assert abs((masked[0] - 1) - (18 - masked[-1])) <= 1


def test_scores_are_mean_log_probabilities_of_the_masked_lm():
    kind, features = kind_of(), encode(*EXAMPLES)
    model, params = build(kind)
    outputs = outputs_of(kind, model, params, features)
    batch = batch_of(kind, features)
    lm = RobertaForMaskedLM(model.config)
    ids, mask = (
        batch[name].reshape(-1, batch[name].shape[-1]) for name in ("input_ids", "attention_mask")
    )
    logits = heads.apply(lm, params, input_ids=ids, attention_mask=mask).logits
    log_probabilities = np.asarray(jax.nn.log_softmax(logits))
    expected = {}
    for row, each in enumerate(EXAMPLES):
        for choice in range(1 + len(each.candidates)):
            slots = batch["masked_weights"][row, choice] > 0
            at = batch["masked_positions"][row, choice][slots]
            tokens = batch["masked_labels"][row, choice][slots]
            sequence = row * features.choices + choice
            expected[row, choice] = log_probabilities[sequence, at, tokens].mean()
    predictions = kind.predictions(EXAMPLES, features, outputs)
    for row, (each, prediction) in enumerate(zip(EXAMPLES, predictions, strict=True)):
        assert list(prediction)[:2] == ["id", "prediction"]
        scores = [expected[row, choice] for choice in range(1 + len(each.candidates))]
        assert list(prediction["scores"]) == [each.query, *each.candidates]
        np.testing.assert_allclose(list(prediction["scores"].values()), scores, rtol=1e-5)
        assert prediction["prediction"] is bool(scores[0] == max(scores))
        assert prediction["label"] is each.label
    json.dumps(predictions)
    # Cross-entropy of the first example, the only one that counts, over its two phrases.
    assert model.count(**batch)["pronoun"] == 1
    both = np.array([expected[0, 0], expected[0, 1]])
    assert mean_loss(model, params, batch) == pytest.approx(np.logaddexp(*both) - both[0], rel=1e-4)
    # A row that fills up the batch changes nothing.
    more = batch_of(kind, features, [0, 1, 2, 3, -1])
    assert mean_loss(model, params, more) == pytest.approx(
        mean_loss(model, params, batch), rel=1e-6
    )


def test_training_steps_are_finite_and_raise_the_score_of_the_right_phrase():
    kind, features = kind_of(), encode(*EXAMPLES)
    model, params = build(kind)
    batch = batch_of(kind, features, [0, 1, -1])

    @jax.jit
    def step(params):
        loss, grads = jax.value_and_grad(
            lambda p: model.apply({"params": p}, **batch, method="loss")["pronoun"]
        )(params)
        return loss, jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)

    losses = []
    for _ in range(4):
        loss, params = step(params)
        losses.append(float(loss))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_the_saved_model_is_a_masked_lm(tmp_path):
    model, params = build(kind_of())
    save_pretrained(tmp_path / "model", model, params)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["RobertaForMaskedLM"]
    loaded, values = from_pretrained(tmp_path / "model")
    assert type(loaded) is RobertaForMaskedLM
    again, _ = from_pretrained(tmp_path / "model", kind_of().model_class)
    assert type(again) is kind_of().model_class
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(values), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parity
def test_transformers_masked_lm_gives_the_same_scores(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind, features = kind_of(), encode(*EXAMPLES)
    model, params = build(kind)
    save_pretrained(tmp_path, model, params)
    theirs, report = transformers.RobertaForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = batch_of(kind, features)
    inputs = {
        name: torch.from_numpy(batch[name].reshape(-1, batch[name].shape[-1]).astype(np.int64))
        for name in ("input_ids", "attention_mask")
    }
    with torch.no_grad():
        chances = theirs.eval()(**inputs).logits.log_softmax(-1).numpy()
    with jax.default_matmul_precision("highest"):
        predictions = kind.predictions(
            EXAMPLES, features, outputs_of(kind, model, params, features)
        )
    for row, prediction in enumerate(predictions):
        for choice, score in enumerate(prediction["scores"].values()):
            slots = batch["masked_weights"][row, choice] > 0
            at = batch["masked_positions"][row, choice][slots]
            tokens = batch["masked_labels"][row, choice][slots]
            expected = chances[row * features.choices + choice, at, tokens].mean()
            assert score == pytest.approx(expected, abs=1e-4)


def test_scores_baseline_and_errors():
    kind = kind_of()
    predictions = [{"prediction": True}, {"prediction": True}, {"prediction": False}]
    assert kind.scores(EXAMPLES[:3], predictions) == {"accuracy": 0.5}
    assert kind.scores(EXAMPLES[2:3], predictions[2:]) == {}
    baseline = kind.majority(EXAMPLES, EXAMPLES[:1])
    assert baseline == [{"id": "1", "prediction": True}]
    assert kind.majority([EXAMPLES[1]], EXAMPLES[:1])[0]["prediction"] is False
    assert kind.majority(EXAMPLES[2:3], EXAMPLES) is None
    with pytest.raises(UsageError, match="no examples"):
        kind.encode([], small_tokenizer())
