"""Drop-in replacements for the Flax RoBERTa classes of transformers 4."""
