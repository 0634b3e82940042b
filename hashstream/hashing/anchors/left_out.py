"""What tells cells of a type that was not learned, from leaving out each learned type in turn.

No cell of an unknown type is there to learn from, but the labelled types can stand in for it: without one of them, the
closed-form part (components, discriminant, novelty bits, profiles) is fitted again to the others, and the cells of the
type and held-out cells of the others are scored as `annotate` scores them. A logistic regression of the two kinds on
three features gives the log-odds of a cell being of a type that was not learned. The types are few, however many cells
they have: each counts as one case and its counter-case, and the ridge holds the weights of few types back. Training on
outliers that are not those to be met is the idea of Hendrycks et al., "Deep anomaly detection with outlier exposure",
ICLR 2019; leaving classes out in turn to get them is that of Vyas et al., "Out-of-distribution detection using an
ensemble of self supervised leave-out classifiers", ECCV 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, softmax

from hashstream.annotate.anchors import DOUBT, N_FEATURES, common_profile, novelty_features, profile_sizes
from hashstream.annotate.discriminant import whiten
from hashstream.hashing.anchors.novelty import PROFILE_UNITS, Profiles, fits, learn_profiles, projections
from hashstream.hashing.anchors.settings import AnchorSettings

#: Components from which those without a type are taken, as a multiple of those of the discriminant.
WIDE = 4
RIDGE = 0.1
_MOST_TYPES = 50
_MOST_FITTED, _LEAST_FITTED = 10_000, 50
_MOST_HELD_OUT, _MOST_LEFT_OUT = 1_000, 300
_LEAST_SPREAD = 0.2  # of that in leaving types out
_LEAST = (1e-3, 1e-3, 0.1)  # deviation of a feature, where all cells are alike
_RANGE = 8.0  # standard deviations beyond which a feature tells no more


@dataclass(frozen=True)
class NoveltyWeights:
    """Log-odds of novelty from standardised features.

    Attributes
    ----------
    weights : (N_FEATURES,) float64
    intercept : float
    centre, spread : (N_FEATURES,) float64
        Mean and standard deviation of each feature over held-out cells of learned types.
    n_types : int
        Types that were left out in turn; with 0 the first feature alone is the novelty.
    """

    weights: NDArray[np.float64]
    intercept: float
    centre: NDArray[np.float64]
    spread: NDArray[np.float64]
    n_types: int

    def table(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Intercept and weights of the features as they are: (1 + N_FEATURES,).

        Parameters
        ----------
        features : (n, N_FEATURES)
            Of validation cells. All are centred about them, since one type more moves the fit to the others; and the
            read-out of the bits is in doubt about other cells than the closed form: doubt has its own deviation here.
        """
        centre, spread = self.centre.copy(), self.spread.copy()
        if self.n_types and len(features):
            centre = features.mean(axis=0)
            spread[DOUBT] = max(float(features[:, DOUBT].std()), _LEAST_SPREAD * spread[DOUBT])
        weights = self.weights / spread
        return np.concatenate([[self.intercept - weights @ centre], weights])


def first_feature_alone() -> NoveltyWeights:
    """For fewer than three types, of which none can be spared."""
    weights = np.eye(N_FEATURES)[0]
    return NoveltyWeights(weights, 0.0, np.zeros(N_FEATURES), np.ones(N_FEATURES), 0)


def learn_weights(
    components: NDArray[np.float64],
    classes: NDArray[np.int64],
    held_out: NDArray[np.float64],
    held_out_classes: NDArray[np.int64],
    n_classes: int,
    settings: AnchorSettings,
    *,
    rng: np.random.Generator,
) -> NoveltyWeights:
    """Leave out each type in turn, at most 50 of them.

    Parameters
    ----------
    components, classes : (n, n_wide), (n,) int64
        Principal components of the cells to fit to.
    held_out, held_out_classes : (m, n_wide), (m,) int64
        Of cells that are not fitted to.
    """
    if n_classes < 3 or len(held_out) == 0:
        return first_feature_alone()
    known, novel = [], []
    for left_out in np.sort(rng.permutation(n_classes)[:_MOST_TYPES]):
        others, spared = classes != left_out, held_out_classes != left_out
        if not spared.any() or len(np.unique(classes[others])) < n_classes - 1:
            continue
        fewer = _renumbered(classes[others], left_out)
        model = _Model.fit(components[others], fewer, n_classes - 1, settings, rng)
        shown = _some(np.flatnonzero(spared), _MOST_HELD_OUT, rng)
        unknown = np.concatenate([components[~others], held_out[~spared]])
        known.append(model.features(held_out[shown]))
        novel.append(model.features(unknown[_some(np.arange(len(unknown)), _MOST_LEFT_OUT, rng)]))
    if not known:
        return first_feature_alone()
    everything = np.concatenate(known)
    centre, spread = everything.mean(axis=0), np.maximum(everything.std(axis=0), _LEAST)
    weights, intercept = _regress([(k - centre) / spread for k in known], [(u - centre) / spread for u in novel])
    return NoveltyWeights(weights, intercept, centre, spread, len(known))


