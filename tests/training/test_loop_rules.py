"""Training and evaluation steps follow the sharding rules that they are given."""

import itertools
import json

import numpy as np
from jax.sharding import PartitionSpec

from roberta_jax.training.partitioning import RULES, create_mesh, rules_with
from roberta_jax.training.state import create_state
from roberta_jax.training.steps import make_eval_step, make_train_step
from tests.support import processes, toy

BATCH = 8
OVERRIDDEN = rules_with([("mlp", None), ("embed", ["fsdp", "tensor"])])


def on_eight_devices():
    """Trains with the default and with overridden rules; prints the losses of both."""
    mesh = create_mesh(data=2, fsdp=2, tensor=2)
    schedule = toy.polynomial_schedule(1e-2, warmup_steps=0, decay_steps=10)
    tx = toy.adamw(schedule)
    losses = {}
    for name, rules, kernel_spec, kernel_shape in (
        ("default", RULES, PartitionSpec("fsdp", "tensor"), (4, 8)),
        ("overridden", OVERRIDDEN, PartitionSpec(("fsdp", "tensor"), None), (2, 16)),
    ):
        state = create_state(toy.init_params, tx, mesh, rules=rules)
        batches = list(itertools.islice(toy.batches(mesh, BATCH)(0), 3))
        step = make_train_step(toy.Toy(), tx, schedule, mesh, seed=0, rules=rules)
        eval_step = make_eval_step(toy.Toy(), mesh, rules=rules)
        for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
            assert tree["kernel"].sharding.spec == kernel_spec

        # The toy model constrains its activations to ("batch", "length", "mlp").
        for lowered in (step.lower(state, batches[0]), eval_step.lower(state.params, batches[0])):
            constraints = activation_constraints(lowered.as_text())
            assert constraints
            assert all(('"tensor"' in line) == (name == "default") for line in constraints), lowered

        losses[name] = []
        for batch in batches:
            sums, counts = eval_step(state.params, batch)
            evaluated = sum(float(sums[key] / counts[key]) for key in sums)
            state, metrics = step(state, batch)
            losses[name].append([float(metrics["loss"]), evaluated])
            spec = state.params["kernel"].sharding.spec
            assert state.params["kernel"].addressable_shards[0].data.shape == kernel_shape, spec
    print(json.dumps(losses))


def activation_constraints(text):
    """The lines of the lowered program that constrain an activation, which has three axes."""
    shape = f"{toy.TARGETS}x{2 * toy.WIDTH}xf32"
    return [line for line in text.splitlines() if "sharding_constraint" in line and shape in line]


def test_steps_use_the_overridden_rules_and_have_the_same_losses():
    losses = json.loads(processes.run(__name__, "on_eight_devices", devices=8).splitlines()[-1])
    assert len(losses["default"]) == 3
    np.testing.assert_allclose(losses["overridden"], losses["default"], rtol=1e-5)
    for trained, evaluated in losses["default"]:
        np.testing.assert_allclose(trained, evaluated, rtol=1e-5)
