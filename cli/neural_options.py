"""Options of `fit --method neural`; each is named for the field of NeuralSettings that it sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_COUNT = click.IntRange(min=1)
_WEIGHT = click.FloatRange(min=0)
_POSITIVE = click.FloatRange(min=0, min_open=True)
_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--n-heads", {"type": _COUNT, "help": "neural: heads of the encoder; they share hidden units and hyperplanes."}),
    ("--n-hidden", {"type": _COUNT, "help": "neural: hidden units of all heads together."}),
    ("--n-units", {"type": _COUNT, "help": "neural: hyperplanes of all heads together; at least --bits."}),
    ("--n-neighbours", {"type": _COUNT, "help": "neural: nearest cells that count as a cell's positives."}),
    ("--temperature", {"type": _POSITIVE, "help": "neural: of the contrast between neighbours; smaller splits finer."}),
    ("--contrast-weight", {"type": _WEIGHT, "help": "neural: weight of the contrast between neighbours."}),
    ("--bucket-weight", {"type": _WEIGHT, "help": "neural: weight of the contrast between buckets."}),
    ("--entropy-weight", {"type": _WEIGHT, "help": "neural: weight of the entropy of bucket sizes."}),
    ("--zinb-weight", {"type": _WEIGHT, "help": "neural: weight of the reconstruction of counts."}),
    (
        "--thinning",
        {
            "type": click.FloatRange(0, 1, min_open=True),
            "nargs": 2,
            "metavar": "LOW HIGH",
            "help": "neural: share of its counts that a cell keeps in training, drawn from this range.",
        },
    ),
    (
        "--input-dropout",
        {"type": click.FloatRange(0, 1, max_open=True), "help": "neural: share of the inputs that training drops."},
    ),
    ("--max-steps", {"type": _COUNT, "help": "neural: most steps of training."}),
    ("--batch-cells", {"type": _COUNT, "help": "neural: cells a step."}),
    ("--learning-rate", {"type": _POSITIVE, "help": "neural: largest step size of AdamW."}),
    ("--evaluate-every", {"type": _COUNT, "help": "neural: steps between two looks at the held-out loss."}),
    ("--patience", {"type": _COUNT, "help": "neural: looks without improvement after which training stops."}),
    (
        "--device",
        {
            "type": click.Choice(["auto", "cpu", "cuda"]),
            "help": "neural, anchors: where to train; auto: on a GPU if there is one.",
        },
    ),
)
NAMES = tuple(option.removeprefix("--").replace("-", "_") for option, _ in _OPTIONS)


def add(function: F) -> F:
    """Adds the options; the command receives them as keywords named `NAMES`."""
    for option, attributes in reversed(_OPTIONS):
        function = click.option(option, show_default=True, **attributes)(function)
    return function
