"""Numerical kernels with reference implementations: attention, cross-entropy and dropout."""
