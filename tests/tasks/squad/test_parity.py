"""Question answering as in transformers: the same windows, offsets, targets and answers."""

import json
import lzma
import types

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from roberta_jax.tasks.kinds.question_answering import QuestionAnswering
from roberta_jax.tasks.squad import scoring, windows
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.weights.load import from_pretrained
from tests.support.squad import formatting, question, read_squad, task

pytestmark = pytest.mark.parity

LENGTH, STEP = 128, 40


@pytest.fixture(scope="module")
def tokenizers(real_data, tmp_path_factory):
    """Ours and transformers', with RoBERTa's vocabulary."""
    ours = RobertaTokenizer.from_pretrained(real_data / "bpe_gpt2")
    folder = tmp_path_factory.mktemp("tokenizer")
    ours.save_pretrained(folder)
    return ours, transformers.RobertaTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def texts(real_data):
    """The beginnings of documents in Chinese, Korean, French and Arabic: language -> texts."""
    found = {}
    with lzma.open(real_data / "pretrain" / "multilingual.jsonl.xz", "rt", encoding="utf-8") as f:
        for line in f:
            document = json.loads(line)
            found.setdefault(document["lang"], []).append(document["text"][:1500])
    return {language: documents[:12] for language, documents in found.items()}


def kind(null_threshold=0.0) -> QuestionAnswering:
    changes = {"max_length": LENGTH, "doc_stride": STEP, "max_query_length": 64}
    changes["null_threshold"] = null_threshold
    return QuestionAnswering(task(answerable=False), (), formatting(**changes))


