"""Figures of probabilities against labels: the metric with bootstrap intervals, reliability, confusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lumbar.labels import COLUMNS, GROUPS, LEVELS, SEVERITIES, SEVERITY_WEIGHTS

Probs = NDArray[np.float64]
Labels = NDArray[Any]

TERMS = ("total", "spinal", "foraminal", "subarticular", "any_severe")
N_BOOTSTRAP = 2000
_EPS = float(np.finfo(np.float64).eps)  # as lumbar.metric and scikit-learn clip
CLASS_WEIGHTS = np.array((*SEVERITY_WEIGHTS, 0.0))  # -1 picks the last: no label, no weight


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % bootstrap interval over studies."""

    value: float
    low: float
    high: float

    @property
    def is_worse(self) -> bool:
        """Of a difference of losses: the whole interval lies above zero."""
        return self.low > 0

    def as_list(self) -> list[float]:
        """For JSON."""
        return [self.value, self.low, self.high]


def group_columns(group: str) -> NDArray[np.int64]:
    """Indices into ``labels.COLUMNS`` of ``spinal``, ``foraminal`` or ``subarticular``."""
    return np.concatenate([np.arange(len(LEVELS)) + c * len(LEVELS) for c in GROUPS[group]])


def group_of_column() -> NDArray[np.int64]:
    """(25,) the group of each column, as its place in ``labels.GROUPS``."""
    out = np.zeros(len(COLUMNS), np.int64)
    for number, group in enumerate(GROUPS):
        out[group_columns(group)] = number
    return out


def study_sums(labels: Labels, probs: Probs) -> tuple[Probs, Probs]:
    """Weighted losses and weights that each study adds to the four terms.

    Args:
        labels: (N, 25) class index or -1.
        probs: (N, 25, 3), rows sum to 1.

    Returns:
        Sums of weight times loss (N, 4), sums of weights (N, 4); terms in the order of ``TERMS[1:]``.
    """
    losses, weights = column_sums(labels, probs)
    spinal = group_columns("spinal")
    severe = np.clip(probs[:, spinal, 2].max(axis=1), _EPS, 1.0 - _EPS)
    heaviest = weights[:, spinal].max(axis=1)
    any_loss = -np.where((labels[:, spinal] == 2).any(axis=1), np.log(severe), np.log1p(-severe)) * heaviest
    columns = [group_columns(group) for group in GROUPS]
    sums = np.stack([*(losses[:, c].sum(axis=1) for c in columns), any_loss], axis=1)
    totals = np.stack([*(weights[:, c].sum(axis=1) for c in columns), heaviest], axis=1)
    return sums, totals


def column_sums(labels: Labels, probs: Probs) -> tuple[Probs, Probs]:
    """Weight times loss of each answer, and its weight: both (N, 25), 0 where there is no label."""
    weights = CLASS_WEIGHTS[labels]
    picked = np.take_along_axis(probs, np.maximum(labels, 0)[..., None], axis=2)[..., 0]
    return -np.log(np.clip(picked, _EPS, 1.0 - _EPS)) * weights, weights


def resampled(labels: Labels, probs: Probs, counts: NDArray[np.int64]) -> Probs:
    """Terms (B, 5), total first, of B cohorts that hold study n ``counts[b, n]`` times."""
    sums, totals = study_sums(labels, probs)
    weight = counts @ totals
    terms = np.divide(counts @ sums, weight, out=np.full(weight.shape, np.nan), where=weight > 0)
    return np.concatenate([terms.mean(axis=1, keepdims=True), terms], axis=1)


def draw_counts(n_studies: int, n_bootstrap: int, seed: int) -> NDArray[np.int64]:
    """How often each study is drawn in each bootstrap cohort: (B, N)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_studies, np.full(n_studies, 1.0 / n_studies), size=n_bootstrap)


def scores(labels: Labels, probs: Probs, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0) -> dict[str, Interval]:
    """The metric and its four terms with intervals; the values are those of ``lumbar.metric``."""
    once = np.ones((1, len(labels)), dtype=np.int64)
    return _intervals(
        resampled(labels, probs, once)[0], resampled(labels, probs, draw_counts(len(labels), n_bootstrap, seed))
    )


def difference(
    labels: Labels, before: Probs, after: Probs, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> dict[str, Interval]:
    """After minus before, paired: both are scored on the same drawn studies. Negative is better."""
    once = np.ones((1, len(labels)), dtype=np.int64)
    counts = draw_counts(len(labels), n_bootstrap, seed)
    value = resampled(labels, after, once)[0] - resampled(labels, before, once)[0]
    return _intervals(value, resampled(labels, after, counts) - resampled(labels, before, counts))


def level_difference(
    labels: Labels, before: Probs, after: Probs, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> dict[tuple[str, str], Interval]:
    """Weighted log loss of each group at each level, after minus before, paired; left and right count together.

    A group at a level without any label is left out.
    """
    (losses, weights), (former, _) = column_sums(labels, after), column_sums(labels, before)
    counts = np.concatenate([np.ones((1, len(labels)), np.int64), draw_counts(len(labels), n_bootstrap, seed)])
    cells = {}
    for group, conditions in GROUPS.items():
        for k, level in enumerate(LEVELS):
            columns = [condition * len(LEVELS) + k for condition in conditions]
            weight = counts @ weights[:, columns].sum(axis=1)
            change = counts @ (losses - former)[:, columns].sum(axis=1)
            if weight[0] > 0:
                many = change[1:][weight[1:] > 0] / weight[1:][weight[1:] > 0]
                low, high = np.percentile(many, (2.5, 97.5))
                cells[group, level] = Interval(float(change[0] / weight[0]), float(low), float(high))
    return cells


def ratio(labels: Labels, probs: Probs, reference: Probs, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0) -> Interval:
    """Total over the reference's total, paired."""
    once = np.ones((1, len(labels)), dtype=np.int64)
    counts = draw_counts(len(labels), n_bootstrap, seed)
    value = resampled(labels, probs, once)[:, :1] / resampled(labels, reference, once)[:, :1]
    many = resampled(labels, probs, counts)[:, :1] / resampled(labels, reference, counts)[:, :1]
    low, high = np.nanpercentile(many, (2.5, 97.5))
    return Interval(float(value[0, 0]), float(low), float(high))


