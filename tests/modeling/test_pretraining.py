"""`RobertaForPreTraining`: inputs that share a row, the next-sentence head, training steps."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.data.packing import index as packing
from roberta_jax.data.store import token_store
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM, RobertaForPreTraining
from roberta_jax.modeling.model import RobertaModel
from roberta_jax.training import steps
from roberta_jax.training.optimizer import OPTIMIZERS
from roberta_jax.training.partitioning import create_mesh, local_batch_rows, to_global
from roberta_jax.training.schedules import polynomial_schedule
from roberta_jax.training.state import abstract_state, create_state
from roberta_jax.weights import names
from tests.support import processes
from tests.support.checkpoints import random_params
from tests.support.toy_corpus import PAD, VOCAB, make_dataset, make_store

LENGTH, ROWS = 64, 8
CONFIG = RobertaConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=LENGTH + 2,
    type_vocab_size=2,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
MODEL = RobertaForPreTraining(CONFIG)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), num_documents=80, shard_tokens=10_000)


def initial_params():
    return random_params(MODEL)


def batch_of(store, format="sentence_pair"):
    """The `ROWS` rows with the most inputs."""
    dataset = make_dataset(
        store,
        LENGTH,
        seed=0,
        format=format,
        pairs=packing.PairOptions(dupe_factor=1),
        token_types=True,
        next_sentence=format.endswith("pair"),
    )
    batch = dataset(np.arange(dataset.num_rows), np.zeros(dataset.num_rows, int))
    rows = np.argsort(-batch["segment_ids"].max(axis=1), kind="stable")[:ROWS]
    batch = {name: array[rows] for name, array in batch.items()}
    assert batch["segment_ids"].max() >= 2  # some rows are shared
    return batch


FORMATS = ("doc_sentences", "segment_pair", "sentence_pair", "sentences")


@functools.partial(jax.jit, static_argnames="model")
def apply(model, params, batch, embeds=None):
    """The model's output, with the most precise matrix products of the device."""
    inputs = {"input_ids": batch["input_ids"]} if embeds is None else {"inputs_embeds": embeds}
    optional = ("token_type_ids", "next_sentence_positions")
    inputs |= {name: batch[name] for name in optional if name in batch}
    with jax.default_matmul_precision("highest"):
        return model.apply(
            {"params": params},
            **inputs,
            segment_ids=batch["segment_ids"],
            position_ids=batch["position_ids"],
        )


@functools.partial(jax.jit, static_argnames=("model", "method"))
def summed(model, method, params, batch):
    """The sums that the method "loss" or "evaluate" returns for a batch, without dropout."""
    return steps.apply(model, method, params, batch, None)


@pytest.mark.parametrize("format", FORMATS)
def test_inputs_that_share_a_row_have_the_outputs_of_separate_rows(store, format):
    batch, params = batch_of(store, format), initial_params()
    shared = apply(MODEL, params, batch)
    for row in range(ROWS):
        segments = batch["segment_ids"][row]
        for number in range(1, segments.max() + 1):
            tokens = segments == number
            single = {
                name: np.full((1, LENGTH), PAD if name in ("input_ids", "position_ids") else 0)
                for name in ("input_ids", "segment_ids", "position_ids", "token_type_ids")
                if name in batch
            }
            for name, array in single.items():
                array[0, : tokens.sum()] = batch[name][row, tokens]
            single["segment_ids"] = np.minimum(single["segment_ids"], 1)
            separate = apply(MODEL, params, single)
            np.testing.assert_allclose(
                separate.logits[0, : tokens.sum()], shared.logits[row, tokens], atol=1e-5
            )
            if "next_sentence_positions" in batch:
                np.testing.assert_allclose(
                    separate.next_sentence_logits[0, 0],
                    shared.next_sentence_logits[row, number - 1],
                    atol=1e-5,
                )


