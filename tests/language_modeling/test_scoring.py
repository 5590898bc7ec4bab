"""Masked scores and pseudo-log-likelihoods against the model itself, one row at a time."""

import functools
import json

import jax
import numpy as np
import pytest

from roberta_jax.data.masking import num_slots
from roberta_jax.errors import UsageError
from roberta_jax.language_modeling.rows import make_rows
from roberta_jax.language_modeling.scoring import Scorer
from tests.support import language_models, processes

MAX_LENGTH = 32


@pytest.fixture(scope="module")
def loaded():
    return language_models.language_model()


@pytest.fixture(scope="module")
def rows(loaded):
    return make_rows(language_models.documents(), loaded.tokenizer, MAX_LENGTH)


def scorer_of(loaded, batch_tokens=100):
    return Scorer(
        "small",
        loaded.model,
        loaded.params,
        loaded.tokenizer.mask_token_id,
        batch_tokens=batch_tokens,
    )


def every(rows):
    return np.ones(rows.num_documents, bool)


@functools.partial(jax.jit, static_argnames="model")
def apply(model, params, ids):
    return model.apply({"params": params}, ids[None]).logits[0]


def losses_and_ranks(loaded, masked, ids, positions):
    """The losses and ranks of some tokens of one row without padding."""
    logits = np.asarray(apply(loaded.model, loaded.params, masked), np.float64)[positions]
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    of_labels = np.take_along_axis(log_probabilities, ids[positions][:, None], -1)
    return -of_labels[:, 0], (log_probabilities > of_labels).sum(-1)


class Recorder(Scorer):
    """A scorer that keeps its batches."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.batches = []

    def _dispatch(self, batch):
        self.batches.append(batch)
        return super()._dispatch(batch)


def recorder_of(loaded, batch_tokens=100):
    mask_id = loaded.tokenizer.mask_token_id
    return Recorder("small", loaded.model, loaded.params, mask_id, batch_tokens=batch_tokens)


def recorded(loaded, rows, masks, seed=0, batch_tokens=100):
    """(sums, batches) of `masked`."""
    recorder = recorder_of(loaded, batch_tokens)
    sums = recorder.masked(rows, len(loaded.tokenizer), masks, seed)
    return sums, recorder.batches


def test_masked_scores_are_those_of_the_model(loaded, rows):
    """Each masked row alone, without padding, through `model.apply` and NumPy."""
    sums, batches = recorded(loaded, rows, masks=3)
    loss, top1, top5, targets = 0.0, 0, 0, 0
    for batch in batches:
        for row, masked in enumerate(batch["input_ids"]):
            length, used = batch["attention_mask"][row].sum(), batch["masked_weights"][row] > 0
            positions = batch["masked_positions"][row][used]
            ids = masked[:length].copy()
            ids[positions] = batch["masked_labels"][row][used]
            losses, ranks = losses_and_ranks(loaded, masked[:length], ids, positions)
            loss, targets = loss + losses.sum(), targets + len(losses)
            top1, top5 = top1 + (ranks < 1).sum(), top5 + (ranks < 5).sum()
    assert targets > 40
    assert sums.targets.sum() == targets
    assert sums.loss.sum() == pytest.approx(loss, rel=1e-5)
    assert (sums.top1.sum(), sums.top5.sum()) == (top1, top5)
    assert 0 < top1 < top5


def test_masks_are_those_of_pretraining(loaded, rows):
    """15% of each row's tokens, of which most become <mask>; the labels are the text."""
    masks = 100
    sums, batches = recorded(loaded, rows, masks, batch_tokens=4096)
    expected = masks * 0.15 * rows.lengths.sum()
    assert sums.targets.sum() == pytest.approx(expected, rel=0.02)
    replaced = unchanged = 0
    of_text = {tuple(rows.inputs(np.array([r]), MAX_LENGTH)["input_ids"][0]) for r in range(8)}
    for batch in batches:
        for row, masked in enumerate(batch["input_ids"]):
            used = batch["masked_weights"][row] > 0
            if not used.any():
                continue  # it only fills up the batch
            positions, labels = (batch[f"masked_{k}"][row][used] for k in ("positions", "labels"))
            replaced += (masked[positions] == loaded.tokenizer.mask_token_id).sum()
            unchanged += (masked[positions] == labels).sum()
            text = np.full(MAX_LENGTH, rows.pad_id, np.int32)
            text[: len(masked)] = masked
            text[positions] = labels
            assert tuple(text) in of_text
    assert replaced / expected == pytest.approx(0.8, abs=0.03)
    assert unchanged / expected == pytest.approx(0.1, abs=0.03)


