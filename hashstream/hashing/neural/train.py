"""The training loop: AdamW, a held-out loss that needs no labels, early stopping, checkpoints."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hashstream.errors import TrainingError
from hashstream.hashing.neural.batches import Batch, BatchMaker, prefetched
from hashstream.hashing.neural.checkpoint import load_checkpoint, save_checkpoint
from hashstream.hashing.neural.losses import bucket_contrast, bucket_entropy, bucket_ids, neighbour_contrast, zinb_loss
from hashstream.hashing.neural.model import HashEncoder, ZinbDecoder
from hashstream.hashing.neural.settings import NeuralSettings
from hashstream.runtime.events import ProgressListener
from hashstream.runtime.torch_threads import one_thread

WARM_UP = 0.1


@dataclass
class TrainingState:
    """How far training is; JSON values only.

    Attributes
    ----------
    step : int
        Steps done.
    best_step, best_loss
        Where the held-out loss was least.
    history : list of dict
        At every look: step, training loss (mean since the last look), held-out loss, and its terms.
    """

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    history: list[dict[str, float]] = field(default_factory=list)

    def stopped(self, settings: NeuralSettings) -> bool:
        """Whether the held-out loss has not improved for as long as the settings allow."""
        return self.step - self.best_step >= settings.patience * settings.evaluate_every


def train(
    encoder: HashEncoder,
    decoder: ZinbDecoder,
    batches: BatchMaker,
    settings: NeuralSettings,
    *,
    device: torch.device,
    checkpoint: Path | None,
    made_from: dict[str, Any],
    resume: bool,
    progress: ProgressListener,
) -> TrainingState:
    """Train in place; the networks end with the weights of the least held-out loss.

    Parameters
    ----------
    checkpoint : Path or None
        Folder in which training is kept at every look, and from which `resume` continues.
    made_from : dict
        What a checkpoint must have been made from to be continued.

    Raises
    ------
    TrainingError
        If a loss is NaN or infinite.
    SettingsError, InputError
        If the checkpoint was made from something else, or is damaged.
    """
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder}).to(device)
    optimiser = _optimiser(encoder, decoder, settings)
    state = TrainingState()
    best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if checkpoint is not None and resume:
        found = load_checkpoint(checkpoint, model, optimiser, made_from)
        if found is not None:
            meta, best = found
            state = TrainingState(**meta)
            progress.note(f"train: continuing after step {state.step:,}")
    progress.start("train", settings.max_steps, "steps")
    progress.advance(state.step)
    try:
        with one_thread():
            steps = range(settings.max_steps if state.stopped(settings) else state.step, settings.max_steps)
            total, since = 0.0, 0
            for step, batch in prefetched(batches.training, steps):
                for group in optimiser.param_groups:
                    group["lr"] = group["rate"] * learning_rate(step, settings)
                terms = loss_terms(encoder, decoder, batch, settings, device)
                loss = sum(terms.values(), torch.zeros((), device=device))
                _check(loss, terms, step, settings)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total, since = total + loss.item(), since + 1
                state.step = step + 1
                progress.advance(1)
                if state.step % settings.evaluate_every and state.step < settings.max_steps:
                    continue
                _look(encoder, decoder, batches, settings, device, state, total / since, progress)
                total, since = 0.0, 0
                if state.best_step == state.step:
                    best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
                if checkpoint is not None:
                    save_checkpoint(checkpoint, model, optimiser, best, asdict(state), made_from)
                if state.stopped(settings):
                    break
    finally:
        progress.finish()
    model.load_state_dict(best)
    return state


def loss_terms(
    encoder: HashEncoder, decoder: ZinbDecoder, batch: Batch, settings: NeuralSettings, device: torch.device
) -> dict[str, Tensor]:
    """The terms of the loss, each times its weight; those of weight 0 are left out."""
    put = [torch.from_numpy(array).to(device) for array in batch]
    z, z_positive, counts, genes, size_factors = put
    units, positives = encoder(torch.cat([z, z_positive])).chunk(2)
    terms: dict[str, Tensor] = {}
    if settings.contrast_weight:
        terms["contrast"] = settings.contrast_weight * neighbour_contrast(units, positives, settings.temperature)
    if settings.bucket_weight:
        buckets = bucket_ids(units, settings.n_heads, settings.bucket_units)
        terms["bucket"] = settings.bucket_weight * bucket_contrast(units, buckets, settings.bucket_temperature)
    if settings.entropy_weight:
        terms["entropy"] = settings.entropy_weight * bucket_entropy(units, settings.n_heads, settings.bucket_units)
    if settings.zinb_weight:
        terms["zinb"] = settings.zinb_weight * zinb_loss(counts, decoder(units, size_factors, genes))
    return terms


def learning_rate(step: int, settings: NeuralSettings) -> float:
    """Rises in a straight line over the first tenth of the steps, then falls to 0 as half a cosine."""
    warm = max(1, round(WARM_UP * settings.max_steps))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    return settings.learning_rate * (1 + math.cos(math.pi * (step - warm) / max(1, settings.max_steps - warm))) / 2


def _optimiser(encoder: HashEncoder, decoder: ZinbDecoder, settings: NeuralSettings) -> torch.optim.AdamW:
    slow = [encoder.projection, encoder.projection_bias]
    fast = [p for p in (*encoder.parameters(), *decoder.parameters()) if all(p is not q for q in slow)]
    groups = [{"params": slow, "rate": settings.projection_rate}, {"params": fast, "rate": 1.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def _look(
    encoder: HashEncoder,
    decoder: ZinbDecoder,
    batches: BatchMaker,
    settings: NeuralSettings,
    device: torch.device,
    state: TrainingState,
    training_loss: float,
    progress: ProgressListener,
) -> None:
    """Measure the held-out loss and enter it in `state`."""
    sums: dict[str, float] = {}
    n_cells = 0
    with torch.no_grad():
        for batch in batches.held_out():
            terms = loss_terms(encoder, decoder, batch, settings, device)
            n_cells += len(batch.z)
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.item() * len(batch.z)
    terms_found = {name: value / n_cells for name, value in sums.items()}
    held_out = sum(terms_found.values())
    if not math.isfinite(held_out):
        raise _failure("held-out loss", terms_found, state.step, settings)
    if held_out < state.best_loss:
        state.best_loss, state.best_step = held_out, state.step
    state.history.append({"step": state.step, "training": training_loss, "held_out": held_out, **terms_found})
    progress.note(f"train: step {state.step:,}: loss {training_loss:.4f}, held out {held_out:.4f}")


def _check(loss: Tensor, terms: dict[str, Tensor], step: int, settings: NeuralSettings) -> None:
    if not torch.isfinite(loss):
        raise _failure("loss", {name: term.item() for name, term in terms.items()}, step + 1, settings)


def _failure(what: str, terms: dict[str, float], step: int, settings: NeuralSettings) -> TrainingError:
    found = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
    used = ", ".join(f"{name}={value}" for name, value in asdict(settings).items())
    return TrainingError(
        f"training stopped at step {step:,}: the {what} is not a number or infinite ({found}); expected finite values. "
        f"Remedy: a smaller --learning-rate or a larger --temperature. Settings: {used}."
    )