def test_no_gradient_flows_between_inputs_that_share_a_row(store):
    batch, params = batch_of(store), initial_params()
    table = params["roberta"]["embeddings"]["word_embeddings"]["embedding"]
    embeds = jnp.asarray(table)[batch["input_ids"]]
    in_second = batch["segment_ids"] == 2

    def loss_of_second_inputs(embeds):
        output = apply(MODEL, params, batch, embeds)
        total = jnp.sum(jnp.square(output.logits) * in_second[..., None])
        return total + jnp.sum(jnp.square(output.next_sentence_logits[:, 1]))

    grads = np.asarray(jax.jit(jax.grad(loss_of_second_inputs))(embeds))
    rows = batch["segment_ids"].max(axis=1) >= 2
    grads, in_second = grads[rows], in_second[rows]
    assert (np.abs(grads[in_second]).max(axis=-1) > 1e-3).all()
    assert not grads[~in_second].any()


def test_the_next_sentence_head_agrees_with_numpy(store):
    """The head is BERT's: pooler, tanh and two logits, at the first token of each input."""
    batch, params = batch_of(store), initial_params()
    encoder = RobertaModel(CONFIG)
    hidden = np.asarray(apply(encoder, params["roberta"], encoder_inputs(batch)).last_hidden_state)
    positions = batch["next_sentence_positions"]
    first = np.take_along_axis(hidden, positions[..., None], axis=1)
    assert (np.take_along_axis(batch["input_ids"], positions, axis=1) != PAD).all()
    head = jax.tree.map(np.asarray, params["next_sentence"])
    pooled = np.tanh(first @ head["pooler"]["kernel"] + head["pooler"]["bias"])
    expected = pooled @ head["classifier"]["kernel"] + head["classifier"]["bias"]
    logits = apply(MODEL, params, batch).next_sentence_logits
    np.testing.assert_allclose(logits, expected, atol=1e-4)

    labels, weights = batch["next_sentence_labels"], batch["next_sentence_weights"]
    label_logits = np.take_along_axis(expected, labels[..., None], axis=-1)[..., 0]
    losses = np.log(np.exp(expected).sum(-1)) - label_logits
    sums, counts = summed(MODEL, "loss", params, batch), MODEL.count(**batch)
    assert sums.keys() == {"masked_lm", "next_sentence"}
    assert sums["next_sentence"] == pytest.approx((losses * weights).sum(), rel=1e-4)
    assert counts["next_sentence"] == weights.sum() == batch["segment_ids"].max(axis=1).sum()
    scores = summed(MODEL, "evaluate", params, batch)
    correct = (expected.argmax(-1) == labels) * weights
    assert scores["next_sentence_accuracy"] == correct.sum()
    assert counts["next_sentence_accuracy"] == weights.sum()


def encoder_inputs(batch):
    return {name: batch[name] for name in batch if not name.startswith(("masked_", "next_"))}


def test_targets_that_the_batch_lacks_leave_their_objective_out(store):
    batch, params = batch_of(store), initial_params()
    sums = summed(MODEL, "loss", params, batch)
    unmasked = {name: x for name, x in batch.items() if not name.startswith("masked_")}
    scores = summed(MODEL, "evaluate", params, unmasked)
    assert scores.keys() == {"next_sentence", "next_sentence_accuracy"}
    assert scores["next_sentence"] == pytest.approx(float(sums["next_sentence"]), rel=1e-6)

    without_pairs = {name: x for name, x in batch.items() if not name.startswith("next_sentence_")}
    assert summed(MODEL, "loss", params, without_pairs).keys() == {"masked_lm"}
    assert MODEL.count(**without_pairs) == {"masked_lm": batch["masked_weights"].sum()}
    masked_lm = {name: params[name] for name in ("roberta", "lm_head")}
    expected = summed(RobertaForMaskedLM(CONFIG), "loss", masked_lm, without_pairs)
    assert float(expected["masked_lm"]) == pytest.approx(float(sums["masked_lm"]), rel=1e-6)


