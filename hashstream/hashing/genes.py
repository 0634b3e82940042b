"""Match the genes of an atlas with the genes of a Hasher, by name or by id."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas.genes import ENSEMBL_ID, VAR_NAMES, gene_columns
from hashstream.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_MIN_OVERLAP = 0.5
_VERSION = re.compile(r"\.\d+$")


@dataclass(frozen=True)
class GeneMatch:
    """Which column of an atlas is which gene of a Hasher.

    Attributes
    ----------
    gene_map : (n_atlas_genes,) int32
        Hasher gene of each column of the atlas, -1 where the Hasher does not use it.
    n_genes, n_matched : int
        Genes of the Hasher, and how many of them the atlas has.
    matched_by : str
        What was compared, for the report.
    """

    gene_map: NDArray[np.int32]
    n_genes: int
    n_matched: int
    matched_by: str

    @property
    def overlap(self) -> float:
        return self.n_matched / self.n_genes

    def describe(self) -> str:
        return f"{self.n_matched} of {self.n_genes} genes ({self.overlap:.1%}) matched by {self.matched_by}"


def match_genes(
    names: Sequence[str],
    ids: Sequence[str] | None,
    var: pd.DataFrame | Mapping[str, NDArray[np.object_]],
    *,
    min_overlap: float = DEFAULT_MIN_OVERLAP,
    where: str,
) -> GeneMatch:
    """The best match of the Hasher's genes with a gene table.

    Names and ids of the Hasher are compared with the index and every text column of `var`, first as they are, then
    without regard to case and to an Ensembl version suffix; the comparison that finds most genes is taken. Of several
    columns that match one gene the first is taken.

    Parameters
    ----------
    names, ids
        Gene names of the Hasher, and stable ids where it knows them.
    var
        Gene table of the atlas, or the columns of it that may identify genes (`Store.gene_columns`).
    min_overlap
        Smallest share of the Hasher's genes that must be found.
    where
        The atlas, for messages.

    Raises
    ------
    InputError
        If fewer genes match.
    """
    columns = var if isinstance(var, Mapping) else gene_columns(var)
    best = GeneMatch(np.full(len(columns[VAR_NAMES]), -1, dtype=np.int32), len(names), 0, "nothing")
    own = {"name": names} | ({"id": ids} if ids is not None else {})
    for normalise, how in ((str, ""), (_fold, ", ignoring case and version suffix")):
        for kind, wanted in own.items():
            for column, values in columns.items():
                match = _match(wanted, values, normalise, f"{kind} against {column}{how}")
                if match.n_matched > best.n_matched:
                    best = match
        if best.n_matched == best.n_genes:
            break
    if best.overlap < min_overlap:
        raise InputError(_mismatch(best, names, columns[VAR_NAMES], min_overlap, where))
    return best


def _fold(name: str) -> str:
    return _VERSION.sub("", name).casefold() if ENSEMBL_ID.match(name.upper()) else name.casefold()


def _match(wanted: Sequence[str], values: NDArray[np.object_], normalise: type[str] | object, how: str) -> GeneMatch:
    fold = normalise if callable(normalise) else str
    position: dict[str, int] = {}
    for gene, name in enumerate(wanted):
        position.setdefault(fold(str(name)), gene)
    gene_map = np.full(len(values), -1, dtype=np.int32)
    taken: set[int] = set()
    for column, value in enumerate(values):
        gene = position.get(fold(str(value)), -1)
        # The first of several columns that fold to one gene is taken: the map must stay one to one.
        if gene >= 0 and gene not in taken:
            gene_map[column] = gene
            taken.add(gene)
    return GeneMatch(gene_map, len(wanted), len(taken), how)


def _mismatch(
    best: GeneMatch, names: Sequence[str], var_names: NDArray[np.object_], min_overlap: float, where: str
) -> str:
    wanted = ", ".join(map(repr, list(names)[:3]))
    found = ", ".join(map(repr, var_names[:3]))
    too_few = f"{where}: the genes do not match the hasher's: {best.describe()}, at least {min_overlap:.0%} are needed."
    if best.n_matched >= _SAME_NAMING * min(len(names), len(var_names)):
        return (
            f"{too_few} Both are named alike: the file lacks the others. Encode the reference with a hasher of the "
            f"genes that both have, or take these few with --min-overlap {math.floor(100 * best.overlap) / 100}."
        )
    return (
        f"{too_few} The hasher was fitted on {_kind(names)} such as {wanted}; the file's var_names hold "
        f"{_kind(var_names)} such as {found}. Use the same naming in both (a text column of "
        "var with the hasher's names or ids is enough), or fit a hasher on this atlas."
    )


#: With such a share of either side's genes in the other the two are named alike.
_SAME_NAMING = 0.05


def _kind(names: Iterable[str]) -> str:
    sample = [str(name) for name in list(names)[:200]]
    ensembl = sum(bool(ENSEMBL_ID.match(name.upper())) for name in sample)
    if ensembl > len(sample) / 2:
        return "Ensembl ids"
    if sum(name.isdigit() for name in sample) > len(sample) / 2:
        return "numbers"
    upper = sum(name.isupper() for name in sample)
    return "symbols in capitals (human style)" if upper > len(sample) / 2 else "symbols or other names"
