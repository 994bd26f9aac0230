"""How far the networks may be believed: one temperature a condition, chosen on studies that they have not seen.

Networks fitted on upsampled images of few patients are surer than they are right. Dividing the logits by one number
mends that without changing which class is likeliest under equal frequencies (Guo et al. 2017, On calibration of modern
neural networks). The five levels of a condition and side share it: a column alone has too few severe studies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from lumbar.chains.baseline import slice_probs
from lumbar.labels import SEVERITY_WEIGHTS

Probs = NDArray[np.float64]
HOTTEST = 50.0  # the prior is left, in all but name
COOLEST = 0.5
_WEIGHTS = np.array(SEVERITY_WEIGHTS)


@dataclass(frozen=True)
class HeldOut:
    """What a column's network says of the studies of its fold.

    Attributes:
        condition: of the column.
        fold: held out.
        logits: (S, 3) of slices.
        place: (S,) study of each slice, as its place among ``labels``.
        labels: (N,) class of each study, -1 without.
        prior: (3,) weighted frequencies outside the fold.
        balance: (3,) shares that the network was fitted on.
    """

    condition: str
    fold: int
    logits: Probs
    place: NDArray[np.int64]
    labels: NDArray[np.int64]
    prior: Probs
    balance: Sequence[float]

    def probs(self, temperature: float) -> Probs:
        """(N, 3): the mean over each study's slices."""
        of_slices = slice_probs(self.logits, self.prior, self.balance, temperature)
        total = np.zeros((len(self.labels), 3))
        np.add.at(total, self.place, of_slices)
        return total / np.bincount(self.place, minlength=len(self.labels))[:, None]


def loss(parts: Sequence[HeldOut], temperature: float) -> float:
    """The metric's log loss (weights 1/2/4) over all labelled studies of all parts."""
    total = weight = 0.0
    for part in parts:
        is_known = part.labels >= 0
        labels = part.labels[is_known]
        picked = part.probs(temperature)[is_known][np.arange(len(labels)), labels]
        total -= float(_WEIGHTS[labels] @ np.log(np.clip(picked, 1e-15, 1.0)))
        weight += float(_WEIGHTS[labels].sum())
    return total / weight if weight else 0.0


def choose(parts: Sequence[HeldOut]) -> float:
    """The temperature with the least loss that a search between the bounds finds; 1 where none is better than that."""
    if not any((part.labels >= 0).any() for part in parts):
        return 1.0
    found = minimize_scalar(
        lambda log: loss(parts, float(np.exp(log))), bounds=(np.log(COOLEST), np.log(HOTTEST)), method="bounded"
    )
    warmth = round(float(np.exp(found.x)), 4)
    return warmth if loss(parts, warmth) < loss(parts, 1.0) else 1.0


def temperatures(parts: Sequence[HeldOut]) -> dict[str, dict[str, float]]:
    """By condition, for each fold the temperature that the other folds choose, and ``all`` for what ships.

    A fold's own labels do not choose the temperature that its answers are scored with.
    """
    found: dict[str, dict[str, float]] = {}
    for condition in dict.fromkeys(part.condition for part in parts):
        own = [part for part in parts if part.condition == condition]
        found[condition] = {
            str(fold): choose([part for part in own if part.fold != fold]) for fold in sorted({p.fold for p in own})
        } | {"all": choose(own)}
    return found
