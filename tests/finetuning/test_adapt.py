"""The options `adapt.*`: their checks, layers that start anew, frozen layers, and descriptions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from roberta_jax import weights
from roberta_jax.errors import UsageError
from roberta_jax.finetuning.adapt import (
    Adaptation,
    adapted_model,
    adapted_optimizer,
    adapted_params,
    describe,
    plain_params,
)
from roberta_jax.modeling.execution import Execution
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.optimizer import adamw
from roberta_jax.training.partitioning import create_mesh, to_global
from roberta_jax.training.state import abstract_state, create_state
from roberta_jax.training.steps import make_train_step
from roberta_jax.weights.names import stack_layers, unstack_layers
from tests.support.heads import apply, build, config_of, inputs_of

NAME = "RobertaForMultipleChoice"  # it has a pooler
CONFIG = config_of(NAME, num_hidden_layers=3)
FROZEN = Adaptation(layer_decay=0.9, frozen_layers=1)  # and the embeddings
LORA = Adaptation(lora_rank=4)


def flat(tree):
    return traverse_util.flatten_dict(jax.device_get(unstack_layers(tree)), sep="/")


# Layers that start anew


@pytest.mark.parametrize("number", [1, 3])
def test_new_layers_are_the_top_ones_with_the_models_initial_values(number):
    model, params = build(NAME, CONFIG)
    before = flat(params)
    new = adapted_params(params, Adaptation(reinit_layers=number), model, seed=5)
    kernels = set()
    for path, after in flat(new).items():
        parts = path.split("/")
        layer = int(parts[3]) if "layer" in parts else None
        if not (path.startswith("roberta/pooler") or (layer is not None and layer >= 3 - number)):
            np.testing.assert_array_equal(after, before[path], err_msg=path)
        elif path.endswith("kernel"):
            assert np.std(after) == pytest.approx(0.02, rel=0.2), path
            kernels.add(after.tobytes())
        else:
            np.testing.assert_array_equal(after, float(path.endswith("scale")), err_msg=path)
    assert len(kernels) == 6 * number + 1  # no two are equal
    np.testing.assert_array_equal(  # the parameters that were given are unchanged
        params["roberta"]["pooler"]["dense"]["kernel"],
        before["roberta/pooler/dense/kernel"],
    )


def test_new_layers_depend_on_the_seed_and_not_on_the_layout():
    adaptation, trees = Adaptation(reinit_layers=2), []
    for scan_layers in (True, False):
        model, params = build(NAME, CONFIG, Execution(scan_layers=scan_layers))
        # `build` draws other values for another tree.
        params = params if scan_layers else unstack_layers(build(NAME, CONFIG)[1])
        trees.append(adapted_params(params, adaptation, model, seed=5))
    jax.tree.map(np.testing.assert_array_equal, trees[0], stack_layers(trees[1]))
    model, params = build(NAME, CONFIG)
    other = adapted_params(params, adaptation, model, seed=6)
    dense = "roberta/encoder/layer/2/output/dense/kernel"
    assert not np.array_equal(flat(other)[dense], flat(trees[0])[dense])


# Training and its state


def batch(step=0):
    inputs = inputs_of(NAME, CONFIG, batch=4, seed=step)
    return {**inputs.given, **inputs.labels}


def parts_of(adaptation, scan_layers=True):
    """(model, function that initializes, optimizer, parameters at the start)."""
    plain, _ = build(NAME, CONFIG, Execution(scan_layers=scan_layers))
    _, params = build(NAME, CONFIG)
    params = params if scan_layers else unstack_layers(params)
    model = adapted_model(plain, adaptation)
    ids = jnp.zeros((1, 1, 2), jnp.int32)
    return (
        model,
        lambda: model.init(jax.random.key(0), ids)["params"],
        adapted_optimizer(adamw(lambda _: 1e-3), adaptation, CONFIG),
        adapted_params(params, adaptation, plain, seed=0),
    )


def train(adaptation, scan_layers=True, steps=3):
    """(parameters at the start, state at the end, metrics)."""
    mesh = create_mesh()
    model, init, tx, start = parts_of(adaptation, scan_layers)
    state = create_state(init, tx, mesh, start)
    step = make_train_step(model, tx, lambda _: jnp.float32(1e-3), mesh, seed=0)
    metrics = []
    for number in range(steps):
        state, values = step(state, to_global(batch(number), mesh, 4, np.arange(4)))
        metrics.append({name: float(value) for name, value in values.items()})
    return start, state, metrics


def test_frozen_layers_and_embeddings_keep_every_bit_in_both_layouts():
    results = []
    for scan_layers in (True, False):
        start, state, metrics = train(FROZEN, scan_layers)
        before, after = flat(start), flat(state.params)
        frozen = ("roberta/embeddings", "roberta/encoder/layer/0/")
        for path, value in after.items():
            assert (value.tobytes() == before[path].tobytes()) == path.startswith(frozen), path
        results.append((after, metrics))
    (stacked, metrics), (unstacked, others) = results
    for ours, theirs in zip(metrics, others, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)  # also the norm of the gradient
    for path, value in stacked.items():  # the updates were 1e-3
        np.testing.assert_allclose(value, unstacked[path], rtol=0, atol=2e-5, err_msg=path)


@pytest.mark.parametrize("adaptation", [FROZEN, LORA])
def test_a_checkpoint_restores_every_bit(tmp_path, adaptation):
    """The state has no moments where arrays are frozen."""
    _, init, tx, _ = parts_of(adaptation)
    _, state, _ = train(adaptation, steps=1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        restored, _ = checkpoints.restore(abstract_state(init, tx, create_mesh()))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_the_exported_model_gives_the_adapted_models_logits(tmp_path):
    _, state, _ = train(LORA)
    plain, _ = build(NAME, CONFIG)
    weights.save_pretrained(tmp_path / "hf", plain, plain_params(state.params, LORA))
    model, params = weights.from_pretrained(tmp_path / "hf")
    inputs = inputs_of(NAME, CONFIG).given
    np.testing.assert_allclose(
        apply(model, params, **inputs).logits,
        apply(adapted_model(plain, LORA), state.params, **inputs).logits,
        rtol=0,
        atol=1e-6,
    )


# Without options


@pytest.mark.parametrize("adaptation", [Adaptation(), Adaptation(reinit_layers=1)])
def test_model_and_optimizer_are_the_plain_ones_where_all_is_trained_alike(adaptation):
    model, params = build(NAME, CONFIG)
    tx = adamw(lambda _: 1e-3)
    assert adapted_model(model, adaptation) is model
    assert adapted_optimizer(tx, adaptation, CONFIG) is tx
    jax.tree.map(np.testing.assert_array_equal, plain_params(params, adaptation), params)


def test_without_options_the_parameters_are_those_given():
    model, params = build(NAME, CONFIG)
    adapted = adapted_params(params, Adaptation(), model, seed=0)
    assert jax.tree.leaves(adapted)[0] is jax.tree.leaves(params)[0]
    jax.tree.map(np.testing.assert_array_equal, adapted, params)


# Descriptions and errors


def test_descriptions_give_the_options_and_the_numbers_of_parameters():
    model, params = build(NAME, CONFIG)
    sizes = {path: value.size for path, value in flat(params).items()}
    total = sum(sizes.values())
    assert describe(Adaptation(), params, CONFIG) == f"all {total:,} parameters are trained"
    adapted = adapted_params(params, LORA, model, seed=0)
    head = sum(n for path, n in sizes.items() if "pooler" in path or "classifier" in path)
    trained = head + 3 * 2 * (32 * 4 + 4 * 32)
    everything = total + trained - head
    assert describe(LORA, adapted, CONFIG) == (
        f"LoRA of rank 4 and alpha 16 on query, value; {trained:,} of {everything:,} parameters "
        f"({100 * trained / everything:.2g} %) are trained, {total - head:,} are frozen"
    )
    frozen = sum(n for path, n in sizes.items() if "embeddings" in path or "layer/0/" in path)
    assert describe(FROZEN, params, CONFIG) == (
        "learning rate times 0.9 from layer to layer; lowest 1 layer and embeddings frozen; "
        f"{total - frozen:,} of {total:,} parameters ({100 * (total - frozen) / total:.2g} %) are "
        f"trained, {frozen:,} are frozen"
    )
    text = describe(Adaptation(freeze_embeddings=True), params, CONFIG)
    assert text.startswith("embeddings frozen; ")
    assert text.endswith(f" {sum(n for p, n in sizes.items() if 'embeddings' in p):,} are frozen")
    text = describe(Adaptation(reinit_layers=2), params, CONFIG)
    assert text == f"top 2 layers initialized randomly; all {total:,} parameters are trained"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 0}, "--config.adapt.layer_decay=0 must be above 0 and at most 1"),
        ({"layer_decay": 1.1}, "--config.adapt.layer_decay=1.1 must be above 0"),
        ({"layer_decay": float("nan")}, "--config.adapt.layer_decay=nan must be"),
        ({"layer_decay": "low"}, "--config.adapt.layer_decay=low must be"),
        ({"reinit_layers": -1}, "--config.adapt.reinit_layers=-1 must be a whole number"),
        ({"frozen_layers": 1.5}, "--config.adapt.frozen_layers=1.5 must be a whole number"),
        ({"frozen_layers": True}, "--config.adapt.frozen_layers=true must be a whole number"),
        ({"freeze_embeddings": 1}, "--config.adapt.freeze_embeddings=1 must be true or false"),
        ({"lora_rank": -8}, "--config.adapt.lora_rank=-8 must be a whole number"),
        ({"lora_rank": 8, "lora_alpha": 0}, "--config.adapt.lora_alpha=0 must be a positive"),
        (
            {"lora_rank": 8, "lora_alpha": float("inf")},
            "--config.adapt.lora_alpha=inf must be a positive",
        ),
        ({"lora_rank": 8, "lora_targets": ()}, "must be a list of at least one module"),
        ({"lora_rank": 8, "lora_targets": "query"}, "lora_targets=query must be a list"),
        ({"lora_rank": 8, "lora_targets": ("uery",)}, "'uery' is not a module of a layer"),
        ({"lora_rank": 8, "lora_targets": (1,)}, "lora_targets: 1 is not a module of a layer"),
        ({"lora_alpha": 32}, "--config.adapt.lora_alpha has no effect without LoRA"),
        ({"lora_targets": ("key",)}, "--config.adapt.lora_targets has no effect without LoRA"),
        ({"lora_rank": 8, "layer_decay": 0.9}, "layer_decay=0.9 cannot be combined with --config"),
        ({"lora_rank": 8, "reinit_layers": 1}, "reinit_layers=1 cannot be combined"),
        ({"lora_rank": 8, "frozen_layers": 1}, "frozen_layers=1 cannot be combined"),
        ({"lora_rank": 8, "freeze_embeddings": True}, "freeze_embeddings=true cannot be combined"),
    ],
)
def test_values_out_of_range_and_contradictions_are_refused(options, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        Adaptation(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reinit_layers": 4}, "reinit_layers=4 is more than the 3 layers of the model"),
        ({"frozen_layers": 4}, "frozen_layers=4 is more than the 3 layers of the model"),
        ({"reinit_layers": 2, "frozen_layers": 2}, "overlap in a model of 3 layers"),
        ({"lora_rank": 33}, "lora_rank=33 is more than the model's hidden size, 32"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(options, message):
    adaptation = Adaptation(**options)
    model, params = build(NAME, CONFIG)
    for call in (
        lambda: adapted_model(model, adaptation),
        lambda: adapted_optimizer(adamw(lambda _: 1e-3), adaptation, CONFIG),
        lambda: adapted_params(params, adaptation, model, seed=0),
    ):
        with pytest.raises(UsageError, match=message):
            call()


def test_all_layers_can_be_frozen_or_start_anew():
    for options in ({"reinit_layers": 3}, {"frozen_layers": 3}):
        Adaptation(**options).check_model(CONFIG)
    assert Adaptation(lora_rank=2, lora_targets=["key"]).lora_targets == ("key",)
