"""A page of sections, tables and pictures as one HTML file that needs nothing else: no script, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hashstream.downstream.pictures import SIDE, Picture

TEMPLATE = "report.html.j2"
NOTHING = "–"


class Share(float):
    """A number of 0 to 1 that is shown in per cent."""


Value = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table with its caption.

    Attributes
    ----------
    columns : sequence of str
        Titles; none for a list of names and values.
    rows : list of sequences of values
        The first value of each is its title.
    look : str
        How shares are drawn behind their number: ``bar``, or ``heat`` for a colour.
    more : int
        Rows that are left out.
    unit : str
        What a row is, if rows are left out.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    look: str = "bar"
    more: int = 0
    unit: str = "rows"


class Missing(NamedTuple):
    """Something that a run does not have, and the command that makes it."""

    what: str
    command: str


class Record(NamedTuple):
    """What a stage said of itself, as text."""

    title: str
    text: str


@dataclass
class Section:
    """A part of the page under a heading; `id` is what links go to."""

    id: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)


def render(title: str, sections: Sequence[Section]) -> str:
    """The page as HTML.

    Every string is escaped, whatever it holds: names of genes, labels and files come from elsewhere.

    Parameters
    ----------
    title
        Of the page.
    sections
        In their order.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hashstream.downstream", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["shown"] = shown
    environment.tests["share"] = _is_share
    return environment.get_template(TEMPLATE).render(title=title, sections=sections, side=SIDE)


def shown(value: Value, *, short: bool = False) -> str:
    """A value as it is read; `short` for shares in whole per cent."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, str):
        return value
    if isinstance(value, Share):
        return _per_cent(value, short=short)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3f}"


def _per_cent(share: float, *, short: bool) -> str:
    if share == 0:
        return "0"
    least = 0.01 if short else 0.001
    if share < least / 2:
        return f"<{least:.0%}" if short else f"<{least:.1%}"
    return f"{share:.0%}" if short else f"{share:.1%}"


def _is_share(value: Any) -> bool:
    return isinstance(value, Share) and math.isfinite(value)
