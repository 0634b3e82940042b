"""Settings of the supervised hash function. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass

from hashstream.checks import check_ranges
from hashstream.errors import SettingsError
from hashstream.hashing.device import DEVICES

LOSSES = ("margin-cosine", "schash")
LEAST_BITS, MOST_BITS = 16, 1024
_POSITIVE_INTEGERS = (
    "n_genes",
    "n_components",
    "n_hidden",
    "batch_cells",
    "hash_steps",
    "min_cells",
    "sample_cells",
    "sample_nnz",
)
_POSITIVE_NUMBERS = ("target_sum", "clip", "cosine_scale", "learning_rate", "hash_learning_rate")
_WEIGHTS = ("discriminant_weight", "deep_weight", "margin", "quantisation", "weight_decay", "sampling_balance")
_SHARES = ("shrinkage", "input_dropout", "dropout", "class_balance", "ambiguous_rate", "novel_rate")


@dataclass(frozen=True)
class AnchorSettings:
    """Settings of `fit_anchors`.

    Attributes
    ----------
    n_bits : int
        Bits that are compared with the anchors; the first of the code.
    novelty_bits : int
        Bits after these that say whether a cell looks like its type at all; see `hashstream.hashing.anchors.novelty`.
        An even number.
    n_genes, target_sum, clip
        Highly variable genes, counts a cell after size-factor normalisation, largest standardised value.
    n_components : int
        Principal components in which the closed-form discriminant is taken.
    shrinkage : float
        Share of a multiple of the identity in its covariance within types.
    n_hidden : int
        Hidden units of the deep head.
    loss : str
        margin-cosine, or schash: the class-balanced anchor loss with a quantisation term.
    margin, cosine_scale : float
        Of the margin-cosine loss.
    class_balance, quantisation : float
        Of the anchor loss: b of the class weights and lambda of the quantisation term.
    sampling_balance : float
        A type of n cells is drawn n to the power 1 - sampling_balance times as often for the margin-cosine loss: 1
        draws all types equally often. The anchor loss has weights instead and draws cells as they come.
    discriminant_weight, deep_weight : float
        What the log-odds of the discriminant and the similarity to the anchors are multiplied by before they are added.
    input_dropout, dropout : float
        Share of the standardised values, and of the hidden units, that are set to 0 in training.
    steps : int
        Steps of the optimiser of the deep head; 0 takes one pass over the labelled cells, 300 to 3,000 steps.
    batch_cells, learning_rate, weight_decay
        Of these steps (AdamW, one cycle).
    hash_steps, hash_learning_rate
        Of the training of the hyperplanes.
    validation : float
        Share of each type's cells on which probabilities and thresholds are learned.
    refit_cells : int
        With at most so many labelled cells everything is learned once more from all of them, validation included,
        after the thresholds are known.
    ambiguous_rate, novel_rate : float
        Share of each type's correctly labelled validation cells that each kind of rejection may cost.
    min_cells : int
        Types with fewer labelled cells are left out.
    sample_cells, sample_nnz : int
        Most cells, and about the most stored values, that are held in memory at once.
    device : str
        auto, cpu or cuda.
    """

    n_bits: int = 128
    novelty_bits: int = 256
    n_genes: int = 2_000
    target_sum: float = 1e4
    clip: float = 10.0
    n_components: int = 50
    shrinkage: float = 0.1
    n_hidden: int = 256
    loss: str = "margin-cosine"
    margin: float = 0.2
    cosine_scale: float = 16.0
    class_balance: float = 0.9999
    quantisation: float = 1e-3
    sampling_balance: float = 1.0
    discriminant_weight: float = 0.25
    deep_weight: float = 5.0
    input_dropout: float = 0.5
    dropout: float = 0.3
    steps: int = 0
    batch_cells: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    hash_steps: int = 1_500
    hash_learning_rate: float = 1e-2
    validation: float = 0.2
    refit_cells: int = 20_000
    ambiguous_rate: float = 0.05
    novel_rate: float = 0.02
    min_cells: int = 4
    sample_cells: int = 50_000
    sample_nnz: int = 30_000_000
    device: str = "auto"

    def __post_init__(self) -> None:
        if not LEAST_BITS <= self.n_bits <= MOST_BITS:
            raise SettingsError(f"--bits {self.n_bits}: expected {LEAST_BITS} to {MOST_BITS} for --method anchors.")
        check_ranges(self, whole=_POSITIVE_INTEGERS, positive=_POSITIVE_NUMBERS, weights=_WEIGHTS, shares=_SHARES)
        if self.novelty_bits % 2 or not LEAST_BITS <= self.novelty_bits <= MOST_BITS:
            raise SettingsError(
                f"novelty_bits is {self.novelty_bits}; expected an even number from {LEAST_BITS} to {MOST_BITS}."
            )
        for name in ("steps", "refit_cells"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected 0 or a positive number.")
        if self.discriminant_weight == 0 == self.deep_weight:
            raise SettingsError("discriminant_weight and deep_weight are both 0; give one of them a positive weight.")
        if not 0 < self.validation <= 0.5:
            raise SettingsError(f"validation is {self.validation}; expected a share above 0 and up to 0.5.")
        if self.min_cells < 2:
            raise SettingsError(f"min_cells is {self.min_cells}; expected at least 2, one of them for validation.")
        for name, choices in (("loss", LOSSES), ("device", DEVICES)):
            if getattr(self, name) not in choices:
                raise SettingsError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}.")
