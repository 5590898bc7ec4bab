"""The formula for the time of a step: rooflines, with constants fitted to the compiler's estimates.

A step takes the sum of

* the matrix products at `matmul_share` of the peak rate (every product of the model's formula, and
  what `remat=full` computes again);
* the attention scores, which are many and small: `SCORE_BYTES` of memory traffic each, or as much
  time as `FUSED_SCORE_BYTES` would take where a kernel keeps them on the chip;
* everything between the matrix products of a layer (LayerNorm, dropout, GELU, residuals, copies):
  `LAYER_BYTES` of memory traffic for each token and each element of the widths D and F, or
  `FUSED_LAYER_BYTES` where a kernel computes LayerNorm and what is before it; and `LOOP_BYTES`
  where a loop over the layers copies what is kept for the backward pass into and out of arrays of
  all layers;
* what is done to each parameter in each microbatch (casts, zeroed and added gradients):
  `MICROBATCH_BYTES`; and in the optimizer's update: `UPDATE_BYTES`;
* the collectives, at the bandwidth of their network, none of them hidden behind computation.

The constants were fitted to the cycles that the TPU compiler (libtpu 0.0.42) estimates for the
step of `base` on v5e with 16 rows per microbatch. They are estimates of a compiler, not
measurements, and they are carried over to other chips by the chips' bandwidths. A measured step
replaces them: `python -m experiments.benchmarks.train_step` on the chip itself.
"""

import dataclasses

from roberta_jax.modeling.flops import training_flops
from roberta_jax.planning.chips import Chip
from roberta_jax.planning.memory import layer_parameters
from roberta_jax.planning.traffic import Traffic
from roberta_jax.planning.workload import Workload

TPU_MATMUL_SHARE = 0.9
GPU_MATMUL_SHARE = 0.8  # an H200 reaches about 790 TFLOP/s in large products
SCORE_BYTES, FUSED_SCORE_BYTES = 53, 7
LAYER_BYTES, FUSED_LAYER_BYTES, LOOP_BYTES = 41, 2, 30
MICROBATCH_BYTES = 37
UPDATE_BYTES = 28  # read: parameter, gradient, two moments; written: parameter, two moments


@dataclasses.dataclass(frozen=True)
class StepTime:
    """The time of a step in seconds, by part.

    Attributes:
      parts: {what: seconds}.
      flops: operations of the model's formula, over all chips.
      peak: operations per second of all chips.
      tokens: of a step.
    """

    parts: dict[str, float]
    flops: float
    peak: float
    tokens: int

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def share_of_peak(self) -> float:
        """Model FLOPs utilisation."""
        return self.flops / self.seconds / self.peak


def matmul_share(chip: Chip) -> float:
    """The share of the chip's peak rate at which matrix products are computed."""
    return TPU_MATMUL_SHARE if chip.dimensions else GPU_MATMUL_SHARE


def step_time(work: Workload, chip: Chip, collectives: list[Traffic]) -> StepTime:
    """Estimates the time of a step; see the module's docstring."""
    chips = 1
    for size in work.mesh.values():
        chips *= size
    flops = training_flops(work.model, work.batch_size, work.length, work.slots)
    done = flops + _recomputed_flops(work)
    bandwidth = chip.memory_bandwidth
    tensor = work.mesh["tensor"]
    # Of one chip.
    tokens = work.accumulation * work.rows * work.length
    layers, heads = work.model.num_hidden_layers, work.model.num_attention_heads
    width, inner = work.model.hidden_size, work.model.intermediate_size
    scores = layers * tokens * work.length * heads / tensor
    elements = layers * tokens * (width + inner / tensor)
    own = work.parameter_bytes / 4
    score_bytes = FUSED_SCORE_BYTES if work.fuses_attention else SCORE_BYTES
    layer_bytes = FUSED_LAYER_BYTES if work.fuses_layer_norm else LAYER_BYTES
    layer_bytes += LOOP_BYTES * work.has_loop
    parts = {
        "matrix products": done / chips / (matmul_share(chip) * chip.flops),
        "attention scores": scores * score_bytes / bandwidth,
        "between the products": elements * layer_bytes / bandwidth,
        "parameters and optimizer": own
        * (work.accumulation * MICROBATCH_BYTES + UPDATE_BYTES)
        / bandwidth,
    }
    waiting: dict[str, float] = {}
    for each in collectives:
        name = f"collectives over {each.axes} ({each.network})"
        waiting[name] = waiting.get(name, 0.0) + each.seconds
    return StepTime(parts | waiting, flops, chips * chip.flops, work.tokens_per_step)


def _recomputed_flops(work: Workload) -> float:
    """The matrix products that the backward pass computes again, over all chips.

    Attention's scores are always computed again, and the logits unless they are few; `remat=full`
    repeats the forward pass of the layers.
    """
    model, tokens = work.model, work.batch_size * work.length
    head = 2 * work.batch_size * work.slots * model.hidden_size * model.vocab_size
    head *= not work.keeps_logits
    scores = 2 * model.num_hidden_layers * tokens * work.length * model.hidden_size
    layers = 0
    if work.execution.remat == "full":
        layers = 2 * model.num_hidden_layers * tokens * layer_parameters(model)
    return float(head + scores + layers)
