"""The model with both objectives: inputs that share a row, the second head, the two means."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.data.batches import PackedDataset
from roberta_jax.data.masking import Masking
from roberta_jax.data.packing import index as packing
from roberta_jax.data.store import token_store
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.modeling.objectives import (
    masked_lm_objective,
    next_sentence_objective,
    pretraining_objective,
)
from roberta_jax.modeling.pretraining import RobertaForPreTraining, split_next_sentence
from roberta_jax.training.loop import make_train_step
from roberta_jax.training.optimizer import OPTIMIZERS
from roberta_jax.training.partitioning import create_mesh, local_batch_rows, to_global
from roberta_jax.training.schedules import polynomial_schedule
from roberta_jax.training.state import create_state
from roberta_jax.weights import names
from tests.support import processes
from tests.support.toy_corpus import EOS, MASK, PAD, VOCAB, make_store

LENGTH, ROWS = 64, 8
CONFIG = RobertaConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=LENGTH + 2,
    type_vocab_size=2,
    initializer_range=0.1,  # so that what should not flow would show
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
MODEL = RobertaForPreTraining(CONFIG)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), num_documents=80, shard_tokens=10_000)


@functools.cache
def init():
    return jax.jit(MODEL.init)(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))


def params_of():
    return jax.tree.map(
        lambda leaf: getattr(leaf, "value", leaf),
        init()["params"],
        is_leaf=lambda leaf: hasattr(leaf, "value"),
    )


def maker_of(store, format, **options):
    packed = packing.load_or_pack(store, format, LENGTH, packing.PairOptions(dupe_factor=1))
    return PackedDataset(
        store,
        packed,
        Masking(),
        0,
        vocab_size=VOCAB,
        bos_id=0,
        pad_id=PAD,
        mask_id=MASK,
        special_ids=(0, PAD, EOS, 3, MASK),
        **options,
    )


def batch_of(store, format="sentence_pair"):
    dataset = maker_of(store, format, token_types=True, next_sentence=format.endswith("pair"))
    batch = dataset(np.arange(dataset.num_rows), np.zeros(dataset.num_rows, int))
    several = np.argsort(-batch["segment_ids"].max(axis=1), kind="stable")[:ROWS]
    batch = {name: array[several] for name, array in batch.items()}
    assert batch["segment_ids"].max() >= 2  # some rows are shared
    return batch


FORMATS = ("doc_sentences", "segment_pair", "sentence_pair", "sentences")


@functools.partial(jax.jit, static_argnames="model")
def logits(model, params, batch, embeds=None):
    inputs = {"input_ids": batch["input_ids"]} if embeds is None else {"inputs_embeds": embeds}
    return model.apply(
        {"params": params},
        **inputs,
        segment_ids=batch["segment_ids"],
        position_ids=batch["position_ids"],
        token_type_ids=batch.get("token_type_ids"),
        next_sentence_positions=batch.get("next_sentence_positions"),
    )


@pytest.mark.parametrize("format", FORMATS)
def test_a_shared_row_gives_what_its_inputs_give_one_by_one(store, format):
    batch, params = batch_of(store, format), params_of()
    with jax.default_matmul_precision("highest"):
        shared = logits(MODEL, params, batch)
        for row in range(ROWS):
            segments = batch["segment_ids"][row]
            for number in range(1, segments.max() + 1):
                mine = segments == number
                alone = {
                    name: np.full((1, LENGTH), PAD if name in ("input_ids", "position_ids") else 0)
                    for name in ("input_ids", "segment_ids", "position_ids", "token_type_ids")
                    if name in batch
                }
                for name, array in alone.items():
                    array[0, : mine.sum()] = batch[name][row, mine]
                alone["segment_ids"] = np.minimum(alone["segment_ids"], 1)
                found = logits(MODEL, params, alone)
                np.testing.assert_allclose(
                    found.logits[0, : mine.sum()], shared.logits[row, mine], atol=1e-5
                )
                if "next_sentence_positions" in batch:
                    np.testing.assert_allclose(
                        found.next_sentence_logits[0, 0],
                        shared.next_sentence_logits[row, number - 1],
                        atol=1e-5,
                    )


def test_nothing_flows_between_inputs_that_share_a_row(store):
    batch, params = batch_of(store), params_of()
    table = params["roberta"]["embeddings"]["word_embeddings"]["embedding"]
    embeds = jnp.asarray(table)[batch["input_ids"]]

    def of_second(embeds):
        found = logits(MODEL, params, batch, embeds)
        second = batch["segment_ids"] == 2
        total = jnp.sum(jnp.square(found.logits) * second[..., None])
        return total + jnp.sum(jnp.square(found.next_sentence_logits[:, 1]))

    grads = np.asarray(jax.jit(jax.grad(of_second))(embeds))
    rows = batch["segment_ids"].max(axis=1) >= 2
    inside, outside = (
        grads[rows][x]
        for x in ((batch["segment_ids"] == 2)[rows], (batch["segment_ids"] != 2)[rows])
    )
    assert (np.abs(inside).max(axis=-1) > 1e-3).all()
    assert not outside.any()


def test_the_second_head_is_berts(store):
    """pooler, tanh, two logits, of the first vector of each input; in NumPy."""
    batch, params = batch_of(store), params_of()
    hidden = MODEL.bind({"params": params}).roberta(
        input_ids=batch["input_ids"],
        segment_ids=batch["segment_ids"],
        position_ids=batch["position_ids"],
        token_type_ids=batch["token_type_ids"],
    ).last_hidden_state  # fmt: skip
    places = batch["next_sentence_positions"]
    first = np.take_along_axis(np.asarray(hidden), places[..., None], axis=1)
    assert (np.take_along_axis(batch["input_ids"], places, axis=1) != PAD).all()
    head = jax.tree.map(np.asarray, params["next_sentence"])
    pooled = np.tanh(first @ head["pooler"]["kernel"] + head["pooler"]["bias"])
    expected = pooled @ head["classifier"]["kernel"] + head["classifier"]["bias"]
    found = logits(MODEL, params, batch).next_sentence_logits
    np.testing.assert_allclose(found, expected, atol=1e-4)

    losses = (
        np.log(np.exp(expected).sum(-1))
        - np.take_along_axis(expected, batch["next_sentence_labels"][..., None], axis=-1)[..., 0]
    )
    weights = batch["next_sentence_weights"]
    loss_fn, count_fn = pretraining_objective(MODEL, shared_rows=True)
    sums, counts = loss_fn(params, batch, None), count_fn(batch)
    assert sums["next_sentence"] == pytest.approx((losses * weights).sum(), rel=1e-4)
    assert counts["next_sentence"] == weights.sum() == batch["segment_ids"].max(axis=1).sum()
    hits = (expected.argmax(-1) == batch["next_sentence_labels"]) * weights
    loss_fn, count_fn = next_sentence_objective(MODEL, shared_rows=True)
    assert loss_fn(params, batch, None)["next_sentence_accuracy"] == hits.sum()
    assert count_fn(batch)["next_sentence_accuracy"] == weights.sum()


def test_without_the_second_head_it_is_the_masked_lm(store):
    batch, params = batch_of(store), params_of()
    masked_lm, head = split_next_sentence(params)
    assert set(masked_lm) == {"roberta", "lm_head"}
    assert set(head) == {"pooler", "classifier"}
    alone, count_fn = masked_lm_objective(RobertaForMaskedLM(CONFIG), shared_rows=True)
    both, _ = pretraining_objective(MODEL, shared_rows=True)
    found = float(alone(masked_lm, batch, None)["masked_lm"])
    assert found == pytest.approx(float(both(params, batch, None)["masked_lm"]), rel=1e-6)
    assert alone(params, batch, None)["masked_lm"] == found  # the head's presence is no matter
    assert count_fn(batch)["masked_lm"] == batch["masked_weights"].sum()


def step_of(model, accumulation=1, optimizer="adamw", params=None, mesh=None):
    """(state, train_step)."""
    mesh = mesh or create_mesh()
    schedule = polynomial_schedule(1e-3, warmup_steps=0, decay_steps=10)
    tx = OPTIMIZERS[optimizer](schedule)
    state = create_state(
        lambda: model.init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"],
        tx,
        mesh,
        params,
    )
    objective = pretraining_objective(model, shared_rows=True)
    step = make_train_step(*objective, tx, schedule, mesh, seed=0, accumulation=accumulation)
    return state, step


def trained(store, *, optimizer="adamw", accumulation=1, execution=None, params=None, mesh=None):
    """(parameters, metrics) after two updates on a batch of pairs."""
    model = RobertaForPreTraining(CONFIG, execution or Execution())
    state, step = step_of(model, accumulation, optimizer, params, mesh)
    batch = batch_of(store)
    if mesh is not None:
        batch = to_global(batch, mesh, ROWS, local_batch_rows(mesh, ROWS))
    for _ in range(2):
        state, metrics = step(state, batch)
    return state.params, jax.device_get(metrics)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_batch_in_parts_is_the_batch_in_one_go(store, optimizer):
    """Counts differ from part to part, so that a mean of means would show."""
    whole, metrics = trained(store, optimizer=optimizer)
    parts, others = trained(store, optimizer=optimizer, accumulation=4)
    assert metrics.keys() == others.keys() >= {"masked_lm_loss", "next_sentence_loss", "loss"}
    for name in metrics:
        assert metrics[name] == pytest.approx(others[name], rel=1e-5), name
    assert metrics["loss"] == pytest.approx(
        metrics["masked_lm_loss"] + metrics["next_sentence_loss"], rel=1e-6
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole, parts)


def train_on_eight_devices(folder):
    mesh = create_mesh(data=2, fsdp=2, tensor=2)
    _, metrics = trained(token_store.TokenStore.open(folder), mesh=mesh, accumulation=2)
    print(json.dumps({name: float(value) for name, value in metrics.items()}))


def test_eight_devices_compute_what_one_does(store):
    _, metrics = trained(store)
    printed = processes.run(__name__, "train_on_eight_devices", store.folder, devices=8)
    found = json.loads(printed.splitlines()[-1])
    assert found.keys() == metrics.keys()
    for name, value in metrics.items():
        assert found[name] == pytest.approx(float(value), rel=1e-5), name


def test_a_larger_batch_in_more_parts_takes_no_more_memory(store):
    """Beyond the batch itself: what the compiler sets aside for a step."""

    def working_memory(times, accumulation):
        state, step = step_of(MODEL, accumulation)
        batch = {name: np.concatenate([x] * times) for name, x in batch_of(store).items()}
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    once, in_parts, at_once = (working_memory(*x) for x in ((4, 4), (16, 16), (16, 1)))
    assert in_parts < 1.1 * once + sum(x.nbytes * 16 for x in batch_of(store).values())
    assert at_once > 2.5 * in_parts


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stacked_and_unstacked_layers_take_equal_steps(store, optimizer):
    stacked, metrics = trained(store, optimizer=optimizer)
    first = names.unstack_layers(jax.tree.map(np.asarray, params_of()))
    plain, others = trained(
        store, optimizer=optimizer, execution=Execution(scan_layers=False), params=first
    )
    assert metrics["loss"] == pytest.approx(others["loss"], rel=1e-5)
    expected = names.unstack_layers(jax.tree.map(np.asarray, stacked))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), expected, dict(plain))
