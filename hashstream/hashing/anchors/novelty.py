"""Bits that say whether a cell looks like its type at all.

The anchor bits are trained to tell the types apart; a cell of a type that was not learned gets some label by them. On
the whitened axes of the discriminant, cells of one type lie in one direction, and others point elsewhere. The sign of a
random projection tells about directions alone, so that codes of such signs differ in as many bits as directions differ
in angle (Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002). Half of the novelty bits
are projections of all axes, half of the subspace in which the means of the types lie. Orthogonal projections lose less
than independent ones (Ji et al., "Super-bit locality-sensitive hashing", NeurIPS 2012). What the fits to the label and
to the other types say together is learned in `left_out`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: What the mean sign of a bit over a type's cells, -1 to 1, is multiplied by and rounded.
PROFILE_UNITS = 1000
_LEAST_DEVIATION = 0.01


@dataclass(frozen=True)
class Profiles:
    """How cells of each type set the novelty bits.

    Attributes
    ----------
    profile : (n_classes, n_bits) int16
        Mean sign of each bit, in 1/1000.
    fit_mean, fit_deviation : (n_classes, 2) float64
        Of the fit of a type's cells to its profile, in either half of the bits; see `fits`.
    """

    profile: NDArray[np.int16]
    fit_mean: NDArray[np.float64]
    fit_deviation: NDArray[np.float64]


def projections(means: NDArray[np.float64], n_bits: int, *, rng: np.random.Generator) -> NDArray[np.float64]:
    """Normals of the hyperplanes of the novelty bits: (n_axes, n_bits).

    Parameters
    ----------
    means : (n_classes, n_axes)
        Mean of each type on the axes; they have mean 0.
    n_bits : int
        Even.
    """
    n_axes = means.shape[1]
    _, size, directions = np.linalg.svd(means, full_matrices=False)
    span = directions[: max(int((size > 1e-6 * max(size[0], 1e-12)).sum()), 1)].T
    return np.column_stack([_rotations(n_axes, n_bits // 2, rng), span @ _rotations(span.shape[1], n_bits // 2, rng)])


def learn_profiles(bits: NDArray[np.bool_], classes: NDArray[np.int64], n_classes: int) -> Profiles:
    """Profiles of labelled cells' novelty bits (n, n_bits)."""
    signs = np.where(bits, np.float32(1), np.float32(-1))
    members = (classes == np.arange(n_classes)[:, None]).astype(np.float32)
    sizes = np.maximum(members.sum(axis=1, dtype=np.float64), 1)[:, None]
    profile = np.rint(PROFILE_UNITS * (members @ signs) / sizes).astype(np.int16)
    own = fits(signs, profile[classes])
    mean, deviation = np.zeros((n_classes, 2)), np.ones((n_classes, 2))
    for half in range(2):
        total = np.bincount(classes, weights=own[:, half], minlength=n_classes)
        mean[:, half] = total / sizes[:, 0]
        square = np.bincount(classes, weights=(own[:, half] - mean[classes, half]) ** 2, minlength=n_classes)
        deviation[:, half] = np.sqrt(square / np.maximum(sizes[:, 0] - 1, 1))
    # Those of a few cells are drawn towards those of all types.
    weight = sizes / (sizes + 10.0)
    mean = weight * mean + (1 - weight) * (weight * mean).sum(axis=0) / weight.sum()
    pooled = np.sqrt((weight * deviation**2).sum(axis=0) / weight.sum())
    deviation = np.sqrt(weight * deviation**2 + (1 - weight) * pooled**2)
    return Profiles(profile, mean, np.maximum(deviation, _LEAST_DEVIATION))


def fits(signs: NDArray[np.float32], profile: NDArray[np.int16]) -> NDArray[np.float64]:
    """How far signs agree with a profile, bit by bit, in either half: (n, 2), at most 1."""
    n_bits = signs.shape[1]
    agreement = signs * profile
    halves = [agreement[:, : n_bits // 2], agreement[:, n_bits // 2 :]]
    return np.stack([h.sum(axis=1, dtype=np.float64) for h in halves], axis=1) / (PROFILE_UNITS * n_bits / 2)


def _rotations(n_dims: int, n_bits: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Columns of as many random rotations as are needed: (n_dims, n_bits)."""
    turns = [np.linalg.qr(rng.standard_normal((n_dims, n_dims)))[0] for _ in range(-(-n_bits // n_dims))]
    return np.column_stack(turns)[:, :n_bits]
