"""The data pipeline from text to batches, in NumPy; TensorFlow is optional."""
