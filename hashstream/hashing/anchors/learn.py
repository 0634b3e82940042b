"""Both heads, the code book, the hyperplanes and their calibration, from the cells held in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hashstream.annotate.anchors import EXACT_LIMIT, N_FEATURES, Anchors
from hashstream.hashing.anchors.batches import BatchSource, InMemory, Streamed
from hashstream.hashing.anchors.calibrate import calibrated, carried_over
from hashstream.hashing.anchors.cells import LabelledCells, Standardised
from hashstream.hashing.anchors.classes import split_validation
from hashstream.hashing.anchors.codebook import CodeBook, code_book
from hashstream.hashing.anchors.deep import train_deep
from hashstream.hashing.anchors.discriminant import fit_discriminant
from hashstream.hashing.anchors.hyperplanes import Hyperplanes, train_hyperplanes
from hashstream.hashing.anchors.left_out import WIDE, NoveltyWeights, cells_to_fit, learn_weights
from hashstream.hashing.anchors.network import Network, add_points, join_heads, score_map
from hashstream.hashing.anchors.novelty import Profiles, learn_profiles, projections
from hashstream.hashing.anchors.settings import AnchorSettings
from hashstream.kernels import pack_bits
from hashstream.runtime.events import ProgressListener

_MOST_INT16 = 32_000


@dataclass(frozen=True)
class Learned:
    """Layers, bit head and the anchors that read the codes (not yet calibrated unless said).

    ``wide`` are principal components (n_genes, n_wide), more than the discriminant has; none where not asked for.
    """

    network: Network
    bit_weight: NDArray[np.float32]
    bit_bias: NDArray[np.float32]
    anchors: Anchors
    book: CodeBook
    wide: NDArray[np.float64]
    summary: dict[str, Any]

    def codes(self, z: Standardised, numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Codes of cells in memory: (n, n_words) uint64."""
        embedding = self.network.features(z, numbers) @ self.network.weights[2] + self.network.biases[2]
        return pack_bits(embedding @ self.bit_weight + self.bit_bias)


def learn(
    cells: LabelledCells,
    streamed: Callable[[NDArray[np.int64]], Streamed] | None,
    settings: AnchorSettings,
    *,
    seed: int,
    device: str,
    progress: ProgressListener,
) -> Learned:
    """Learn with validation cells held out, calibrate on these, and, where cells are few, learn from all once more.

    Parameters
    ----------
    streamed : function or None
        From the numbers of the validation cells to the source of the batches of the deep head, where it is not
        trained on the cells in memory.
    """
    labelled = np.flatnonzero(cells.labels >= 0)
    train, held_out = split_validation(
        cells.labels[labelled], settings.validation, rng=np.random.default_rng((seed, 3))
    )
    source = streamed(labelled[held_out]) if streamed is not None else None
    learned = _learn_once(cells, labelled[train], source, None, settings, seed, device, progress)
    codes = learned.codes(cells.z, labelled[held_out])
    progress.note("fit: what novelty is, by leaving out each type in turn")
    novelty = _novelty_weights(cells, learned.wide, labelled[train], labelled[held_out], settings, seed)
    anchors = calibrated(learned.anchors, codes, cells.labels[labelled[held_out]], novelty, settings)
    temperature = learned.anchors.scale / anchors.scale
    again = source is None and len(labelled) <= settings.refit_cells
    if again:
        progress.note("fit: learning once more from all labelled cells, those of the validation included")
        learned = _learn_once(cells, labelled, None, learned.book, settings, seed, device, progress)
        anchors = carried_over(learned.anchors, anchors, temperature)
    summary = learned.summary | {
        "temperature": temperature,
        "refitted": again,
        "types_left_out_in_turn": novelty.n_types,
    }
    return replace(learned, anchors=anchors, summary=summary)


