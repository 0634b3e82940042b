"""AdamW, as `torch.optim.AdamW`, whose first use imports torch's compiler: a second and 70 MB that a small model has no
use for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Parameters that learn at one rate and decay by one weight."""

    parameters: tuple[Tensor, ...]
    rate: float
    weight_decay: float = 0.0


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019)."""

    def __init__(self, groups: Iterable[Group], *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.groups = tuple(groups)
        self._beta1, self._beta2, self._eps = beta1, beta2, eps
        self._moments = [[(torch.zeros_like(p), torch.zeros_like(p)) for p in g.parameters] for g in self.groups]
        self._steps = 0

    def zero_grad(self) -> None:
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One step at `factor` times each group's rate. Parameters without a gradient are left alone."""
        self._steps += 1
        correct1, correct2 = 1 - self._beta1**self._steps, 1 - self._beta2**self._steps
        for group, moments in zip(self.groups, self._moments, strict=True):
            rate = factor * group.rate
            for parameter, (mean, square) in zip(group.parameters, moments, strict=True):
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - rate * group.weight_decay)
                mean.lerp_(parameter.grad, 1 - self._beta1)
                square.mul_(self._beta2).addcmul_(parameter.grad, parameter.grad, value=1 - self._beta2)
                parameter.addcdiv_(mean, (square / correct2).sqrt_().add_(self._eps), value=-rate / correct1)
