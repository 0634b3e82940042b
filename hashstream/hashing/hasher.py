"""A Hasher: the data that turns a cell into a code. Saved as safetensors and JSON, encoded without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashstream.errors import InputError
from hashstream.hashing.genes import DEFAULT_MIN_OVERLAP, GeneMatch, match_genes
from hashstream.kernels import EncoderWeights, GeneMap, encode_rows
from hashstream.runtime.files import read_tensors, write_tensors

if TYPE_CHECKING:
    import pandas as pd

    from hashstream.atlas import Store

FORMAT_VERSION = 2
_TENSORS = "hasher.safetensors"
HASHER_META = "hasher.json"
HASHER_FILES = (HASHER_META, _TENSORS)


@dataclass(frozen=True)
class Hasher:
    """Genes, normalisation constants, affine layers, embedding and bit head.

    A count c of gene g in a cell of total t becomes y = log1p(c * target_sum / t), is standardised to
    z = min((y - gene_mean[g]) / gene_scale[g], clip) and passes the affine layers; the last one's output is the
    embedding, and bit b is 1 where ``embedding @ bit_weight[:, b] + bit_bias[b] > 0``.

    Attributes
    ----------
    gene_names : (n_genes,) object
    gene_ids : (n_genes,) object or None
        Stable ids (such as Ensembl) where the atlas it was fitted on had them.
    gene_mean, gene_scale : (n_genes,) float64
        Of the log-normalised values.
    target_sum, clip : float
    weights, biases, activations
        One of each a layer: (n_in, n_out) float32, (n_out,) float32, name; the first acts on z.
    bit_weight, bit_bias : (n_dims, n_bits) float32, (n_bits,) float32
        Bits in order of importance: every prefix of the code is a code.
    provenance : mapping
        Method, settings, seed, versions and the atlas it was fitted on; JSON values only.
    """

    gene_names: NDArray[np.object_]
    gene_ids: NDArray[np.object_] | None
    gene_mean: NDArray[np.float64]
    gene_scale: NDArray[np.float64]
    target_sum: float
    clip: float
    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    activations: tuple[str, ...]
    bit_weight: NDArray[np.float32]
    bit_bias: NDArray[np.float32]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_genes(self) -> int:
        return len(self.gene_names)

    @property
    def n_bits(self) -> int:
        return self.bit_weight.shape[1]

    @property
    def n_words(self) -> int:
        return (self.n_bits + 63) // 64

    @property
    def n_dims(self) -> int:
        return self.bit_weight.shape[0]

    def bind(
        self,
        var: pd.DataFrame | Mapping[str, NDArray[np.object_]],
        *,
        where: str,
        min_overlap: float = DEFAULT_MIN_OVERLAP,
    ) -> BoundHasher:
        """This Hasher for the columns of one store, by its gene table or what of it may identify genes.

        Genes that the store lacks are taken as average (z = 0), not as absent. Raises InputError where too few match.
        """
        ids = None if self.gene_ids is None else [str(i) for i in self.gene_ids]
        match = match_genes([str(n) for n in self.gene_names], ids, var, min_overlap=min_overlap, where=where)
        present = np.zeros(self.n_genes, dtype=bool)
        present[match.gene_map[match.gene_map >= 0]] = True
        first = self.weights[0].astype(np.float64) / self.gene_scale[:, None]
        # Standardisation folded into the first layer: zeros stay zeros, the means move into the bias.
        # Summed without BLAS, whose order of summation depends on the number of threads.
        shift = (np.where(present, self.gene_mean, 0.0)[:, None] * first).sum(axis=0)
        weights = EncoderWeights(
            cap=(self.gene_mean + self.clip * self.gene_scale).astype(np.float32),
            weights=(first.astype(np.float32), *self.weights[1:]),
            biases=((self.biases[0] - shift).astype(np.float32), *self.biases[1:]),
            activations=self.activations,
            bit_weight=self.bit_weight,
            bit_bias=self.bit_bias,
            target_sum=self.target_sum,
        )
        return BoundHasher(match=match, weights=weights)

    def bind_stores(self, stores: Iterable[Store], *, min_overlap: float = DEFAULT_MIN_OVERLAP) -> list[BoundHasher]:
        """This Hasher for each of some stores; those that lack the same of its genes share what is made of it."""
        bound: list[BoundHasher] = []
        known: dict[bytes, EncoderWeights] = {}
        for store in stores:
            one = self.bind(store.gene_columns, where=str(store.path), min_overlap=min_overlap)
            # Genes that are lacking make the bias another, and nothing else.
            weights = known.setdefault(one.weights.biases[0].tobytes(), one.weights)
            bound.append(BoundHasher(match=one.match, weights=weights))
        return bound

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides a code; provenance is not part of it."""
        digest = hashlib.sha256()
        digest.update(json.dumps(self._constants(), sort_keys=True).encode())
        ids = None if self.gene_ids is None else [*map(str, self.gene_ids)]
        digest.update(json.dumps([[*map(str, self.gene_names)], ids]).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name}{tensor.dtype}{tensor.shape}".encode())
            digest.update(np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write ``hasher.safetensors`` and ``hasher.json`` into `folder` (made if missing)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / _TENSORS, self._tensors())
        meta = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint(),
            **self._constants(),
            "gene_names": [str(n) for n in self.gene_names],
            "gene_ids": None if self.gene_ids is None else [str(i) for i in self.gene_ids],
            "provenance": dict(self.provenance),
        }
        (folder / HASHER_META).write_text(json.dumps(meta, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Hasher:
        """Read a Hasher and check it.

        Raises
        ------
        InputError
            If a file is missing, damaged, of another format version, or does not fit its fingerprint.
        """
        from safetensors import SafetensorError

        folder = Path(folder)
        for name in (HASHER_META, _TENSORS):
            if not (folder / name).is_file():
                raise InputError(f"{folder}: not a hasher: it has no {name}. Make one with `hashstream fit`.")
        try:
            meta = json.loads((folder / HASHER_META).read_text())
            version = meta["format_version"]
            if version != FORMAT_VERSION:
                raise InputError(
                    f"{folder}: hasher of format version {version}, this version of HashStream reads {FORMAT_VERSION}. "
                    "Fit it again, or use the version of HashStream that wrote it."
                )
            tensors = read_tensors(folder / _TENSORS)
            n_layers = len(meta["activations"])
            hasher = cls(
                gene_names=np.asarray(meta["gene_names"], dtype=object),
                gene_ids=None if meta["gene_ids"] is None else np.asarray(meta["gene_ids"], dtype=object),
                gene_mean=tensors["gene_mean"],
                gene_scale=tensors["gene_scale"],
                target_sum=float(meta["target_sum"]),
                clip=float(meta["clip"]),
                weights=tuple(tensors[f"layer{i}.weight"] for i in range(n_layers)),
                biases=tuple(tensors[f"layer{i}.bias"] for i in range(n_layers)),
                activations=tuple(meta["activations"]),
                bit_weight=tensors["bits.weight"],
                bit_bias=tensors["bits.bias"],
                provenance=meta.get("provenance", {}),
            )
            hasher._check()
            if not isinstance(hasher.provenance, dict):
                raise TypeError("provenance is no mapping")
            found, stated = hasher.fingerprint(), str(meta["fingerprint"])
        except (KeyError, TypeError, ValueError, RecursionError, SafetensorError, OSError) as error:
            raise InputError(
                f"{folder}: the hasher is damaged ({type(error).__name__}: {error}). Copy it again, or fit it again."
            ) from error
        if found != stated:
            raise InputError(
                f"{folder}: the hasher's content does not fit its fingerprint (found {found[:12]}, stated "
                f"{stated[:12]}): it was changed or damaged. Copy it again, or fit it again."
            )
        return hasher

    def _check(self) -> None:
        """ValueError unless the arrays fit together and can be computed with."""
        ids = self.n_genes if self.gene_ids is None else len(self.gene_ids)
        if not self.gene_mean.shape == self.gene_scale.shape == (self.n_genes,) or ids != self.n_genes:
            raise ValueError(f"{self.n_genes} gene names, but as many ids, means and scales are expected")
        if not (
            np.isfinite(self.gene_mean).all() and np.isfinite(self.gene_scale).all() and (self.gene_scale > 0).all()
        ):
            raise ValueError("means or scales of genes that are not finite, or scales that are not positive")
        EncoderWeights(
            cap=np.zeros(self.n_genes, np.float32),
            weights=self.weights,
            biases=self.biases,
            activations=self.activations,
            bit_weight=self.bit_weight,
            bit_bias=self.bit_bias,
            target_sum=self.target_sum,
        )

    def _constants(self) -> dict[str, Any]:
        return {"target_sum": self.target_sum, "clip": self.clip, "activations": list(self.activations)}

    def _tensors(self) -> dict[str, NDArray[Any]]:
        tensors: dict[str, NDArray[Any]] = {
            "gene_mean": self.gene_mean,
            "gene_scale": self.gene_scale,
            "bits.weight": self.bit_weight,
            "bits.bias": self.bit_bias,
        }
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors[f"layer{i}.weight"] = weight
            tensors[f"layer{i}.bias"] = bias
        return tensors


@dataclass(frozen=True)
class BoundHasher:
    """A Hasher made ready for the columns of one store: the gene map and the folded, tiled weights."""

    match: GeneMatch
    weights: EncoderWeights

    @cached_property
    def genes(self) -> GeneMap:
        """The gene map as the kernel reads it."""
        return GeneMap.of(self.match.gene_map, self.weights.n_genes)

    def empty_code(self) -> NDArray[np.uint64]:
        """(n_words,) uint64: what a cell of the store gets that has no counts, which says nothing about it."""
        nothing = np.zeros(2, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
        return encode_rows(*nothing, self.genes, self.weights).codes[0]
