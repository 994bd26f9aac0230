"""The pool of several classifiers: weighted means of their log probabilities, sharpened or softened by group.

It is what the aggregator starts from (``lumbar.models.aggregator``), without its corrections, so that members can be
chosen on it thousands of times. Arrays alone: nothing is read, and no network runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lumbar_train.evaluation.scoring import CLASS_WEIGHTS, group_of_column, study_sums

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
_NEWTON_STEPS = 6
_SCALES = (0.02, 20.0)


@dataclass(frozen=True)
class Members:
    """Out-of-fold logits of M members for N studies.

    Attributes:
        names: of the members.
        logits: (N, M, 5 conditions, 5 levels, 3).
        mask: (N, M, 5, 5) which of them rest on images.
        labels: (N, 25) class, -1 without label.
        folds: (N,) the fold that held each study out.
        prior: (N, 25, 3) for what no member saw, from studies of other folds.
        seconds: (M,) what each member costs a study.
    """

    names: tuple[str, ...]
    logits: NDArray[np.float32]
    mask: NDArray[np.bool_]
    labels: NDArray[Any]
    folds: NDArray[np.int64]
    prior: Array
    seconds: Array

    def __len__(self) -> int:
        """Number of studies."""
        return len(self.labels)

    @cached_property
    def log_probs(self) -> Array:
        """(M, N, 25, 3) log probabilities, 0 where masked."""
        logits = np.moveaxis(self.logits, 1, 0).reshape(len(self.names), len(self), 25, 3).astype(np.float64)
        logits = logits - logits.max(axis=-1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return np.asarray(logs * self.seen[..., None])

    @cached_property
    def seen(self) -> Array:
        """(M, N, 25) 1 where a member saw a target."""
        return np.moveaxis(self.mask, 1, 0).reshape(len(self.names), len(self), 25).astype(np.float64)


@dataclass
class Sum:
    """The members picked so far, for some studies: weighted log probabilities (n, 25, 3) and how many saw (n, 25)."""

    logs: Array
    count: Array

    @classmethod
    def of(cls, members: Members, picks: tuple[int, ...], rows: Rows) -> Sum:
        """The sum of picks, each as often as it was picked."""
        total = cls(np.zeros((len(rows), 25, 3)), np.zeros((len(rows), 25)))
        for member in picks:
            total = total.plus(members, member, rows)
        return total

    def plus(self, members: Members, member: int, rows: Rows) -> Sum:
        """The same with one more pick."""
        return Sum(self.logs + members.log_probs[member, rows], self.count + members.seen[member, rows])

    @property
    def mean(self) -> Array:
        """(n, 25, 3) the pooled log probabilities, 0 where no member saw."""
        return self.logs / np.maximum(self.count, 1.0)[..., None]


def fit_scales(total: Sum, labels: NDArray[Any], start: Array | None = None) -> Array:
    """(3,) by group: the factor on the pooled log probabilities with the least weighted log loss.

    Without it a member of noise would seem to help wherever the others are surer than they are right: it would soften
    them. Newton's method; the loss is convex in the factor.
    """
    scales = np.ones(3) if start is None else start.copy()
    weight = np.where(total.count > 0, CLASS_WEIGHTS[labels], 0.0)
    groups, mean = group_of_column(), total.mean
    for group in range(3):
        columns = groups == group
        w = weight[:, columns].ravel()
        x, y = mean[:, columns].reshape(-1, 3)[w > 0], labels[:, columns].ravel()[w > 0].astype(np.int64)
        if len(y):
            scales[group] = _newton(x, y, w[w > 0], float(scales[group]))
    return scales


def _newton(x: Array, y: NDArray[np.int64], w: Array, scale: float) -> float:
    true = x[np.arange(len(y)), y]
    for _ in range(_NEWTON_STEPS):
        p = np.exp(scale * (x - x.max(axis=1, keepdims=True)))
        p /= p.sum(axis=1, keepdims=True)
        mean = (p * x).sum(axis=1)
        slope = float((w * (mean - true)).sum())
        curve = float((w * ((p * x * x).sum(axis=1) - mean**2)).sum())
        if curve <= 1e-12:
            break
        # a step of at most a factor of three keeps far starts stable
        new = float(np.clip(scale - slope / curve, max(scale / 3, _SCALES[0]), min(scale * 3, _SCALES[1])))
        if abs(new - scale) < 1e-4 * scale:
            return new
        scale = new
    return scale


def answer(total: Sum, scales: Array, prior: Array) -> Array:
    """Probabilities (n, 25, 3) of a pool; what no member saw gets its prior (n, 25, 3)."""
    scaled = total.mean * scales[group_of_column()][:, None]
    scaled -= scaled.max(axis=-1, keepdims=True)
    probs = np.exp(scaled)
    probs /= probs.sum(axis=-1, keepdims=True)
    return np.where(total.count[..., None] > 0, probs, prior)


def score(labels: NDArray[Any], probs: Array) -> float:
    """The competition's metric; a term that no label speaks of is left out of the mean."""
    sums, weights = (part.sum(axis=0) for part in study_sums(labels, probs))
    has = weights > 0
    return float((sums[has] / weights[has]).mean()) if has.any() else float("nan")