def their_rows(example, tokenizer):
    """Transformers' encoding of one example; its stride is the overlap of windows."""
    asked = example.question.lstrip()
    room = LENGTH - 4 - len(tokenizer(asked, add_special_tokens=False)["input_ids"])
    return tokenizer(
        asked,
        example.context,
        truncation="only_second",
        max_length=LENGTH,
        stride=room - STEP,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


def assert_same_windows(examples, tokenizers):
    """Rows are equal, and so are the offsets of all tokens but those that are white space."""
    ours, theirs = tokenizers
    features = kind().encode(examples, ours)
    arrays = features.host_arrays
    row = 0
    for number, example in enumerate(examples):
        rows = their_rows(example, theirs)
        for index, ids in enumerate(rows["input_ids"]):
            tokens = slice(features.starts[row], features.starts[row + 1])
            assert features.tokens[tokens].tolist() == ids
            assert features.example[row] == number
            at, count, first = (
                int(arrays[f"passage_{name}"][row]) for name in ("at", "length", "first")
            )
            own = [i for i, text in enumerate(rows.sequence_ids(index)) if text == 1]
            assert own == list(range(at, at + count))
            offsets = rows["offset_mapping"][index]
            for i, (start, end) in enumerate(arrays["passage_offsets"][first : first + count]):
                theirs_start, theirs_end = offsets[at + i]
                if start < end:
                    assert (start, end) == (theirs_start, theirs_end)
                else:
                    assert not example.context[theirs_start:theirs_end].strip()
            row += 1
    assert row == features.num_rows > len(examples)


def test_windows_of_squad(real_data, tokenizers):
    assert_same_windows(read_squad(real_data / "squad" / "squad_v2.json.xz")[:1000:5], tokenizers)


def test_windows_and_offsets_in_other_scripts(texts, tokenizers):
    assert set(texts) >= {"zh", "ko", "fr", "ar"}
    examples = [question(t) for documents in texts.values() for t in documents]
    assert_same_windows(examples, tokenizers)


def test_random_answers_in_other_scripts_are_covered_exactly(texts, tokenizers):
    """The offsets of both tokenizers cover an answer with the same characters."""
    ours, theirs = tokenizers
    rng = np.random.default_rng(0)
    checked = 0
    for text in (text for documents in texts.values() for text in documents):
        passages = windows.encode_passages([text], ours)
        offsets = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = offsets["offset_mapping"]
        for _ in range(20):
            start = int(rng.integers(0, len(text)))
            end = min(len(text), start + int(rng.integers(1, 40)))
            answer = text[start:end].strip()
            if not answer:
                continue
            first, last = windows.covering(passages.offsets, start, end)
            begin, stop = passages.offsets[first, 0], passages.offsets[last, 1]
            assert answer in text[begin:stop]
            touched = [(a, b) for a, b in offsets if a < end and b > start and text[a:b].strip()]
            assert (begin, stop) == (touched[0][0], touched[-1][1])
            assert answer in ours.decode(passages.tokens[first : last + 1].tolist())
            checked += 1
    assert checked > 500


def test_targets_of_squad(real_data, tokenizers):
    """Those of run_qa.py's rule, where no character has several tokens, of which it takes one."""
    ours, theirs = tokenizers
    examples = [
        each
        for each in read_squad(real_data / "squad" / "squad_v2.json.xz")[:1500]
        if each.context.isascii() and "  " not in each.context
    ][::4]
    features = kind().encode(examples, ours)
    assert not features.skipped
    row = found = 0
    for example in examples:
        rows = their_rows(example, theirs)
        for index, offsets in enumerate(rows["offset_mapping"]):
            expected = run_qa_target(example, rows.sequence_ids(index), offsets)
            actual = tuple(
                int(features.columns[f"{each}_positions"][row]) for each in ("start", "end")
            )
            assert actual == expected
            found += expected != (0, 0)
            row += 1
    assert found > 100


def run_qa_target(example, texts, offsets):
    """The last token that begins at or before the answer, the first that ends at or after it."""
    if not example.answers:
        return 0, 0
    start, end = example.starts[0], example.starts[0] + len(example.answers[0])
    own = [i for i, text in enumerate(texts) if text == 1]
    if offsets[own[0]][0] > start or offsets[own[-1]][1] < end:
        return 0, 0
    return (
        max(i for i in own if offsets[i][0] <= start),
        min(i for i in own if offsets[i][1] >= end),
    )


def by_topk(example, rows, start_logits, end_logits, n_best, longest):
    """run_qa.py's answers to one question: (text, probability) in order, and the null odds."""
    found, null = {}, np.inf
    for index, (starts, ends) in enumerate(zip(start_logits, end_logits, strict=True)):
        null = min(null, float(starts[0] + ends[0]))
        own = [text == 1 for text in rows.sequence_ids(index)]
        offsets = rows["offset_mapping"][index]
        length = len(own)
        for i in torch.topk(starts[:length], min(n_best, length)).indices.tolist():
            for j in torch.topk(ends[:length], min(n_best, length)).indices.tolist():
                if not (own[i] and own[j] and 0 <= j - i < longest):
                    continue
                if any(not example.context[slice(*offsets[k])].strip() for k in (i, j)):
                    continue
                span = offsets[i][0], offsets[j][1]
                found[span] = max(found.get(span, -np.inf), float(starts[i] + ends[j]))
    spans = sorted(found.items(), key=lambda each: -each[1])[:n_best]
    entries = [(example.context[a:b], score) for (a, b), score in spans] + [("", null)]
    entries = sorted(entries, key=lambda each: -each[1])[:n_best]
    if "" not in dict(entries):
        entries.append(("", null))
    probabilities = torch.softmax(torch.tensor([score for _, score in entries]), 0).tolist()
    texts = [text for text, _ in entries]
    scores = [score for _, score in entries]
    return texts, scores, probabilities, null - spans[0][1]


def test_answers_are_those_of_transformers_model(real_data, tokenizers, tmp_path):
    ours, theirs = tokenizers
    examples = read_squad(real_data / "squad" / "squad_v2.json.xz")[:240:4]
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=len(ours),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=LENGTH + 2,
        type_vocab_size=1,
        initializer_range=0.4,  # logits that differ clearly
    )
    reference = transformers.RobertaForQuestionAnswering(config).eval()
    reference.save_pretrained(tmp_path)
    chosen = kind()
    features = chosen.encode(examples, ours)
    model, params = from_pretrained(tmp_path, chosen.model_class)

    batch = features.gather(np.arange(features.num_rows), LENGTH, chosen.fill(), ours.pad_token_id)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with jax.default_matmul_precision("highest"):
        outputs = jax.device_get(
            jax.jit(lambda p, b: chosen.outputs(model.apply({"params": p}, **b)))(params, inputs)
        )
    outputs = {
        name: [row[:n] for row, n in zip(values, features.row_lengths, strict=True)]
        for name, values in outputs.items()
    }
    # A threshold between the null odds of these random weights, so that both answers occur.
    odds = [each["null_odds"] for each in chosen.predictions(examples, features, outputs)]
    threshold = float(np.mean(np.sort(odds)[len(odds) // 2 - 1 :][:2]))
    predictions = kind(threshold).predictions(examples, features, outputs)
    with torch.no_grad():
        logits = reference(**{k: torch.from_numpy(v.astype(np.int64)) for k, v in inputs.items()})

    row = answered = 0
    for example, prediction in zip(examples, predictions, strict=True):
        rows = their_rows(example, theirs)
        count = len(rows["input_ids"])
        texts, scores, probabilities, odds = by_topk(
            example,
            rows,
            logits.start_logits[row : row + count],
            logits.end_logits[row : row + count],
            20,
            30,
        )
        row += count
        n_best = prediction["n_best"]
        assert [each["text"] for each in n_best] == texts
        np.testing.assert_allclose(
            [each["start_logit"] + each["end_logit"] for each in n_best], scores, atol=1e-4
        )
        np.testing.assert_allclose([a["probability"] for a in n_best], probabilities, atol=1e-4)
        np.testing.assert_allclose(prediction["null_odds"], odds, atol=2e-4)
        expected = "" if odds > threshold else next(text for text in texts if text)
        assert prediction["prediction"] == expected
        answered += expected != ""
    assert row == features.num_rows
    assert answered == len(examples) // 2


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_transformers_version_of_the_script(real_data, seed):
    """Also the thresholds, for null odds that are related to the answers, some of them equal."""
    from transformers.data.metrics.squad_metrics import squad_evaluate

    examples = read_squad(real_data / "squad" / "squad_v2.json.xz")
    made = json.loads((real_data / "golden_metrics/squad/v2_perturbed_pred.json").read_text())
    rng = np.random.default_rng(seed)
    odds = {
        each.id: round(rng.normal(-2 if each.answers else 2, 2), 2 if seed else 6)
        for each in examples
    }
    theirs = [
        types.SimpleNamespace(qas_id=each.id, answers=[{"text": text} for text in each.answers])
        for each in examples
    ]
    expected = squad_evaluate(theirs, made, odds, no_answer_probability_threshold=np.inf)
    texts = [made[each.id] for each in examples]
    actual = scoring.evaluate_v2(examples, texts)
    actual |= scoring.evaluate_thresholds(examples, texts, [odds[each.id] for each in examples])
    assert actual == dict(expected)
    assert actual["best_f1"] > max(actual["f1"], 100 * actual["NoAns_total"] / actual["total"])
