"""Batches of the training loop: which tokens, what is shown of each, and what it is to predict."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hashstream.cluster.transformer.model import Inputs
from hashstream.cluster.transformer.sequences import TokenSequences
from hashstream.cluster.transformer.settings import TransformerSettings


class View(NamedTuple):
    """What is shown of b tokens, and their held-out cells: mean (b, d) and number (b,), 0 where none are."""

    inputs: Inputs
    target: Tensor
    target_counts: Tensor


class BatchMaker:
    """Batches that depend on the seed, the phase of training and the step alone."""

    def __init__(self, sequences: TokenSequences, settings: TransformerSettings, seed: int) -> None:
        self._sequences, self._settings, self._seed = sequences, settings, seed
        chance = np.sqrt(sequences.counts.astype(np.float64))
        self._chance = chance / chance.sum()

    def rows(self, phase: int, step: int) -> tuple[NDArray[np.int64], np.random.Generator]:
        """Tokens of a step, each at most once, and the generator for what is hidden of them.

        A token's chance is the square root of its count: large buckets lead, small ones are seen.
        """
        rng = np.random.default_rng((self._seed, phase, step))
        n = min(self._settings.batch_tokens, self._sequences.n_tokens)
        return np.sort(rng.choice(self._sequences.n_tokens, n, replace=False, p=self._chance)), rng

    def views(self, rows: NDArray[np.int64], rng: np.random.Generator) -> tuple[View, View]:
        """Each token shown by half 0 with half 1 held out, and the reverse.

        Some tokens, and all that have no two halves, are hidden instead, and all of their cells held out: only their
        neighbours and their code tell where they lie.
        """
        s = self._sequences
        hidden = (s.half_counts[rows, 0] == 0) | (rng.random(len(rows)) < self._settings.mask_share)
        halves = s.halves(rows)
        pair = []
        for shown, held_out in ((0, 1), (1, 0)):
            own = np.where(hidden[:, None], np.float32(0), halves[:, shown])
            counts = np.where(hidden, np.float32(0), s.half_counts[rows, shown])
            target = np.where(hidden[:, None], s.points[rows], halves[:, held_out])
            target_counts = np.where(hidden, s.counts[rows], s.half_counts[rows, held_out])
            inputs = make_inputs(s, rows, own, counts, self._kept(rows, rng))
            pair.append(View(inputs, torch.from_numpy(target), torch.from_numpy(target_counts)))
        return pair[0], pair[1]

    def whole(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Inputs:
        """The tokens as they are, with neighbours hidden by chance."""
        s = self._sequences
        return make_inputs(s, rows, s.points[rows], s.counts[rows], self._kept(rows, rng))

    def _kept(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
        kept = rng.random((len(rows), self._sequences.members.shape[1])) >= self._settings.neighbour_dropout
        kept[:, :2] = True
        return kept


def make_inputs(
    sequences: TokenSequences,
    rows: NDArray[np.int64],
    own: NDArray[np.float32],
    own_counts: NDArray[np.float32],
    kept: NDArray[np.bool_] | None = None,
) -> Inputs:
    """Inputs for the tokens `rows`, themselves seen at `own` (n_rows, d) with `own_counts` (n_rows,) cells."""
    members = sequences.members[rows]
    points, counts, spread = sequences.points[members], sequences.counts[members], sequences.spread[members]
    points[:, 0], counts[:, 0] = own, own_counts
    spread[counts == 0] = 0
    if kept is None:
        kept = np.ones(members.shape, dtype=bool)
    return Inputs(
        points=torch.from_numpy(points),
        counts=torch.from_numpy(counts),
        signs=torch.from_numpy(sequences.signs[members].astype(np.float32)),
        spread=torch.from_numpy(spread),
        differences=torch.from_numpy(sequences.differences(rows)),
        kept=torch.from_numpy(kept),
    )
