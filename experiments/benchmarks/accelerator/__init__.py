"""Checks and measures the training step on an accelerator; `__main__` is the command."""
