"""Fine-tuning by Hugging Face's torch classes and by this project: the same losses, step by step.

Both start from the same files and see the same batches, without dropout. torch computes its own
losses and gradients; the update is that of `training.optimizer`, written out.
"""

import math
import random

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from roberta_jax.data.row_lengths import choose_lengths
from roberta_jax.finetuning.batches import TrainingRows
from roberta_jax.tasks.examples import ChoiceExample, QuestionExample, TextExample, TokenExample
from roberta_jax.tasks.task import Formatting
from roberta_jax.training.mesh import create_mesh
from roberta_jax.training.optimizer import adamw
from roberta_jax.training.partitioning import to_global
from roberta_jax.training.schedules import polynomial_schedule
from roberta_jax.training.state import create_state
from roberta_jax.training.steps import make_train_step
from roberta_jax.weights.load import from_pretrained
from tests.support.kinds import PAD_ID, make_kind, mean_loss
from tests.support.small_config import small_config
from tests.support.small_tokenizer import small_tokenizer
from tests.support.tokenizer_examples import TEXTS

pytestmark = pytest.mark.parity

STEPS, WARMUP, BATCH, EXAMPLES = 20, 3, 8, 64
PEAK, BETA1, BETA2, EPS, DECAY = 5e-3, 0.9, 0.98, 1e-6, 0.1
LABELS = ("one", "two", "three")


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def some_words(rng, most=9):
    words = TEXTS[rng.randrange(len(TEXTS))].split()
    start = rng.randrange(len(words))
    return words[start : start + rng.randint(1, most)]


def text_examples(rng, label):
    return [
        TextExample(str(n), " ".join(some_words(rng)), " ".join(some_words(rng, 5)), label(rng))
        for n in range(EXAMPLES)
    ]


def some_tokens(rng):
    words = tuple(some_words(rng))
    return words, tuple(rng.choice(LABELS) for _ in words)


def question_example(rng, number):
    words = some_words(rng, 30)
    start = rng.randrange(len(words))
    answer = " ".join(words[start : start + rng.randint(1, 3)])
    at = len(" ".join(words[:start])) + (start > 0)
    return QuestionExample(str(number), "what is it ?", " ".join(words), (answer,), (at,))


CASES = {
    "classification": lambda rng: text_examples(rng, lambda rng: rng.choice((*LABELS, None))),
    "regression": lambda rng: text_examples(rng, lambda rng: rng.uniform(0, 5)),
    "multi_label": lambda rng: text_examples(
        rng, lambda rng: tuple(name for name in LABELS if rng.random() < 0.5)
    ),
    "tokens": lambda rng: [TokenExample(str(n), *some_tokens(rng)) for n in range(EXAMPLES)],
    "choice": lambda rng: [
        ChoiceExample(
            str(n), " ".join(some_words(rng)), "is it _ ?", LABELS, rng.randrange(3)
        )
        for n in range(EXAMPLES)
    ],
    # Passages in windows, some without the answer.
    "question_answering": lambda rng: [question_example(rng, n) for n in range(EXAMPLES)],
}  # fmt: skip


def kind_of(name):
    labels = () if name in ("regression", "choice", "question_answering") else LABELS
    formatting = Formatting(max_length=38, max_query_length=8, doc_stride=10)
    scale = 5.0 if name == "regression" else 1.0
    return make_kind(name, labels, formatting=formatting, label_scale=scale)


def batches_of(features, fill):
    lengths = choose_lengths(features.row_lengths, 1, 38)
    rows_of = TrainingRows(features, lengths, BATCH, seed=1)
    return [features.gather(*rows_of(step), fill, PAD_ID) for step in range(STEPS)]


def torch_losses(model, batches):
    model.train()  # its rates of dropout are 0
    moments = {}
    losses = []
    for step, batch in enumerate(batches):
        batch = {
            name: torch.from_numpy(x.astype(np.int64) if x.dtype == np.int32 else x)
            for name, x in batch.items()
            if name != "example_weights"
        }
        loss = model(**batch).loss
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        rate = PEAK * (step / WARMUP if step < WARMUP else (STEPS - step) / (STEPS - WARMUP))
        correction = math.sqrt(1 - BETA2 ** (step + 1)) / (1 - BETA1 ** (step + 1))
        with torch.no_grad():
            for name, p in model.named_parameters():
                mean, square = moments.get(name, (0, 0))
                mean = BETA1 * mean + (1 - BETA1) * p.grad
                square = BETA2 * square + (1 - BETA2) * p.grad**2
                moments[name] = mean, square
                p -= rate * (correction * mean / (square.sqrt() + EPS) + DECAY * p)
    return losses


def our_losses(model, params, batches):
    schedule = polynomial_schedule(PEAK, warmup_steps=WARMUP, decay_steps=STEPS)
    optimizer = adamw(schedule, beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=DECAY)
    mesh = create_mesh(devices=jax.devices()[:1])

    def init_params():
        return model.init(jax.random.key(0), batches[0]["input_ids"])["params"]

    state = create_state(init_params, optimizer, mesh, params)
    step = make_train_step(model, optimizer, schedule, mesh, seed=0)
    losses = []
    for batch in batches:
        state, metrics = step(state, to_global(batch, mesh, BATCH, np.arange(BATCH)))
        losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize("name", CASES)
def test_the_losses_of_twenty_steps_agree(name, tmp_path):
    kind = kind_of(name)
    features = kind.encode(CASES[name](random.Random(name)), small_tokenizer())
    head = kind.model_class.__name__
    config = small_config(
        vocab_size=1000,
        hidden_size=32,
        num_hidden_layers=2,
        initializer_range=0.1,
        **kind.config_changes(),
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, head)(transformers.RobertaConfig(**config.to_dict()))
    theirs.save_pretrained(tmp_path)
    model, params = from_pretrained(tmp_path)
    assert type(model).__name__ == head
    batches = batches_of(features, kind.fill())
    assert any((batch["attention_mask"] == 0).any() for batch in batches)
    expected = torch_losses(theirs, batches)
    losses = our_losses(model, params, batches)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-4)
    # The updates matter: with the parameters of the start, the losses are others.
    at_start = [mean_loss(model, params, batch) for batch in batches]
    assert at_start[:2] == pytest.approx(losses[:2], abs=1e-5)  # the first rate is 0
    assert np.abs(np.subtract(losses, at_start)).max() > 0.02
