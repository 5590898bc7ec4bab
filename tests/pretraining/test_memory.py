"""The estimate of memory: a lower bound, compared with what the devices have."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from configs.pretrain import SIZES, get_config
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.flops import num_parameters
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.pretraining import memory
from roberta_jax.pretraining.spec import read_spec
from roberta_jax.training.state import count_parameters, memory_limit
from tests.support.messages import one_screen


def test_the_number_of_parameters_is_that_of_the_model():
    assert num_parameters(RobertaConfig.base()) == 124_697_433
    assert num_parameters(RobertaConfig.large()) == 355_412_057
    config = RobertaConfig(
        vocab_size=97,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=18,
        type_vocab_size=2,
    )
    model = RobertaForMaskedLM(config)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))
    assert num_parameters(config) == count_parameters(nn.unbox(shapes))


def test_the_machine_has_memory():
    assert 2**28 < memory_limit(jax.devices()[0]) < 2**50


@pytest.mark.parametrize("size", SIZES)
def test_the_sizes_of_the_config_fit_into_twelve_gigabytes(size):
    for least in memory.least_memory(read_spec(get_config(size))).values():
        assert all(isinstance(number, int) and number > 0 for number in least.values())
        assert sum(least.values()) < 12e9


@pytest.mark.parametrize(
    ("changes", "task", "part", "advice"),
    [
        (
            {"model.num_hidden_layers": 10_000, "model.hidden_size": 2**14},
            "training",
            "parameters and optimizer state",
            "--config.model.hidden_size",
        ),
        ({"seq_len": 2**16}, "training", "attention scores", "--config.seq_len"),
        (
            {"train.batch_size": 10**6, "seq_len": 512},
            "training",
            "inputs of the layers",
            "--config.train.per_device_batch_size",
        ),
        (
            {"eval.batch_size": 10**6, "seq_len": 512},
            "evaluation",
            "attention scores",
            "--config.eval.batch_size",
        ),
    ],
)
def test_what_cannot_fit_is_refused(small_config, monkeypatch, changes, task, part, advice):
    monkeypatch.setattr(memory, "memory_limit", lambda device: 16 * 10**9)
    memory.check_memory(read_spec(small_config()))
    spec = read_spec(small_config(**changes))
    assert memory.least_memory(spec)[task][part] > 16 * 10**9
    with pytest.raises(
        UsageError, match=rf"the {task} .* GB of {part}.* machine has 16 GB"
    ) as error:
        memory.check_memory(spec)
    assert advice in one_screen(error.value)


def test_accumulation_needs_less(small_config):
    changes = {"train.batch_size": 64}
    whole = memory.least_memory(read_spec(small_config(**changes)))["training"]
    changes |= {"train.per_device_batch_size": 16}
    parts = memory.least_memory(read_spec(small_config(**changes)))["training"]
    assert parts["inputs of the layers"] * 4 == whole["inputs of the layers"]
    assert parts["token ids"] == whole["token ids"]


def test_devices_that_do_not_tell_their_memory_are_not_judged(small_config, monkeypatch):
    monkeypatch.setattr(memory, "memory_limit", lambda device: None)
    memory.check_memory(read_spec(small_config(seq_len=2**16)))
