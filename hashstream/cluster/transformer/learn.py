"""Cluster tokens by a Transformer over buckets and the buckets around them. torch is loaded when this is called."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hashstream.buckets import Tokens
from hashstream.cluster.kmeans import weighted_means
from hashstream.cluster.transformer.sequences import TokenSequences, token_sequences
from hashstream.cluster.transformer.settings import TransformerSettings
from hashstream.cluster.ward import ward_clusters
from hashstream.errors import SettingsError
from hashstream.kernels import ward_linkage

if TYPE_CHECKING:
    from hashstream.cluster.transformer.batches import BatchMaker
    from hashstream.cluster.transformer.model import BucketTransformer
    from hashstream.cluster.transformer.train import Clusters, History

StepListener = Callable[[int, int], None]


@dataclass(frozen=True)
class TransformerResult:
    """Clusters of n tokens.

    Attributes
    ----------
    labels : (n,) int32
        0 to n_clusters - 1, each used.
    points : (n, d) float32
        The learned tokens, in the space of the points that were given.
    history : tuple of dict
        Phase, step, and the mean of each term of the loss since the entry before.
    """

    labels: NDArray[np.int32]
    points: NDArray[np.float32]
    history: tuple[dict[str, float | str], ...]


def transformer_clusters(
    tokens: Tokens,
    points: NDArray[np.float32],
    n_clusters: int,
    *,
    settings: TransformerSettings | None = None,
    seed: int = 0,
    n_threads: int = 1,
    progress: StepListener | None = None,
) -> TransformerResult:
    """Learn tokens from their neighbourhoods, cluster them, and sharpen both.

    The learned tokens (see `learn_tokens`) are clustered by count-weighted Ward linkage and k-means; from there their
    Student-t assignments are trained towards sharpened ones, weighted by counts, along with the Transformer. The result
    depends on the tokens, points, settings and seed alone.

    Parameters
    ----------
    tokens : Tokens
        With or without halves and batches.
    points : (n_tokens, d) float32
        The tokens where they are to be clustered, see `token_sequences`.
    n_clusters : int
    settings : TransformerSettings, optional
    seed : int
        Of the first weights, the batches and what is hidden in them.
    n_threads : int
        Of the search for neighbours and of Ward linkage. Training takes one.
    progress : callable, optional
        Called with the steps done and the steps in all.

    Raises
    ------
    SettingsError
        If torch is missing, or there are more clusters than tokens.
    TrainingError
        If a loss is NaN or infinite.
    """
    check_torch()
    settings = settings or TransformerSettings()
    if not 1 <= n_clusters <= tokens.n_tokens:
        raise SettingsError(
            f"{n_clusters} clusters asked for, but there are {tokens.n_tokens} buckets; use 1 to {tokens.n_tokens} "
            "(--n-clusters)."
        )
    if tokens.n_tokens == 1:
        return TransformerResult(np.zeros(1, np.int32), points.astype(np.float32), ())
    from hashstream.cluster.transformer.train import assign, infer, train
    from hashstream.runtime.torch_threads import reproducible

    step_done = _counter(progress, settings.n_steps + settings.kl_steps)
    with reproducible(seed):
        trained = _denoised(tokens, points, settings, seed, n_threads, step_done)
        learned, counts = trained.points, tokens.counts
        clusters = _centred(learned, counts, _first_clusters(learned, counts, n_clusters, n_threads))
        if settings.kl_steps and n_clusters > 1:
            model, batches, history = trained.model, trained.batches, trained.history
            train(model, batches, settings, clusters=clusters, history=history, step_done=step_done)
            learned = infer(model, trained.sequences, settings)
        labels = assign(learned, clusters, settings)
        if len(np.unique(labels)) < n_clusters:
            # Sharpening can empty a cluster. Then the learned tokens are clustered as at the start.
            labels = _first_clusters(learned, counts, n_clusters, n_threads)
    return TransformerResult(labels, learned, tuple(trained.history))


def learn_tokens(
    tokens: Tokens,
    points: NDArray[np.float32],
    *,
    settings: TransformerSettings | None = None,
    seed: int = 0,
    n_threads: int = 1,
    progress: StepListener | None = None,
) -> NDArray[np.float32]:
    """The tokens (n_tokens, d) float32 that a Transformer learns from their neighbourhoods, without any clusters.

    See `transformer_clusters`, whose first half this is: for methods that bring clusters of their own, and for
    choosing how many there are.
    """
    check_torch()
    settings = settings or TransformerSettings()
    if tokens.n_tokens == 1:
        return points.astype(np.float32)
    from hashstream.runtime.torch_threads import reproducible

    with reproducible(seed):
        return _denoised(tokens, points, settings, seed, n_threads, _counter(progress, settings.n_steps)).points


def check_torch() -> None:
    """Raise SettingsError where torch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"--method transformer learns with torch, which cannot be imported ({error}). Install it: "
            "pip install 'hashstream[neural]'. --method ward, kmeans and leiden work without."
        ) from error


@dataclass(frozen=True)
class _Trained:
    """A model after denoising, what it was trained on, and the learned tokens (n, d)."""

    model: BucketTransformer
    sequences: TokenSequences
    batches: BatchMaker
    points: NDArray[np.float32]
    history: History


def _denoised(
    tokens: Tokens,
    points: NDArray[np.float32],
    settings: TransformerSettings,
    seed: int,
    n_threads: int,
    step_done: Callable[[], None],
) -> _Trained:
    from hashstream.cluster.transformer.batches import BatchMaker
    from hashstream.cluster.transformer.train import infer, make_model, train

    sequences = token_sequences(tokens, points, settings.n_neighbours, n_threads=n_threads)
    model, batches = make_model(sequences, settings), BatchMaker(sequences, settings, seed)
    history: History = []
    train(model, batches, settings, history=history, step_done=step_done)
    return _Trained(model, sequences, batches, infer(model, sequences, settings), history)


def _first_clusters(
    points: NDArray[np.float32], counts: NDArray[np.int64], n_clusters: int, n_threads: int
) -> NDArray[np.int32]:
    linkage = ward_linkage(points, counts.astype(np.float64), n_threads=n_threads)
    labels = ward_clusters(points, counts, linkage, n_clusters)
    return np.unique(labels, return_inverse=True)[1].astype(np.int32)


def _centred(points: NDArray[np.float32], counts: NDArray[np.int64], labels: NDArray[np.int32]) -> Clusters:
    """Clusters to train, from labels that are all used."""
    import torch

    from hashstream.cluster.transformer.train import Clusters

    n_clusters = int(labels.max()) + 1
    centres = weighted_means(points, counts, labels, n_clusters)
    apart = ((points - centres[labels]) ** 2).sum(axis=1)
    sizes = np.bincount(labels, weights=counts, minlength=n_clusters) / counts.sum()
    return Clusters(
        centres=torch.nn.Parameter(torch.from_numpy(centres.astype(np.float32))),
        variance=max(float(np.average(apart, weights=counts)), 1e-12),
        sizes=torch.from_numpy(sizes.astype(np.float32)),
    )


def _counter(progress: StepListener | None, total: int) -> Callable[[], None]:
    """Counts steps for the listener."""
    done = itertools.count(1)

    def step_done() -> None:
        if progress is not None:
            progress(next(done), total)

    return step_done
