"""The training loop of the bucket Transformer, and inference in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashstream.cluster.transformer import losses
from hashstream.cluster.transformer.adamw import AdamW, Group
from hashstream.cluster.transformer.batches import BatchMaker, make_inputs
from hashstream.cluster.transformer.model import BucketTransformer, Inputs, Outputs
from hashstream.cluster.transformer.sequences import TokenSequences, prior_variance
from hashstream.cluster.transformer.settings import TransformerSettings
from hashstream.errors import TrainingError

BLOCK_TOKENS = 256  # tokens at a time in inference
WARM_UP = 0.1  # share of the steps in which the learning rate rises
PRIOR_RATE = 10.0  # times the learning rate, for the few variances of the prior
KL_RATE = 0.25  # times the learning rate, once clusters are trained too
RECORD_EVERY = 25  # steps
LARGEST_GRADIENT = 1.0

History = list[dict[str, float | str]]


@dataclass
class Clusters:
    """What training sharpens: centres (n_clusters, d), variance within clusters, and soft sizes (n_clusters,)."""

    centres: nn.Parameter
    variance: float
    sizes: Tensor


def make_model(sequences: TokenSequences, settings: TransformerSettings) -> BucketTransformer:
    """A model for these sequences, drawn from torch's random state."""
    scale = float(np.sqrt(np.mean(sequences.points.astype(np.float64) ** 2))) or 1.0
    noise, prior = torch.from_numpy(sequences.noise), torch.from_numpy(prior_variance(sequences))
    return BucketTransformer(noise, prior, scale, sequences.signs.shape[1], settings)


def train(
    model: BucketTransformer,
    batches: BatchMaker,
    settings: TransformerSettings,
    *,
    clusters: Clusters | None = None,
    history: History,
    step_done: Callable[[], None],
) -> None:
    """Train in place: denoising for `n_steps`, or, with `clusters`, these too for `kl_steps`.

    Parameters
    ----------
    history
        Is given the mean of each term of the loss, weighted, over every 25 steps.

    Raises
    ------
    TrainingError
        If a loss is NaN or infinite.
    """
    phase, n_steps = (0, settings.n_steps) if clusters is None else (1, settings.kl_steps)
    optimiser = _optimiser(model, clusters, settings)
    sums: dict[str, float] = {}
    model.train()
    for step in range(n_steps):
        rows, rng = batches.rows(phase, step)
        terms = loss_terms(model, batches, rows, rng, settings, clusters)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise _failure(terms, "clustering" if clusters else "denoising", step + 1, settings)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        optimiser.step(schedule(step, n_steps))
        sums = {name: sums.get(name, 0.0) + term.item() for name, term in terms.items()}
        since = step % RECORD_EVERY + 1
        if since == RECORD_EVERY or step + 1 == n_steps:
            means = {name: round(value / since, 6) for name, value in sums.items()}
            history.append({"phase": "clustering" if clusters else "denoising", "step": step + 1, **means})
            sums = {}
        step_done()


def loss_terms(
    model: BucketTransformer,
    batches: BatchMaker,
    rows: NDArray[np.int64],
    rng: np.random.Generator,
    settings: TransformerSettings,
    clusters: Clusters | None,
) -> dict[str, Tensor]:
    """The terms of the loss, each times its weight; those of weight 0 are left out."""
    views = batches.views(rows, rng)
    found = [model(view.inputs) for view in views]
    terms: dict[str, Tensor] = {}
    if settings.denoise_weight:
        each = [losses.denoise(f, v.target, v.target_counts, model.noise) for f, v in zip(found, views, strict=True)]
        terms["denoise"] = settings.denoise_weight * (each[0] + each[1]) / 2
    if settings.consistency_weight:
        apart = losses.consistency(found[0].mean, found[1].mean, model.noise)
        terms["consistency"] = settings.consistency_weight * apart
    if clusters is not None and settings.kl_weight:
        inputs = batches.whole(rows, rng)
        points = learned(inputs, model(inputs), settings)
        q = losses.student_t(points, clusters.centres, clusters.variance, settings.degrees)
        p = losses.sharpened(q, clusters.sizes, settings.balance)
        # Tokens come with the square root of their count as their chance: as much again makes it their count.
        weights = inputs.counts[:, 0].sqrt()
        now = (weights[:, None] * q.detach()).sum(dim=0) / weights.sum()
        clusters.sizes = 0.9 * clusters.sizes + 0.1 * now
        terms["kl"] = settings.kl_weight * losses.clustering(q, p, weights)
    return terms


def learned(inputs: Inputs, found: Outputs, settings: TransformerSettings) -> Tensor:
    """The learned tokens (b, d): `correction` of the way from what was seen to the posterior mean."""
    own = inputs.points[:, 0]
    return own + settings.correction * (found.mean - own)


@torch.no_grad()
def infer(model: BucketTransformer, sequences: TokenSequences, settings: TransformerSettings) -> NDArray[np.float32]:
    """The learned points of all tokens: (n, d) float32."""
    model.eval()
    points = np.empty_like(sequences.points)
    for start in range(0, sequences.n_tokens, BLOCK_TOKENS):
        rows = np.arange(start, min(start + BLOCK_TOKENS, sequences.n_tokens))
        inputs = make_inputs(sequences, rows, sequences.points[rows], sequences.counts[rows])
        points[rows] = learned(inputs, model(inputs), settings).numpy()
    return points


@torch.no_grad()
def assign(points: NDArray[np.float32], clusters: Clusters, settings: TransformerSettings) -> NDArray[np.int32]:
    """The likeliest cluster of each token: (n,) int32."""
    found = np.empty(len(points), dtype=np.int32)
    for start in range(0, len(points), BLOCK_TOKENS):
        some = torch.from_numpy(points[start : start + BLOCK_TOKENS])
        q = losses.student_t(some, clusters.centres, clusters.variance, settings.degrees).numpy()
        found[start : start + BLOCK_TOKENS] = q.argmax(axis=1)
    return found


def schedule(step: int, n_steps: int) -> float:
    """Factor of the learning rate: up in a straight line over the first tenth, then down to 0 as half a cosine."""
    warm = max(1, round(WARM_UP * n_steps))
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, n_steps - warm))) / 2


def _optimiser(model: BucketTransformer, clusters: Clusters | None, settings: TransformerSettings) -> AdamW:
    rate = settings.learning_rate * (KL_RATE if clusters else 1)
    rest = tuple(parameter for parameter in model.parameters() if parameter is not model.log_prior)
    groups = [Group(rest, rate, settings.weight_decay), Group((model.log_prior,), rate * PRIOR_RATE)]
    if clusters is not None:
        groups.append(Group((clusters.centres,), rate))
    return AdamW(groups)


def _failure(terms: dict[str, Tensor], phase: str, step: int, settings: TransformerSettings) -> TrainingError:
    found = ", ".join(f"{name} {term.item():.4g}" for name, term in terms.items())
    used = ", ".join(f"{name}={value}" for name, value in asdict(settings).items())
    return TrainingError(
        f"--method transformer stopped at step {step:,} of {phase}: the loss is not a number or infinite ({found}); "
        f"expected finite values. Remedy: a smaller learning_rate, or --method ward. Settings: {used}."
    )
