"""Where members agree: the correlation of their errors, and the studies on which they differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lumbar_train.evaluation.pool import Array, Members
from lumbar_train.evaluation.scoring import column_sums

_LEAST_TARGETS = 10  # fewer common targets say nothing of a correlation
_N_STUDIES, _N_COLUMNS = 6, 3  # that are shown, and of each study


def error_correlation(members: Members) -> Array:
    """(M, M) Pearson correlation of the weighted losses of two members over the targets that both saw; NaN: too few.

    Low values mean that two members err on different targets, so that together they are worth more.
    """
    n = len(members.names)
    known = members.labels >= 0
    losses = np.stack([column_sums(members.labels, np.exp(own))[0] for own in members.log_probs])
    out = np.full((n, n), np.nan)
    for a in range(n):
        for b in range(n):
            both = known & (members.seen[a] > 0) & (members.seen[b] > 0)
            x, y = losses[a][both], losses[b][both]
            if len(x) >= _LEAST_TARGETS and x.std() > 0 and y.std() > 0:
                out[a, b] = float(np.corrcoef(x, y)[0, 1])
    return out


@dataclass(frozen=True)
class Disagreement:
    """A study on which members differ: how far on average, and the columns where they differ most.

    ``columns`` holds (column, lowest and highest mean grade of a member in 0..2, the true class or -1).
    """

    row: int
    spread: float
    columns: tuple[tuple[int, float, float, int], ...]


def most_different(members: Members, kept: Sequence[int]) -> list[Disagreement]:
    """The studies with the largest mean spread of the members' mean grades over the targets that two or more saw."""
    probs = np.exp(members.log_probs[list(kept)])
    grade = np.where(members.seen[list(kept)] > 0, probs[..., 1] + 2 * probs[..., 2], np.nan)
    several = (members.seen[list(kept)] > 0).sum(axis=0) >= 2
    high = np.max(np.nan_to_num(grade, nan=-np.inf), axis=0)
    low = np.min(np.nan_to_num(grade, nan=np.inf), axis=0)
    spread = np.where(several, high - low, 0.0)
    count = several.sum(axis=1)
    mean = spread.sum(axis=1) / np.maximum(count, 1)
    out = []
    for row in np.argsort(-mean, kind="stable")[:_N_STUDIES]:
        if mean[row] <= 0:
            break
        columns = [int(c) for c in np.argsort(-spread[row], kind="stable")[:_N_COLUMNS] if several[row, c]]
        said = tuple((c, float(low[row, c]), float(high[row, c]), int(members.labels[row, c])) for c in columns)
        out.append(Disagreement(int(row), float(mean[row]), said))
    return out
