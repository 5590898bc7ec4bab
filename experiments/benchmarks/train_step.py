"""Measures the time and the memory of one training step, in ours and in PyTorch.

    python experiments/benchmarks/train_step.py            # all shapes; or --shapes=small,base-128

Three implementations run the same step: forward, backward and AdamW in float32 with dropout 0.1,
15% of the tokens masked, and a vocabulary of 50265.

    ours         the step of `roberta_jax.pretrain`: stacked layers, K masked positions per row
    shipped      Hugging Face's RobertaForMaskedLM with labels, with logits at every position
    masked_only  Hugging Face's encoder with its head applied to the masked tokens only, as in ours,
                 so that only the frameworks differ

PyTorch uses SDPA attention and the fused AdamW, the fastest of its three implementations here. Each
side is a process of its own, which gives its peak memory. They are measured in turn, a few steps
each, so that other work on the machine affects all of them. A ratio is the median over the rounds
of (time of the other / time of ours).
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable

import numpy as np

from experiments.benchmarks.arguments import positive, some_of
from experiments.benchmarks.sides import Side, about, serve, speedups
from roberta_jax.training.host_memory import KeptMemory, use_one_heap

# Rows, tokens per row, and the values of the model config that differ from base.
SMALL = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
SHAPES = {"small": (16, 128, SMALL), "base-128": (4, 128, {}), "base-512": (2, 512, {})}
SIDES = ("ours", "shipped", "masked_only")
RATE = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=some_of(SHAPES), default=",".join(SHAPES))
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--steps", type=positive, default=4, help="steps of each side per round")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # what a child runs
    arguments = parser.parse_args()
    if arguments.side:
        _serve(arguments.side, arguments.shapes, arguments.steps)
        return
    print(json.dumps(about("jax", "jaxlib", "flax", "numpy", "torch", "transformers")))
    for shape in arguments.shapes.split(","):
        print(json.dumps(_compare(shape, arguments.rounds, arguments.steps)), flush=True)


def _compare(shape: str, rounds: int, steps: int) -> dict:
    """Measures all sides in turn; returns milliseconds per step, ratios and peak memory."""
    children = {side: _child(side, shape, steps) for side in SIDES}
    seconds = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, child in children.items():
            seconds[side].append(child.ask()["seconds"])
    peaks = {side: child.ask("stop")["peak_mb"] for side, child in children.items()}
    result = {"shape": shape}
    for side in SIDES:
        result[f"{side}_ms"] = round(1e3 * statistics.median(seconds[side]), 1)
    result |= speedups(seconds)
    result |= {f"{side}_peak_mb": round(peaks[side]) for side in SIDES}
    result["memory_of_masked_only"] = round(peaks["ours"] / peaks["masked_only"], 2)
    return result


def _child(side: str, shape: str, steps: int) -> Side:
    """A process that runs steps of one side; it is ready after compilation and warm-up."""
    command = [sys.executable, __file__, f"--side={side}", f"--shapes={shape}"]
    return Side([*command, f"--steps={steps}"])


def _serve(side: str, shape: str, steps: int) -> None:
    if side == "ours":
        use_one_heap()  # as the commands do
    step = _ours(shape) if side == "ours" else _torch(shape, shipped=side == "shipped")
    with KeptMemory() as memory:  # without an effect on the other sides
        with memory.running(side):
            step()
        for _ in range(2):
            step()
        serve(step, steps)


def _rows(shape: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns token ids [B, L] and the masked positions of each row, as many as in fairseq."""
    rows, length, _ = SHAPES[shape]
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 50000, (rows, length))
    counts = (RATE * length + rng.random(rows)).astype(int)
    return ids, [np.sort(rng.permutation(length)[:count]) for count in counts]


def _ours(shape: str) -> Callable[[], float]:
    import jax
    import jax.numpy as jnp

    from roberta_jax.data.masking import num_slots
    from roberta_jax.modeling.config import RobertaConfig
    from roberta_jax.modeling.execution import Execution
    from roberta_jax.modeling.heads import RobertaForMaskedLM
    from roberta_jax.training.optimizer import adamw
    from roberta_jax.training.partitioning import create_mesh, to_global
    from roberta_jax.training.state import create_state
    from roberta_jax.training.steps import make_train_step

    rows, length, changes = SHAPES[shape]
    # Without a loop over the layers, as configs/pretrain.py says.
    model = RobertaForMaskedLM(RobertaConfig.base(**changes), Execution(scan_unroll=-1))
    ids, masked = _rows(shape)
    slots = num_slots(length, RATE, max_inputs=1)
    positions = np.zeros((rows, slots), np.int32)
    weights = np.zeros((rows, slots), np.float32)
    for row, chosen in enumerate(masked):
        positions[row, : len(chosen)] = chosen
        weights[row, : len(chosen)] = 1
    mesh = create_mesh()
    batch = {
        "input_ids": ids.astype(np.int32),
        "attention_mask": np.ones((rows, length), np.int32),
        "position_ids": np.tile(np.arange(2, length + 2, dtype=np.int32), (rows, 1)),
        "masked_positions": positions,
        "masked_labels": np.take_along_axis(ids, positions, axis=1).astype(np.int32),
        "masked_weights": weights,
    }
    batch = to_global(batch, mesh, rows, np.arange(rows))

    def schedule(step):
        return jnp.float32(1e-4)

    def init():
        return model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]

    optimizer = adamw(schedule)
    state = create_state(init, optimizer, mesh)
    update = make_train_step(model, optimizer, schedule, mesh, seed=0)

    def step() -> float:
        nonlocal state
        state, metrics = update(state, batch)
        return float(metrics["loss"])

    return step


def _torch(shape: str, shipped: bool) -> Callable[[], float]:
    os.environ["USE_TF"] = "0"  # otherwise transformers imports TensorFlow if it is installed
    import torch
    from transformers import RobertaConfig, RobertaForMaskedLM

    _, _, changes = SHAPES[shape]
    config = RobertaConfig(
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        attn_implementation="sdpa",
        **changes,
    )
    model = RobertaForMaskedLM(config).train()
    ids, masked = _rows(shape)
    labels = np.full_like(ids, -100)
    for row, chosen in enumerate(masked):
        labels[row, chosen] = ids[row, chosen]
    ids, labels = torch.from_numpy(ids), torch.from_numpy(labels)
    attend = torch.ones_like(ids)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=True
    )

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        if shipped:
            loss = model(ids, attention_mask=attend, labels=labels).loss
        else:
            chosen = labels >= 0
            hidden = model.roberta(ids, attention_mask=attend)[0][chosen]
            loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), labels[chosen])
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


if __name__ == "__main__":
    main()
