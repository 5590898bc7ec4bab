"""Packing: which tokens make an input and which inputs share a row."""
