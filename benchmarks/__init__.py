"""Measurements; run as modules from the repository root, such as ``python -m benchmarks.kernels``."""
