"""LoRA adapters in peft's format: names, layouts, and files that are refused."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from roberta_jax.errors import NotFoundError, UsageError
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import MODEL_CLASSES
from roberta_jax.weights.adapters import (
    LORA,
    MODULES,
    adapted_modules,
    factor_paths,
    factor_shapes,
    load_adapter,
    save_adapter,
    target_kernels,
)
from roberta_jax.weights.names import stack_layers, unstack_layers
from tests.support.checkpoints import CONFIG, assert_trees_equal, random_params

RANK, ALPHA = 4, 8.0
LAYERS = CONFIG.num_hidden_layers
QUERY = "base_model.model.roberta.encoder.layer.1.attention.self.query"


def build(name, targets=("query", "value"), **execution):
    """(model, its parameters with an adapter, all of them random)."""
    model = MODEL_CLASSES[name](CONFIG, Execution(**execution))
    params, rng = random_params(model), np.random.default_rng(1)
    adapter = {}
    for path, kernel in target_kernels(params, adapted_modules(targets)).items():
        shapes = factor_shapes(kernel.shape, RANK)
        for each, shape in zip(factor_paths(path), shapes, strict=True):
            adapter[each] = rng.normal(0, 0.2, shape).astype(np.float32)
    return model, {**params, LORA: traverse_util.unflatten_dict(adapter)}


@pytest.fixture(scope="module")
def classifier():
    return build("RobertaForSequenceClassification")


@pytest.fixture
def saved(tmp_path, classifier):
    save_adapter(tmp_path / "a", *classifier, alpha=ALPHA, targets=("query", "value"))
    return tmp_path / "a"


def base_of(params):
    """A copy of the parameters without the adapter."""
    return jax.tree.map(np.copy, {name: tree for name, tree in params.items() if name != LORA})


@pytest.mark.parametrize(
    ("targets", "modules"),
    [
        (["query"], ["attention.self.query"]),
        (["key", "self.value"], ["attention.self.key", "attention.self.value"]),
        (["dense"], ["attention.output.dense", "intermediate.dense", "output.dense"]),
        (["output.dense"], ["attention.output.dense", "output.dense"]),
        (["intermediate.dense"], ["intermediate.dense"]),
        (["ense", "LayerNorm", "self", ""], []),
        (MODULES, list(MODULES)),
    ],
)
def test_targets_name_modules_by_the_end_of_their_names(targets, modules):
    assert adapted_modules(targets) == modules


def test_the_files_are_those_of_peft(saved, classifier):
    _, params = classifier
    tensors = load_file(saved / "adapter_model.safetensors")
    query = params[LORA]["roberta"]["encoder"]["layer"]["attention"]["self"]["query"]
    expected = {
        f"{QUERY}.lora_A.weight": query["lora_A"]["kernel"][1].T,
        f"{QUERY}.lora_B.weight": query["lora_B"]["kernel"][1].T,
        "base_model.model.classifier.dense.weight": params["classifier"]["dense"]["kernel"].T,
        "base_model.model.classifier.out_proj.bias": params["classifier"]["out_proj"]["bias"],
    }
    assert tensors[f"{QUERY}.lora_A.weight"].shape == (RANK, CONFIG.hidden_size)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)
    assert len(tensors) == LAYERS * 2 * 2 + 4
    config = json.loads((saved / "adapter_config.json").read_text())
    assert {name: config[name] for name in ("peft_type", "task_type", "r", "lora_alpha")} == {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "r": RANK,
        "lora_alpha": ALPHA,
    }
    assert config["target_modules"] == ["query", "value"]
    assert config["modules_to_save"] == ["classifier"]
    assert {path.name for path in saved.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@pytest.mark.parametrize(
    ("name", "saved_modules", "task_type"),
    [
        ("RobertaForTokenClassification", ["classifier"], "TOKEN_CLS"),
        ("RobertaForQuestionAnswering", ["qa_outputs"], "QUESTION_ANS"),
        ("RobertaForMultipleChoice", ["classifier", "pooler"], None),
        ("RobertaForMaskedLM", None, None),
    ],
)
@pytest.mark.parametrize("scan_layers", [True, False])
def test_an_adapter_is_read_as_it_was_written(
    tmp_path, name, saved_modules, task_type, scan_layers
):
    model, params = build(name, ("key", "dense"), scan_layers=scan_layers)
    save_adapter(tmp_path / "a", model, params, alpha=ALPHA, targets=("key", "dense"))
    zeros = jax.tree.map(np.zeros_like, base_of(params))
    adapter = load_adapter(tmp_path / "a", zeros)
    assert jax.tree.structure(adapter.params) == jax.tree.structure(params)
    expected = traverse_util.flatten_dict(params)
    for path, array in traverse_util.flatten_dict(adapter.params).items():
        in_file = path[0] == LORA or not {*path}.isdisjoint(saved_modules or ())
        np.testing.assert_array_equal(array, expected[path] if in_file else 0, err_msg=path)
    assert (adapter.rank, adapter.alpha) == (RANK, ALPHA)
    assert adapter.targets == tuple(adapted_modules(("key", "dense")))
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == saved_modules
    assert config["task_type"] == task_type
    # peft would adapt lm_head.dense for "dense".
    assert ("dense" in config["target_modules"]) == (name != "RobertaForMaskedLM")


def test_both_layouts_write_and_read_the_same(tmp_path, saved, classifier):
    model, params = classifier
    save_adapter(
        tmp_path / "b", model, unstack_layers(params), alpha=ALPHA, targets=("query", "value")
    )
    tensors = [
        load_file(folder / "adapter_model.safetensors") for folder in (saved, tmp_path / "b")
    ]
    assert_trees_equal(*tensors)
    adapter = load_adapter(saved, unstack_layers(base_of(params)))
    assert_trees_equal(stack_layers(adapter.params), params)


def test_an_adapter_replaces_an_adapter_and_nothing_else(saved, classifier):
    options = {"alpha": 1.0, "targets": ("query", "value")}
    save_adapter(saved, *classifier, **options)
    assert json.loads((saved / "adapter_config.json").read_text())["lora_alpha"] == 1
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        save_adapter(saved, *classifier, **options)
    model, params = classifier
    with pytest.raises(UsageError, match="have no LoRA adapter that could be saved"):
        save_adapter(saved, model, base_of(params), **options)
    params = jax.tree.map(np.copy, params)
    params["classifier"]["out_proj"]["bias"][0] = np.nan
    with pytest.raises(UsageError, match="classifier.out_proj.bias are NaN"):
        save_adapter(saved.with_name("c"), model, params, **options)
    assert not saved.with_name("c").exists()


# Files that cannot be used


def edit(saved, change):
    path = saved / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("r"), "is not an adapter's config"),
        (lambda c: c.update(r=0), "it has r=0"),
        (lambda c: c.update(lora_alpha="high"), "lora_alpha='high'"),
        (lambda c: c.update(use_dora=True), "use_dora=True: only plain LoRA is implemented"),
        (lambda c: c.update(use_rslora=True), "use_rslora=True"),
        (lambda c: c.update(bias="all"), "bias='all'"),
        (lambda c: c.update(rank_pattern={"query": 8}), "rank_pattern=.*merge_and_unload"),
        (lambda c: c.update(peft_type="IA3"), "peft_type='IA3'"),
        (lambda c: c.update(r=RANK + 1), r"lora_A.weight has shape \[4, 32\], not \[5, 32\]"),
    ],
)
def test_configs_that_mean_something_else_are_refused(saved, classifier, change, message):
    edit(saved, change)
    with pytest.raises(UsageError, match=message):
        load_adapter(saved, base_of(classifier[1]))


def test_settings_that_change_nothing_are_read(saved, classifier):
    """As other releases of peft write them."""
    edit(saved, lambda c: c.update(alpha_pattern=None, rank_pattern={}, use_dora=False))
    edit(saved, lambda c: c.update(lora_dropout=0.1, layers_to_transform=None, later="unknown"))
    assert_trees_equal(load_adapter(saved, base_of(classifier[1])).params, classifier[1])


def test_damaged_and_missing_files_are_refused(tmp_path, saved, classifier):
    base = base_of(classifier[1])
    with pytest.raises(NotFoundError, match="holds no LoRA adapter: looked for"):
        load_adapter(tmp_path / "none", base)
    weights = saved / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-4])
    with pytest.raises(UsageError, match="is cut short or not a safetensors file"):
        load_adapter(saved, base)
    weights.write_bytes(data[:-4] + bytes(x ^ 1 for x in data[-4:]))
    with pytest.raises(UsageError, match="is damaged"):
        load_adapter(saved, base)
    weights.unlink()
    with pytest.raises(NotFoundError, match="holds no LoRA adapter"):
        load_adapter(saved, base)
    weights.write_bytes(data)
    (saved / "adapter_config.json").write_text("{")
    with pytest.raises(UsageError, match="is not an adapter's config"):
        load_adapter(saved, base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{QUERY}.lora_B.weight"), "query.lora_B.weight is missing"),
        (lambda t: t.pop("base_model.model.classifier.dense.bias"), "dense.bias is missing"),
        (lambda t: t.update(extra=np.ones(2, np.float32)), "extra is not the model's"),
        (lambda t: t.clear(), "is not an adapter of this model"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(saved, classifier, change, message):
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(UsageError, match=message):
        load_adapter(saved, base_of(classifier[1]))
