"""Test cases for every head of the model: a small config, random weights, inputs and labels."""

import dataclasses
import functools

import jax
import numpy as np

from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import MODEL_CLASSES
from roberta_jax.weights.parameters import parameter_shapes
from tests.support.small_config import small_config

SMALL = small_config(vocab_size=60, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
HEADS = tuple(name for name in MODEL_CLASSES if name != "RobertaModel")


def config_of(name: str, **changes) -> RobertaConfig:
    """The small config for a class: a causal LM is a decoder, classifiers have three classes."""
    defaults = {}
    if name == "RobertaForCausalLM":
        defaults = {"is_decoder": True}
    elif name.endswith("Classification"):
        defaults = {"num_labels": 3}
    return SMALL.replace(**(defaults | changes))


def build(name: str, config: RobertaConfig, execution: Execution | None = None, **options):
    """(model, params). All parameters are random, including biases and LayerNorms."""
    model = MODEL_CLASSES[name](config, execution or Execution(), **options)
    leaves, structure = jax.tree.flatten(_parameter_shapes(model))
    rng = np.random.default_rng(0)
    values = [rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves]
    return model, jax.tree.unflatten(structure, values)


_parameter_shapes = functools.cache(parameter_shapes)


# Compiled once per model and input shapes: `Module.apply` outside of `jit` compiles the scanned
# layers again in every call.


@functools.partial(jax.jit, static_argnames="model")
def apply(model, params, **inputs):
    """The model's output for these inputs."""
    return model.apply({"params": params}, **inputs)


@functools.partial(jax.jit, static_argnames="model")
def summed_losses(model, params, **batch) -> dict[str, jax.Array]:
    """The output of the model's `loss` for a batch."""
    return model.apply({"params": params}, **batch, method="loss")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The arguments of a head's `__call__`, and the label arguments of its `loss`."""

    given: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def inputs_of(name: str, config: RobertaConfig, batch=3, length=12, padded=True, seed=0) -> Inputs:
    """Random ids and labels. All rows but the first end in padding, and some labels are -100."""
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
        # The end of the first answer is outside the input, so it is not a target.
        starts, ends = rng.integers(0, length, (2, batch))
        ends[0] = length + 3
        labels = {"start_positions": starts, "end_positions": ends}
    else:
        classes = config.vocab_size if name.endswith("LM") else config.num_labels
        labels = rng.integers(0, classes, shape)
        labels = {"labels": np.where(rng.random(shape) < 0.3, -100, labels)}
    return Inputs({"input_ids": ids, "attention_mask": mask}, labels)


def targets(name: str, labels: dict) -> dict:
    """The labels as arguments of the head's `loss`; a masked LM gets one slot per position."""
    if name != "RobertaForMaskedLM":
        return labels
    labels = labels["labels"]
    return {
        "masked_positions": np.broadcast_to(np.arange(labels.shape[1]), labels.shape),
        "masked_labels": np.maximum(labels, 0),
        "masked_weights": (labels >= 0).astype(np.float32),
    }


def loss_of(model, params, inputs: Inputs) -> jax.Array:
    """The mean loss as Hugging Face's classes define it; for spans, the mean of both losses."""
    batch = {**inputs.given, **targets(type(model).__name__, inputs.labels)}
    sums, counts = model.apply({"params": params}, **batch, method="loss"), model.count(**batch)
    return sum(sums[name] / counts[name] for name in sums)


def assert_close(ours, theirs, name=""):
    """Asserts equality to 1e-5, or to 1e-5 times the largest entry if that exceeds 1."""
    scale = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale, err_msg=name)
