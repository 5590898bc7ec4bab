"""Training: the loop and its parts, independent of the model and of the data."""
