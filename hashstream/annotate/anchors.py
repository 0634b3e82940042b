"""Anchors: what turns the code of a cell into a label, probabilities and a rejection, without the reference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.errors import InputError
from hashstream.kernels import unpack_bits, words_for_bits
from hashstream.kernels.anchors import AnchorScores, AnchorTables, anchor_scores
from hashstream.runtime.files import read_tensors, write_tensors

FORMAT_VERSION = 2
ACCEPTED, AMBIGUOUS, NOVEL, EMPTY = 0, 1, 2, 3
REJECTIONS = ("", "ambiguous", "novel", "empty")
_TENSORS, _META = "anchors.safetensors", "anchors.json"
#: Log-odds are sums of whole numbers below this, so that float32 products are exact in any order of summation.
EXACT_LIMIT = 1 << 23
_PROFILE = 1000  # units of a profile
#: Features that novelty is made of, and the numbers of two of them.
N_FEATURES, OTHERS, DOUBT = 3, 1, 2
_LEAST_DOUBT = 1e-6
_LEAST_SIZE = 0.05
_TENSOR_TYPES = {
    "anchors": np.uint64,
    "read_out": np.int16,
    "offset": np.int32,
    "profile": np.int16,
    "fit_mean": np.float64,
    "fit_deviation": np.float64,
    "novelty_weights": np.float64,
    "ambiguous_below": np.float64,
    "novel_above": np.float64,
    "class_counts": np.int64,
}


@dataclass(frozen=True)
class Scores:
    """The outcome for each code.

    Attributes
    ----------
    labels : (n,) int32
        The most probable class, whether it is rejected or not.
    top : (n, 3) int32
        The three most probable classes, -1 where there are fewer.
    probabilities : (n, 3) float32
        Of these; 0 where there are fewer.
    margin : (n,) float32
        First probability less the second.
    novelty : (n,) float32
        Log-odds that the cell is of a type that was not learned rather than of one that was, as judged by leaving out
        the learned types in turn; of two types, how much less it looks like its label than this type's own cells do,
        in their standard deviations.
    distance : (n,) int32
        Hamming distance to the anchor of the label.
    rejection : (n,) uint8
        0 accepted, 1 ambiguous, 2 novel; novel where it is both.
    """

    labels: NDArray[np.int32]
    top: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    margin: NDArray[np.float32]
    novelty: NDArray[np.float32]
    distance: NDArray[np.int32]
    rejection: NDArray[np.uint8]


@dataclass(frozen=True)
class Anchors:
    """One anchor a type, and how codes are read: a label depends on the cell's own code alone.

    Bits 0 to ``n_bits - 1`` of a code are compared with the anchors. As +-1 they give the log-odds
    ``scale * (read_out @ bits + offset)``, whose softmax are the probabilities; ``read_out`` is what the anchors became
    when bits were weighed by what they tell. The novelty bits after these are compared with the ``profile`` of the
    label and of the others; the fit is the sum of ``profile * bits`` over either half of them, made 1 at most. Novelty
    is a weighted sum of the three features of `novelty_features`.

    Attributes
    ----------
    names : tuple of str
    anchors : (n_classes, n_words) uint64
        Packed bits.
    n_bits : int
        Of an anchor.
    read_out, offset : (n_classes, n_bits) int16, (n_classes,) int32
    scale : float
        Log-odds a unit, temperature included.
    profile : (n_classes, n_novelty_bits) int16
        Mean sign of each novelty bit over a type's cells, in 1/1000.
    fit_mean, fit_deviation : (n_classes, 2) float64
        Of the fit of a type's own cells, in either half.
    novelty_weights : (4,) float64
        Intercept, and weights of the features of `novelty_features`.
    ambiguous_below, novel_above : (n_classes,) float64
        Probability below which, and novelty above which, a cell of that label is rejected.
    class_counts : (n_classes,) int64
        Labelled cells of each.
    minimum_distance : int
        Least Hamming distance between two anchors.
    hasher_fingerprint : str
        Of the Hasher whose codes these anchors read.
    left_out : mapping
        Labelled cells of each type that had too few to be learned.
    calibration : mapping
        What validation gave; JSON values only.
    """

    names: tuple[str, ...]
    anchors: NDArray[np.uint64]
    n_bits: int
    read_out: NDArray[np.int16]
    offset: NDArray[np.int32]
    scale: float
    profile: NDArray[np.int16]
    fit_mean: NDArray[np.float64]
    fit_deviation: NDArray[np.float64]
    novelty_weights: NDArray[np.float64]
    ambiguous_below: NDArray[np.float64]
    novel_above: NDArray[np.float64]
    class_counts: NDArray[np.int64]
    minimum_distance: int
    hasher_fingerprint: str
    left_out: Mapping[str, int] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.names)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_TENSOR_TYPES, (n,))
        shapes["anchors"], shapes["read_out"] = (n, words_for_bits(self.n_bits)), (n, self.n_bits)
        shapes["profile"] = (n, self.profile.shape[-1])
        shapes["fit_mean"] = shapes["fit_deviation"] = (n, 2)
        shapes["novelty_weights"] = (1 + N_FEATURES,)
        for name, dtype in _TENSOR_TYPES.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shapes[name]:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shapes[name]}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds NaN or infinite values")
        if n < 2 or len(set(self.names)) < n:
            raise ValueError(f"{n} classes of {len(set(self.names))} names; expected at least 2, each its own")
        if not 0 < self.scale < np.inf or (self.fit_deviation <= 0).any():
            raise ValueError("scale or fit_deviation are out of range")
        if self.profile.shape[1] < 2 or self.profile.shape[1] % 2 or np.abs(self.profile.astype(int)).max() > _PROFILE:
            raise ValueError("profile is out of range")
        total = np.abs(self.read_out.astype(np.int64)).sum(axis=1) + np.abs(self.offset.astype(np.int64))
        if (total >= EXACT_LIMIT).any():
            raise ValueError("read_out and offset are out of range")

    @property
    def n_classes(self) -> int:
        return len(self.names)

    @property
    def code_bits(self) -> int:
        """Bits of a whole code: anchor bits and novelty bits."""
        return self.n_bits + self.profile.shape[1]

    def log_odds(self, codes: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Log-odds of the classes up to a constant: (n, n_classes) float32. One block: memory grows with n."""
        self._check_length(codes)
        # Whole numbers below 2**24 are exact in float32: the same whatever other codes are in the block.
        units = _signs(unpack_bits(codes, self.n_bits)) @ self.read_out.T.astype(np.float32) + self.offset
        return np.asarray(units * np.float32(self.scale), dtype=np.float32)

    def class_probabilities(self, codes: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Probabilities of all classes: (n, n_classes) float32; for codes in blocks, as memory grows with n."""
        return _softmax(self.log_odds(codes))

    def score(self, codes: NDArray[np.uint64], *, unknown_threshold: float | None = None, n_threads: int = 1) -> Scores:
        """Label distinct codes.

        Parameters
        ----------
        codes : (n, n_words) uint64
            Whole codes: a prefix of them says less, and lacks the novelty bits.
        unknown_threshold : float, optional
            Reject where the probability is below this, instead of by the thresholds learned for each type; 0 rejects
            nothing.

        Raises
        ------
        InputError
            If the codes are shorter than this anchors' codes.
        """
        self._check_length(codes)
        found = anchor_scores(codes, self._tables, n_threads=n_threads)
        labels, first = found.top[:, 0], found.probabilities[:, 0]
        features = self._features(found)
        novelty = np.full(len(codes), self.novelty_weights[0])
        # One feature after the other: a matrix product may sum in another order for another number of codes.
        for feature, weight in zip(features.T, self.novelty_weights[1:], strict=True):
            novelty += weight * feature
        novelty = novelty.astype(np.float32)
        if unknown_threshold is not None:
            rejection = np.where(first < unknown_threshold, AMBIGUOUS, ACCEPTED)
        else:
            rejection = np.where(first < self.ambiguous_below[labels], AMBIGUOUS, ACCEPTED)
            rejection = np.where(novelty > self.novel_above[labels], NOVEL, rejection)
        return Scores(
            labels=labels.copy(),
            top=found.top,
            probabilities=found.probabilities,
            margin=first - found.probabilities[:, 1],
            novelty=novelty,
            distance=found.distance,
            rejection=rejection.astype(np.uint8),
        )

    def features(self, codes: NDArray[np.uint64]) -> NDArray[np.float64]:
        """What novelty is made of, see `novelty_features`: (n, 3)."""
        self._check_length(codes)
        return self._features(anchor_scores(codes, self._tables))

    def _features(self, found: AnchorScores) -> NDArray[np.float64]:
        labels, n_bits = found.top[:, 0], self.profile.shape[1]
        return novelty_features(
            found.agreement / (_PROFILE * (n_bits // 2)),
            found.common / (_PROFILE * n_bits),
            found.probabilities[:, 0],
            (self.fit_mean[labels], self.fit_deviation[labels]),
            self._sizes[labels],
            self.n_classes,
        )

    @cached_property
    def _tables(self) -> AnchorTables:
        common = common_profile(self.profile)
        return AnchorTables.of(self.read_out, self.offset, self.scale, self.anchors, self.profile, common)

    @cached_property
    def _sizes(self) -> NDArray[np.float64]:
        return profile_sizes(self.profile)

    def _check_length(self, codes: NDArray[np.uint64]) -> None:
        if codes.ndim != 2 or codes.shape[1] < words_for_bits(self.code_bits):
            found = codes.shape[1] * 64 if codes.ndim == 2 else 0
            raise InputError(
                f"codes of {found} bits, but the anchors need {self.code_bits}. "
                "Encode the atlas with the hasher that the anchors were saved with."
            )

    def fingerprint(self) -> str:
        """SHA-256 of all that decides a label or is told about it."""
        digest = hashlib.sha256(json.dumps(self._constants(), sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name}{tensor.dtype}{tensor.shape}".encode())
            digest.update(np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write ``anchors.safetensors`` and ``anchors.json`` into `folder` (made if missing), beside the Hasher's."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / _TENSORS, self._tensors())
        meta = {"format_version": FORMAT_VERSION, "fingerprint": self.fingerprint(), **self._constants()}
        (folder / _META).write_text(json.dumps(meta, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Anchors:
        """Read anchors and check them.

        Raises
        ------
        InputError
            If a file is missing, damaged, of another format version, or does not fit its fingerprint.
        """
        from safetensors import SafetensorError

        folder = Path(folder)
        for name in (_META, _TENSORS):
            if not (folder / name).is_file():
                raise InputError(
                    f"{folder}: no anchors: it has no {name}. Make them with `hashstream fit --method anchors --labels "
                    "KEY`."
                )
        try:
            meta = json.loads((folder / _META).read_text())
            version = meta["format_version"]
            if version != FORMAT_VERSION:
                raise InputError(
                    f"{folder}: anchors of format version {version}, this version of HashStream reads "
                    f"{FORMAT_VERSION}. Fit them again, or use the version of HashStream that wrote them."
                )
            tensors = read_tensors(folder / _TENSORS)
            anchors = cls(
                names=tuple(str(name) for name in meta["names"]),
                n_bits=int(meta["n_bits"]),
                scale=float(meta["scale"]),
                minimum_distance=int(meta["minimum_distance"]),
                hasher_fingerprint=str(meta["hasher_fingerprint"]),
                left_out={str(k): int(v) for k, v in meta["left_out"].items()},
                calibration=dict(meta["calibration"]),
                **{name: tensors[name] for name in _TENSOR_TYPES},
            )
            found, stated = anchors.fingerprint(), str(meta["fingerprint"])
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, SafetensorError, OSError) as error:
            raise InputError(
                f"{folder}: the anchors are damaged ({type(error).__name__}: {error}). Copy them again, or fit them "
                "again."
            ) from error
        if found != stated:
            raise InputError(
                f"{folder}: the anchors' content does not fit their fingerprint (found {found[:12]}, stated "
                f"{stated[:12]}): they were changed or damaged. Copy them again, or fit them again."
            )
        return anchors

    def _constants(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "n_bits": self.n_bits,
            "scale": self.scale,
            "minimum_distance": self.minimum_distance,
            "hasher_fingerprint": self.hasher_fingerprint,
            "left_out": dict(self.left_out),
            "calibration": dict(self.calibration),
        }

    def _tensors(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in _TENSOR_TYPES}


def novelty_features(
    fit: NDArray[np.float64],
    common: NDArray[np.floating],
    probability: NDArray[np.floating],
    own_fit: tuple[NDArray[np.float64], NDArray[np.float64]],
    size: NDArray[np.float64],
    n_classes: int,
) -> NDArray[np.float64]:
    """Features of cells from which their novelty is learned: (n, 3), larger for stranger cells.

    How much less than its own cells they fit the label (in deviations, mean of both halves); how little they fit the
    other types (mean over these, profiles made equally large: a lone type catches more strangers than one among its
    kin, or fewer; which, is learned); and the doubt about the label, the logarithm of 1 - probability.

    Parameters
    ----------
    fit : (n, 2)
        To the profile of the label, in either half.
    common : (n,)
        Mean over the bits of the agreement with `common_profile`, in units of 1.
    probability : (n,)
        Of the label.
    own_fit : two of (n, 2)
        Mean and deviation of the fit of the label's own cells.
    size : (n, 2)
        `profile_sizes` of the label.
    """
    lack = -((fit - own_fit[0]) / own_fit[1]).mean(axis=1)
    others = (n_classes * common - (fit / size).mean(axis=1)) / (n_classes - 1)
    doubt = np.log(np.maximum(1.0 - probability.astype(np.float64), _LEAST_DOUBT))
    return np.stack([lack, -others, doubt], axis=1)


def typical_fit_to_others(profile: NDArray[np.int16]) -> NDArray[np.float64]:
    """Mean fit of each type's own cells to the profiles of the other types, as in `novelty_features`: (n_classes,)."""
    sizes, n_classes = profile_sizes(profile), len(profile)
    own = profile / _PROFILE
    common = (own * common_profile(profile) / _PROFILE).mean(axis=1)
    fit = np.square(own).reshape(n_classes, 2, -1).mean(axis=2)
    return np.asarray((n_classes * common - (fit / sizes).mean(axis=1)) / (n_classes - 1))


def profile_sizes(profile: NDArray[np.int16]) -> NDArray[np.float64]:
    """Root mean square of either half of each profile, in units of 1: (n_classes, 2)."""
    halves = profile.reshape(len(profile), 2, -1).astype(np.float64) / _PROFILE
    return np.maximum(np.sqrt(np.square(halves).mean(axis=2)), _LEAST_SIZE)


def common_profile(profile: NDArray[np.int16]) -> NDArray[np.int16]:
    """Mean of the profiles, each made of size 1 in either half, in 1/1000: (n_novelty_bits,)."""
    size = np.repeat(profile_sizes(profile), profile.shape[1] // 2, axis=1)
    return np.rint((profile / size).mean(axis=0)).astype(np.int16)


def _signs(bits: NDArray[np.uint8]) -> NDArray[np.float32]:
    """-1 and 1."""
    signs = bits.astype(np.float32)
    signs *= 2
    signs -= 1
    return signs


def _softmax(log_odds: NDArray[np.float32]) -> NDArray[np.float32]:
    odds = np.exp(log_odds - log_odds.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True), dtype=np.float32)
