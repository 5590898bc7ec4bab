"""Numerical kernels: attention, dropout and cross-entropy, each with a reference implementation."""