def _intervals(values: Probs, many: Probs) -> dict[str, Interval]:
    is_drawn = ~np.isnan(many).all(axis=0)
    low, high = np.full(len(TERMS), np.nan), np.full(len(TERMS), np.nan)
    low[is_drawn], high[is_drawn] = np.nanpercentile(many[:, is_drawn], (2.5, 97.5), axis=0)
    return {name: Interval(float(values[k]), float(low[k]), float(high[k])) for k, name in enumerate(TERMS)}


def to_plain(probs: Probs) -> Probs:
    """Probabilities fitted under weights 1/2/4 as plain frequencies: divided by the weights, made to sum to 1."""
    plain = probs / np.array(SEVERITY_WEIGHTS)
    return np.asarray(plain / plain.sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class Reliability:
    """Of one class of one group: predicted against observed frequency by bins of equal width.

    Attributes:
        predicted: (bins,) mean probability, NaN where a bin is empty.
        observed: (bins,) frequency.
        weight: (bins,) sum of weights, or the number of rows.
        error: expected calibration error, the weighted mean gap.
        rows: (bins,) number of rows.
    """

    group: str
    severity: str
    is_weighted: bool
    predicted: Probs
    observed: Probs
    weight: Probs
    error: float
    rows: Probs


def reliability(labels: Labels, probs: Probs, *, is_weighted: bool, n_bins: int = 10) -> list[Reliability]:
    """Every group and class. Weighted: as submitted, rows counting 1/2/4; else corrected to plain frequencies."""
    used = probs if is_weighted else to_plain(probs)
    curves = []
    for group in GROUPS:
        columns = group_columns(group)
        label, prob = labels[:, columns], used[:, columns]
        is_known = label >= 0
        weight = CLASS_WEIGHTS[label[is_known]] if is_weighted else np.ones(int(is_known.sum()))
        for k, severity in enumerate(SEVERITIES):
            p, y = prob[is_known][:, k], (label[is_known] == k).astype(float)
            curves.append(_binned(group, severity, is_weighted, p, y, weight, n_bins))
    return curves


def _binned(
    group: str, severity: str, is_weighted: bool, p: Probs, y: Probs, weight: Probs, n_bins: int
) -> Reliability:
    place = np.minimum((p * n_bins).astype(int), n_bins - 1)
    total = np.bincount(place, weight, n_bins).astype(np.float64)
    empty = np.full(n_bins, np.nan)
    predicted = np.divide(np.bincount(place, weight * p, n_bins), total, out=empty.copy(), where=total > 0)
    observed = np.divide(np.bincount(place, weight * y, n_bins), total, out=empty.copy(), where=total > 0)
    gap = np.nansum(np.abs(predicted - observed) * total) / max(total.sum(), _EPS)
    rows = np.bincount(place, minlength=n_bins).astype(np.float64)
    return Reliability(group, severity, is_weighted, predicted, observed, total, float(gap), rows)


def confusion(labels: Labels, probs: Probs) -> dict[str, NDArray[np.int64]]:
    """(3 true, 3 most likely) counts by group, by probabilities corrected to plain frequencies."""
    likely = to_plain(probs).argmax(axis=-1)
    tables = {}
    for group in GROUPS:
        columns = group_columns(group)
        label, guess = labels[:, columns], likely[:, columns]
        is_known = label >= 0
        tables[group] = np.bincount(label[is_known] * 3 + guess[is_known], minlength=9).reshape(3, 3)
    return tables


def study_losses(labels: Labels, probs: Probs) -> Probs:
    """(N,) what each study adds to the total: the mean of its four terms' shares, in units of the total."""
    sums, totals = study_sums(labels, probs)
    return np.asarray((sums / np.maximum(totals.sum(axis=0), _EPS)).mean(axis=1))
