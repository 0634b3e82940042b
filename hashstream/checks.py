"""Checks that the settings of several methods share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hashstream.errors import SettingsError


def check_ranges(
    settings: object,
    *,
    whole: Sequence[str] = (),
    positive: Sequence[str] = (),
    weights: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Raise SettingsError where an attribute of some settings is out of its range.

    Parameters
    ----------
    settings
        An instance of a settings class.
    whole, positive
        Attributes of at least 1, and above 0.
    weights
        Attributes of at least 0.
    shares
        Attributes of at least 0 and below 1.
    """
    for names, low, strict, high, expected in (
        (whole, 1, False, math.inf, "a positive number"),
        (positive, 0, True, math.inf, "a positive number"),
        (weights, 0, False, math.inf, "0 or a positive number"),
        (shares, 0, False, 1, "a share of at least 0 and below 1"),
    ):
        for name in names:
            value = getattr(settings, name)
            if not low <= value < high or (strict and value == low):
                raise SettingsError(f"{name} is {value}; expected {expected}.")
