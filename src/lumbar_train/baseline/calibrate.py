"""Temperature scaling: one temperature per condition, chosen on studies that the networks have not seen.

Networks fitted on upsampled images of few patients are overconfident. Dividing the logits by one number corrects that
without changing which class is likeliest under equal frequencies (Guo et al. 2017, On calibration of modern neural
networks). The five levels of a condition and side share it, because one column has too few severe studies.
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
MAX_TEMPERATURE = 50.0  # nothing but the prior remains
MIN_TEMPERATURE = 0.5
_WEIGHTS = np.array(SEVERITY_WEIGHTS)


@dataclass(frozen=True)
class HeldOut:
    """Logits of one column's network for the studies of the fold that it has not seen.

    Attributes:
        condition: of the column.
        fold: held out.
        logits: (S, 3) of slices.
        study_index: (S,) study of each slice, as an index into ``labels``.
        labels: (N,) class of each study, -1 without label.
        prior: (3,) weighted frequencies outside the fold.
        balance: (3,) shares that the network was fitted on.
    """

    condition: str
    fold: int
    logits: Probs
    study_index: NDArray[np.int64]
    labels: NDArray[np.int64]
    prior: Probs
    balance: Sequence[float]

    def probs(self, temperature: float) -> Probs:
        """Probabilities (N, 3) of the studies: the mean over each study's slices."""
        of_slices = slice_probs(self.logits, self.prior, self.balance, temperature)
        total = np.zeros((len(self.labels), 3))
        np.add.at(total, self.study_index, of_slices)
        return total / np.bincount(self.study_index, minlength=len(self.labels))[:, None]


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


def choose_temperature(parts: Sequence[HeldOut]) -> float:
    """The temperature of least loss between the bounds; 1 if the search finds none that is better than 1."""
    if not any((part.labels >= 0).any() for part in parts):
        return 1.0
    minimum = minimize_scalar(
        lambda log: loss(parts, float(np.exp(log))),
        bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)),
        method="bounded",
    )
    temperature = round(float(np.exp(minimum.x)), 4)
    return temperature if loss(parts, temperature) < loss(parts, 1.0) else 1.0


def temperatures(parts: Sequence[HeldOut]) -> dict[str, dict[str, float]]:
    """Temperatures by condition: for each fold the one that the other folds choose, and ``all`` for what ships.

    So a fold's own labels never choose the temperature that its answers are scored with.
    """
    by_condition: dict[str, dict[str, float]] = {}
    for condition in dict.fromkeys(part.condition for part in parts):
        own = [part for part in parts if part.condition == condition]
        folds = sorted({part.fold for part in own})
        by_condition[condition] = {
            str(fold): choose_temperature([part for part in own if part.fold != fold]) for fold in folds
        } | {"all": choose_temperature(own)}
    return by_condition
