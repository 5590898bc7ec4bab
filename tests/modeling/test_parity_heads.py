"""Every head against Hugging Face's torch class, live: outputs, losses, gradients, generation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import heads
from tests.support.heads import assert_close

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from roberta_jax.modeling.activations import ACTIVATIONS
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.generation import Sampling, generate
from roberta_jax.weights.names import leaves

pytestmark = pytest.mark.parity

LONG = {"num_hidden_layers": 1, "max_position_embeddings": 514}
CASES = {
    **{f"{name}, padded": (name, {}, {}) for name in heads.HEADS},
    **{f"{name}, not padded": (name, {}, {"padded": False}) for name in heads.HEADS},
    **{f"{name}, 512": (name, LONG, {"batch": 2, "length": 512}) for name in heads.HEADS},
    "relative keys": ("RobertaForMaskedLM", {"position_embedding_type": "relative_key"}, {}),
    "relative keys and queries": (
        "RobertaForTokenClassification",
        {"position_embedding_type": "relative_key_query"},
        {},
    ),
    "causal, relative": ("RobertaForCausalLM", {"position_embedding_type": "relative_key"}, {}),
    "untied": ("RobertaForMaskedLM", {"tie_word_embeddings": False}, {}),
    "causal, untied": ("RobertaForCausalLM", {"tie_word_embeddings": False}, {}),
    "causal head, encoder": ("RobertaForCausalLM", {"is_decoder": False}, {}),
    "classifying decoder": ("RobertaForSequenceClassification", {"is_decoder": True}, {}),
}


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def torch_model(name, config, params):
    """Hugging Face's model with these weights; every name must be found, none left over."""
    settings = transformers.RobertaConfig(**config.to_dict(), attn_implementation="eager")
    model = getattr(transformers, name)(settings).eval()
    state = {}
    for leaf in leaves(params):
        parts = leaf.value if leaf.stacked else [leaf.value]
        for tensor_name, part in zip(leaf.names, parts, strict=True):
            state[tensor_name] = torch.from_numpy(np.array(part.T if leaf.transposed else part))
    if "lm_head.bias" in state:
        state["lm_head.decoder.bias"] = state["lm_head.bias"]
        words = state["roberta.embeddings.word_embeddings.weight"]
        state.setdefault("lm_head.decoder.weight", words)
    model.load_state_dict(state)
    return model


def as_torch(arrays):
    return {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}


def torch_gradients(model, params):
    """The gradients under our paths, as our tree has them."""
    found = {name: value.grad for name, value in model.named_parameters()}
    gradients = {}
    for leaf in leaves(params):
        arrays = []
        for name in leaf.names:
            grad = found.pop(name)
            # A table that relative positions leave unread has no gradient.
            array = np.zeros(leaf.tensor_shape, np.float32) if grad is None else grad.numpy()
            arrays.append(array.T if leaf.transposed else array)
        gradients[leaf.path] = np.stack(arrays) if leaf.stacked else arrays[0]
    assert not found, sorted(found)
    return gradients


@functools.lru_cache(maxsize=1)
def both_sides(case):
    name, changes, shape = CASES[case]
    config = heads.config_of(name, **changes)
    model, params = heads.build(name, config)
    inputs = heads.inputs_of(name, config, **shape)
    loss, grads = jax.jit(jax.value_and_grad(lambda params: heads.loss_of(model, params, inputs)))(
        params
    )
    output = model.apply({"params": params}, **inputs.given)
    theirs = torch_model(name, config, params)
    their_output = theirs(**as_torch(inputs.given), **as_torch(inputs.labels))
    their_output.loss.backward()
    ours = output, loss, {leaf.path: leaf.value for leaf in leaves(grads)}
    return ours, (their_output, torch_gradients(theirs, params))


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_loss(case):
    (output, loss, _), (their_output, _) = both_sides(case)
    for name in ("logits", "start_logits", "end_logits"):
        assert hasattr(output, name) == (name in their_output)
        if hasattr(output, name):
            assert_close(getattr(output, name), their_output[name].detach().numpy(), name)
    assert_close(loss, their_output.loss.item())


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    (_, _, grads), (_, their_grads) = both_sides(case)
    assert grads.keys() == their_grads.keys()
    for path, grad in grads.items():
        assert_close(grad, their_grads[path], "/".join(path))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    theirs = transformers.activations.ACT2FN[name]
    x = np.linspace(-12, 12, 1001, dtype=np.float32)
    inputs = torch.from_numpy(x).requires_grad_()
    outputs = theirs(inputs)
    outputs.sum().backward()
    value, gradient = jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))(x)
    assert_close(value, outputs.detach().numpy())
    smooth = np.abs(x) > 1e-3  # at a corner either slope is right
    assert_close(gradient[smooth], inputs.grad.numpy()[smooth])


@pytest.mark.parametrize(
    ("kind", "labels", "num_labels"),
    [
        (None, np.array([0.5, -1.0, 2.0], np.float32), 1),
        ("regression", np.arange(9, dtype=np.float32).reshape(3, 3), 3),
        (None, np.array([2, -100, 0]), 3),
        ("single_label_classification", np.array([1, 1, 2]), 3),
        (None, np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]], np.float32), 3),
        ("multi_label_classification", np.array([[0.2, 0, 1]] * 3, np.float32), 3),
    ],
)
def test_kinds_of_sequence_classification(kind, labels, num_labels):
    name = "RobertaForSequenceClassification"
    config = heads.config_of(name, num_labels=num_labels, problem_type=kind)
    model, params = heads.build(name, config)
    given = heads.inputs_of(name, config).given
    sums = model.apply({"params": params}, **given, labels=labels, method="loss")
    counts = model.count(**given, labels=labels)
    theirs = torch_model(name, config, params)(**as_torch(given), labels=torch.from_numpy(labels))
    assert_close(sums["classification"] / counts["classification"], theirs.loss.item())


