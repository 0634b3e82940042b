"""The deep head: genes - hidden units - one unit a bit, trained towards the anchors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashstream.errors import TrainingError
from hashstream.hashing.anchors.batches import BatchSource
from hashstream.hashing.anchors.losses import class_weights, margin_cosine_loss, schash_loss
from hashstream.hashing.anchors.settings import AnchorSettings
from hashstream.runtime.events import ProgressListener
from hashstream.runtime.torch_threads import one_thread

_WARM_UP = 0.2
_LEAST_STEPS, _MOST_STEPS = 300, 3_000


@dataclass(frozen=True)
class DeepHead:
    """Two affine layers, followed by relu and by tanh: (n_genes, n_hidden), (n_hidden, n_bits) float32."""

    weights: tuple[NDArray[np.float32], NDArray[np.float32]]
    biases: tuple[NDArray[np.float32], NDArray[np.float32]]
    steps: int
    last_loss: float


class AnchorNetwork(nn.Module):
    """z (n, n_genes) to units (n, n_bits) between -1 and 1; `noise` draws what is dropped in training."""

    def __init__(self, n_genes: int, n_hidden: int, n_bits: int, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden, self.units = nn.Linear(n_genes, n_hidden), nn.Linear(n_hidden, n_bits)
        with torch.no_grad():
            for layer in (self.hidden, self.units):
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, z: Tensor, *, input_dropout: float, dropout: float, noise: torch.Generator) -> Tensor:
        hidden = torch.relu(self.hidden(_dropped(z, input_dropout, noise)))
        return torch.tanh(self.units(_dropped(hidden, dropout, noise)))


def train_deep(
    source: BatchSource,
    anchors: NDArray[np.float32],
    n_genes: int,
    settings: AnchorSettings,
    *,
    seed: int,
    device: torch.device,
    progress: ProgressListener,
) -> DeepHead:
    """Train the deep head on batches of a source.

    Random numbers are drawn on the CPU and all its sums run on one thread, so that there the result depends on the
    cells, the settings and the seed alone.

    Parameters
    ----------
    anchors : (n_classes, n_bits) float32
        -1 and 1.

    Raises
    ------
    TrainingError
        If the loss becomes NaN or infinite.
    """
    generator = torch.Generator().manual_seed(seed)
    network = AnchorNetwork(n_genes, settings.n_hidden, anchors.shape[1], generator).to(device)
    n_steps = settings.steps or int(np.clip(source.sizes.sum() // settings.batch_cells, _LEAST_STEPS, _MOST_STEPS))
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=max(n_steps, 2), pct_start=_WARM_UP
    )
    targets = torch.from_numpy(anchors).to(device)
    weights = class_weights(torch.from_numpy(source.sizes), settings.class_balance).float().to(device)
    last = float("nan")
    rng = np.random.default_rng((seed, 1))
    progress.start("deep head", n_steps, "steps")
    try:
        with one_thread():
            for step, (z, classes) in enumerate(source.batches(n_steps, settings.batch_cells, rng=rng)):
                units = network(
                    torch.from_numpy(z).to(device),
                    input_dropout=settings.input_dropout,
                    dropout=settings.dropout,
                    noise=generator,
                )
                wanted = torch.from_numpy(classes).to(device)
                if settings.loss == "schash":
                    loss = schash_loss(units, wanted, targets, weights, quantisation=settings.quantisation)
                else:
                    loss = margin_cosine_loss(
                        units, wanted, targets, scale=settings.cosine_scale, margin=settings.margin
                    )
                last = checked(loss, step, settings)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                progress.advance(1)
    finally:
        progress.finish()
    layers = (network.hidden, network.units)
    return DeepHead(
        weights=tuple(layer.weight.detach().cpu().numpy().T.copy() for layer in layers),  # type: ignore[arg-type]
        biases=tuple(layer.bias.detach().cpu().numpy().copy() for layer in layers),  # type: ignore[arg-type]
        steps=n_steps,
        last_loss=last,
    )


def checked(loss: Tensor, step: int, settings: AnchorSettings) -> float:
    """The loss as a number.

    Raises
    ------
    TrainingError
        If it is NaN or infinite.
    """
    value = float(loss.detach())
    if not np.isfinite(value):
        raise TrainingError(
            f"--method anchors: the loss is {value} at step {step} with {settings}; it must be a number. Lower "
            "learning_rate or hash_learning_rate."
        )
    return value


def _dropped(values: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Values with a share of them set to 0 and the others scaled up."""
    if share == 0:
        return values
    kept = torch.rand(values.shape, generator=generator) >= share
    return values * kept.to(values.device) / (1 - share)