def test_scores_do_not_depend_on_batches_or_on_other_documents(loaded, rows):
    small, large = (scorer_of(loaded, tokens) for tokens in (40, 4096))
    few = make_rows(language_models.documents()[:2], loaded.tokenizer, MAX_LENGTH)
    first, second, third = (
        scorer.masked(each, len(loaded.tokenizer), 2, 0)
        for scorer, each in ((small, rows), (large, rows), (small, few))
    )
    for name in ("loss", "top1", "top5", "targets"):
        np.testing.assert_allclose(vars(first)[name], vars(second)[name], rtol=1e-5)
        np.testing.assert_allclose(vars(first)[name][:2], vars(third)[name], rtol=1e-5)
    np.testing.assert_allclose(
        small.pseudo(rows, every(rows)).loss, large.pseudo(rows, every(rows)).loss, rtol=1e-5
    )


def test_masks_depend_on_the_seed_and_the_draw(loaded, rows):
    scorer = scorer_of(loaded)
    losses = [
        scorer.masked(rows, len(loaded.tokenizer), masks, seed).loss.sum()
        for masks, seed in ((1, 0), (1, 0), (1, 1), (2, 0))
    ]
    assert losses[0] == losses[1]
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)
    assert losses[3] - losses[0] != pytest.approx(losses[0], rel=1e-3)


def test_pseudo_log_likelihoods_equal_a_naive_loop(loaded, rows):
    scores = scorer_of(loaded).pseudo(rows, every(rows))
    loss, targets = np.zeros(rows.num_documents), np.zeros(rows.num_documents, int)
    for row in range(rows.num_rows):
        length = rows.lengths[row]
        ids = rows.inputs(np.array([row]), length)["input_ids"][0]
        for position in range(length):
            if ids[position] in loaded.tokenizer.all_special_ids:
                continue
            masked = ids.copy()
            masked[position] = loaded.tokenizer.mask_token_id
            losses, _ = losses_and_ranks(loaded, masked, ids, np.array([position]))
            loss[rows.document[row]] += losses[0]
            targets[rows.document[row]] += 1
    np.testing.assert_allclose(scores.loss, loss, rtol=1e-5)
    np.testing.assert_array_equal(scores.targets, targets)
    np.testing.assert_array_equal(scores.targets, rows.text_tokens)


def test_some_documents_can_be_scored(loaded, rows):
    scorer, chosen = scorer_of(loaded), np.array([False, True, True, False])
    announced = []
    some = scorer.pseudo(rows, chosen, announced.append)
    all_of_them = scorer.pseudo(rows, every(rows))
    np.testing.assert_allclose(some.loss, all_of_them.loss * chosen, rtol=1e-5)
    np.testing.assert_array_equal(some.targets, all_of_them.targets * chosen)
    [cost] = announced
    assert f"masks each of {some.targets.sum()} tokens once" in cost
    assert "rows of up to 24 tokens" in cost


def test_there_are_few_shapes_of_batches(loaded):
    documents = language_models.documents() * 5
    rows = make_rows(documents, loaded.tokenizer, MAX_LENGTH)
    recorder = recorder_of(loaded, 256)
    recorder.masked(rows, len(loaded.tokenizer), 1, 0)
    recorder.pseudo(rows, np.ones(20, bool))
    shapes = {tuple(x.shape for x in batch.values()) for batch in recorder.batches}
    assert len(recorder.batches) > len(shapes)
    assert len(shapes) <= 12


