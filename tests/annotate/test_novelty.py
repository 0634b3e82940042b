"""Novelty against a reference: how little a code looks like any type's cells."""

from __future__ import annotations

import numpy as np
import pytest

from hashstream.annotate.novelty import TypeFit
from hashstream.kernels import count_set_bits, unpack_bits

N_BITS = 70


def cells(
    n: int, n_types: int, seed: int, shares: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, types, and the share of each type's cells that have a bit set."""
    rng = np.random.default_rng(seed)
    shares = rng.beta(0.5, 0.5, (n_types, N_BITS)) if shares is None else shares
    types = np.concatenate([np.arange(n_types), rng.integers(0, n_types, n - n_types)]).astype(np.int32)
    bits = np.zeros((n, 128), np.uint8)
    bits[:, :N_BITS] = rng.random((n, N_BITS)) < shares[types]
    return np.packbits(bits, axis=1, bitorder="little").view(np.uint64), types, shares


def fitted(codes: np.ndarray, types: np.ndarray, n_types: int, rate: float = 0.05) -> TypeFit:
    counts = count_set_bits(codes, types, n_types, N_BITS)
    return TypeFit.of(counts, np.bincount(types, minlength=n_types), codes, types, novel_rate=rate)


def test_novelty_is_the_likelihood_of_the_best_type_in_its_own_deviations() -> None:
    codes, types, shares = cells(800, 3, 0)
    fit = fitted(codes, types, 3)
    others, _, _ = cells(200, 3, 1, shares)
    bits = unpack_bits(others, N_BITS)
    set_bits, sizes = count_set_bits(codes, types, 3, N_BITS), np.bincount(types)
    p = (set_bits + 1) / (sizes[:, None] + 2)
    likelihood = np.where(bits[:, None], np.log(p), np.log(1 - p)).sum(axis=2)
    best = likelihood.argmax(axis=1)
    expected = (-likelihood.max(axis=1) - fit.mean[best]) / fit.deviation[best]
    np.testing.assert_allclose(fit.novelty(others), expected, atol=0.02)
    assert np.array_equal(fit.novelty(others, n_threads=2), fit.novelty(others))


def test_a_cell_does_not_speak_for_itself() -> None:
    """Mean and deviation are those of cells whose type was counted without them."""
    codes, types, _ = cells(60, 4, 2)
    fit = fitted(codes, types, 4)
    bits, left_out = unpack_bits(codes, N_BITS), np.empty(60)
    for i in range(60):
        rest = (types == types[i]) & (np.arange(60) != i)
        p = (bits[rest].sum(axis=0) + 1) / (rest.sum() + 2)
        left_out[i] = -np.where(bits[i], np.log(p), np.log(1 - p)).sum()
    np.testing.assert_allclose(fit.mean, [left_out[types == t].mean() for t in range(4)], rtol=1e-9)


def test_few_cells_of_known_types_are_novel_and_most_of_others() -> None:
    codes, types, shares = cells(6000, 5, 3)
    fit = fitted(codes, types, 5, rate=0.05)
    known, _, _ = cells(4000, 5, 4, shares)
    other, _, _ = cells(4000, 1, 5)
    assert (fit.novelty(known) > fit.threshold).mean() == pytest.approx(0.05, abs=0.015)
    assert (fit.novelty(other) > fit.threshold).mean() > 0.95


def test_a_batch_that_fits_less_well_as_a_whole_is_not_novel() -> None:
    codes, types, shares = cells(6000, 5, 6)
    fit = fitted(codes, types, 5, rate=0.02)
    moved, _, _ = cells(4000, 5, 7, 0.12 + 0.76 * shares)
    assert (fit.novelty(moved) > fit.threshold).mean() > 0.5
    shift = fit.shift(moved)
    assert shift > 0.5
    assert (fit.novelty(moved) - shift > fit.threshold).mean() < 0.2
    assert fit.shift(cells(4000, 5, 8, shares)[0]) == pytest.approx(0.0, abs=0.1)
    assert fit.shift(codes[:0]) == 0


def test_types_of_a_single_cell() -> None:
    codes, types, _ = cells(4, 4, 9)
    fit = fitted(codes, types, 4)
    assert np.isfinite(fit.novelty(codes)).all()
    assert (fit.deviation > 0).all()
