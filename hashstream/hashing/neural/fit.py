"""Learn the neural hash function on a bounded sample: `pca-itq` to start from, training, export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hashstream.atlas.sample import Sample
from hashstream.errors import SettingsError
from hashstream.hashing.device import choose_device
from hashstream.hashing.hasher import Hasher
from hashstream.hashing.neural.settings import NeuralSettings
from hashstream.hashing.neural.views import SampleCells, Standardiser
from hashstream.hashing.pca_itq import PcaItqSettings, fit_pca_itq
from hashstream.runtime.events import ProgressListener, Silent

LEAST_CELLS = 20
_SPLIT, _GROUP_CELLS = 0, 1024


def fit_neural(
    sample: Sample,
    settings: NeuralSettings | None = None,
    *,
    seed: int = 0,
    threads: int = 1,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    progress: ProgressListener | None = None,
    batches: NDArray[np.integer] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Hasher:
    """Train a multi-head hash encoder on a sample of cells, which is left with the chosen genes alone.

    No labels are used. One thread does all sums of the training and another makes batches, so that on the CPU the
    result depends on the sample, the settings and the seed alone.

    Parameters
    ----------
    sample
        Cells to learn from.
    settings
        Of the network, the loss and the training.
    seed
        Of the split, the batches, the first weights and the rotations.
    threads
        Of the principal components that training starts from.
    checkpoint_dir
        Folder in which training is kept while it runs. With `resume` it is continued from there, to the same result as
        without the interruption; without, what is there is replaced.
    progress
        Told of steps and of the held-out loss.
    batches : (n_sampled_cells,) integer, optional
        Batch of each cell: genes are then ranked within batches, see `fit_pca_itq`.
    provenance
        Added to that of the Hasher.

    Raises
    ------
    MissingDependencyError
        If torch is not installed.
    SettingsError
        If the sample is too small, there is no such device, or a checkpoint was made with other settings.
    TrainingError
        If the loss becomes NaN or infinite.
    """
    settings, progress = settings or NeuralSettings(), progress or Silent()
    device_name = choose_device(settings.device, method="neural")
    import torch

    from hashstream.hashing.neural.batches import BatchMaker
    from hashstream.hashing.neural.export import make_hasher
    from hashstream.hashing.neural.model import HashEncoder, ZinbDecoder
    from hashstream.hashing.neural.neighbours import nearest_cells
    from hashstream.hashing.neural.train import train
    from hashstream.runtime.torch_threads import one_thread

    if sample.n_cells < LEAST_CELLS:
        raise SettingsError(
            f"the sample has {sample.n_cells} cells with counts, but training needs at least {LEAST_CELLS}; use "
            "--method pca-itq, or a larger --sample."
        )
    device = torch.device(device_name)
    n_components = max(settings.n_projections, settings.neighbour_components)
    start = fit_pca_itq(
        sample,
        PcaItqSettings(1, n_components, settings.n_genes, settings.target_sum, settings.clip, settings.genes_by),
        seed=seed,
        threads=threads,
        batches=batches,
    )
    cells, standardise = SampleCells(sample), Standardiser(start)
    with threadpool_limits(limits=1):
        scores = _scores(cells, standardise, start)
        order = np.random.default_rng((seed, _SPLIT)).permutation(cells.n_cells)
        n_held_out = max(2, round(settings.held_out * cells.n_cells))
        held_out, train_cells = np.sort(order[:n_held_out]), np.sort(order[n_held_out:])
        k = min(settings.n_neighbours, len(train_cells) - 1)
        neighbours = nearest_cells(scores[:, : settings.neighbour_components], train_cells, held_out, k)
    maker = BatchMaker(cells, standardise, neighbours, train_cells, held_out, settings, seed)
    generator = torch.Generator().manual_seed(seed)
    # The projections of a typical cell have about the size 1, whatever the data.
    scale = 1 / scores[:, : settings.n_projections].std(axis=0).mean()
    encoder = HashEncoder(
        torch.from_numpy(start.weights[0][:, : settings.n_projections] * scale),
        torch.from_numpy(start.biases[0][: settings.n_projections] * scale),
        settings,
        generator,
    )
    decoder = ZinbDecoder(cells.n_genes, settings, generator)
    used = {**asdict(settings), "thinning": list(settings.thinning)}
    state = train(
        encoder,
        decoder,
        maker,
        settings,
        device=device,
        checkpoint=None if checkpoint_dir is None else Path(checkpoint_dir),
        made_from={"settings": used, "seed": seed, "start": start.fingerprint(), "cells": cells.n_cells},
        resume=resume,
        progress=progress,
    )
    encoder.cpu()
    with threadpool_limits(limits=1), one_thread(), torch.no_grad():
        units = np.concatenate([encoder(torch.from_numpy(z)).numpy() for z in _groups(cells, standardise)])
        return make_hasher(
            encoder,
            units,
            start,
            settings,
            seed=seed,
            provenance={
                "method": "neural",
                "seed": seed,
                "sample_cells": cells.n_cells,
                "held_out_cells": len(held_out),
                **used,
                "device": device.type,
                "torch": torch.__version__,
                "steps": state.step,
                "best_step": state.best_step,
                "held_out_loss": state.best_loss,
                **(provenance or {}),
                "history": state.history,
            },
        )


def _groups(cells: SampleCells, standardise: Standardiser) -> Iterator[NDArray[np.float32]]:
    """z of all cells, a group at a time."""
    for first in range(0, cells.n_cells, _GROUP_CELLS):
        numbers = np.arange(first, min(first + _GROUP_CELLS, cells.n_cells))
        yield standardise(cells.rows(numbers))


def _scores(cells: SampleCells, standardise: Standardiser, start: Hasher) -> NDArray[np.float32]:
    """Principal components of all cells (n_cells, n_components)."""
    return np.concatenate([z @ start.weights[0] + start.biases[0] for z in _groups(cells, standardise)])