def test_a_model_whose_numbers_overflow_is_an_error(loaded, rows):
    params = jax.tree.map(np.copy, loaded.params)
    params["lm_head"]["bias"][7] = np.inf
    scorer = scorer_of(type(loaded)(loaded.model, params, loaded.tokenizer))
    with pytest.raises(UsageError, match="small gives losses that are not finite"):
        scorer.masked(rows, len(loaded.tokenizer), 1, 0)
    with pytest.raises(UsageError, match="not finite"):
        scorer.pseudo(rows, every(rows))


def test_of_equal_logits_the_first_is_the_more_probable(loaded, rows):
    """All logits are equal, so that the rank of a token is its id."""
    params = jax.tree.map(np.zeros_like, loaded.params)
    scorer = scorer_of(type(loaded)(loaded.model, params, loaded.tokenizer))
    sums = scorer.masked(rows, len(loaded.tokenizer), 40, 0)
    labels = np.concatenate([
        batch["masked_labels"][batch["masked_weights"] > 0]
        for batch in recorded(loaded, rows, 40)[1]
    ])  # fmt: skip
    assert sums.top1.sum() == (labels < 1).sum()
    assert sums.top5.sum() == (labels < 5).sum() > sums.top1.sum() > 0
    assert sums.loss.sum() / sums.targets.sum() == pytest.approx(np.log(len(loaded.tokenizer)))


def test_text_in_which_nothing_is_masked(loaded):
    documents = [type(each)(each.name, ("A",)) for each in language_models.documents()[:1]]
    rows = make_rows(documents, loaded.tokenizer, MAX_LENGTH)
    assert rows.lengths.tolist() == [3]
    with pytest.raises(UsageError, match="none of the 3 tokens was masked.*--masks=8"):
        scorer_of(loaded).masked(rows, len(loaded.tokenizer), masks=1, seed=0)


def print_scores():
    """Prints the scores on the devices of this process."""
    loaded = language_models.language_model()
    rows = make_rows(language_models.documents(), loaded.tokenizer, MAX_LENGTH)
    scorer = scorer_of(loaded)
    masked = scorer.masked(rows, len(loaded.tokenizer), 3, 0)
    pseudo = scorer.pseudo(rows, every(rows))
    arrays = [*vars(masked).values(), *vars(pseudo).values()]
    print(json.dumps({"devices": jax.device_count(), "sums": [x.tolist() for x in arrays]}))


def test_all_devices_are_used_and_each_row_counts_once():
    of_one, of_four = (
        json.loads(processes.run(__name__, "print_scores", devices=devices)) for devices in (1, 4)
    )
    assert (of_one["devices"], of_four["devices"]) == (1, 4)
    np.testing.assert_allclose(of_one["sums"], of_four["sums"], rtol=1e-5)


def test_slots_suffice_for_rows_of_every_length(loaded, rows):
    """Masks are drawn at the longest width and cut to that of the batch."""
    _, batches = recorded(loaded, rows, 50)
    for batch in batches:
        width = batch["input_ids"].shape[1]
        assert batch["masked_weights"].shape[1] == num_slots(width, 0.15, 1)
        assert (batch["masked_positions"] < width).all()


@pytest.mark.parity
def test_pseudo_log_likelihoods_equal_those_of_transformers(loaded, rows, tmp_path):
    """A naive loop over Hugging Face's `RobertaForMaskedLM` in PyTorch."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from roberta_jax.weights.save import save_pretrained

    save_pretrained(tmp_path / "hf", loaded.model, loaded.params, loaded.tokenizer)
    theirs = transformers.RobertaForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    loss = np.zeros(rows.num_documents)
    for row in range(rows.num_rows):
        ids = torch.tensor(rows.inputs(np.array([row]), rows.lengths[row])["input_ids"]).long()
        for position, token in enumerate(ids[0].tolist()):
            if token in tokenizer.all_special_ids:
                continue
            masked = ids.clone()
            masked[0, position] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = theirs(masked).logits[0, position]
            loss[rows.document[row]] -= torch.log_softmax(logits, -1)[token].item()
    np.testing.assert_allclose(scorer_of(loaded).pseudo(rows, every(rows)).loss, loss, rtol=1e-5)
