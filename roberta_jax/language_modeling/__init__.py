"""Evaluation of masked language models on text: masked perplexity and pseudo-perplexity."""