def optimizer_and_step(model, accumulation=1, optimizer="adamw", mesh=None):
    """(optimizer, train_step)."""
    schedule = polynomial_schedule(1e-3, warmup_steps=0, decay_steps=10)
    tx = OPTIMIZERS[optimizer](schedule)
    mesh = mesh or create_mesh()
    step = steps.make_train_step(model, tx, schedule, mesh, seed=0, accumulation=accumulation)
    return tx, step


def boxed_params(model):
    return model.init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"]


def train(store, *, optimizer="adamw", accumulation=1, execution=None, params=None, mesh=None):
    """(parameters, metrics) after two updates from `params` or `initial_params()`."""
    model = RobertaForPreTraining(CONFIG, execution or Execution())
    tx, step = optimizer_and_step(model, accumulation, optimizer, mesh)
    state = create_state(
        lambda: boxed_params(model), tx, mesh or create_mesh(), params or initial_params()
    )
    batch = batch_of(store)
    if mesh is not None:
        batch = to_global(batch, mesh, ROWS, local_batch_rows(mesh, ROWS))
    for _ in range(2):
        state, metrics = step(state, batch)
    return state.params, jax.device_get(metrics)


@pytest.fixture(scope="module")
def trained(store):
    """optimizer -> `train`'s result for the whole batch at once, computed once per optimizer."""
    return functools.cache(lambda optimizer: train(store, optimizer=optimizer))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_accumulation_gives_the_step_of_the_whole_batch(store, trained, optimizer):
    """The microbatches have different numbers of targets, so a mean of means would differ."""
    params, metrics = trained(optimizer)
    accumulated_params, accumulated_metrics = train(store, optimizer=optimizer, accumulation=4)
    assert metrics.keys() == accumulated_metrics.keys()
    assert metrics.keys() >= {"masked_lm_loss", "next_sentence_loss", "loss"}
    for name in metrics:
        assert metrics[name] == pytest.approx(accumulated_metrics[name], rel=1e-5), name
    assert metrics["loss"] == pytest.approx(
        metrics["masked_lm_loss"] + metrics["next_sentence_loss"], rel=1e-6
    )
    assert_close(accumulated_params, params)


def assert_close(params, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), params, expected)


def train_on_eight_devices(folder):
    mesh = create_mesh(data=2, fsdp=2, tensor=2)
    _, metrics = train(token_store.TokenStore.open(folder), mesh=mesh, accumulation=2)
    print(json.dumps({name: float(value) for name, value in metrics.items()}))


def test_eight_devices_give_the_metrics_of_one(store, trained):
    _, expected = trained("adamw")
    output = processes.run(__name__, "train_on_eight_devices", store.folder, devices=8)
    metrics = json.loads(output.splitlines()[-1])
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-5), name


def test_the_memory_of_a_step_depends_on_the_microbatch_and_not_on_the_batch(store):
    """The temporary memory of the compiled step, which the batch itself is not part of."""
    rows = batch_of(store)

    def temporary_bytes(times, accumulation):
        tx, step = optimizer_and_step(MODEL, accumulation)
        state = abstract_state(lambda: boxed_params(MODEL), tx, create_mesh())
        batch = {name: np.concatenate([x] * times) for name, x in rows.items()}
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    small, accumulated, whole = (temporary_bytes(*case) for case in ((4, 4), (16, 16), (16, 1)))
    assert accumulated < 1.1 * small + sum(x.nbytes * 16 for x in rows.values())
    assert whole > 2.5 * accumulated


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stacked_and_unstacked_layers_take_equal_steps(store, trained, optimizer):
    stacked, metrics = trained(optimizer)
    unstacked, unstacked_metrics = train(
        store,
        optimizer=optimizer,
        execution=Execution(scan_layers=False),
        params=names.unstack_layers(initial_params()),
    )
    assert metrics["loss"] == pytest.approx(unstacked_metrics["loss"], rel=1e-5)
    assert_close(dict(unstacked), names.unstack_layers(jax.tree.map(np.asarray, stacked)))
