"""Iterative quantisation in nested groups of components.

Source: Gong and Lazebnik, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes", CVPR 2011.
Rotating each group of components only within itself keeps every prefix of the code a code of the leading components.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ITERATIONS = 50


def nested_groups(n_bits: int, *, first: int = 8, step: int = 4) -> list[range]:
    """Consecutive groups of components: the first of `first`, then of `step`, until `n_bits` are covered."""
    edges = [0, *range(first, n_bits, step), n_bits] if n_bits > first else [0, n_bits]
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def itq_rotation(
    scores: NDArray[np.float64], *, rng: np.random.Generator, iterations: int = ITERATIONS
) -> NDArray[np.float64]:
    """The rotation that brings centred scores (n_cells, n) closest to the corners of a cube: (n, n) float64."""
    rotation, _ = np.linalg.qr(rng.standard_normal((scores.shape[1], scores.shape[1])))
    for _ in range(iterations):
        corners = np.where(scores @ rotation > 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(scores.T @ corners)
        rotation = left @ right
    return rotation


def nested_itq(
    scores: NDArray[np.float64], groups: Sequence[range], *, rng: np.random.Generator, iterations: int = ITERATIONS
) -> NDArray[np.float64]:
    """Block-diagonal rotation: (n_components, n_bits) float64, one ITQ rotation for each group of components."""
    n_bits = groups[-1].stop
    rotation = np.zeros((scores.shape[1], n_bits))
    for group in groups:
        block = slice(group.start, group.stop)
        rotation[block, block] = itq_rotation(scores[:, block], rng=rng, iterations=iterations)
    return rotation
