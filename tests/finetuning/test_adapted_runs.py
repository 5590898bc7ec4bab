"""Whole fine-tuning runs with options `adapt.*`: what they write, and interruptions."""

import contextlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from roberta_jax.finetune import finetune
from roberta_jax.finetuning.adapt import Adaptation, plain_params
from roberta_jax.training import preemption
from roberta_jax.weights.adapters import load_adapter
from roberta_jax.weights.load import read_pretrained
from roberta_jax.weights.names import leaves, split_leaves
from tests.support import finetuning

# Dropout, so that the random state matters.
LORA = {"adapt.lora_rank": 4, "adapt.lora_alpha": 8.0, "model.hidden_dropout_prob": 0.1}


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    return finetuning.write_csv(tmp_path_factory.mktemp("csv") / "train.csv", range(60))


@pytest.fixture
def config_of(run_config, train_file):
    def make(**changes):
        data = {"data.train": str(train_file), "data.validation": "0.25"}
        return run_config("csv", **data, **{"train.checkpoint_every": 3}, **changes)

    return make


def tensors(folder):
    return load_file(folder / "model.safetensors")


def test_a_run_with_lora_exports_the_model_and_the_adapter(config_of, base_model, tmp_path):
    result = finetune(config_of(**LORA), tmp_path / "run")
    assert result.finished
    before, after = tensors(base_model), tensors(tmp_path / "run" / "hf")
    changed = {n for n in after if n in before and not np.array_equal(after[n], before[n])}
    assert changed == {
        f"roberta.encoder.layer.{layer}.attention.self.{name}.weight"
        for layer in range(3)
        for name in ("query", "value")
    }
    # The adapter on the model that the run started from is the exported model.
    _, params = read_pretrained(tmp_path / "run")
    adapter = load_adapter(tmp_path / "run" / "adapter", params)
    adaptation = Adaptation(
        lora_rank=adapter.rank, lora_alpha=adapter.alpha, lora_targets=adapter.targets
    )
    assert (adapter.rank, adapter.alpha) == (4, 8)
    zeros = {path: array for path, array in before.items() if path.startswith("roberta.")}
    for leaf in leaves(adapter.params):
        if leaf.names[0] in zeros:
            array = np.stack([zeros[n].T if leaf.transposed else zeros[n] for n in leaf.names])
            leaf.value[...] = array if leaf.stacked else array[0]
    merged = leaves(plain_params(adapter.params, adaptation))
    for name, tensor in split_leaves(merged, [leaf.value for leaf in merged]):
        np.testing.assert_allclose(tensor, after[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [LORA, {"adapt.frozen_layers": 1, "adapt.layer_decay": 0.9}], ids=["lora", "frozen"]
)
def test_stops_between_steps_change_no_bit(config_of, tmp_path, monkeypatch, changes):
    config = config_of(**changes)
    straight = finetune(config, tmp_path / "straight")
    polls_of_runs = iter([4, 3, 10_000])

    def stop_requests(*_):
        polls = iter(range(next(polls_of_runs)))
        return contextlib.nullcontext(preemption.StopRequests(lambda: next(polls, None) is None))

    monkeypatch.setattr(preemption, "stop_requests", stop_requests)
    stops = 0
    while not (result := finetune(config, tmp_path / "stopped")).finished:
        stops += 1
    assert stops == 2
    assert result.metrics == straight.metrics
    files = ["hf/model.safetensors"]
    files += ["adapter/adapter_model.safetensors"] if changes is LORA else []
    for file in files:
        first, second = ((tmp_path / run / file).read_bytes() for run in ("stopped", "straight"))
        assert first == second, file


def test_frozen_and_new_layers_in_the_exported_model(config_of, base_model, tmp_path):
    finetune(config_of(**{"adapt.frozen_layers": 1, "adapt.reinit_layers": 1}), tmp_path / "run")
    before, after = tensors(base_model), tensors(tmp_path / "run" / "hf")
    for name, tensor in after.items():
        if name.startswith(("roberta.embeddings", "roberta.encoder.layer.0.")):
            np.testing.assert_array_equal(tensor, before[name], err_msg=name)
        elif name.startswith("roberta.encoder.layer.1."):
            # A few steps with small rates change them a little.
            assert 0 < np.abs(tensor - before[name]).max() < 0.2, name
        elif name.startswith("roberta.encoder.layer.2.") and "LayerNorm.weight" in name:
            assert np.abs(tensor - 1).max() < 0.2, name  # it was about 0 in the base model
