"""What the kernels of `anchors` mean, in plain NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels.anchors import TOP, AnchorScores
from hashstream.kernels.reference import hamming_distances, unpack_bits


def anchor_scores(
    codes: NDArray[np.uint64],
    read_out: NDArray[np.int16],
    offset: NDArray[np.int32],
    scale: float,
    anchors: NDArray[np.uint64],
    profile: NDArray[np.int16],
    common: NDArray[np.int16],
) -> AnchorScores:
    """Sums over unpacked bits; a softmax of the log-odds; arguments as in `AnchorTables.of`."""
    n_classes, n_bits = read_out.shape
    n_half = profile.shape[1] // 2
    signs = 2 * unpack_bits(codes, n_bits + 2 * n_half).astype(np.int64) - 1
    units = signs[:, :n_bits] @ read_out.T.astype(np.int64) + offset
    top = np.full((len(codes), max(TOP, n_classes)), -1, np.int32)
    top[:, :n_classes] = np.argsort(-units, axis=1, kind="stable")
    odds = np.exp((units - units.max(axis=1, keepdims=True, initial=-(1 << 31))).astype(np.float32) * np.float32(scale))
    probabilities = np.zeros((len(codes), max(TOP, n_classes)), np.float32)
    shares = odds / odds.sum(axis=1, keepdims=True, dtype=np.float64)
    probabilities[:, :n_classes] = np.take_along_axis(shares, top[:, :n_classes].astype(np.int64), axis=1)
    labels = top[:, 0]
    padded = np.zeros((len(codes), anchors.shape[1] * 64), np.uint8)
    padded[:, :n_bits] = signs[:, :n_bits] > 0
    own = np.packbits(padded, axis=1, bitorder="little").view(np.uint64)
    distance = hamming_distances(own, anchors)[np.arange(len(codes)), labels]
    halves = signs[:, n_bits:].reshape(len(codes), 2, n_half)
    agreement = (halves * profile[labels].reshape(len(codes), 2, n_half).astype(np.int64)).sum(axis=2)
    return AnchorScores(
        top=top[:, :TOP],
        probabilities=probabilities[:, :TOP],
        distance=distance.astype(np.int32),
        agreement=agreement.astype(np.int32),
        common=(signs[:, n_bits:] @ common.astype(np.int64)).astype(np.int32),
    )


def best_classes(
    codes: NDArray[np.uint64], weights: NDArray[np.int16], offset: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Sums over unpacked bits."""
    signs = 2 * unpack_bits(codes, weights.shape[1]).astype(np.int64) - 1
    sums = signs @ weights.T.astype(np.int64) + offset
    return sums.argmax(axis=1).astype(np.int32), sums.max(axis=1).astype(np.int32)
