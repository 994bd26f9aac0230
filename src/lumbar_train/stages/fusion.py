"""Fusion: a small head on the features of frozen classifiers, whose logits join the aggregator's input where they help.

What it learns from, and why (``docs/training.md``, "Fusion"): features of two fits lie in spaces of their own, so a
head that learnt from one fit's features says nothing about another's. The head of a fold therefore reads the
classifiers of that fold, on the studies that they were fitted on, newly displaced and mirrored; it is scored on the
studies that they held out. The head that ships does the same with the fits on all data, so that what is scored is
what ships.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lumbar.config import FUSION
from lumbar_train.evaluation.pool import Members, Sum, answer, fit_scales
from lumbar_train.evaluation.scoring import Interval, difference, scores
from lumbar_train.files import read_object, write_text

DECISION = "decision.json"  # in the stage's folder: whether the aggregator joins the fusion, and what it gains

Probs = NDArray[np.float64]


@dataclass(frozen=True)
class FusionRecipe:
    """How a fusion head is fitted.

    Attributes:
        hidden: units of each part of the head.
        dropout: of features and hidden units.
        views: how often each training study is shown, displaced and mirrored anew; the features of all are kept in
            memory while the head is fitted.
        epochs: over all views.
        lr: of AdamW, with a cosine.
        weight_decay: of AdamW.
        batch: studies of a step.
    """

    hidden: int = 16
    dropout: float = 0.5
    views: int = 4
    epochs: int = 20
    lr: float = 1e-3
    weight_decay: float = 0.1
    batch: int = 16


@dataclass(frozen=True)
class Decision:
    """Whether the fusion is kept, and why.

    Attributes:
        is_kept: the whole interval of the gain lies below zero.
        before: metric of the pool of the classifiers, out of fold.
        after: of the pool with the fusion.
        gain: after minus before by term of the metric, paired; negative is better.
        studies: how many.
    """

    is_kept: bool
    before: Interval
    after: Interval
    gain: Mapping[str, Interval]
    studies: int

    @property
    def line(self) -> str:
        """The decision in one line."""
        total = self.gain["total"]
        said = "kept" if self.is_kept else "left out, since the interval does not lie below zero"
        return (
            f"fusion {said}: out of fold the pool of the classifiers scores {self.before.value:.4f}, with it "
            f"{self.after.value:.4f}, {total.value:+.4f} (95 %: {total.low:+.4f} to {total.high:+.4f}), "
            f"{self.studies} studies"
        )

    def as_json(self) -> dict[str, Any]:
        """What is noted in the run folder and in the manifest."""
        return {
            "kept": self.is_kept,
            "line": self.line,
            "studies": self.studies,
            "without": self.before.as_list(),
            "with": self.after.as_list(),
            "gain": {term: value.as_list() for term, value in self.gain.items()},
        }


def decide(
    logits: NDArray[np.float32],
    mask: NDArray[np.bool_],
    labels: NDArray[Any],
    folds: NDArray[np.int64],
    prior: Probs,
) -> Decision:
    """Compare the pool of the classifiers with and without the fusion, out of fold and in pairs.

    Each pool is sharpened or softened by factors that are fitted on the other folds: else a fusion that is merely less
    sure than the classifiers would seem to help.

    Args:
        logits: (N, M, 5 conditions, 5 levels, 3) out of fold; the fusion is the last of the M.
        mask: (N, M, 5, 5) which of them rest on images.
        labels: (N, 25), -1 missing.
        folds: (N,) that held each study out.
        prior: (N, 25, 3) of the other folds, for what no classifier saw.
    """
    before = pooled(logits[:, :-1], mask[:, :-1], labels, folds, prior)
    after = pooled(logits, mask, labels, folds, prior)
    gain = difference(labels, before, after)
    is_kept = bool(gain["total"].high < 0)
    return Decision(is_kept, scores(labels, before)["total"], scores(labels, after)["total"], gain, len(labels))


def pooled(
    logits: NDArray[np.float32],
    mask: NDArray[np.bool_],
    labels: NDArray[Any],
    folds: NDArray[np.int64],
    prior: Probs,
) -> Probs:
    """Probabilities (N, 25, 3) of the mean of the classifiers that saw a target, scaled by group as other folds ask."""
    picks = tuple(range(logits.shape[1]))
    members = Members(tuple(map(str, picks)), logits, mask, labels, folds, prior, np.zeros(len(picks)))
    out = np.empty(prior.shape)
    for fold in np.unique(folds):
        others, own = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        scales = fit_scales(Sum.of(members, picks, others), labels[others])
        out[own] = answer(Sum.of(members, picks, own), scales, prior[own])
    return out


def write_decision(run: Path, decision: Decision) -> None:
    """Leave it in the stage's folder."""
    write_text(run / FUSION / DECISION, json.dumps(decision.as_json(), indent=1) + "\n")


def read_decision(run: Path) -> dict[str, Any]:
    """What ``write_decision`` left; empty where nothing was decided."""
    return read_object(run / FUSION / DECISION)
