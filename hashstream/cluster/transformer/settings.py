"""Settings of the bucket Transformer. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass

from hashstream.checks import check_ranges
from hashstream.errors import SettingsError

_POSITIVE_INTEGERS = ("n_neighbours", "n_hidden", "n_layers", "n_heads", "n_steps", "batch_tokens")
_POSITIVE_NUMBERS = ("learning_rate", "degrees")
_WEIGHTS = ("denoise_weight", "consistency_weight", "kl_weight", "weight_decay")
_SHARES = ("dropout", "neighbour_dropout", "mask_share")


@dataclass(frozen=True)
class TransformerSettings:
    """Settings of `transformer_clusters` and `learn_tokens`.

    Attributes
    ----------
    n_neighbours : int
        Buckets beside itself in the sequence of a bucket.
    n_hidden, n_layers, n_heads : int
        Width, encoder layers and attention heads; the heads divide the width evenly.
    correction : float
        Share of the learned correction that is added to a token: 1 gives the posterior mean, 0 the token as it was.
    n_steps, kl_steps, batch_tokens : int
        Steps of denoising, steps of clustering after them, and tokens a step.
    learning_rate, weight_decay : float
        Of AdamW; the rate rises over the first tenth of the steps and then falls to 0 as half a cosine.
    denoise_weight, consistency_weight, kl_weight : float
        Weight of each term of the loss; 0 leaves it out.
    degrees, balance : float
        Degrees of freedom of the Student-t assignments, and the power of a cluster's size that its targets are divided
        by: 1 as in DEC, which drives clusters to equal sizes, 0 leaves sizes to the data.
    dropout, neighbour_dropout, mask_share : float
        Share of activations, of neighbours, and of a batch's own tokens that are hidden in training.
    """

    n_neighbours: int = 10
    n_hidden: int = 32
    n_layers: int = 2
    n_heads: int = 4
    correction: float = 0.5
    n_steps: int = 250
    kl_steps: int = 50
    batch_tokens: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    denoise_weight: float = 1.0
    consistency_weight: float = 0.1
    kl_weight: float = 0.1
    degrees: float = 1.0
    balance: float = 0.0
    dropout: float = 0.1
    neighbour_dropout: float = 0.2
    mask_share: float = 0.1

    def __post_init__(self) -> None:
        check_ranges(self, whole=_POSITIVE_INTEGERS, positive=_POSITIVE_NUMBERS, weights=_WEIGHTS, shares=_SHARES)
        if not 0 <= self.correction <= 1 or not 0 <= self.balance <= 1:
            raise SettingsError(
                f"correction is {self.correction} and balance is {self.balance}; expected both from 0 to 1."
            )
        if self.n_hidden % self.n_heads:
            raise SettingsError(f"{self.n_heads} heads cannot share n_hidden {self.n_hidden} evenly.")
        if self.kl_steps < 0:
            raise SettingsError(f"kl_steps is {self.kl_steps}; expected 0 or a positive number.")
        if not self.denoise_weight + self.consistency_weight > 0:
            raise SettingsError("denoise_weight and consistency_weight are both 0; give one of them a positive weight.")