def _learn_once(
    cells: LabelledCells,
    numbers: NDArray[np.int64],
    source: BatchSource | None,
    book: CodeBook | None,
    settings: AnchorSettings,
    seed: int,
    device: str,
    progress: ProgressListener,
) -> Learned:
    """Everything but the calibration, from the labelled cells `numbers`."""
    z, n_classes, classes = cells.z, cells.n_classes, cells.labels[numbers]
    everything = np.sort(np.concatenate([np.flatnonzero(cells.labels < 0), numbers]))
    progress.note(f"fit: discriminant of {len(numbers):,} cells of {n_classes} types")
    discriminant = fit_discriminant(
        z,
        everything,
        numbers,
        classes,
        n_classes,
        n_components=settings.n_components,
        shrinkage=settings.shrinkage,
        # Only for what is learned first are types left out in turn.
        n_wide=WIDE * settings.n_components if book is None else 0,
    )
    if book is None:
        book = code_book(n_classes, settings.n_bits, similarity=_similarity(discriminant.centroids), seed=seed)
    signs = book.signs
    if source is None:
        balance = 0.0 if settings.loss == "schash" else settings.sampling_balance
        source = InMemory(z, numbers, classes, n_classes, balance=balance)
    deep = train_deep(source, signs, z.n_genes, settings, seed=seed, device=torch.device(device), progress=progress)
    network = join_heads(discriminant, deep.weights, deep.biases)
    features = network.features(z, numbers)
    scores = score_map(network, features, classes, signs, settings)
    values = scores(features)
    network = add_points(network, scores, values)
    embedding = features @ network.weights[2] + network.biases[2]
    n_dims = embedding.shape[1] - network.n_axes
    planes = train_hyperplanes(values, embedding[:, :n_dims].astype(np.float64), classes, signs, settings, seed=seed)
    means = scores.means - scores.means.mean(axis=0)
    turned = projections(means, settings.novelty_bits, rng=np.random.default_rng((seed, 4))).astype(np.float32)
    bit_weight = np.zeros((embedding.shape[1], settings.n_bits + settings.novelty_bits), dtype=np.float32)
    bit_weight[:n_dims, : settings.n_bits] = planes.weight
    bit_weight[n_dims:, settings.n_bits :] = turned
    bit_bias = np.concatenate([planes.bias, np.zeros(settings.novelty_bits, dtype=np.float32)])
    profiles = learn_profiles(embedding[:, n_dims:] @ turned > 0, classes, n_classes)
    return Learned(
        network=network,
        bit_weight=bit_weight,
        bit_bias=bit_bias,
        anchors=_anchors(cells, book, planes, profiles),
        book=book,
        wide=discriminant.wide,
        summary={
            "code_book": book.kind,
            "minimum_distance": book.minimum_distance,
            "guaranteed_distance": book.guaranteed_distance,
            "deep_steps": deep.steps,
            "deep_loss": deep.last_loss,
        },
    )


def _novelty_weights(
    cells: LabelledCells,
    wide: NDArray[np.float64],
    train: NDArray[np.int64],
    held_out: NDArray[np.int64],
    settings: AnchorSettings,
    seed: int,
) -> NoveltyWeights:
    """From the wide components of the labelled cells of both kinds."""
    rng = np.random.default_rng((seed, 5))
    train = train[cells_to_fit(cells.labels[train], rng)]
    parts = []
    for numbers in (train, held_out):
        parts.append(np.empty((len(numbers), wide.shape[1])))
        for part, values in cells.z.groups(numbers):
            parts[-1][part] = values @ wide
    return learn_weights(
        parts[0], cells.labels[train], parts[1], cells.labels[held_out], cells.n_classes, settings, rng=rng
    )


def _anchors(cells: LabelledCells, book: CodeBook, planes: Hyperplanes, profiles: Profiles) -> Anchors:
    """Anchors without calibration: the read-out in whole numbers, so that log-odds are exact."""
    total = float((np.abs(planes.read_out).sum(axis=1) + np.abs(planes.offset)).max())
    unit = max(float(np.abs(planes.read_out).max()) / _MOST_INT16, 1.01 * total / (EXACT_LIMIT - book.anchors.shape[1]))
    return Anchors(
        names=cells.names,
        anchors=pack_bits(book.anchors.astype(bool)),
        n_bits=book.anchors.shape[1],
        read_out=np.rint(planes.read_out / unit).astype(np.int16),
        offset=np.rint(planes.offset / unit).astype(np.int32),
        scale=unit,
        profile=profiles.profile,
        fit_mean=profiles.fit_mean,
        fit_deviation=profiles.fit_deviation,
        novelty_weights=np.eye(1 + N_FEATURES)[1],
        ambiguous_below=np.zeros(cells.n_classes),
        novel_above=np.full(cells.n_classes, 1e9),
        class_counts=cells.counts,
        minimum_distance=book.minimum_distance,
        hasher_fingerprint="",
    )


def _similarity(centroids: NDArray[np.float32]) -> NDArray[np.float64]:
    """Correlation of the mean profiles of the classes."""
    centred = centroids - centroids.mean(axis=1, keepdims=True, dtype=np.float64)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    return np.asarray(unit @ unit.T, dtype=np.float64)