def cells_to_fit(classes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """At most about 10,000 labelled cells, of each type the same share and 50 at least: ascending."""
    share = min(_MOST_FITTED / max(len(classes), 1), 1.0)
    members = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    return np.sort(np.concatenate([_some(m, max(_LEAST_FITTED, round(share * len(m))), rng) for m in members]))


@dataclass(frozen=True)
class _Model:
    """The closed form of some types: their log-odds, novelty bits and profiles."""

    centre: NDArray[np.float64]
    axes: NDArray[np.float64]
    origin: NDArray[np.float64]
    means: NDArray[np.float64]
    normals: NDArray[np.float64]
    profiles: Profiles
    weight: float

    @classmethod
    def fit(
        cls,
        components: NDArray[np.float64],
        classes: NDArray[np.int64],
        n_classes: int,
        settings: AnchorSettings,
        rng: np.random.Generator,
    ) -> _Model:
        centre = components.mean(axis=0)
        centred = components - centre
        leading = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, : settings.n_components]
        points = centred @ leading
        sizes = np.bincount(classes, minlength=n_classes)[:, None]
        means = np.stack([np.bincount(classes, weights=p, minlength=n_classes) for p in points.T], axis=1) / sizes
        within = points - means[classes]
        whitening = whiten(within.T @ within / len(within), settings.shrinkage)
        means = means @ whitening
        origin = means.mean(axis=0)
        normals = projections(means - origin, settings.novelty_bits, rng=rng)
        profiles = learn_profiles((points @ whitening - origin) @ normals > 0, classes, n_classes)
        # Without the discriminant's part in the labels its log-odds stand for the others' as they are.
        weight = settings.discriminant_weight or 1.0
        return cls(centre, leading @ whitening, origin, means, normals, profiles, weight)

    def features(self, components: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, N_FEATURES), as `annotate` has them from codes."""
        points = (components - self.centre) @ self.axes
        odds = softmax(self.weight * (points @ self.means.T - 0.5 * np.square(self.means).sum(axis=1)), axis=1)
        labels = odds.argmax(axis=1)
        signs = np.where((points - self.origin) @ self.normals > 0, np.float32(1), np.float32(-1))
        profile = self.profiles.profile
        return novelty_features(
            fits(signs, profile[labels]),
            signs @ common_profile(profile) / (PROFILE_UNITS * profile.shape[1]),
            odds.max(axis=1),
            (self.profiles.fit_mean[labels], self.profiles.fit_deviation[labels]),
            profile_sizes(profile)[labels],
            len(profile),
        )


def _regress(known: list[NDArray[np.float64]], novel: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], float]:
    """Logistic regression; the known cells of a type left out weigh 1 together, and so do the novel ones."""
    parts = [*known, *novel]
    x = np.clip(np.concatenate(parts), -_RANGE, _RANGE)
    sign = np.concatenate([np.full(len(p), side) for side, of in ((-1.0, known), (1.0, novel)) for p in of])
    weight = np.concatenate([np.full(len(p), 1 / len(p)) for p in parts])

    def loss(v: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        odds = sign * (x @ v[:-1] + v[-1])
        slope = -weight * sign * expit(-odds)
        value = weight @ np.logaddexp(0, -odds) + RIDGE / 2 * float(v[:-1] @ v[:-1])
        return float(value), np.append(x.T @ slope + RIDGE * v[:-1], slope.sum())

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return found[:-1], float(found[-1])


def _renumbered(classes: NDArray[np.int64], left_out: int) -> NDArray[np.int64]:
    return classes - (classes > left_out)


def _some(numbers: NDArray[np.int64], most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return numbers if len(numbers) <= most else np.sort(rng.choice(numbers, most, replace=False))
