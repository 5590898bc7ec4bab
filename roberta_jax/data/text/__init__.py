"""Text sources: files, TFDS datasets and the built-in corpus, split into sentences."""
