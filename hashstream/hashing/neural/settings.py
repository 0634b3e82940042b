"""Settings of the neural hash function. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass

from hashstream.checks import check_ranges
from hashstream.errors import SettingsError
from hashstream.hashing.device import DEVICES
from hashstream.hashing.hvg import GENES_BY

_POSITIVE_INTEGERS = (
    "n_bits",
    "n_genes",
    "n_heads",
    "n_projections",
    "n_hidden",
    "n_units",
    "bucket_units",
    "n_neighbours",
    "neighbour_components",
    "zinb_hidden",
    "zinb_genes",
    "max_steps",
    "batch_cells",
    "evaluate_every",
    "patience",
)
_POSITIVE_NUMBERS = ("target_sum", "clip", "temperature", "bucket_temperature", "learning_rate")
_WEIGHTS = ("contrast_weight", "bucket_weight", "entropy_weight", "zinb_weight", "weight_decay")


@dataclass(frozen=True)
class NeuralSettings:
    """Settings of `fit_neural`.

    Attributes
    ----------
    n_bits : int
        Length of the code; at most `n_units`.
    n_genes, target_sum, clip
        Highly variable genes, counts a cell after size-factor normalisation, largest standardised value.
    n_heads : int
        Heads of the encoder; they divide `n_hidden` and `n_units` evenly.
    n_projections : int
        Width of the linear layer that starts as the principal components.
    n_hidden, n_units : int
        Hidden units and hyperplanes, all heads together. `n_units` is also the length of the embedding.
    bucket_units : int
        Hyperplanes of each head whose rounded units name the bucket of a cell in training; at most 8.
    n_neighbours, neighbour_components : int
        Neighbours of a cell that count as its positives, and the principal components in which they are found.
    temperature, bucket_temperature : float
        Of the contrast between neighbours and of that between buckets.
    contrast_weight, bucket_weight, entropy_weight, zinb_weight : float
        Weight of each term of the loss; 0 leaves it out.
    thinning : (float, float)
        A cell keeps a share of its counts that is drawn evenly from this range.
    input_dropout : float
        Share of the standardised values that are set to 0.
    zinb_hidden, zinb_genes : int
        Hidden units of the decoder, and genes that it reconstructs at each step, drawn at random.
    max_steps, batch_cells : int
        Most steps of the optimiser, and cells a step.
    learning_rate, projection_rate, weight_decay : float
        Of AdamW; the projection learns at `projection_rate` times the learning rate.
    held_out : float
        Share of the sample on which the loss is watched; these cells are not trained on.
    evaluate_every, patience : int
        Steps between two looks at the held-out loss, and looks without improvement after which training stops.
    device : str
        auto, cpu or cuda.
    genes_by : str
        How genes are ranked; see `hashstream.hashing.PcaItqSettings`.
    """

    n_bits: int = 64
    n_genes: int = 2_000
    target_sum: float = 1e4
    clip: float = 10.0
    n_heads: int = 4
    n_projections: int = 64
    n_hidden: int = 256
    n_units: int = 64
    bucket_units: int = 3
    n_neighbours: int = 15
    neighbour_components: int = 50
    temperature: float = 0.1
    bucket_temperature: float = 0.5
    contrast_weight: float = 1.0
    bucket_weight: float = 0.1
    entropy_weight: float = 0.3
    zinb_weight: float = 0.2
    thinning: tuple[float, float] = (0.3, 1.0)
    input_dropout: float = 0.2
    zinb_hidden: int = 128
    zinb_genes: int = 256
    max_steps: int = 1_000
    batch_cells: int = 512
    learning_rate: float = 2e-3
    projection_rate: float = 1.0
    weight_decay: float = 1e-4
    held_out: float = 0.1
    evaluate_every: int = 100
    patience: int = 5
    device: str = "auto"
    genes_by: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "thinning", tuple(self.thinning))
        check_ranges(self, whole=_POSITIVE_INTEGERS, positive=_POSITIVE_NUMBERS, weights=_WEIGHTS)
        self._check_shape()
        self._check_training()

    def _check_shape(self) -> None:
        for name, option in (("n_hidden", "--n-hidden"), ("n_units", "--n-units")):
            if getattr(self, name) % self.n_heads:
                raise SettingsError(
                    f"{self.n_heads} heads cannot share {getattr(self, name)} {name.removeprefix('n_')} evenly; choose "
                    f"a multiple with {option}, or other --n-heads."
                )
        if self.n_bits > self.n_units:
            raise SettingsError(
                f"{self.n_bits} bits need as many hyperplanes, but n_units is {self.n_units}; use --n-units "
                f"{self.n_bits} or more, or at most --bits {self.n_units}."
            )
        limit = min(8, self.n_units // self.n_heads)
        if self.bucket_units > limit:
            raise SettingsError(f"bucket_units is {self.bucket_units}; expected at most {limit} for each head.")

    def _check_training(self) -> None:
        if not any(getattr(self, name) > 0 for name in _WEIGHTS[:4]):
            raise SettingsError("every term of the loss has weight 0; give one of them a positive weight.")
        low, high = self.thinning
        if not 0 < low <= high <= 1:
            raise SettingsError(f"thinning is {low} to {high}; expected two shares above 0 and up to 1, ascending.")
        if not 0 <= self.input_dropout < 1:
            raise SettingsError(f"input_dropout is {self.input_dropout}; expected at least 0 and below 1.")
        if not 0 <= self.projection_rate <= 1:
            raise SettingsError(f"projection_rate is {self.projection_rate}; expected 0 to 1.")
        if not 0 < self.held_out <= 0.5:
            raise SettingsError(f"held_out is {self.held_out}; expected a share above 0 and up to 0.5.")
        if self.genes_by not in GENES_BY:
            raise SettingsError(f"genes_by is {self.genes_by!r}; expected one of {', '.join(GENES_BY)}.")
        if self.device not in DEVICES:
            raise SettingsError(f"device is {self.device!r}; expected one of {', '.join(DEVICES)}.")
