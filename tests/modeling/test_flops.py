"""The formula for floating-point operations."""

import jax
import jax.numpy as jnp
import pytest

from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.flops import training_flops
from roberta_jax.modeling.heads import RobertaForMaskedLM


def test_training_flops_are_three_times_the_compilers_count_of_the_forward_pass():
    config = RobertaConfig(
        vocab_size=1000, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=34,
    )  # fmt: skip
    model = RobertaForMaskedLM(config, Execution(scan_layers=False))
    ids, slots = jnp.zeros((4, 32), jnp.int32), jnp.zeros((4, 8), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids)["params"]

    def forward(params, ids, slots):
        return model.apply({"params": params}, ids, masked_positions=slots).logits

    forward_flops = jax.jit(forward).lower(params, ids, slots).compile().cost_analysis()["flops"]
    assert training_flops(config, 4, 32, 8) == pytest.approx(3 * forward_flops, rel=0.1)
