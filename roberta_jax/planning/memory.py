"""The formula for the memory of a chip, split by use.

Exact are the parameters, the optimizer's state and the batch. The rest follows the train step:

* gradients: float32, one array for each parameter; with several microbatches twice, the sum and
  that of the present microbatch;
* working copies: the parameters in the dtype of the matrix products, and the word table as a whole;
* saved activations: what a layer keeps for the backward pass, for each token, by
  `config.execution.remat`. In arrays of the layer's width D: "full" keeps the layer's input alone;
  "dots" also the queries, keys, values, attention's output, both sub-layers' products and the
  inner product of width F, and two float32 numbers for each head, and without a loop over the
  layers the activation function's result, which XLA then need not compute again; "none" also the
  dropped-out and normalised values in float32. `tensor` splits the arrays of heads and of width F;
* present layer: the attention scores of one layer, float32 and once more in the dtype of the
  matrix products, unless a kernel keeps them on the chip, and what the backward pass computes
  again;
* LM head: the logits of one chunk of the vocabulary, or all if they are few, float32, with their
  gradient, and the gradient of the word table before it is split.

It is what has to exist at one time, which the compiler calls the peak. The compiler may need more:
a report of a compiled program says by how much.
"""

from roberta_jax.kernels.cross_entropy import CHUNK_SIZE
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.planning.workload import Workload

PARAMETERS = "parameters"
OPTIMIZER = "optimizer state"
GRADIENTS = "gradients"
COPIES = "working copies of the parameters"
SAVED = "activations for the backward pass"
LAYER = "activations of the present layer"
HEAD = "LM head"
BATCH = "batch"


def memory_by_use(work: Workload) -> dict[str, float]:
    """Bytes on each chip by use; see the module's docstring."""
    gradients = work.parameter_bytes
    return {
        PARAMETERS: work.parameter_bytes,
        OPTIMIZER: work.optimizer_bytes,
        GRADIENTS: gradients if work.accumulation == 1 else 2 * gradients,
        COPIES: _copies(work),
        SAVED: work.model.num_hidden_layers * _tokens(work) * saved_per_token(work),
        LAYER: _layer(work),
        HEAD: _head(work),
        BATCH: work.batch_bytes,
    }


def saved_per_token(work: Workload, remat: str | None = None) -> float:
    """Bytes that one layer keeps for the backward pass for one token, on a chip."""
    model, item, tensor = work.model, work.item, work.mesh["tensor"]
    width, inner = model.hidden_size, model.intermediate_size
    remat = work.execution.remat if remat is None else remat
    if remat == "full":
        return item * width
    # x and the products of both sub-layers; q, k, v and the attention's output; the inner product.
    kept = item * (3 * width + (4 * width + inner) / tensor)
    kept += 2 * 4 * model.num_attention_heads / tensor
    if remat == "none" or not work.has_loop:
        kept += item * inner / tensor  # the activation function's result
    if remat == "none":
        kept += 6 * 4 * width  # six float32 arrays of dropout and LayerNorm
    return kept


def _tokens(work: Workload) -> int:
    return work.rows * work.length


def _copies(work: Workload) -> float:
    if work.item == 4:
        return 0.0
    table = work.model.vocab_size * work.model.hidden_size
    is_split = work.mesh["fsdp"] * work.mesh["tensor"] > 1
    return work.item * (work.parameter_bytes / 4 + (table if is_split else 0))


def _layer(work: Workload) -> float:
    model, tensor = work.model, work.mesh["tensor"]
    scores = work.rows * model.num_attention_heads * work.length**2 / tensor
    scores *= not work.fuses_attention
    again = _tokens(work) * (saved_per_token(work, "none") - saved_per_token(work))
    return scores * (4 + work.item) + again


def _head(work: Workload) -> float:
    targets = work.rows * work.slots
    tensor = work.mesh["tensor"]
    vocab_size = work.model.vocab_size
    words = vocab_size if work.keeps_logits else min(CHUNK_SIZE, vocab_size)
    table = 4 * vocab_size * work.model.hidden_size
    is_whole = work.mesh["fsdp"] > 1
    return targets * words * (4 + work.item) + (table / tensor if is_whole else 0.0)


def layer_parameters(model: RobertaConfig) -> int:
    """Elements of the matrices of one layer."""
    return 4 * model.hidden_size**2 + 2 * model.hidden_size * model.intermediate_size
