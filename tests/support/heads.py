"""Every head of the model as a case: a small config, random weights, inputs and labels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import MODEL_CLASSES

SMALL = RobertaConfig.base(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=40,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
HEADS = tuple(name for name in MODEL_CLASSES if name != "RobertaModel")


def config_of(name: str, **changes) -> RobertaConfig:
    """The small config; a causal LM is a decoder, and what classifies has three classes."""
    own = {}
    if name == "RobertaForCausalLM":
        own = {"is_decoder": True}
    elif name.endswith("Classification"):
        own = {"num_labels": 3}
    return SMALL.replace(**(own | changes))


def build(name: str, config: RobertaConfig, execution: Execution | None = None, **options):
    """(model, params): every parameter random, biases and LayerNorms too."""
    model = MODEL_CLASSES[name](config, execution or Execution(), **options)
    example = jnp.ones((1, 2, 4) if name == "RobertaForMultipleChoice" else (1, 4), jnp.int32)
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), example)["params"])
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    drawn = [rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves]
    return model, jax.tree.unflatten(structure, drawn)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a head is called with, and its labels by the names of its `loss`."""

    given: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def inputs_of(name: str, config: RobertaConfig, batch=3, length=12, padded=True, seed=0) -> Inputs:
    """Random ids, the later rows padded on the right; labels with some that are no target."""
    rng = np.random.default_rng(seed)
    shape = (batch, 2, length) if name == "RobertaForMultipleChoice" else (batch, length)
    ids = rng.integers(4, config.vocab_size, shape)
    mask = np.ones(shape, np.int32)
    if padded:
        for row in range(1, batch):
            mask[row, ..., length - 2 * row :] = 0
        ids = np.where(mask, ids, config.pad_token_id)
    if name == "RobertaForSequenceClassification":
        labels = {"labels": rng.integers(0, config.num_labels, batch)}
    elif name == "RobertaForMultipleChoice":
        labels = {"labels": rng.integers(0, 2, batch)}
    elif name == "RobertaForQuestionAnswering":
        # The first answer's end lies outside the input, which makes it no target.
        starts, ends = rng.integers(0, length, (2, batch))
        ends[0] = length + 3
        labels = {"start_positions": starts, "end_positions": ends}
    else:
        classes = config.vocab_size if name.endswith("LM") else config.num_labels
        chosen = rng.integers(0, classes, shape)
        labels = {"labels": np.where(rng.random(shape) < 0.3, -100, chosen)}
    return Inputs({"input_ids": ids, "attention_mask": mask}, labels)


def loss_of(model, params, inputs: Inputs) -> jax.Array:
    """The loss as Hugging Face's classes define it: means, and for spans the mean of two."""
    labels = inputs.labels
    if type(model).__name__ == "RobertaForMaskedLM":  # its targets are slots
        chosen = labels["labels"]
        every = np.broadcast_to(np.arange(chosen.shape[1]), chosen.shape)
        labels = {
            "masked_positions": every,
            "masked_labels": np.maximum(chosen, 0),
            "masked_weights": (chosen >= 0).astype(np.float32),
        }
    sums, counts = model.apply({"params": params}, **inputs.given, **labels, method="loss")
    return jnp.mean(sums / counts)


def assert_close(ours, theirs, name=""):
    """Within 1e-5, or 1e-5 of the largest entry where entries exceed 1."""
    scale = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale, err_msg=name)
