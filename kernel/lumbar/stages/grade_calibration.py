"""Grades made as sure as they are right: a temperature and a pull towards the prior for each group of conditions.

Networks are surer than they are right on images that look unlike those that they learnt from. A bundle may hold two
numbers for each of the metric's groups of conditions, fitted on studies that its weights have not seen: a run's own
out-of-fold answers (``lumbar_train.evaluation.grade_calibration``), or phantoms of other appearances
(``benchmarks/calibrate_grades.py``). Without them the aggregator's answer stands.

Temperature scaling is that of Guo et al. 2017, "On calibration of modern neural networks", applied to the log of the
answer; the mixture with the prior bounds what a single wrong answer can cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lumbar.labels import GROUPS, LEVELS

Numbers = Mapping[str, Sequence[float]]
_LEAST = 1e-12


def columns_of(group: str) -> list[int]:
    """The places in ``labels.COLUMNS`` of one of ``labels.GROUPS``."""
    return [condition * len(LEVELS) + level for condition in GROUPS[group] for level in range(len(LEVELS))]


def softened(
    probs: NDArray[np.float64], prior: NDArray[np.float64], temperature: float, prior_share: float
) -> NDArray[np.float64]:
    """Answers (..., 3) at a temperature, mixed with the prior (..., 3).

    Args:
        probs: rows sum to 1.
        prior: likewise.
        temperature: divides the log of the answers; above 1 they become less sure.
        prior_share: of the prior in the result, 0..1.
    """
    logs = np.log(np.maximum(probs, _LEAST)) / temperature
    tempered = np.exp(logs - logs.max(axis=-1, keepdims=True))
    tempered /= tempered.sum(axis=-1, keepdims=True)
    return np.asarray((1.0 - prior_share) * tempered + prior_share * prior)


def calibrated(
    probs: NDArray[np.float64], prior: NDArray[np.float64], is_seen: NDArray[np.bool_], numbers: Numbers
) -> NDArray[np.float64]:
    """The aggregator's answers (..., 25, 3) with a bundle's calibration.

    Args:
        probs: rows sum to 1.
        prior: (25, 3), or one for each answer.
        is_seen: (..., 25), whether a classifier saw the column; where none did the answer is the prior, and stays it.
        numbers: temperature and share of the prior of each of ``labels.GROUPS``; empty for no calibration.
    """
    if not numbers:
        return probs
    out = probs.copy()
    prior = np.broadcast_to(prior, probs.shape)
    for group, (temperature, prior_share) in numbers.items():
        columns = columns_of(group)
        out[..., columns, :] = softened(probs[..., columns, :], prior[..., columns, :], temperature, prior_share)
    return np.where(is_seen[..., None], out, probs)


def calibration_words(numbers: Numbers) -> str:
    """What a bundle's calibration does, as a report says it; empty without one."""
    parts = []
    for group in GROUPS:
        temperature, prior_share = numbers.get(group, (1.0, 0.0))
        if (temperature, prior_share) == (1.0, 0.0):
            parts.append(f"{group} as predicted")
        else:
            parts.append(f"{group} at temperature {temperature:.2f} with {100 * prior_share:.0f} % of the prior")
    return f"calibrated: {', '.join(parts)}" if numbers else ""
