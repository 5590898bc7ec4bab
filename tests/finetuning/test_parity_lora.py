"""LoRA against peft, live: files in both directions, and 20 steps of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from roberta_jax import weights
from roberta_jax.finetuning.adapt import (
    Adaptation,
    adapted_model,
    adapted_optimizer,
    adapted_params,
    plain_params,
)
from roberta_jax.modeling.heads import MODEL_CLASSES
from roberta_jax.training.optimizer import adamw
from roberta_jax.training.partitioning import create_mesh, to_global
from roberta_jax.training.state import create_state
from roberta_jax.training.steps import make_train_step
from roberta_jax.weights.adapters import load_adapter, save_adapter
from roberta_jax.weights.parameters import parameter_values
from tests.support.heads import apply, config_of, inputs_of

pytestmark = pytest.mark.parity

# Class -> peft's type of task. A masked language model has no head that is trained in full.
NAMES = {
    "RobertaForSequenceClassification": "SEQ_CLS",
    "RobertaForTokenClassification": "TOKEN_CLS",
    "RobertaForQuestionAnswering": "QUESTION_ANS",
    "RobertaForMultipleChoice": None,
    "RobertaForMaskedLM": None,
}
ADAPTATION = Adaptation(lora_rank=4, lora_alpha=32, lora_targets=("query", "value", "dense"))
ROWS, RATE, STEPS = 8, 3e-3, 20


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def base(tmp_path, name):
    """(folder of a pretrained model, the model, its parameters)."""
    model = MODEL_CLASSES[name](config_of(name))
    params = traverse_util.path_aware_map(  # large kernels, so that inputs differ in their logits
        lambda path, x: np.asarray(5 * x if path[-1] == "kernel" else x),
        parameter_values(model, jax.random.key(0)),
    )
    weights.save_pretrained(tmp_path / "base", model, params)
    return tmp_path / "base", model, params


def torch_base(folder, name):
    model = getattr(transformers, name).from_pretrained(folder, attn_implementation="eager")
    return model.eval()  # no dropout in training either


def as_torch(arrays):
    return {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}


def logits(output):
    """All logits of an output of either library, one after the other."""
    keys = ("logits", "start_logits", "end_logits")
    found = [getattr(output, key) for key in keys if hasattr(output, key)]
    return np.concatenate([np.ravel(getattr(x, "detach", lambda x=x: x)()) for x in found])


def compare(ours, theirs):
    assert np.std(theirs) > 1e-2
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))


def test_peft_computes_the_same_with_an_adapter_of_ours(tmp_path, name, base):
    folder, model, params = base
    rng = np.random.default_rng(1)
    params = traverse_util.path_aware_map(
        lambda path, x: np.float32(rng.normal(0, 0.05, x.shape)) if "lora_B" in path else x,
        adapted_params(params, ADAPTATION, model, seed=0),
    )
    for part in ("classifier", "qa_outputs"):  # the base model has another head
        if part in params:
            params[part] = jax.tree.map(lambda x: x + np.float32(0.1), params[part])
    save_adapter(tmp_path / "adapter", model, params, alpha=32, targets=ADAPTATION.lora_targets)
    theirs = peft.PeftModel.from_pretrained(torch_base(folder, name), tmp_path / "adapter").eval()
    inputs = inputs_of(name, model.config).given
    expected = logits(theirs(**as_torch(inputs)))
    compare(logits(apply(adapted_model(model, ADAPTATION), params, **inputs)), expected)
    compare(logits(apply(model, plain_params(params, ADAPTATION), **inputs)), expected)


def test_an_adapter_of_pefts_computes_the_same_here(tmp_path, name, base):
    folder, model, params = base
    torch.manual_seed(0)
    config = peft.LoraConfig(
        task_type=NAMES[name],
        r=ADAPTATION.lora_rank,
        lora_alpha=ADAPTATION.lora_alpha,
        target_modules=["query", "intermediate.dense"],
        modules_to_save=["classifier", "pooler"] if "Multiple" in name else None,
        init_lora_weights=False,  # B is random as well
    )
    theirs = peft.get_peft_model(torch_base(folder, name), config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    adapter = load_adapter(tmp_path / "adapter", params)
    adaptation = Adaptation(
        lora_rank=adapter.rank, lora_alpha=adapter.alpha, lora_targets=adapter.targets
    )
    inputs = inputs_of(name, model.config).given
    ours = apply(adapted_model(model, adaptation), adapter.params, **inputs)
    compare(logits(ours), logits(theirs(**as_torch(inputs))))


@pytest.mark.parametrize("name", [name for name in NAMES if "Masked" not in name], indirect=True)
def test_twenty_steps_have_pefts_losses(tmp_path, name, base):
    """From the same adapter on the same batches, with AdamW; without dropout."""
    folder, plain, params = base
    start = adapted_params(params, ADAPTATION, plain, seed=0)
    save_adapter(tmp_path / "adapter", plain, start, alpha=32, targets=ADAPTATION.lora_targets)
    theirs = peft.PeftModel.from_pretrained(
        torch_base(folder, name), tmp_path / "adapter", is_trainable=True
    ).eval()
    options = {"betas": (0.9, 0.98), "eps": 1e-9, "weight_decay": 0.1}
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    torch_adamw = torch.optim.AdamW(parameters, lr=RATE, **options)

    model, mesh = adapted_model(plain, ADAPTATION), create_mesh(devices=jax.devices()[:1])
    tx = adamw(lambda _: RATE, beta1=0.9, beta2=0.98, eps=1e-9, weight_decay=0.1)
    tx = adapted_optimizer(tx, ADAPTATION, plain.config)
    ids = jnp.zeros((1, 1, 2) if "Multiple" in name else (1, 2), jnp.int32)
    state = create_state(lambda: model.init(jax.random.key(0), ids)["params"], tx, mesh, start)
    step = make_train_step(model, tx, lambda _: jnp.float32(RATE), mesh, seed=0)
    trained = sum(x.size for x in jax.tree.leaves(state.opt_state[0].mu))
    assert trained == sum(p.numel() for p in parameters)
    losses, expected = [], []
    for number in range(STEPS):
        inputs = inputs_of(name, plain.config, batch=ROWS, length=24, seed=number % 4)
        batch = {**inputs.given, **inputs.labels}
        state, metrics = step(state, to_global(batch, mesh, ROWS, np.arange(ROWS)))
        losses.append(float(metrics["loss"]))
        loss = theirs(**as_torch(inputs.given), **as_torch(inputs.labels)).loss
        torch_adamw.zero_grad()
        loss.backward()
        torch_adamw.step()
        expected.append(float(loss.detach()))
    assert np.mean(expected[-4:]) < 0.98 * np.mean(expected[:4])  # of the same four batches
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-4)
