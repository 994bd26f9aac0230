"""Chooses the numbers of ``lumbar.stages.grade_calibration`` on answers to studies that the networks have not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from lumbar.labels import GROUPS
from lumbar.stages.grade_calibration import calibrated, columns_of, softened
from lumbar_train.evaluation.scoring import TERMS, Interval, difference, scores, study_sums

Probs = NDArray[np.float64]
_LOWEST, _HIGHEST, _SHARES = 0.5, 10.0, (0.0, 0.9)
_STARTS = ((1.0, 0.02), (2.0, 0.1), (0.7, 0.02))
# The metric's terms that a group has a say in, as columns of ``study_sums``
_TERMS_OF = {group: (TERMS.index(group) - 1, *((3,) if group == "spinal" else ())) for group in GROUPS}


@dataclass(frozen=True)
class Answers:
    """Answers to N studies that no network has learnt from.

    Attributes:
        labels: (N, 25) class, -1 without label.
        probs: (N, 25, 3), rows sum to 1.
        prior: (N, 25, 3), of other studies.
        is_seen: (N, 25), whether a classifier saw the column.
        parts: (N,) of which fold, or of which appearance, each study is; all parts weigh alike.
    """

    labels: NDArray[Any]
    probs: Probs
    prior: Probs
    is_seen: NDArray[np.bool_]
    parts: NDArray[Any]

    def of(self, rows: NDArray[Any]) -> Answers:
        """Those to some studies."""
        return Answers(self.labels[rows], self.probs[rows], self.prior[rows], self.is_seen[rows], self.parts[rows])

    def with_numbers(self, numbers: dict[str, list[float]]) -> Probs:
        """The answers with a calibration."""
        return calibrated(self.probs, self.prior, self.is_seen, numbers)


def fit(answers: Answers, lowest: float = _LOWEST) -> dict[str, list[float]]:
    """Temperature and share of the prior of each group, of the least loss in the metric's terms that it has a say in.

    A group without any label keeps its answers.

    Args:
        answers: to fit on.
        lowest: temperature; 1 never makes answers surer.
    """
    return {group: _fit_group(answers, group, lowest) for group in GROUPS}


def held_back(answers: Answers, lowest: float = _LOWEST) -> Probs:
    """The answers (N, 25, 3), each part with the numbers that all other parts choose."""
    out = answers.probs.copy()
    for part in np.unique(answers.parts):
        own = answers.parts == part
        if not own.all():
            out[own] = answers.of(own).with_numbers(fit(answers.of(~own), lowest))
    return out


def _fit_group(answers: Answers, group: str, lowest: float) -> list[float]:
    columns, terms = columns_of(group), list(_TERMS_OF[group])
    is_part = [answers.parts == part for part in np.unique(answers.parts)]
    seen = answers.is_seen[:, columns, None]
    own, prior = answers.probs[:, columns], answers.prior[:, columns]

    def loss(numbers: NDArray[np.float64]) -> float:
        probs = answers.probs.copy()
        probs[:, columns] = np.where(seen, softened(own, prior, float(np.exp(numbers[0])), float(numbers[1])), own)
        sums, weights = (table[:, terms] for table in study_sums(answers.labels, probs))
        each = [(sums[rows].sum(axis=0), weights[rows].sum(axis=0)) for rows in is_part]
        values = np.concatenate([total[weight > 0] / weight[weight > 0] for total, weight in each])
        return float(values.mean()) if len(values) else 0.0

    bounds = [(np.log(lowest), np.log(_HIGHEST)), _SHARES]
    tried = [minimize(loss, (np.log(max(t, lowest)), share), method="L-BFGS-B", bounds=bounds) for t, share in _STARTS]
    best = min(tried, key=lambda result: float(result.fun))
    if loss(np.zeros(2)) <= best.fun:
        return [1.0, 0.0]
    return [round(float(np.exp(best.x[0])), 4), round(float(best.x[1]), 4)]


@dataclass(frozen=True)
class Decision:
    """Whether a run calibrates its grades, and why.

    Attributes:
        is_kept: it lowers the held-back score beyond chance.
        numbers: of all studies.
        before: the out-of-fold total without.
        after: with it, each fold by the numbers of the others.
        gain: after minus before, paired.
    """

    is_kept: bool
    numbers: dict[str, list[float]]
    before: Interval
    after: Interval
    gain: Interval

    @property
    def line(self) -> str:
        """For the terminal."""
        said = f"{self.gain.value:+.4f} ({self.gain.low:+.4f} to {self.gain.high:+.4f}) of {self.before.value:.4f}"
        numbers = ", ".join(f"{group} {t:.2f} and {share:.2f}" for group, (t, share) in self.numbers.items())
        if self.is_kept:
            return f"grades are calibrated (temperature and share of the prior: {numbers}): {said} out of fold"
        return f"grades stay as the aggregator gives them: a calibration brought {said} out of fold"

    def as_json(self) -> dict[str, Any]:
        """For the run folder and the manifest."""
        return {
            "kept": self.is_kept,
            "numbers": self.numbers,
            "before": self.before.as_list(),
            "after": self.after.as_list(),
            "gain": self.gain.as_list(),
        }


def decide(answers: Answers) -> Decision:
    """Fit on all studies; keep it where the 95 % interval of its held-back gain lies below zero."""
    after = held_back(answers)
    gain = difference(answers.labels, answers.probs, after)["total"]
    before, total = (scores(answers.labels, probs)["total"] for probs in (answers.probs, after))
    return Decision(bool(gain.high < 0), fit(answers), before, total, gain)
