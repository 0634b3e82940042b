"""scHash's network, loss, schedule and labelling, written from its description, as a baseline.

Net: genes - 500 - ReLU - dropout .5 - 250 - ReLU - 64 logits; anchors are rows of [H; -H]; class-balanced binary
cross-entropy of (tanh z + 1) / 2 to the anchor's bits and a quantisation term; Adam, weight decay 1e-4, the rate halved
every 100 epochs, batches of 128; the epoch with the best median F1 on a stratified fifth is kept. A cell's label is the
anchor nearest in L1 distance to its logits, as the published code has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import hadamard
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedShuffleSplit
from torch import nn

BITS, BATCH, HALVED_EVERY, WEIGHT_DECAY = 64, 128, 100, 1e-4
BALANCE, QUANTISATION = 0.9999, 1e-3
FEWEST_CELLS = 4


@dataclass(frozen=True)
class ScHash:
    """A trained network."""

    net: nn.Module
    anchors: torch.Tensor
    names: NDArray[np.object_]

    def labels(self, x: NDArray[np.float32]) -> NDArray[np.object_]:
        """Names of the nearest anchors."""
        with torch.no_grad():
            logits = self.net(torch.from_numpy(x))
        return self.names[torch.cdist(logits, self.anchors, p=1).argmin(dim=1).numpy()]


def train_schash(
    x: NDArray[np.float32], truth: NDArray[np.object_], *, learning_rate: float, epochs: int, seed: int
) -> ScHash:
    """Train on (n_cells, n_genes) values; classes under 4 cells are dropped."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    names, y, sizes = np.unique(truth, return_inverse=True, return_counts=True)
    keep = sizes[y] >= FEWEST_CELLS
    x, (names, y, sizes) = x[keep], np.unique(truth[keep], return_inverse=True, return_counts=True)
    train, held = next(StratifiedShuffleSplit(1, test_size=0.2, random_state=seed).split(x, y))
    rows = hadamard(BITS)
    anchors = torch.from_numpy(np.concatenate([rows, -rows])[: len(names)].astype(np.float32))
    weights = (1 - BALANCE) / (1 - BALANCE ** np.bincount(y[train], minlength=len(names)))
    weights = torch.from_numpy((weights * len(names) / weights.sum()).astype(np.float32))
    net = nn.Sequential(
        nn.Linear(x.shape[1], 500), nn.ReLU(), nn.Dropout(0.5), nn.Linear(500, 250), nn.ReLU(), nn.Linear(250, BITS)
    )
    optimiser = torch.optim.Adam(net.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, HALVED_EVERY, gamma=0.5)
    values, classes = torch.from_numpy(x), torch.from_numpy(y)
    best, best_f1 = net.state_dict(), -1.0
    for _ in range(epochs):
        net.train()
        for batch in torch.from_numpy(train)[torch.randperm(len(train))].split(BATCH):
            h = net(values[batch]).tanh()
            target = (anchors[classes[batch]] + 1) / 2
            near = nn.functional.binary_cross_entropy((h + 1) / 2, target, reduction="none")
            loss = (weights[classes[batch]][:, None] * near).mean() + QUANTISATION * ((h.abs() - 1) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
        net.eval()
        found = ScHash(net, anchors, np.arange(len(names))).labels(x[held])
        median = float(np.median(f1_score(y[held], found, average=None, labels=np.unique(y[held]), zero_division=0)))
        if median > best_f1:
            best, best_f1 = {k: v.clone() for k, v in net.state_dict().items()}, median
    net.load_state_dict(best)
    return ScHash(net.eval(), anchors, names)


def moment_matched(query: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each gene of the query brought to its mean and deviation in the reference."""
    ours, theirs = query.std(axis=0), reference.std(axis=0)
    factor = np.where(ours > 0, theirs / np.where(ours > 0, ours, 1), 1)
    return ((query - query.mean(axis=0)) * factor + reference.mean(axis=0)).astype(np.float32)
