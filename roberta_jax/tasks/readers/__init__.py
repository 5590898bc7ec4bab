"""Readers of the files that tasks come in: each yields the examples of one file or folder."""
