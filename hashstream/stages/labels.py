"""What both ways of `annotate --reference` share: novel cells told apart, and the columns of labels written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashstream.annotate import UNKNOWN
from hashstream.annotate.anchors import ACCEPTED, AMBIGUOUS, EMPTY, NOVEL, REJECTIONS
from hashstream.annotate.novelty import TypeFit
from hashstream.kernels import count_set_bits
from hashstream.runtime.arrow import category_array, number_array
from hashstream.runtime.provenance import available_threads, peak_rss_bytes
from hashstream.runtime.run import CODE_CHUNK_ROWS, Run
from hashstream.runtime.schema import LABEL_LEVEL, LABELS

#: Cells that novelty is judged by: of the reference, and of the run.
_SAMPLED = 200_000
_MOST_CHUNKS = 64
#: Of a shift (see `Novelty`), from which on it is said what it may mean.
_LARGE_SHIFT = 1.0


@dataclass(frozen=True)
class Novelty:
    """Tells cells that look like no type of the reference.

    Attributes
    ----------
    fit : TypeFit
    shift : float
        How much less all cells of the run look like the reference's types than the reference's own; see `TypeFit`.
    """

    fit: TypeFit
    shift: float

    @classmethod
    def between(
        cls, reference: Run, labels: NDArray[np.int32], n_labels: int, run: Run, *, novel_rate: float
    ) -> Novelty:
        """From one pass over the codes of the reference, and a look at those of the run.

        Parameters
        ----------
        labels : (reference.n_cells,) int32
            Each of 0 to `n_labels` - 1 at least once; -1 for none.
        novel_rate
            Share of the reference's own cells that may count as novel.
        """
        step = max(int(np.count_nonzero(labels >= 0)) // _SAMPLED, 1)
        set_bits, sizes = np.zeros((n_labels, reference.n_bits), np.int64), np.zeros(n_labels, np.int64)
        codes, own, n_met = [], [], 0
        for start in range(0, reference.n_cells, CODE_CHUNK_ROWS):
            block, group = reference.codes(start, start + CODE_CHUNK_ROWS), labels[start : start + CODE_CHUNK_ROWS]
            set_bits += count_set_bits(block, group, n_labels, reference.n_bits)
            labelled = np.flatnonzero(group >= 0)
            sizes += np.bincount(group[labelled], minlength=n_labels)
            drawn = labelled[-n_met % step :: step]
            codes.append(block[drawn])
            own.append(group[drawn])
            n_met += len(labelled)
        fit = TypeFit.of(set_bits, sizes, np.concatenate(codes), np.concatenate(own), novel_rate=novel_rate)
        return cls(fit, fit.shift(_some_codes(run)))

    def of(self, codes: NDArray[np.uint64]) -> NDArray[np.float32]:
        """(n,) float32, in standard deviations; see `TypeFit.novelty`."""
        return self.fit.novelty(codes, n_threads=available_threads()) - np.float32(self.shift)

    def summary(self) -> dict[str, Any]:
        """What `annotate` says about it."""
        said = {"novel_above": round(self.fit.threshold, 4), "novelty_shift": round(self.shift, 4)}
        if self.shift <= _LARGE_SHIFT:
            return said
        warning = (
            f"the cells look less like any type of the reference than its own do, by {self.shift:.1f} standard "
            "deviations: another technique or batch, which is taken off, or many are of types that it lacks, of which "
            "few are found"
        )
        return said | {"warnings": [warning]}


class Labelled(NamedTuple):
    """The labels of some cells.

    Attributes
    ----------
    places : (n,) integer
        Place of each cell's label among all names; their number for none.
    columns : dict of str to array
        Other columns, as numbers (n,) or arrow arrays.
    """

    places: NDArray[np.integer]
    columns: dict[str, Any]


#: Gives the labels of some cells from their codes and their buckets.
LabelCells = Callable[[NDArray[np.uint64], NDArray[np.int32]], Labelled]


def write_labels(
    run: Run,
    names: Sequence[str],
    label: LabelCells,
    columns: Sequence[str],
    novelty: Novelty | None,
    *,
    reject: bool,
    record: dict[str, Any],
    begin: float,
) -> dict[str, Any]:
    """Label every cell of a run, and write ``label``, ``label_rejection``, `columns` and, where asked, its novelty.

    Parameters
    ----------
    names
        All labels but 'unknown'.
    label
        Gives the labels of some cells from their codes and their buckets, and their `columns`.
    novelty
        Cells that it finds novel are 'unknown' whatever `label` says; None: no cell is.
    reject
        Whether cells without counts are 'unknown', too.
    record, begin
        What is known of the stage already, and when it began.
    """
    cells, rejected = np.zeros(len(names) + 1, np.int64), np.zeros(len(REJECTIONS), np.int64)

    def look_up(rows: slice, buckets: NDArray[np.int32]) -> dict[str, pa.Array]:
        codes = run.codes(rows.start, rows.stop)
        index, found = label(codes, buckets)
        rejection = np.where(index == len(names), AMBIGUOUS, ACCEPTED)
        if novelty is not None:
            value = novelty.of(codes)
            rejection[value > novelty.fit.threshold] = NOVEL
            found["label_novelty"] = value
        if reject:
            rejection[run.without_counts(codes)] = EMPTY
        index = np.where(rejection > ACCEPTED, len(names), index)
        if LABEL_LEVEL.name in found:
            found[LABEL_LEVEL.name] = np.where(rejection > ACCEPTED, np.int32(-1), found[LABEL_LEVEL.name])
        cells[:] += np.bincount(index, minlength=len(cells))
        rejected[:] += np.bincount(rejection, minlength=len(rejected))
        found["label"] = category_array([*names, UNKNOWN], index)
        found["label_rejection"] = category_array(list(REJECTIONS), rejection)
        return {name: number_array(v) if isinstance(v, np.ndarray) else v for name, v in found.items()}

    made = {"label", "label_rejection", *columns, *(["label_novelty"] if novelty is not None else [])}
    written = [column.name for column in LABELS if column.name in made]

    def completed() -> dict[str, Any]:
        return {
            **record,
            **(novelty.summary() if novelty is not None else {}),
            "cells": {name: int(n) for name, n in zip([*names, UNKNOWN], cells, strict=True) if n},
            "rejected": {name: int(n) for name, n in zip(REJECTIONS, rejected, strict=True) if name},
            "seconds": round(time.perf_counter() - begin, 3),
            "peak_rss_bytes": peak_rss_bytes(),
        }

    stale = [column.name for column in LABELS if column.name not in written]
    done = run.set_cell_columns(written, look_up, stage="annotate", record=completed, without=stale)
    return done.stage_record("annotate")


def _some_codes(run: Run) -> NDArray[np.uint64]:
    """At most about 200,000 codes of a run, from blocks all over it, of cells that have counts."""
    n_chunks = -(-run.n_cells // CODE_CHUNK_ROWS)
    chunks = np.unique(np.linspace(0, n_chunks - 1, min(n_chunks, _MOST_CHUNKS)).astype(np.int64))
    step = max(len(chunks) * CODE_CHUNK_ROWS // _SAMPLED, 1)
    starts = (chunks * CODE_CHUNK_ROWS).tolist()
    codes = np.concatenate([run.codes(s, min(s + CODE_CHUNK_ROWS, run.n_cells))[::step] for s in starts])
    counted = ~run.without_counts(codes)
    return codes[counted] if counted.any() else codes
