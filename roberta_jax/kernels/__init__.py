"""Numerical kernels with reference implementations, and faster ones for kinds of accelerators."""
