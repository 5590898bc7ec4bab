"""The model: linen modules that import jax and flax alone."""
