"""Pretraining: its specification, datasets and evaluation."""
