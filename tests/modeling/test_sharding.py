"""The model on a mesh: sharding constraints in the program, the same results, the same dropout.

Runs on eight virtual devices, in a process of its own, with a mesh and rules defined here.
"""

import json
import os
import re
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from roberta_jax.kernels import cross_entropy
from roberta_jax.kernels.dropout import dropout, seed_from_key
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM
from tests.golden import masked_lm
from tests.support import processes
from tests.support.small_config import small_config

CONFIG = small_config(
    vocab_size=1000,
    hidden_size=32,
    intermediate_size=64,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)
RULES = (
    ("batch", ("data", "fsdp")),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("logits", "tensor"),
    ("embed", "fsdp"),
)
ROWS, LENGTH, SLOTS = 8, 16, 4


def batch_of():
    ids, mask, _ = masked_lm.example_inputs(CONFIG, ROWS, LENGTH, seed=0)
    rng = np.random.default_rng(1)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "masked_positions": rng.integers(0, 2, (ROWS, SLOTS)),
        "masked_labels": rng.integers(0, CONFIG.vocab_size, (ROWS, SLOTS)),
        "masked_weights": np.ones((ROWS, SLOTS), np.float32),
    }


def loss_and_grad(execution):
    model = RobertaForMaskedLM(CONFIG, execution)

    def loss(params, batch):
        rngs = {"dropout": jax.random.key(3)}
        arguments = {**batch, "deterministic": False, "rngs": rngs, "method": "loss"}
        return model.apply({"params": params}, **arguments)["masked_lm"]

    return jax.jit(jax.value_and_grad(loss))


def specs_of(execution):
    """The partition spec of each parameter under the rules."""
    boxed = jax.eval_shape(
        lambda: RobertaForMaskedLM(CONFIG, execution).init(
            jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
        )
    )["params"]
    return nn.logical_to_mesh(nn.get_partition_spec(boxed), RULES)


def on_eight_devices():
    """Runs in a process of its own; prints its results as JSON."""
    jax.config.update("jax_default_matmul_precision", "highest")
    cross_entropy.CHUNK_SIZE = 256  # the vocabulary takes several chunks
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    results = {}
    for stack in (False, True):
        execution = Execution(scan_layers=stack)
        params = masked_lm.nest(masked_lm.random_params(CONFIG, seed=0), stack)
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs_of(execution))
        sharded = jax.device_put(params, shardings)
        batch = jax.device_put(batch_of(), NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        with jax.set_mesh(mesh):
            without_rules = loss_and_grad(execution).lower(sharded, batch).as_text()
            with nn.logical_axis_rules(RULES):
                lowered = loss_and_grad(execution).lower(sharded, batch)
        results[f"stack={stack}"] = {
            "constraints": constraints(lowered.as_text()),
            "constraints without rules": len(constraints(without_rules)),
        }
    messages, compiled = compile_and_capture(lowered)
    results["rematerialised"] = "full rematerialization" in messages
    on_mesh, on_one_device = compiled(sharded, batch), loss_and_grad(execution)(params, batch_of())
    errors = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max() / max(1.0, np.abs(b).max())),
        jax.device_get(on_mesh),
        jax.device_get(on_one_device),
    )
    results["error"] = max(jax.tree.leaves(errors))
    results["dropout collectives"] = dropout_collectives(mesh)
    print(json.dumps(results))


def compile_and_capture(lowered):
    """(XLA's output on stderr, the compiled program)."""
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            compiled = lowered.compile()
        finally:
            os.dup2(before, 2)
            os.close(before)
        file.seek(0)
        return file.read().decode(errors="replace"), compiled


def constraints(text):
    """Sharding and type of every constraint in a lowered program."""
    lines = [line for line in text.splitlines() if "sdy.sharding_constraint" in line]
    return [re.sub(r".*sharding_constraint %\S+ ", "", line).strip() for line in lines]


def dropout_collectives(mesh):
    """The collectives in dropout's forward and backward pass on an array split along each axis."""
    sharding = NamedSharding(mesh, PartitionSpec("data", "fsdp", "tensor"))
    x = jax.device_put(jnp.ones((8, 16, 256)), sharding)
    seed = seed_from_key(jax.random.key(0))

    def both(x):
        y, pull = jax.vjp(lambda x: dropout(x, seed, 0.1), x)
        return y, pull(y)

    compiled = jax.jit(both, out_shardings=sharding).lower(x).compile()
    np.testing.assert_array_equal(compiled(x)[0], dropout(jnp.ones(x.shape), seed, 0.1))
    return re.findall(r"(all-\w+|collective-\w+|reduce-scatter)\(", compiled.as_text())


@pytest.fixture(scope="module")
def results():
    return json.loads(processes.run(__name__, "on_eight_devices", devices=8))


def test_a_mesh_does_not_change_the_results(results):
    """Loss and gradients with dropout, split over data, fsdp and tensor, against one device."""
    assert results["error"] < 1e-5


@pytest.mark.parametrize("stack", [True, False])
def test_the_program_has_the_sharding_constraints(results, stack):
    """Linen drops them silently if the rules are not set."""
    lines = results[f"stack={stack}"]["constraints"]
    rows = r'\{"data", "fsdp"\}'
    for constraint in (
        rf"<@mesh, \[{rows}, \{{\}}, \{{\}}\]>.*tensor<8x16x32xf32>",  # residual stream
        rf'<@mesh, \[{rows}, \{{\}}, \{{"tensor"\}}\]>.*tensor<8x16x32xf32>',  # heads
        rf'<@mesh, \[{rows}, \{{\}}, \{{"tensor"\}}\]>.*tensor<8x16x64xf32>',  # feed-forward
        rf"<@mesh, \[{rows}, \{{\}}, \{{\}}\]>.*tensor<8x4x32xf32>",  # masked positions
        # The logits of a chunk of each of the two parts of the vocabulary.
        rf'<@mesh, \[\{{"tensor"\}}, {rows}, \{{\}}\]>.*tensor<2x32x256xf32>',
        r"<@mesh, \[\{\}, \{\}\]>.*tensor<1000x32xf32>",  # the word table, gathered
    ):
        assert any(re.search(constraint, line) for line in lines), (constraint, sorted(set(lines)))
    assert results[f"stack={stack}"]["constraints without rules"] == 0


def test_look_ups_are_not_rematerialised(results):
    assert not results["rematerialised"]


def test_dropout_needs_no_communication(results):
    assert results["dropout collectives"] == []
