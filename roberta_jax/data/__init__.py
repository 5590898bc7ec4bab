"""From text to batches, in NumPy; TensorFlow only drives the pipeline."""
