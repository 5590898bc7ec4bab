"""Says which parameters of a loaded model come from its files, and which are new."""

from roberta_jax.errors import counted, listed
from roberta_jax.weights.load import Loaded


def describe_start(source: str, loaded: Loaded) -> str:
    """A sentence on what a training run starts from.

    Args:
      source: what the user gave as the model to start from.
      loaded: the model.
    """
    taken = len(loaded.weights.tensors) - len(loaded.unused)
    parts = [f"Starting from the weights in {source}: {counted(taken, 'tensor')} taken"]
    if loaded.new:
        parts.append(f"new, with random values: {listed(loaded.new)}")
    if loaded.unused:
        parts.append(f"not used: {listed(loaded.unused)}")
    return "; ".join(parts) + "."