@pytest.mark.parametrize("name", heads.HEADS)
@pytest.mark.parametrize("scan", [True, False])
def test_hidden_states_and_attentions(name, scan):
    config = heads.config_of(name)
    model, params = heads.build(name, config, Execution(scan_layers=scan))
    given = heads.inputs_of(name, config).given
    rng = np.random.default_rng(3)
    head_mask = rng.random((config.num_hidden_layers, config.num_attention_heads))
    extras = {"output_hidden_states": True, "output_attentions": True}
    head_mask = head_mask.astype(np.float32)
    ours = model.apply({"params": params}, **given, head_mask=head_mask, **extras)
    with torch.no_grad():
        theirs = torch_model(name, config, params)(
            **as_torch(given), head_mask=torch.from_numpy(head_mask), **extras
        )
    for kind in ("hidden_states", "attentions"):
        assert len(getattr(ours, kind)) == len(theirs[kind])
        for our, their in zip(getattr(ours, kind), theirs[kind], strict=True):
            assert_close(our, their.numpy(), kind)


@pytest.mark.parametrize("positions", ["absolute", "relative_key_query"])
@pytest.mark.parametrize("scan", [True, False])
def test_cross_attention(positions, scan):
    name = "RobertaForCausalLM"
    config = heads.config_of(name, add_cross_attention=True, position_embedding_type=positions)
    model, params = heads.build(name, config, Execution(scan_layers=scan))
    given = heads.inputs_of(name, config).given
    rng = np.random.default_rng(3)
    given["encoder_hidden_states"] = rng.normal(size=(3, 7, 32)).astype(np.float32)
    given["encoder_attention_mask"] = np.array([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])
    ours = model.apply({"params": params}, **given, output_attentions=True)
    with torch.no_grad():
        # With a cache it takes every query for the last one, and its distances with it.
        theirs = torch_model(name, config, params)(
            **as_torch(given), output_attentions=True, use_cache=False
        )
    assert_close(ours.logits, theirs.logits.numpy())
    for kind in ("attentions", "cross_attentions"):
        for our, their in zip(getattr(ours, kind), theirs[kind], strict=True):
            assert_close(our, their.numpy(), kind)


def test_greedy_continuations():
    """Token by token from Hugging Face's logits of the whole input.

    (Its own `generate` numbers positions from 0, its `forward` from 2.)
    """
    name = "RobertaForCausalLM"
    config = heads.config_of(name)
    model, params = heads.build(name, config)
    ids = heads.inputs_of(name, config, padded=False, length=6).given["input_ids"]
    ours = generate(model, params, ids, max_new_tokens=12, eos_token_id=-1)
    theirs = torch_model(name, config, params)
    grown = torch.from_numpy(ids)
    with torch.no_grad():
        for _ in range(12):
            chosen = theirs(grown).logits[:, -1].argmax(-1)
            grown = torch.cat([grown, chosen[:, None]], 1)
    assert ours.tolist() == grown.tolist()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(True),
        Sampling(True, 0.7, 5),
        Sampling(True, 1.3, 0, 0.6),
        Sampling(True, 2, 8, 0.8),
    ],
)
def test_sampling_distribution(sampling):
    """What may be drawn, and how often, against Hugging Face's processors of the same logits."""
    name = "RobertaForCausalLM"
    config = heads.config_of(name)
    model, params = heads.build(name, config)
    ids = np.array([[0, 8, 9, 10]])
    with torch.no_grad():
        logits = torch_model(name, config, params)(torch.from_numpy(ids)).logits[:, -1]
    warpers = transformers.LogitsProcessorList()
    warpers.append(transformers.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        warpers.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(transformers.TopPLogitsWarper(sampling.top_p))
    wanted = torch.softmax(warpers(torch.from_numpy(ids), logits), -1)[0].numpy()
    draws = 4000
    drawn = generate(
        model,
        params,
        np.repeat(ids, draws, axis=0),
        max_new_tokens=1,
        sampling=sampling,
        key=jax.random.key(0),
    )
    counts = np.bincount(np.asarray(drawn[:, -1]), minlength=config.vocab_size)
    assert not counts[wanted == 0].any()
    spread = np.sqrt(draws * wanted * (1 - wanted))
    assert (np.abs(counts - draws * wanted) <= 5 * spread + 1e-6).all()


def test_positions_count_from_the_pad_token():
    """As Hugging Face's class derives them from the ids, with a cache and without."""
    from transformers.models.roberta import modeling_roberta

    from roberta_jax.modeling.inputs import positions_from_ids

    ids = np.array([[1, 1, 0, 5, 2], [0, 5, 2, 1, 1]])
    for past in (0, 3):
        theirs = modeling_roberta.create_position_ids_from_input_ids(torch.from_numpy(ids), 1, past)
        assert positions_from_ids(jnp.asarray(ids), 1, None, past).tolist() == theirs.tolist()
