"""How well answers rank and grade: AUC and quadratic kappa by group, with bootstrap intervals over studies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lumbar.labels import GROUPS
from lumbar_train.evaluation.scoring import Interval, Labels, Probs, draw_counts, group_columns, to_plain

N_BOOTSTRAP = 300
FIGURES = ("AUC of severe", "AUC of moderate or severe", "quadratic kappa")


def discrimination(
    labels: Labels, probs: Probs, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """The three figures of each group; NaN where the labels are all of one class.

    Args:
        labels: (N, 25) class index or -1.
        probs: (N, 25, 3) as submitted; the most likely class is that of the plain frequencies.
        n_bootstrap: drawn cohorts.
        seed: of the drawing.
    """
    counts = np.concatenate([np.ones((1, len(labels)), np.int64), draw_counts(len(labels), n_bootstrap, seed)])
    plain = to_plain(probs)
    tables = {}
    for group in GROUPS:
        columns = group_columns(group)
        study, column = np.nonzero(labels[:, columns] >= 0)
        grade = labels[:, columns][study, column].astype(np.int64)
        answer = plain[:, columns][study, column]
        weight = counts[:, study].astype(float)
        many = (
            auc(grade == 2, answer[:, 2], weight),
            auc(grade >= 1, answer[:, 1] + answer[:, 2], weight),
            quadratic_kappa(grade, answer.argmax(axis=1), weight),
        )
        tables[group] = {name: _interval(values) for name, values in zip(FIGURES, many, strict=True)}
    return tables


def auc(is_positive: NDArray[np.bool_], values: Probs, weight: Probs) -> Probs:
    """Area under the ROC curve under each of several weights; ties count one half.

    Args:
        is_positive: (R,).
        values: (R,) the higher, the rather positive.
        weight: (B, R) how often each row counts.

    Returns:
        (B,), NaN where there are no positive or no negative rows.
    """
    unique, place = np.unique(values, return_inverse=True)
    n_values = max(len(unique), 1)
    shape = (len(weight), n_values)
    positive, negative = np.zeros(shape), np.zeros(shape)
    for b, row in enumerate(weight):
        positive[b] = np.bincount(place, row * is_positive, n_values)
        negative[b] = np.bincount(place, row * ~is_positive, n_values)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    areas: Probs = np.full(len(weight), np.nan)
    np.divide((positive * below).sum(axis=1), pairs, out=areas, where=pairs > 0)
    return areas


def quadratic_kappa(grade: NDArray[np.int64], answer: NDArray[np.int64], weight: Probs) -> Probs:
    """Cohen's kappa with squared distances between the three grades, under each of several weights (B, R)."""
    tables = np.stack([np.bincount(grade * 3 + answer, row, 9).reshape(3, 3) for row in weight])
    distance = (np.arange(3)[:, None] - np.arange(3)[None]) ** 2
    total = np.maximum(tables.sum(axis=(1, 2)), 1e-12)
    expected = tables.sum(axis=2)[:, :, None] * tables.sum(axis=1)[:, None, :] / total[:, None, None]
    by_chance = (expected * distance).sum(axis=(1, 2))
    apart = (tables * distance).sum(axis=(1, 2))
    ratio: Probs = np.full(len(weight), np.nan)
    np.divide(apart, by_chance, out=ratio, where=by_chance > 0)
    return 1.0 - ratio


def _interval(values: Probs) -> Interval:
    many = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(many, (2.5, 97.5)) if len(many) else (np.nan, np.nan)
    return Interval(float(values[0]), float(low), float(high))
